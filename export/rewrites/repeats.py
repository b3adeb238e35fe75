"""Nodes that do the same to the same values are done once: what rewrites made may be there already.

The equality is that of functions: equal operators, attributes and inputs have equal outputs. Nodes
that draw random numbers are left apart, which onnx_ir sees to.
"""

from __future__ import annotations

import onnx_ir as ir

from mambapose.export.rewrites.graph import tidy


def remove_repeats(model: ir.Model) -> int:
    """Rewrites equal nodes; the number of nodes the graph lost."""
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass

    before = len(model.graph)
    CommonSubexpressionEliminationPass()(model)
    tidy(model)
    return before - len(model.graph)
