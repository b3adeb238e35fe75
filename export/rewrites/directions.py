"""Scans over the same tokens in several directions whose results are added become one node.

The equality: a node with merge "sum" gives the sum of y_k, and with one gate for all of them
sum_k (y_k * g) = (sum_k y_k) * g. Scans with different gates, sizes or options, and sums to which
anything else is added before they are complete, are left apart.
"""

from __future__ import annotations

import onnx_ir as ir

from mambapose.export.rewrites.graph import tidy
from mambapose.export.rewrites.lanes import is_plain, summed_with
from mambapose.export.rewrites.orders import apply, look


def merge_directions(model: ir.Model) -> int:
    """Rewrites groups of added scans; returns by how many nodes the graph shrank."""
    before = len(model.graph)
    done: set[ir.Node] = set()
    for node in [node for node in model.graph if is_plain(node)]:
        if node in done:
            continue
        group = summed_with(node)
        done.update(group)
        found = look(group, summed=True) if len(group) > 1 else None
        if found is not None:
            apply(found)
            tidy(model)
    return before - len(model.graph)
