"""What a scan reads and where its result goes: its directions, in token order.

A *lane* is one direction of a scan: D channels that visit the tokens in one order. Before the
rewrites a scan node has one direction and G groups, and code that scans several routes packs them
as groups; each group is taken as a lane of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mambapose.export.rewrites.columns import Columns, Given, Table, new_columns
from mambapose.export.rewrites.emission import digits
from mambapose.export.rewrites.graph import Array, ints, is_scan, sides, text
from mambapose.export.rewrites.movement import (
    NOWHERE,
    Sizes,
    concrete,
    data_inputs,
    is_movement,
    moved,
)
from mambapose.export.rewrites.operators import COMPUTE
from mambapose.export.rewrites.tokens import DEPTH, labels
from mambapose.plugins.scan_node import INPUTS

ROWS = ("u", "dt", "B", "C", "z")
WEIGHTS = ("A", "D", "dt_bias")


@dataclass(frozen=True)
class Lane:
    """One direction of a scan node.

    number: its place among the lanes of the node; order: (L) the token at each step; parts: the
    columns of u, dt, B, C, z in token order. The weights are read from the node.
    """

    node: ir.Node
    number: int
    order: Array
    parts: dict[str, Columns]

    @property
    def is_ahead(self) -> bool:
        return bool((self.order == np.arange(len(self.order))).all())


def given_inputs(node: ir.Node) -> dict[str, ir.Value]:
    """The inputs that a scan node has, by the operator's names for them."""
    pairs = zip(INPUTS, node.inputs, strict=False)
    return {name: value for name, value in pairs if value is not None and value.name}


def is_plain(node: ir.Node) -> bool:
    """Whether the scan is one as public code makes it.

    It runs forward in one direction from a zero state, in token order, and nobody reads its last
    state.
    """
    given = given_inputs(node)
    shape = sides(given.get("u"))
    last = node.outputs[1] if len(node.outputs) > 1 else None
    return (
        is_scan(node)
        and ints(node, "directions", (1,)) == (1,)
        and ints(node, "reverse", (0,)) == (0,)
        and ints(node, "segment", (0,)) == (0,)
        and not {"order", "initial_state"} & set(given)
        and shape is not None
        and len(shape) == 3
        and isinstance(shape[1], int)
        and isinstance(shape[2], int)
        and (last is None or not (last.uses() or last.is_graph_output()))
    )


def lane_count(node: ir.Node) -> int:
    return ints(node, "groups", (1,))[0]


def sizes_of(node: ir.Node, count: int) -> tuple[Sizes, int, int]:
    """The batch, the number of tokens, and the channels of one lane.

    count: how many batch elements to use when the batch is a free side.
    """
    batch, length, width = sides(given_inputs(node)["u"])  # type: ignore[misc]
    whole = batch if isinstance(batch, int) else count
    return Sizes(batch, whole), int(length), int(width) // lane_count(node)


def lanes_of(table: Table, node: ir.Node, region: dict[ir.Node, int]) -> list[Lane] | None:
    """The node's lanes, or None unless each is proven to visit every token once."""
    count, given = lane_count(node), given_inputs(node)
    orders: list[Array | None] = [None] * count
    parts: list[dict[str, Columns]] = [{} for _ in range(count)]
    for name in ROWS:
        if name not in given or len(sides(given[name]) or ()) == 2:
            continue
        found = labels(table, given[name], region)
        if found is None or found.ndim != 3 or (found == NOWHERE).any():
            return None
        for number, block in enumerate(np.split(found, count, axis=2)):
            steps = block[0, :, 0] % table.length
            columns = block[0, 0] // table.stride
            batches = np.arange(table.sizes.count)[:, None, None] * table.length
            same = (block == columns * table.stride + batches + steps[:, None]).all()
            known = orders[number]
            if not same or not (known is None or (known == steps).all()):
                return None
            orders[number] = steps
            parts[number][name] = tuple(columns.tolist())
    tokens = np.arange(table.length)
    if any(order is None or (np.sort(order) != tokens).any() for order in orders):
        return None
    return [
        Lane(node, number, order, part)
        for number, (order, part) in enumerate(zip(orders, parts, strict=True))
        if order is not None
    ]


@dataclass(frozen=True)
class End:
    """A value that other nodes read. terms: (T, ...) labels whose sum is the value."""

    value: ir.Value
    terms: Array


def exits_of(
    lanes: Sequence[Lane], table: Table, region: dict[ir.Node, int]
) -> list[tuple[ir.Value, Array, Columns]] | None:
    """The values at which the result of the lanes' node is back in token order, on every way.

    The nodes in between move it or work on each token alone; they are made again in token order.
    Returns the value, the position of each element in (L, C) rows, and the columns of the rows.
    None where one of the ways never gets back to token order.
    """
    y = lanes[0].node.outputs[0]
    shape = concrete(y, table.sizes)
    if shape is None:
        return None
    columns = new_columns(table, Given(y, (1,), shape[1:]), shape[2])
    orders = np.repeat([lane.order for lane in lanes], shape[2] // len(lanes), axis=0)  # (K*D, L)
    batches = np.arange(shape[0])[:, None, None] * table.length
    table.seen[id(y), False] = columns * table.stride + batches + orders.T
    table.seen[id(y), True] = table.seen[id(y), False]
    waiting, passed, exits = [y], {y}, []
    behind = dict(region)
    while waiting:
        value = waiting.pop(0)
        found = labels(table, value, behind)
        if found is None or table.given.get(id(value)) is not None or (found == NOWHERE).any():
            return None
        table.seen[id(value), True] = found
        used = np.unique(found // table.stride)
        where = positions(table, _renumbered(table, found, used), len(used))
        if where is not None and value is not y:
            exits.append((value, where, tuple(used.tolist())))
            continue
        if value.is_graph_output() or len(passed) > DEPTH:
            return None
        for node in dict.fromkeys(use.node for use in value.uses()):
            if not (is_movement(node) or (node.op_type in COMPUTE and not node.domain)):
                return None
            behind[node] = 1
            waiting.extend(
                out
                for out in node.outputs
                if out not in passed and (out.uses() or out.is_graph_output())
            )
            passed.update(node.outputs)
    return exits or None


def _renumbered(table: Table, found: Array, used: Array) -> Array:
    """The labels with their columns renumbered from 0, in the order of the old numbers."""
    renumbered: Array = np.searchsorted(used, found // table.stride) * table.stride
    renumbered += found % table.stride
    return renumbered


def positions(table: Table, found: Array, width: int) -> Array | None:
    """For each labelled element of one batch element its position in (L, width) rows.

    None where batch elements differ, or where permuting axes is not enough to get there.
    """
    column, place = found // table.stride, found % table.stride
    where: Array = (place % table.length * width + column).reshape(table.sizes.count, -1)
    batch = (place // table.length).reshape(table.sizes.count, -1)
    if (batch != np.arange(table.sizes.count)[:, None]).any() or (where != where[:1]).any():
        return None
    first: Array = where[0]
    return first if first.size == table.length * width and digits(first) is not None else None


def ends_of(lanes: Sequence[Lane], table: Table, channels: int) -> list[End] | None:
    """The values at which results of the lanes' nodes leave the nodes that only move and add them.

    The labels are those of (lane, channel) columns at the token each step belongs to. None where a
    value contains something else as well.
    """
    terms: dict[int, Array] = {}
    values: dict[int, ir.Value] = {}
    for node in dict.fromkeys(lane.node for lane in lanes):
        blocks = []
        for number, lane in enumerate(lanes):
            if lane.node is node:
                columns = number * channels + np.arange(channels)
                batches = np.arange(table.sizes.count)[:, None, None] * table.length
                blocks.append(columns * table.stride + batches + lane.order[:, None])
        value = node.outputs[0]
        terms[id(value)] = np.concatenate(blocks, 2)[None]
        values[id(value)] = value
    graph = lanes[0].node.graph
    assert isinstance(graph, ir.Graph)
    passed: set[ir.Node] = set()
    for node in graph:
        inputs = [terms.get(id(item)) if item is not None else None for item in node.inputs]
        if all(item is None for item in inputs) or is_scan(node):
            continue
        found = _through(node, inputs, table.sizes)
        if found is not None:
            passed.add(node)
            for value, item in zip(node.outputs, found, strict=True):
                terms[id(value)], values[id(value)] = item, value
    ends = [
        End(value, terms[number])
        for number, value in values.items()
        if value.is_graph_output() or any(use.node not in passed for use in value.uses())
    ]
    return None if any((end.terms == NOWHERE).any() for end in ends) else ends


def _through(node: ir.Node, inputs: Sequence[Array | None], sizes: Sizes) -> list[Array] | None:
    """The terms of the outputs of a node that moves or adds terms; None for other nodes."""
    if node.domain:
        return None
    if node.op_type == "Add":
        one, two = inputs
        if one is None or two is None or one.shape[1:] != two.shape[1:]:
            return None
        return [np.concatenate([one, two])]
    if not is_movement(node) or any(inputs[at] is None for at in data_inputs(node)):
        return None
    if any(item is not None and at not in data_inputs(node) for at, item in enumerate(inputs)):
        return None
    if len(data_inputs(node)) > 1 and len({len(item) for item in inputs if item is not None}) > 1:
        return None
    count = max(len(item) for item in inputs if item is not None)
    made = [
        moved(node, [None if item is None else item[term] for item in inputs], sizes)
        for term in range(count)
    ]
    if any(outputs is None for outputs in made):
        return None
    return [np.stack(outputs) for outputs in zip(*made, strict=True)]


def summed_with(node: ir.Node) -> list[ir.Node]:
    """The plain scans whose results are added to that of this one, and itself, in graph order."""
    found, waiting, seen = {node}, [node.outputs[0]], set()
    while waiting:
        value = waiting.pop()
        for use in value.uses():
            if use.node in seen or not (is_movement(use.node) or use.node.op_type == "Add"):
                continue
            seen.add(use.node)
            if use.node.op_type == "Add":
                above = [_scans_behind(item) for item in use.node.inputs]
                if not all(above):
                    continue
                found.update(*above)  # type: ignore[arg-type]
            waiting.extend(use.node.outputs)
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    return [other for other in graph if other in found]


def _scans_behind(value: ir.Value | None) -> set[ir.Node] | None:
    """The plain scans whose results, moved and added, make up a value; None for other values."""
    node = None if value is None else value.producer()
    if node is None:
        return None
    if is_scan(node):
        return {node} if is_plain(node) else None
    if node.op_type != "Add" and not is_movement(node):
        return None
    inputs = node.inputs if node.op_type == "Add" else [node.inputs[at] for at in data_inputs(node)]
    found: set[ir.Node] = set()
    for item in inputs:
        behind = _scans_behind(item)
        if behind is None:
            return None
        found |= behind
    return found


def alike(nodes: Sequence[ir.Node]) -> bool:
    """Whether the scans can be directions of one node: same sizes, options and optional inputs."""

    def form(node: ir.Node) -> object:
        given = given_inputs(node)
        sizes, length, channels = sizes_of(node, 2)
        states = (sides(given["A"]) or (0, None))[1]
        ranks = tuple(len(sides(given[name]) or ()) for name in ("B", "C"))
        kinds = tuple(value.dtype for value in given.values())
        options = (ints(node, "delta_softplus", (1,)), text(node, "gate", "silu"))
        return sizes, length, channels, states, ranks, tuple(given), kinds, options

    return len({form(node) for node in nodes}) == 1
