"""The exact GELU in the one order of operations that ONNX Runtime replaces by its own node."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gelu(x: Tensor) -> Tensor:
    """x * (1 + erf(x / sqrt 2)) / 2, as ``torch.nn.functional.gelu`` computes it.

    torch's own function is exported as five nodes in an order that no pattern of ONNX Runtime
    1.31.1 matches: five passes over the widest tensor of a block.
    """
    return x * (1.0 + torch.erf(x / math.sqrt(2.0))) * 0.5
