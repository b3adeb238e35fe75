"""What each element in front of a scan is: a (batch, token, column) for every element.

A *source* is a tensor of rows (N, L, C) in token order that could be computed; a *column* is one of
its C. Labels are arrays of the shape of a value of the graph; they say which column of which token
each element is. Nodes that move elements move labels. Nodes that work on each token alone
(pointwise operators, matrix products over channels) give labels of new columns, which are computed
from the old ones. So does a depthwise convolution along the tokens, where they lie in token order
or backwards. The equality behind every rewrite here is f(P x) = P f(x), for a permutation P of
tokens and an f that works on each of them alone.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnx_ir as ir

from mambapose.export.rewrites.columns import Given, Table, new_columns
from mambapose.export.rewrites.graph import Array, constant, is_scan, sides
from mambapose.export.rewrites.movement import (
    NOWHERE,
    concrete,
    data_inputs,
    is_movement,
    is_picking,
    known,
    moved,
)
from mambapose.export.rewrites.operators import COMPUTE

DEPTH = 48  # nodes between a picking node and the scan; more would reach into other layers


def unsettled(graph: ir.Graph) -> dict[ir.Node, int]:
    """Nodes that hold reordered or copied tokens, with their distance to the node that did it."""
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

    region: the result of `unsettled`; above: whether a node that reorders or copies lies between
    the value and the scan, in which case only movements are followed further.
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
    """The labels of a value that is used as a source itself: some of its axes are the tokens."""
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
    if len(ways) > 1:
        table.ways[id(value)] = len(ways)
    tokens = ways[table.preferred.get(id(value), 0)]
    source = Given(value, tokens, full[1:])
    where = source.where()
    columns = new_columns(table, source, where.shape[1])
    rows = columns * table.stride + np.arange(table.length)[:, None]
    flat = np.empty(where.size, np.int64)
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
