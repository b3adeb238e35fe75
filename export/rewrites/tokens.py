"""What stands where in front of a scan: every element as (batch, token, column).

A *source* is a tensor of rows (N, L, C) in token order that could be computed; a *column* is one of
its C. Labels are arrays of the shape of a value of the graph; they say which column of which token
each element is. Nodes that move elements move labels. Nodes that work on each token alone
(pointwise operators, matrix products over channels) give labels of new columns, made of the old
ones. A depthwise convolution along the tokens does so where they lie in token order or backwards.
That is the equality every rewrite here stands on: f(P x) = P f(x) for a permutation P of tokens and
an f that works on each of them alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from mambapose.export.rewrites.graph import Array, constant, ints, is_scan, sides, text
from mambapose.export.rewrites.movement import (
    NOWHERE,
    Sizes,
    concrete,
    data_inputs,
    is_movement,
    is_picking,
    known,
    moved,
)

Columns = tuple[int, ...]
DEPTH = 48  # nodes between a picking node and the scan; more would reach into other layers
MOST_COLUMNS = 1 << 16
UNARY = ("Sigmoid", "Tanh", "Relu", "Softplus", "Exp", "Neg", "Abs", "Sqrt", "Erf", "Gelu", "Cast")
BINARY = ("Add", "Sub", "Mul", "Div", "Pow")


@dataclass(frozen=True)
class Given:
    """A value of the graph. where: (L, C) position of each element in one batch element."""

    value: ir.Value
    where: Array


@dataclass(frozen=True)
class Pointwise:
    """A node's operator on columns, and on one number per column where an operand is constant."""

    node: ir.Node
    operands: tuple[Columns | Array, ...]


@dataclass(frozen=True)
class Linear:
    """inputs @ weight (I, C) + bias (C)."""

    inputs: Columns
    weight: Array
    bias: Array | None


@dataclass(frozen=True)
class Stencil:
    """Depthwise convolution along the tokens: taps (C, T), zeros before and after."""

    inputs: Columns
    taps: Array
    bias: Array | None
    pads: tuple[int, int]


Source = Given | Pointwise | Linear | Stencil


@dataclass(frozen=True)
class Table:
    """Sources and their columns, numbered as they are found. place: source and column of each."""

    sizes: Sizes
    length: int
    preference: int  # which of the ways to read a value's axes as tokens comes first
    sources: list[Source] = field(default_factory=list)
    place: list[tuple[int, int]] = field(default_factory=list)
    seen: dict[tuple[int, bool], Array | None] = field(default_factory=dict)
    given: dict[int, Array | None] = field(default_factory=dict)

    @property
    def stride(self) -> int:
        return self.sizes.count * self.length


def new_columns(table: Table, source: Source, width: int) -> Array:
    """The numbers of the new source's columns."""
    first = len(table.place)
    table.place.extend((len(table.sources), column) for column in range(width))
    table.sources.append(source)
    return np.arange(first, first + width)


def unsettled(graph: ir.Graph) -> dict[ir.Node, int]:
    """Nodes that hold reordered or copied tokens, with their distance to where that was done."""
    found: dict[ir.Node, int] = {}
    for node in graph:
        above = [
            found.get(producer, 0)
            for value in node.inputs
            if value is not None and (producer := value.producer()) is not None
        ]
        far = max(above, default=0)
        if is_movement(node):
            depth = 1 if is_picking(node) else far
        else:
            depth = far + 1 if far and node.op_type in COMPUTE and node.domain == "" else 0
        if 0 < depth <= DEPTH and not is_scan(node):
            found[node] = depth
    return found


def labels(
    table: Table, value: ir.Value, region: dict[ir.Node, int], above: bool = False
) -> Array | None:
    """The labels of the value's elements, or None where its axes cannot be read as tokens.

    region: of `unsettled`; above: whether a picking node lies between the value and the scan, after
    which only movements are followed.
    """
    key = (id(value), above)
    if key not in table.seen:
        table.seen[key] = _labels(table, value, region, above)
    return table.seen[key]


def _labels(table: Table, value: ir.Value, region: dict[ir.Node, int], above: bool) -> Array | None:
    node = value.producer()
    if constant(value) is not None:
        shape = concrete(value, table.sizes)
        return None if shape is None else np.full(shape, NOWHERE)
    if node is not None and node.op_type == "ConstantOfShape":
        wanted = known(node.inputs[0], table.sizes)
        return None if wanted is None else np.full(tuple(wanted.tolist()), NOWHERE)
    found: Array | None = None
    if is_movement(node):
        assert node is not None
        above = above or is_picking(node)
        arrays = [
            labels(table, item, region, above) if item is not None and at in data_inputs(node)
            else None for at, item in enumerate(node.inputs)
        ]  # fmt: skip
        if all(arrays[at] is not None for at in data_inputs(node)):
            outputs = moved(node, arrays, table.sizes)
            found = None if outputs is None else outputs[value.index() or 0]
    elif node in region and not above:
        assert node is not None
        found = _computed(table, node, region)
    if found is not None:
        return found
    if id(value) not in table.given:
        table.given[id(value)] = _given(table, value)
    return table.given[id(value)]


def _given(table: Table, value: ir.Value) -> Array | None:
    """Labels of a value that is taken as it is: some of its axes are the tokens, in order."""
    shape = sides(value)
    full = concrete(value, table.sizes)
    if shape is None or full is None or shape[0] != table.sizes.batch:
        return None
    axes = range(1, len(full))
    ways = [
        chosen
        for count in range(1, len(full))
        for chosen in itertools.combinations(axes, count)
        if math.prod(full[axis] for axis in chosen) == table.length
        and all(full[axis] > 1 for axis in chosen)
    ]
    ways = ways or [(axis,) for axis in axes if table.length == 1 and full[axis] == 1]
    if not ways:
        return None
    ways.sort(reverse=True)  # channels first, then the tokens
    tokens = ways[min(table.preference, len(ways) - 1)]
    others = tuple(axis for axis in axes if axis not in tokens)
    inner = np.arange(math.prod(full[1:])).reshape(full[1:])
    where = inner.transpose([axis - 1 for axis in (*tokens, *others)]).reshape(table.length, -1)
    columns = new_columns(table, Given(value, where), where.shape[1])
    rows = columns * table.stride + np.arange(table.length)[:, None]
    flat = np.empty(inner.size, np.int64)
    flat[where.reshape(-1)] = rows.reshape(-1)
    batches = np.arange(table.sizes.count).reshape(-1, *[1] * (len(full) - 1))
    return flat.reshape(full[1:]) + batches * table.length


def _computed(table: Table, node: ir.Node, region: dict[ir.Node, int]) -> Array | None:
    """Labels of a node's output: columns of a new source."""
    operands = []
    for item in node.inputs:
        numbers = constant(item)
        operands.append(
            numbers if item is None or numbers is not None else labels(table, item, region)
        )
        moving = item is not None and numbers is None
        if moving and (operands[-1] is None or (operands[-1] < 0).any()):
            return None
    fixed = [item is None or constant(item) is not None for item in node.inputs]
    try:
        return COMPUTE[node.op_type](table, node, operands, fixed)
    except (ValueError, IndexError):
        return None  # shapes that do not fit the rule: the value is taken as it is


def _unary(table: Table, node: ir.Node, operands: list, fixed: list[bool]) -> Array | None:
    olds, which = np.unique(operands[0] // table.stride, return_inverse=True)
    source = Pointwise(node, (tuple(olds.tolist()),))
    new = new_columns(table, source, len(olds))
    return new[which.reshape(operands[0].shape)] * table.stride + operands[0] % table.stride


def _binary(table: Table, node: ir.Node, operands: list, fixed: list[bool]) -> Array | None:
    left, right = np.broadcast_arrays(*operands)
    places = [side % table.stride for side, is_fixed in zip((left, right), fixed, strict=True)
              if not is_fixed]  # fmt: skip
    if not places or any((places[0] != other).any() for other in places[1:]):
        return None  # two tokens meet
    keys = [
        np.unique(side if is_fixed else side // table.stride, return_inverse=True)
        for side, is_fixed in zip((left, right), fixed, strict=True)
    ]
    if any(len(values) > MOST_COLUMNS for values, _ in keys):
        return None
    pairs = keys[0][1].astype(np.int64) * len(keys[1][0]) + keys[1][1]
    chosen, which = np.unique(pairs, return_inverse=True)
    if len(chosen) > MOST_COLUMNS:
        return None
    picks = (keys[0][0][chosen // len(keys[1][0])], keys[1][0][chosen % len(keys[1][0])])
    found = tuple(
        pick if is_fixed else tuple(pick.tolist())
        for pick, is_fixed in zip(picks, fixed, strict=True)
    )
    new = new_columns(table, Pointwise(node, found), len(chosen))
    return new[which.reshape(left.shape)] * table.stride + places[0]


def _linear(
    table: Table, rows: Array, weights: Array, which: Array, bias: Array | None
) -> Array | None:
    """(R, C) labels of rows (R, I) times weights[which[r]] (W, I, C), plus bias (W, C)."""
    place = rows[:, 0] % table.stride
    columns = rows // table.stride
    if (rows % table.stride != place[:, None]).any():
        return None  # the sum would run over several tokens
    mixed = np.random.default_rng(0).integers(1, 1 << 40, rows.shape[1])
    _, first, kind = np.unique(
        columns @ mixed * len(weights) + which, return_index=True, return_inverse=True
    )
    kind = kind.reshape(-1)
    if (columns != columns[first][kind]).any() or (which != which[first][kind]).any():
        return None
    made = []
    for row in first:
        number = which[row]
        source = Linear(
            tuple(columns[row].tolist()), weights[number], None if bias is None else bias[number]
        )
        made.append(new_columns(table, source, weights.shape[2]))
    return np.stack(made)[kind] * table.stride + place[:, None]


def _matmul(table: Table, node: ir.Node, operands: list, fixed: list[bool]) -> Array | None:
    data, weight = operands[0], operands[1]
    if fixed != [False, True] or weight.ndim != 2:
        return None
    rows = data.reshape(-1, data.shape[-1])
    found = _linear(table, rows, weight[None], np.zeros(len(rows), int), None)
    return None if found is None else found.reshape(*data.shape[:-1], -1)


def _gemm(table: Table, node: ir.Node, operands: list, fixed: list[bool]) -> Array | None:
    scales = [node.attributes.get(name) for name in ("alpha", "beta")]
    if any(scale is not None and float(scale.value) != 1 for scale in scales):
        return None
    if fixed[0] or not all(fixed[1:]) or ints(node, "transA", (0,)) != (0,):
        return None
    weight = operands[1].T if ints(node, "transB", (0,)) != (0,) else operands[1]
    bias = None
    if len(operands) > 2 and operands[2] is not None:
        bias = np.broadcast_to(operands[2], (1, weight.shape[1]))
    rows = operands[0]
    return _linear(table, rows, weight[None], np.zeros(len(rows), int), bias)


def _einsum(table: Table, node: ir.Node, operands: list, fixed: list[bool]) -> Array | None:
    """One contracted letter, the second operand constant: a matrix for every shared letter."""
    equation = text(node, "equation").replace(" ", "")
    if fixed != [False, True] or "->" not in equation or "." in equation:
        return None
    (one, two), out = equation.split("->")[0].split(","), equation.split("->")[1]
    inner = [letter for letter in one if letter in two and letter not in out]
    shared = [letter for letter in one if letter in two and letter in out]
    kept = [letter for letter in one if letter not in inner]
    fresh = [letter for letter in two if letter not in one]
    unusual = len(inner) != 1 or len({*one}) < len(one) or len({*two}) < len(two)
    if unusual or {*out} != {*kept, *fresh} or len(out) != len(kept) + len(fresh):
        return None
    size = {**dict(zip(one, operands[0].shape, strict=True)),
            **dict(zip(two, operands[1].shape, strict=True))}  # fmt: skip
    data = np.einsum(f"{one}->{''.join([*kept, *inner])}", operands[0])
    order = [*shared, *inner, *fresh]
    weights = operands[1].transpose([two.index(letter) for letter in order])
    weights = weights.reshape(-1, size[inner[0]], math.prod(size[f] for f in fresh))
    numbers = np.arange(len(weights)).reshape([size[letter] for letter in shared])
    spread = [size[letter] if letter in shared else 1 for letter in kept]
    by_kept = numbers.transpose([shared.index(k) for k in kept if k in shared]).reshape(spread)
    which = np.broadcast_to(by_kept, data.shape[:-1]).reshape(-1)
    found = _linear(table, data.reshape(-1, data.shape[-1]), weights, which, None)
    if found is None:
        return None
    full = found.reshape([size[letter] for letter in (*kept, *fresh)])
    return full.transpose([[*kept, *fresh].index(letter) for letter in out])


def _conv(table: Table, node: ir.Node, operands: list, fixed: list[bool]) -> Array | None:
    data, weight = operands[0], operands[1]
    if fixed[0] or not all(fixed[1:]) or text(node, "auto_pad", "NOTSET") != "NOTSET":
        return None
    spatial = data.ndim - 2
    usual = all(side == 1 for name in ("strides", "dilations") for side in ints(node, name))
    if not usual:
        return None
    groups = ints(node, "group", (1,))[0]
    bias = operands[2] if len(operands) > 2 else None
    pads = ints(node, "pads", (0,) * (2 * spatial))
    if all(side == 1 for side in weight.shape[2:]) and not any(pads):
        return _point_conv(table, data, weight, groups, bias)
    if spatial == 1 and groups == len(weight) == data.shape[1] and weight.shape[1] == 1:
        return _stencil(table, data, weight[:, 0], bias, pads)
    return None


def _point_conv(
    table: Table, data: Array, weight: Array, groups: int, bias: Array | None
) -> Array | None:
    """A convolution that sees one token: a matrix for every group."""
    rows = np.moveaxis(data, 1, -1)  # (N, ..., groups * I)
    lead = rows.shape[:-1]
    grouped = rows.reshape(-1, rows.shape[-1] // groups)
    weights = weight.reshape(groups, len(weight) // groups, -1).transpose(0, 2, 1)
    which = np.tile(np.arange(groups), len(grouped) // groups)
    biases = None if bias is None else bias.reshape(groups, -1)
    found = _linear(table, grouped, weights, which, biases)
    return None if found is None else np.moveaxis(found.reshape(*lead, -1), -1, 1)


def _stencil(
    table: Table, data: Array, taps: Array, bias: Array | None, pads: tuple[int, ...]
) -> Array | None:
    """(P conv P) x is the convolution with taps and padding reversed, for the flip P.

    Outputs past the last token, which code that pads on both sides cuts off, have no label.
    """
    place, columns = data % table.stride, data // table.stride
    length = table.length
    steps = place[0, 0] % length
    ahead = bool((steps == np.arange(length)).all())
    back = bool((steps == np.arange(length)[::-1]).all())
    batches = np.arange(len(data))[:, None, None] * length
    usual = data.shape[2] == length and (place == steps + batches).all()
    if not (usual and (ahead or back) and (columns == columns[0, :, :1]).all()):
        return None
    extra = sum(pads) - taps.shape[1] + 1
    before, after = pads[0], pads[1] - extra  # those that make (N, C, L)
    if extra < 0 or after < 0:
        return None
    source = Stencil(
        tuple(columns[0, :, 0].tolist()),
        taps if ahead else taps[:, ::-1],
        bias,
        (before, after) if ahead else (after, before),
    )
    new = new_columns(table, source, len(taps))
    out = np.full((*data.shape[:2], length + extra), NOWHERE)
    out[..., :length] = new[:, None] * table.stride + place
    return out


Rule = Callable[[Table, ir.Node, list, list[bool]], Array | None]
COMPUTE: dict[str, Rule] = {
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(BINARY, _binary),
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Conv": _conv,
}
