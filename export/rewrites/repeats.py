"""Nodes that do the same to the same values become one node; other rewrites may leave such nodes.

The equality is that of functions: equal operators, attributes and inputs have equal outputs. Nodes
that draw random numbers are not merged; onnx_ir sees to that.
"""

from __future__ import annotations

import onnx_ir as ir

from mambapose.export.rewrites.graph import tidy


def remove_repeats(model: ir.Model) -> int:
    """Merges equal nodes; returns by how many nodes the graph shrank."""
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass

    before = len(model.graph)
    CommonSubexpressionEliminationPass()(model)
    tidy(model)
    return before - len(model.graph)
