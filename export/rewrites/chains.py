"""Chains of nodes that only rearrange axes become the shortest chain that does the same.

The equality is checked element by element: labels sent through the chain arrive where those sent
through the new nodes do. Chains that copy, drop or truly reorder elements are left alone.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mambapose.export.rewrites.emission import arranged, arranging
from mambapose.export.rewrites.graph import Array, Builder, replace, sides, tidy
from mambapose.export.rewrites.movement import Sizes, concrete, data_inputs, is_movement, moved


def shorten_chains(model: ir.Model) -> int:
    """Rewrites chains of views; returns by how many nodes the graph shrank."""
    before = len(model.graph)
    build = Builder(model.graph)
    for node in list(model.graph):
        if is_movement(node) and len(node.outputs) == 1:
            value = node.outputs[0]
            last = value.is_graph_output() or any(
                not is_movement(use.node) or len(data_inputs(use.node)) > 1 for use in value.uses()
            )
            if last:
                _shorten(build, value)
    tidy(model)
    return before - len(model.graph)


def _shorten(build: Builder, value: ir.Value) -> None:
    chain = _chain(value)
    for start in range(len(chain)):  # from the far end: the longest chain first
        source, spared = chain[start][0].inputs[0], chain[start][1]
        where = _where(source, [node for node, _ in chain[start:]], value)
        shape = sides(value)
        if source is None or where is None or shape is None:
            continue
        steps = arranging(source, where, shape)
        if steps == 0 and value.is_graph_output():
            continue  # a node has to write the output
        if steps is not None and steps < spared:
            new = arranged(build, source, where, shape)
            assert new is not None
            replace(build, value, new)
            return


def _chain(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """The nodes that lead to the value, the earliest first, each with a count.

    The count says how many nodes from there on have no other reader, so that they would go.
    """
    found: list[tuple[ir.Node, int]] = []
    node = value.producer()
    alone = True
    spared = 0
    while node is not None and is_movement(node) and _is_single(node):
        alone = alone and (node.outputs[0] is value or len(node.outputs[0].uses()) == 1)
        spared += alone
        found.append((node, spared))
        first = node.inputs[0]
        node = None if first is None else first.producer()
    return found[::-1]


def _is_single(node: ir.Node) -> bool:
    return len(node.outputs) == 1 and len(data_inputs(node)) == 1


def _where(source: ir.Value | None, nodes: list[ir.Node], value: ir.Value) -> Array | None:
    """For each element of the value its position in one batch element of the source.

    None when elements of different batches mix.
    """
    shape = sides(source)
    if not shape:
        return None
    every = []
    for count in (2, 3) if isinstance(shape[0], str) else (int(shape[0]),):
        sizes = Sizes(shape[0], count)
        full = concrete(source, sizes)
        if full is None or not np.prod(full):
            return None
        found: Array = np.arange(np.prod(full)).reshape(full)
        for node in nodes:
            outputs = moved(node, [found], sizes)
            if outputs is None:
                return None
            found = outputs[0]
        inner = int(np.prod(full[1:]))
        if found.size != count * inner:
            return None
        rows = found.reshape(count, -1) - np.arange(count)[:, None] * inner
        if (rows != rows[:1]).any():
            return None
        every.append(rows[0])
    same = all((other == every[0]).all() for other in every)
    return every[0] if same and sides(value) is not None else None
