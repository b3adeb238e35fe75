"""Columns of `tokens` as nodes: rows (N, L, C) of exactly the columns that are wanted.

Columns are selected where that is cheapest: in a matrix product by leaving out columns of its
matrix, in a pointwise operator by wanting fewer columns of its operands. So the parts that a scan
reads come from products of their own, and nothing is split or joined that a product can write in
place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mambapose.export.rewrites.columns import (
    Columns,
    Given,
    Linear,
    Pointwise,
    RowSource,
    Stencil,
    Table,
)
from mambapose.export.rewrites.graph import Array, Builder, Side, added, ints, sides, stored

MOST_SLICES = 4  # of one value, to be joined; beyond that an index picks the columns
NARROW = 64  # inputs of a product that may be mostly zeros, to spare a node that joins


def rows(build: Builder, table: Table, columns: Columns) -> ir.Value:
    """The (N, L, C) value of these columns; its nodes are made only once."""
    key = ("rows", columns)
    if key not in build.memo:
        build.memo[key] = _rows(build, table, columns)
    return build.memo[key]


def _rows(build: Builder, table: Table, columns: Columns) -> ir.Value:
    sources = [table.sources[table.place[column][0]] for column in columns]
    if all(isinstance(source, Linear) for source in sources):
        joined = list(dict.fromkeys(i for s in sources for i in s.inputs))  # type: ignore[union-attr]
        alike = all(source.inputs == sources[0].inputs for source in sources)  # type: ignore[union-attr]
        if alike or len(joined) <= NARROW:
            return _product(build, table, columns, joined)
    runs = _runs(table, columns, sources)
    if len(runs) > 1:
        parts = [rows(build, table, tuple(run)) for run in runs]
        shape = (table.sizes.batch, table.length, len(columns))
        return added(build, "Concat", parts, shape, parts[0].dtype, {"axis": 2})
    picks = np.array([table.place[column][1] for column in columns])
    return _part(build, table, sources[0], picks)


def _runs(table: Table, columns: Columns, sources: Sequence[RowSource]) -> list[list[int]]:
    """The columns grouped by source; those of one value as slices, if a few slices are enough."""
    by_source: list[list[int]] = []
    slices: list[list[int]] = []
    for at, column in enumerate(columns):
        alike = at > 0 and sources[at] is sources[at - 1]
        if not alike:
            by_source.append([])
        if not (alike and (not isinstance(sources[at], Given) or column == columns[at - 1] + 1)):
            slices.append([])
        by_source[-1].append(column)
        slices[-1].append(column)
    return slices if len(slices) <= MOST_SLICES * len(by_source) else by_source


def _part(build: Builder, table: Table, source: RowSource, picks: Array) -> ir.Value:
    shape = (table.sizes.batch, table.length, len(picks))
    if isinstance(source, Given):
        return _given(build, table, source, picks)
    if isinstance(source, Stencil):
        return _stencil(build, table, source, picks)
    assert isinstance(source, Pointwise)
    inputs = []
    for operand in source.operands:
        if isinstance(operand, tuple):
            inputs.append(rows(build, table, tuple(operand[pick] for pick in picks)))
        else:
            same = (operand[picks] == operand[picks[0]]).all()
            inputs.append(stored(build, operand[picks[0]] if same else operand[picks]))
    kind = source.node.outputs[0].dtype
    return added(build, source.node.op_type, inputs, shape, kind, source.node.attributes)


def _given(build: Builder, table: Table, source: Given, picks: Array) -> ir.Value:
    """Rows of a value; a run of its columns is cut out before anything is turned."""
    run = bool((picks == np.arange(picks[0], picks[0] + len(picks))).all())
    width = math.prod(source.shape[axis - 1] for axis in source.others)
    whole = run and len(picks) == width
    key = ("given", source.value, source.tokens)
    if run and not whole and len(source.others) == 1 and key not in build.memo:
        source = _cut(build, source, int(picks[0]), int(picks[-1]) + 1)
        whole = True
    key = ("given", source.value, source.tokens)
    if key not in build.memo:
        shape = (table.sizes.batch, table.length, math.prod(source.shape) // table.length)
        found = arranged(build, source.value, source.where(), shape)
        assert found is not None  # an order of axes is always one
        build.memo[key] = found
    value = build.memo[key]
    if whole:
        return value
    shape = (table.sizes.batch, table.length, len(picks))
    index = stored(build, picks.astype(np.int64))
    return added(build, "Gather", [value, index], shape, value.dtype, {"axis": 2})


def known_rows(build: Builder, value: ir.Value, made: ir.Value) -> None:
    """Record that ``made`` already holds the rows (N, L, C) of a value, in token order."""
    build.memo["given", value, (1,)] = made


def _cut(build: Builder, source: Given, start: int, end: int) -> Given:
    """The source with only these of its columns, which are one axis of its value."""
    (axis,) = source.others
    shape = tuple(
        end - start if at == axis else side for at, side in enumerate(source.shape, start=1)
    )
    key = ("cut", source.value, axis, start, end)
    if key not in build.memo:
        places = [stored(build, np.array([place], np.int64)) for place in (start, end, axis)]
        batch = (sides(source.value) or ())[0]
        build.memo[key] = added(
            build, "Slice", [source.value, *places], (batch, *shape), source.value.dtype
        )
    return Given(build.memo[key], source.tokens, shape)


def _product(build: Builder, table: Table, columns: Columns, joined: list[int]) -> ir.Value:
    """One matrix product of columns of one or several Linear sources."""
    row = {column: at for at, column in enumerate(joined)}
    first = table.sources[table.place[columns[0]][0]]
    assert isinstance(first, Linear)
    weight = np.zeros((len(joined), len(columns)), first.weight.dtype)
    bias = np.zeros(len(columns), first.weight.dtype)
    for at, column in enumerate(columns):
        number, pick = table.place[column]
        source = table.sources[number]
        assert isinstance(source, Linear)
        np.add.at(weight[:, at], [row[item] for item in source.inputs], source.weight[:, pick])
        if source.bias is not None:
            bias[at] = source.bias[pick]
    shape = (table.sizes.batch, table.length, len(columns))
    inputs = rows(build, table, tuple(joined))
    out = added(build, "MatMul", [inputs, stored(build, weight)], shape, inputs.dtype)
    return added(build, "Add", [out, stored(build, bias)], shape, out.dtype) if bias.any() else out


def _stencil(build: Builder, table: Table, source: Stencil, picks: Array) -> ir.Value:
    inputs = rows(build, table, tuple(source.inputs[pick] for pick in picks))
    batch, length, width = table.sizes.batch, table.length, len(picks)
    turned = _turned(build, inputs, (batch, width, length))
    operands = [turned, stored(build, np.ascontiguousarray(source.taps[picks][:, None]))]
    if source.bias is not None:
        operands.append(stored(build, source.bias[picks]))
    taps = source.taps.shape[1]
    options = {"group": width, "pads": source.pads, "kernel_shape": [taps]}
    out = added(build, "Conv", operands, (batch, width, length), inputs.dtype, options)
    return _turned(build, out, (batch, length, width))


def _turned(build: Builder, value: ir.Value, shape: Sequence[Side]) -> ir.Value:
    """(N, C, L) from (N, L, C) and back; turning twice gives the first value again."""
    node = value.producer()
    if node is not None and node.op_type == "Transpose" and ints(node, "perm") == (0, 2, 1):
        assert node.inputs[0] is not None
        return node.inputs[0]
    key = ("turned", value)
    if key not in build.memo:
        build.memo[key] = added(
            build, "Transpose", [value], shape, value.dtype, {"perm": [0, 2, 1]}
        )
    return build.memo[key]


Digits = list[tuple[int, int]]  # size and stride, the slowest first


def digits(where: Array) -> Digits | None:
    """Sizes and strides of the positions, as those of a view of contiguous memory.

    None where the positions are not just a change of axes of the whole memory.
    """
    left, found = where.reshape(-1), []
    if left.size == 0 or left[0] != 0 or np.bincount(left, minlength=left.size).max() > 1:
        return None
    while left.size > 1:
        stride = int(left[1])
        breaks = np.flatnonzero(left != np.arange(left.size) * stride)
        size = int(breaks[0]) if breaks.size else left.size
        if left.size % size:
            return None
        found.append((size, stride))
        left = left[::size]
    found.reverse()
    expected = 1
    for size, stride in sorted(found, key=lambda digit: digit[1]):
        if stride != expected:
            return None
        expected *= size
    total = np.zeros((1,), np.int64)
    for size, stride in found:
        total = (total[:, None] + np.arange(size) * stride).reshape(-1)
    return found if (total == where.reshape(-1)).all() else None


def arranged(
    build: Builder, value: ir.Value, where: Array, shape: Sequence[Side]
) -> ir.Value | None:
    """The value's elements in another order and shape, by at most Reshape, Transpose, Reshape.

    where: position of each element in one batch element; shape: with the batch side, first or
    merged into another. None, and nothing is made, when permuting axes is not enough.
    """
    steps = _steps(value, where, shape)
    if steps is None:
        return None
    if steps.perm:
        value = _reshaped(build, value, steps.split)
        options = {"perm": steps.perm}
        value = added(build, "Transpose", [value], steps.turned, value.dtype, options)
    return _reshaped(build, value, shape)


def arranging(value: ir.Value, where: Array, shape: Sequence[Side]) -> int | None:
    """The number of nodes `arranged` would add, or None where it cannot."""
    steps = _steps(value, where, shape)
    return None if steps is None else steps.count(sides(value) or (), shape)


@dataclass(frozen=True)
class Steps:
    """Shape before the axes are permuted, the permutation (None: not permuted), shape after it."""

    split: tuple[Side, ...]
    perm: tuple[int, ...]
    turned: tuple[Side, ...]

    def count(self, source: Sequence[Side], target: Sequence[Side]) -> int:
        if not self.perm:
            return int(tuple(source) != tuple(target))
        return int(self.split != tuple(source)) + 1 + int(self.turned != tuple(target))


def _steps(value: ir.Value, where: Array, shape: Sequence[Side]) -> Steps | None:
    """The way with the fewest nodes, from three: on the axes as they are, through the axes that are
    wanted, or on the digits.
    """
    found, full = digits(where), sides(value)
    if found is None or full is None:
        return None
    order = sorted(range(len(found)), key=lambda at: -found[at][1])
    if order == list(range(len(found))):
        return Steps(full, (), full)
    sizes = [size for size, _ in found]
    ways: list[Steps] = []
    blocks = _blocks(full[1:], [sizes[at] for at in order])
    if blocks is not None:
        perm = [0, *(1 + axis for at in range(len(found)) for axis in blocks[order.index(at)])]
        ways.append(Steps(full, tuple(perm), tuple(full[axis] for axis in perm)))
    blocks = _blocks(shape[1:], sizes) if shape[0] == full[0] else None
    if blocks is not None:
        perm = [0, *(1 + axis for at in order for axis in blocks[at])]
        back = tuple(perm.index(axis) for axis in range(len(perm)))
        ways.append(Steps(tuple(shape[axis] for axis in perm), back, tuple(shape)))
    split = (full[0], *(sizes[at] for at in order))
    perm = [0, *(1 + order.index(at) for at in range(len(found)))]
    ways.append(Steps(split, tuple(perm), tuple(split[axis] for axis in perm)))
    return min(ways, key=lambda way: way.count(full, shape))


def _blocks(axes: Sequence[Side], sizes: Sequence[int]) -> list[list[int]] | None:
    """Which successive axes make up each of the sizes; None where they do not."""
    found: list[list[int]] = [[] for _ in sizes]
    at, product = 0, 1
    for axis, side in enumerate(axes):
        if isinstance(side, str):
            return None
        if product == sizes[at] and side > 1:
            at, product = at + 1, 1
        if at == len(sizes) or sizes[at] % (product * side):
            return None
        product *= side
        found[at].append(axis)
    return found if at == len(sizes) - 1 and product == sizes[-1] else None


def _reshaped(build: Builder, value: ir.Value, shape: Sequence[Side]) -> ir.Value:
    if sides(value) == tuple(shape):
        return value
    target = np.array([side if isinstance(side, int) else -1 for side in shape], np.int64)
    return added(build, "Reshape", [value, stored(build, target)], shape, value.dtype)
