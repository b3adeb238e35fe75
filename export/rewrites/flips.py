"""Flips around a scan become its ``reverse`` flag; any other fixed order of tokens its order map.

The equality, for a permutation P of the tokens, f and g that work on each token alone, S a scan
and S_P the scan that visits the tokens in the order P:  P^-1 g(S(f(P x))) = g(S_P(f(x))).  A causal
depthwise convolution on the way is, for the flip P, the anti-causal one (taps reversed, padding on
the other side) in token order:  P conv(P x) = conv'(x).
"""

from __future__ import annotations

import onnx_ir as ir

from mambapose.export.rewrites.graph import tidy
from mambapose.export.rewrites.lanes import is_plain, lane_count
from mambapose.export.rewrites.orders import apply, look


def remove_flips(model: ir.Model) -> int:
    """Rewrites scans of one direction; returns by how many nodes the graph shrank."""
    before = len(model.graph)
    for node in [node for node in model.graph if is_plain(node) and lane_count(node) == 1]:
        found = look([node], summed=False)
        if found is not None:
            apply(found)
            tidy(model)
    return before - len(model.graph)
