"""What depends on constants alone is computed at export: A = -exp(A_log), weights reshaped.

The equality is that of constants. The exporter itself folds small constants only; large ones stay
behind nodes, where the other rewrites would not recognise a weight. An A that would not be finite
and negative is left alone, because the operator refuses it as a constant.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mambapose.export.rewrites.graph import Array, Builder, constant, is_scan, replace, stored, tidy
from mambapose.export.rewrites.movement import Sizes, data_inputs, is_movement, moved

ELEMENTWISE = {"Exp": np.exp, "Neg": np.negative}
NO_BATCH = Sizes("", 1)


def fold_constants(model: ir.Model) -> int:
    """Computes nodes that read constants only; returns by how many nodes the graph shrank."""
    before = len(model.graph)
    build = Builder(model.graph)
    for node in list(model.graph):
        numbers = _numbers(node)
        if numbers is None or node.outputs[0].is_graph_output():
            continue
        usable = np.isfinite(numbers).all() and (numbers < 0).all()
        if usable or not any(_is_decay(use.node, use.idx) for use in node.outputs[0].uses()):
            replace(build, node.outputs[0], stored(build, numbers))
    tidy(model)
    return before - len(model.graph)


def _is_decay(node: ir.Node, at: int) -> bool:
    return is_scan(node) and at == 2


def _numbers(node: ir.Node) -> Array | None:
    """The node's only output as numbers, if it comes from constants and is no larger than they."""
    if len(node.outputs) != 1 or node.domain:
        return None
    arrays = [constant(value) for value in node.inputs]
    if node.op_type in ELEMENTWISE and arrays[0] is not None:
        with np.errstate(over="ignore"):
            found: Array = ELEMENTWISE[node.op_type](arrays[0])
        return found if np.isfinite(found).all() else None
    if not is_movement(node) or any(arrays[at] is None for at in data_inputs(node)):
        return None
    outputs = moved(node, arrays, NO_BATCH)
    if outputs is None or outputs[0].size > sum(a.size for a in arrays if a is not None):
        return None
    return outputs[0]
