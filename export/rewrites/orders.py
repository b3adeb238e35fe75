"""From lanes to scans in token order: the common work of flips.py, routes.py, directions.py."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mambapose.export.rewrites.columns import Columns, Table
from mambapose.export.rewrites.emission import arranged, known_rows, rows
from mambapose.export.rewrites.graph import (
    SCAN,
    Array,
    Builder,
    added,
    constant,
    described,
    replace,
    sides,
    stored,
)
from mambapose.export.rewrites.lanes import (
    ROWS,
    WEIGHTS,
    End,
    Lane,
    alike,
    ends_of,
    exits_of,
    given_inputs,
    lane_count,
    lanes_of,
    positions,
    sizes_of,
)
from mambapose.export.rewrites.movement import is_picking
from mambapose.export.rewrites.tokens import unsettled
from mambapose.plugins.scan_node import INPUTS

MOST_WAYS = 64
FREE_COUNTS = (2, 3)  # sizes at which a free batch is looked at; what is found has to agree


@dataclass(frozen=True)
class Found:
    """Lanes of one or several scans, and where their results (or, if summed, their sum) go.

    ends: the value; for each of its elements in one batch element the position in (L, C) rows; and
    the columns of those rows, none when they are the rows of the scan itself.
    """

    table: Table
    lanes: list[Lane]
    channels: int
    summed: bool
    ends: list[tuple[ir.Value, Array, Columns]]


def look(nodes: Sequence[ir.Node], *, summed: bool) -> Found | None:
    """The scans' lanes, if everything is proven and a lane is out of token order; else None."""
    graph = nodes[0].graph
    assert isinstance(graph, ir.Graph)
    if not alike(nodes):
        return None
    region = unsettled(graph)
    free = isinstance(sizes_of(nodes[0], 2)[0].batch, str)
    counts = FREE_COUNTS if free else FREE_COUNTS[:1]
    ways: dict[int, int] = {}
    first = _look(nodes, region, counts[0], {}, ways, summed=summed)
    # A value with as many channels as tokens can be read in two ways; only one fits the scan.
    for choice in itertools.islice(itertools.product(*map(range, ways.values())), 1, MOST_WAYS):
        if first is not None:
            break
        preferred = dict(zip(ways, choice, strict=True))
        first = _look(nodes, region, counts[0], preferred, {}, summed=summed)
    if first is None or not _spares(graph, first):
        return None
    others = [
        _look(nodes, region, count, first.table.preferred, {}, summed=summed)
        for count in counts[1:]
    ]
    return first if all(_agree(first, other) for other in others) else None


def _spares(graph: ir.Graph, found: Found) -> bool:
    """Whether the rewrite would leave a node that reorders or copies tokens without a reader."""
    ends = {value for value, *_ in found.ends}
    dead: set[ir.Node] = set()
    for node in reversed(list(graph)):
        if all(
            value in ends
            or not (value.is_graph_output() or any(use.node not in dead for use in value.uses()))
            for value in node.outputs
        ):
            dead.add(node)
            if is_picking(node):
                return True
    return False


def _agree(one: Found, other: Found | None) -> bool:
    return other is not None and (
        all(
            (a.order == b.order).all() and a.parts == b.parts
            for a, b in zip(one.lanes, other.lanes, strict=True)
        )
        and len(one.ends) == len(other.ends)
        and all(
            a[0] is b[0] and a[1].shape == b[1].shape and (a[1] == b[1]).all() and a[2] == b[2]
            for a, b in zip(one.ends, other.ends, strict=True)
        )
    )


def _look(
    nodes: Sequence[ir.Node],
    region: dict[ir.Node, int],
    count: int,
    preferred: dict[int, int],
    ways: dict[int, int],
    *,
    summed: bool,
) -> Found | None:
    """The lanes under one reading of the axes.

    ways: receives the values whose axes can be read in several ways, with the number of ways.
    """
    sizes, length, channels = sizes_of(nodes[0], count)
    table = Table(sizes, length, preferred, ways=ways)
    lanes: list[Lane] = []
    for node in nodes:
        found = lanes_of(table, node, region)
        if found is None:
            return None
        lanes.extend(found)
    if all(lane.is_ahead for lane in lanes):
        return None
    if any(lane.parts.get("z") != lanes[0].parts.get("z") for lane in lanes):
        return None  # a node has one gate for all of its directions
    if not summed:
        exits = exits_of(lanes, table, region)
        return None if exits is None else Found(table, lanes, channels, summed, exits)
    ends = ends_of(lanes, table, channels)
    if ends is None or len(ends) != 1:
        return None
    where = _where(ends[0], table, channels, len(lanes))
    if where is None:
        return None
    return Found(table, lanes, channels, summed, [(ends[0].value, where, ())])


def _where(end: End, table: Table, channels: int, lanes: int) -> Array | None:
    """Position of each element in (L, D) rows; None unless each is the sum of all lanes."""
    if len(end.terms) != lanes:
        return None
    column, place = end.terms // table.stride, end.terms % table.stride
    lane, channel = column // channels, column % channels
    wanted = np.arange(lanes).reshape(-1, *[1] * (lane.ndim - 1))
    if (np.sort(lane, 0) != wanted).any():
        return None
    if (place != place[:1]).any() or (channel != channel[:1]).any():
        return None
    return positions(table, place[0] + table.stride * channel[0], channels)


def apply(found: Found) -> None:
    """Replaces the lanes' nodes by scans in token order."""
    graph = found.lanes[0].node.graph
    assert isinstance(graph, ir.Graph)
    build = Builder(graph)
    nodes = _nodes(found)
    orders = _orders(nodes)
    made = [_scan(build, found, lanes, *order) for lanes, order in zip(nodes, orders, strict=True)]
    result = made[0]
    for other in made[1:]:
        result = added(build, "Add", [result, other], sides(result) or (), result.dtype)
    if not found.summed:  # what stands for the rows of the scan in the table's sources
        known_rows(build, found.lanes[0].node.outputs[0], result)
    for value, where, columns in found.ends:
        whole = result if found.summed else rows(build, found.table, columns)
        new = arranged(build, whole, where, sides(value) or ())
        assert new is not None  # `_look` saw to it
        replace(build, value, new)


def _nodes(found: Found) -> list[list[Lane]]:
    """The lanes of each new node: lanes that read the same u together, if that saves a copy."""
    if not found.summed:
        return [found.lanes]
    by_u: dict[object, list[Lane]] = {}
    for lane in found.lanes:
        by_u.setdefault(lane.parts["u"], []).append(lane)
    shared = all(len(lanes) > 1 for lanes in by_u.values())
    return list(by_u.values()) if shared else [found.lanes]


def _scan(
    build: Builder,
    found: Found,
    lanes: Sequence[Lane],
    order: Array | None,
    reverse: Sequence[int],
) -> ir.Value:
    """y (N, L, D) of one node, or (N, L, K*D) where the directions stay apart."""
    table, node = found.table, lanes[0].node
    given = given_inputs(node)
    inputs: dict[str, ir.Value | None] = {}
    for name in given:
        if name in lanes[0].parts:
            parts = [lane.parts[name] for lane in lanes]
            once = name == "z" or (name == "u" and len(set(parts)) == 1)
            columns = parts[0] if once else tuple(column for part in parts for column in part)
            inputs[name] = rows(build, table, columns)
        elif name in (*WEIGHTS, *ROWS):
            inputs[name] = _weights(build, lanes, name)
    if order is not None:
        inputs["order"] = stored(build, order)
    attributes = {
        **node.attributes,
        "directions": len(lanes),
        "groups": 1,
        "reverse": reverse,
        "merge": "sum" if found.summed and len(lanes) > 1 else "none",
    }
    last = max(at for at, name in enumerate(INPUTS) if inputs.get(name) is not None)
    scan = ir.node(
        SCAN[1], [inputs.get(name) for name in INPUTS[: last + 1]], attributes,
        domain=SCAN[0], num_outputs=2,
    )  # fmt: skip
    build.graph.append(scan)
    width = found.channels * (1 if found.summed else len(lanes))
    kind, batch = given["u"].dtype, table.sizes.batch
    described(build, scan.outputs[0], (batch, table.length, width), kind)
    states = (sides(given["A"]) or (0, 0))[1]
    whole = found.channels * len(lanes)
    described(build, scan.outputs[1], (batch, whole, states), ir.DataType.FLOAT)
    return scan.outputs[0]


def _orders(nodes: Sequence[Sequence[Lane]]) -> list[tuple[Array | None, list[int]]]:
    """Order input and reverse flags of each node, of one form for all nodes.

    A node that needs no order gets the identity when its neighbour needs one, because some readers
    do not tell function bodies apart: the file then has one signature (docs/decisions/0003).
    """
    found = [_order(lanes) for lanes in nodes]
    rows = [order.ndim for order, _ in found if order is not None]
    if not rows:
        return found
    tokens = np.arange(len(nodes[0][0].order), dtype=np.int32)
    filled: list[tuple[Array | None, list[int]]] = []
    for (order, reverse), lanes in zip(found, nodes, strict=True):
        order = tokens if order is None else order
        if max(rows) == 2:
            order = np.broadcast_to(order, (len(lanes), len(tokens)))
        filled.append((order, reverse))
    return filled


def _order(lanes: Sequence[Lane]) -> tuple[Array | None, list[int]]:
    """The order input, if one is needed, and the reverse flags."""
    tokens = np.arange(len(lanes[0].order))
    bases: list[Array] = []
    reverse = []
    for lane in lanes:
        back = lane.order[::-1]
        known = [base for base in (tokens, *bases) if (base == back).all()]
        is_back = bool(known) and not lane.is_ahead
        reverse.append(int(is_back))
        bases.append(known[0] if is_back else lane.order)
    if all((base == tokens).all() for base in bases):
        return None, reverse
    same = all((base == bases[0]).all() for base in bases)
    order = bases[0] if same else np.stack(bases)
    return order.astype(np.int32), reverse


def _weights(build: Builder, lanes: Sequence[Lane], name: str) -> ir.Value:
    """The lanes' parts of a constant input (K*D, ...), joined."""
    nodes = list(dict.fromkeys(lane.node for lane in lanes))
    if [(lane.node, lane.number) for lane in lanes] == [
        (node, number) for node in nodes for number in range(lane_count(node))
    ]:
        wholes = [given_inputs(node)[name] for node in nodes]
        if len(wholes) == 1:
            return wholes[0]
    numbers, parts = [], []
    for lane in lanes:
        whole = given_inputs(lane.node)[name]
        size = int((sides(whole) or (0,))[0]) // lane_count(lane.node)
        ends = (lane.number * size, (lane.number + 1) * size)
        array = constant(whole)
        if array is not None:
            numbers.append(array[slice(*ends)])
        parts.append((whole, ends))
    if len(numbers) == len(lanes):
        return stored(build, np.concatenate(numbers))
    pieces = [_piece(build, *part) for part in parts]
    total = sum(int((sides(piece) or (0,))[0]) for piece in pieces)
    rest = (sides(pieces[0]) or ())[1:]
    return added(build, "Concat", pieces, (total, *rest), pieces[0].dtype, {"axis": 0})


def _piece(build: Builder, whole: ir.Value, ends: tuple[int, int]) -> ir.Value:
    """A range of rows of a weight."""
    shape = sides(whole) or ()
    if ends == (0, shape[0]):
        return whole
    places = [stored(build, np.array([end], np.int64)) for end in (*ends, 0)]
    return added(build, "Slice", [whole, *places], (ends[1] - ends[0], *shape[1:]), whole.dtype)
