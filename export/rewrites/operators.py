"""Operators that work on each token alone: from the labels of their inputs to new columns.

Every rule returns None where the operator, as this node uses it, does mix tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from mambapose.export.rewrites.columns import Linear, Pointwise, Stencil, Table, new_columns
from mambapose.export.rewrites.graph import Array, ints, text
from mambapose.export.rewrites.movement import NOWHERE

Operands = Sequence[Any]  # arrays: labels of what is computed, numbers of what is constant
MOST_COLUMNS = 1 << 16
UNARY = ("Sigmoid", "Tanh", "Relu", "Softplus", "Exp", "Neg", "Abs", "Sqrt", "Erf", "Gelu", "Cast")
BINARY = ("Add", "Sub", "Mul", "Div", "Pow")


def _unary(table: Table, node: ir.Node, operands: Operands, fixed: Sequence[bool]) -> Array | None:
    olds, which = np.unique(operands[0] // table.stride, return_inverse=True)
    source = Pointwise(node, (tuple(olds.tolist()),))
    new = new_columns(table, source, len(olds))
    out: Array = new[which.reshape(operands[0].shape)] * table.stride
    out += operands[0] % table.stride
    return out


def _binary(table: Table, node: ir.Node, operands: Operands, fixed: Sequence[bool]) -> Array | None:
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
    out: Array = new[which.reshape(left.shape)] * table.stride + places[0]
    return out


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
    out: Array = np.stack(made)[kind] * table.stride + place[:, None]
    return out


def _matmul(table: Table, node: ir.Node, operands: Operands, fixed: Sequence[bool]) -> Array | None:
    data, weight = operands[0], operands[1]
    if fixed != [False, True] or weight.ndim != 2:
        return None
    rows = data.reshape(-1, data.shape[-1])
    found = _linear(table, rows, weight[None], np.zeros(len(rows), int), None)
    return None if found is None else found.reshape(*data.shape[:-1], -1)


def _gemm(table: Table, node: ir.Node, operands: Operands, fixed: Sequence[bool]) -> Array | None:
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


def _einsum(table: Table, node: ir.Node, operands: Operands, fixed: Sequence[bool]) -> Array | None:
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
    found = found.reshape([size[letter] for letter in (*kept, *fresh)])
    turned: Array = found.transpose([[*kept, *fresh].index(letter) for letter in out])
    return turned


def _conv(table: Table, node: ir.Node, operands: Operands, fixed: Sequence[bool]) -> Array | None:
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


Rule = Callable[[Table, ir.Node, Operands, Sequence[bool]], Array | None]
COMPUTE: dict[str, Rule] = {
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(BINARY, _binary),
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Conv": _conv,
}
