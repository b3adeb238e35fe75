"""Nodes that only move elements, followed element by element.

``moved`` runs such a node on an array in place of its tensor. On an array of labels the result
says where each element comes from, whatever chain of nodes moved it: views, flips, stacked
routes, routes written by index. The free side of a batch is run at a small size; a node that picks
along a free side is refused, so that what is found at that size holds at any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mambapose.export.rewrites.graph import Array, constant, ints, sides, text

NOWHERE = -1  # label of an element that is a constant
LIMIT = 1 << 26  # labels in one array; more are refused


@dataclass(frozen=True)
class Sizes:
    """The batch side as the graph states it, and the number of batch elements in the labels."""

    batch: int | str
    count: int


def concrete(value: ir.Value | None, sizes: Sizes) -> tuple[int, ...] | None:
    """The shape with a number for the free batch side; None when another side is free."""
    found = sides(value)
    if found is None or any(isinstance(side, str) and side != sizes.batch for side in found):
        return None
    shape = tuple(side if isinstance(side, int) else sizes.count for side in found)
    return None if math.prod(shape) > LIMIT else shape


def known(value: ir.Value | None, sizes: Sizes) -> Array | None:
    """The numbers of a constant, or of whole numbers computed from constants and shapes."""
    found = constant(value)
    if found is not None or value is None or (node := value.producer()) is None:
        return found
    if node.op_type == "Shape":
        shape = concrete(node.inputs[0], sizes)
        part = slice(ints(node, "start", (0,))[0], ints(node, "end", (1 << 31,))[0])
        return None if shape is None else np.array(shape, np.int64)[part]
    if node.op_type == "Range":
        given = [known(end, sizes) for end in node.inputs]
        ends = [int(end) for end in given if end is not None]
        return np.arange(*ends) if len(ends) == len(given) else None
    whole = (None, ir.DataType.INT64, ir.DataType.INT32)
    if value.dtype not in whole or not is_movement(node):
        return None
    arrays = [known(item, sizes) if at in data_inputs(node) else None
              for at, item in enumerate(node.inputs)]  # fmt: skip
    if any(arrays[at] is None for at in data_inputs(node)):
        return None
    made = moved(node, arrays, sizes)
    return None if made is None else made[value.index() or 0]


def data_inputs(node: ir.Node) -> tuple[int, ...]:
    """The positions of the inputs whose elements are moved; the other inputs say where to."""
    if node.op_type == "Concat":
        return tuple(range(len(node.inputs)))
    return (0, 2) if node.op_type.startswith("Scatter") else (0,)


def is_movement(node: ir.Node | None) -> bool:
    return node is not None and node.domain == "" and node.op_type in RULES


def moved(node: ir.Node, arrays: Sequence[Array | None], sizes: Sizes) -> tuple[Array, ...] | None:
    """The node's outputs for these arrays; None where they cannot be known."""
    try:
        return RULES[node.op_type](node, arrays, sizes)
    except (ValueError, IndexError, TypeError, AttributeError):
        return None  # shapes or indices that do not fit: not ours to explain


def is_flip(node: ir.Node) -> bool:
    """Whether the node turns an axis around, by a slice with a negative step or by an index."""
    if node.domain or node.op_type not in ("Slice", "Gather"):
        return False
    if node.op_type == "Slice":
        steps = constant(node.inputs[4]) if len(node.inputs) > 4 else None
        return steps is not None and bool((steps < 0).any())
    index = constant(node.inputs[1])
    if index is None or index.ndim != 1 or index.size < 2:
        return False
    return bool((index == np.arange(len(index))[::-1]).all())


def is_picking(node: ir.Node) -> bool:
    """Whether the node reorders or copies, beyond a change of axes."""
    if node.op_type == "Slice":
        return is_flip(node)
    if node.op_type == "Gather":
        index = constant(node.inputs[1])
        return index is not None and index.size > 1
    if node.op_type == "Concat":
        origins = [origin(value) for value in node.inputs if value is not None]
        return len({id(value) for value in origins}) < len(origins)
    return node.op_type in ("GatherND", "ScatterElements", "ScatterND")


def origin(value: ir.Value) -> ir.Value:
    """The value from which the elements of this one come, followed through movements.

    Where a movement has several inputs, the first is followed.
    """
    node = value.producer()
    while node is not None and is_movement(node) and (first := node.inputs[0]) is not None:
        value, node = first, first.producer()
    return value


def _fixed(node: ir.Node, axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """The axes counted from the front. ValueError where one of them is a free side.

    A list of sizes has one axis, whose length the graph need not state.
    """
    shape = sides(node.inputs[0])
    if shape is None and rank > 1:
        raise ValueError("unknown shape")
    found = tuple(axis % rank for axis in axes)
    if shape is not None and any(isinstance(shape[axis], str) for axis in found):
        raise ValueError("a free side is picked from")
    return found


def _numbers(node: ir.Node, at: int, sizes: Sizes) -> Array:
    """The numbers of an input that says where to. ValueError where they are not known."""
    found = known(node.inputs[at], sizes) if at < len(node.inputs) else None
    if found is None:
        raise ValueError("an unknown place")
    return found


def _first(arrays: Sequence[Array | None]) -> Array:
    assert arrays[0] is not None
    return arrays[0]


def _identity(node: ir.Node, arrays: Sequence[Array | None], sizes: Sizes) -> tuple[Array, ...]:
    return (_first(arrays),)


def _transpose(node: ir.Node, arrays: Sequence[Array | None], sizes: Sizes) -> tuple[Array, ...]:
    data = _first(arrays)
    return (data.transpose(ints(node, "perm", range(data.ndim)[::-1])),)


def _reshape(node: ir.Node, arrays: Sequence[Array | None], sizes: Sizes) -> tuple[Array, ...]:
    data = _first(arrays)
    wanted = known(node.inputs[1], sizes) if node.op_type == "Reshape" else None
    if wanted is None:
        return (data.reshape(concrete(node.outputs[0], sizes)),)
    keeps = ints(node, "allowzero", (0,)) == (0,)
    shape = [data.shape[at] if side == 0 and keeps else int(side) for at, side in enumerate(wanted)]
    return (data.reshape(shape),)


def _unsqueeze(node: ir.Node, arrays: Sequence[Array | None], sizes: Sizes) -> tuple[Array, ...]:
    axes = _numbers(node, 1, sizes)
    return (np.expand_dims(_first(arrays), tuple(axes.reshape(-1).tolist())),)


def _squeeze(node: ir.Node, arrays: Sequence[Array | None], sizes: Sizes) -> tuple[Array, ...]:
    axes = _numbers(node, 1, sizes)
    return (np.squeeze(_first(arrays), tuple(axes.reshape(-1).tolist())),)


def _expand(node: ir.Node, arrays: Sequence[Array | None], sizes: Sizes) -> tuple[Array, ...]:
    data, shape = _first(arrays), _numbers(node, 1, sizes)
    return (np.broadcast_to(data, np.broadcast_shapes(data.shape, tuple(shape.tolist()))),)


def _slice(node: ir.Node, arrays: Sequence[Array | None], sizes: Sizes) -> tuple[Array, ...]:
    data = _first(arrays)
    starts, ends = _numbers(node, 1, sizes).tolist(), _numbers(node, 2, sizes).tolist()
    count = len(node.inputs)
    axes = _numbers(node, 3, sizes).tolist() if count > 3 else range(len(starts))
    steps = _numbers(node, 4, sizes).tolist() if count > 4 else [1] * len(starts)
    axes = _fixed(node, axes, data.ndim)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        size = data.shape[axis]
        low, high = (0, size) if step > 0 else (-1, size - 1)
        begin = min(max(start + size if start < 0 else start, 0), high)
        stop = min(max(end + size if end < 0 else end, low), high)
        data = data.take(np.arange(begin, stop, step), axis)
    return (data,)


def _split(node: ir.Node, arrays: Sequence[Array | None], sizes: Sizes) -> tuple[Array, ...]:
    data = _first(arrays)
    (axis,) = _fixed(node, ints(node, "axis", (0,)), data.ndim)
    widths = [(sides(value) or ())[axis] for value in node.outputs]
    if any(isinstance(width, str) for width in widths) or sum(map(int, widths)) != data.shape[axis]:
        raise ValueError("parts of a split")
    return tuple(np.split(data, np.cumsum(widths)[:-1], axis))


def _gather(node: ir.Node, arrays: Sequence[Array | None], sizes: Sizes) -> tuple[Array, ...]:
    data, index = _first(arrays), _numbers(node, 1, sizes)
    (axis,) = _fixed(node, ints(node, "axis", (0,)), data.ndim)
    return (data.take(index, axis),)


def _gather_nd(node: ir.Node, arrays: Sequence[Array | None], sizes: Sizes) -> tuple[Array, ...]:
    data, index = _first(arrays), _numbers(node, 1, sizes)
    if ints(node, "batch_dims", (0,)) != (0,):
        raise ValueError("batch_dims")
    _fixed(node, range(index.shape[-1]), data.ndim)
    return (data[tuple(np.moveaxis(index, -1, 0))],)


def _concat(node: ir.Node, arrays: Sequence[Array | None], sizes: Sizes) -> tuple[Array, ...]:
    parts = [part for part in arrays if part is not None]
    (axis,) = _fixed(node, ints(node, "axis"), parts[0].ndim)
    return (np.concatenate(parts, axis),)


def _scatter_elements(
    node: ir.Node, arrays: Sequence[Array | None], sizes: Sizes
) -> tuple[Array, ...]:
    out, index, new = _first(arrays).copy(), _numbers(node, 1, sizes), arrays[2]
    if _reduction(node) or new is None or index.shape != new.shape:
        raise ValueError("a scatter that adds")
    (axis,) = _fixed(node, ints(node, "axis", (0,)), out.ndim)
    if any(a != b for at, (a, b) in enumerate(zip(index.shape, out.shape, strict=True))
           if at != axis):  # fmt: skip
        raise ValueError("a scatter into a part")
    np.put_along_axis(out, index, new, axis)
    return (out,)


def _scatter_nd(node: ir.Node, arrays: Sequence[Array | None], sizes: Sizes) -> tuple[Array, ...]:
    out, index, new = _first(arrays).copy(), _numbers(node, 1, sizes), arrays[2]
    if _reduction(node) or new is None:
        raise ValueError("a scatter that adds")
    _fixed(node, range(index.shape[-1]), out.ndim)
    out[tuple(np.moveaxis(index, -1, 0))] = new
    return (out,)


def _reduction(node: ir.Node) -> bool:
    return text(node, "reduction", "none") != "none"


Rule = Callable[[ir.Node, Sequence[Array | None], Sizes], tuple[Array, ...]]
RULES: dict[str, Rule] = {
    "Identity": _identity,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Concat": _concat,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
}
