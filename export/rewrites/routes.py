"""Routes that were copied and packed as groups of one scan become its directions.

The equality, for permutations P_k of the tokens of one x, and f_k that work on each token alone:
sum_k P_k^-1 S_k(f_k(P_k x)) is one scan with directions k, orders P_k and merge "sum", whose rows
f_k(x) all come from x itself; columns of a shared u and of one matrix product are asked for once.
Routes over several tensors make a node for each tensor, and their results are added.
"""

from __future__ import annotations

import onnx_ir as ir

from mambapose.export.rewrites.graph import tidy
from mambapose.export.rewrites.lanes import is_plain, lane_count
from mambapose.export.rewrites.orders import apply, look


def remove_routes(model: ir.Model) -> int:
    """Rewrites scans of several groups; returns by how many nodes the graph shrank."""
    before = len(model.graph)
    for node in [node for node in model.graph if is_plain(node) and lane_count(node) > 1]:
        found = look([node], summed=True)
        if found is not None:
            apply(found)
            tidy(model)
    return before - len(model.graph)
