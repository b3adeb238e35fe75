"""Weights that came in half precision are stored in half precision; computing stays in FP32.

A bundle of FP16 checkpoints would otherwise be twice their size. What an export computes from the
weights (folded scales, fused norms) is rounded once more, in the torch module already, so that the
graphs are still compared with exactly what they store; ``mp-bench accuracy`` measures the rest.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import onnx
    from torch import nn

    ModuleT = TypeVar("ModuleT", bound=nn.Module)

MAX_LOSS = 1e-3  # relative, of a whole tensor: an FP16 number is exact to 5e-4


def rounded(module: ModuleT) -> ModuleT:
    """A copy of the module with every FP32 tensor rounded to FP16 values, except where that
    loses more than MAX_LOSS of it, as it does with very small numbers.
    """
    import torch

    module = copy.deepcopy(module)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.dtype == torch.float32:
                half = tensor.half().float()
                if float((half - tensor).norm()) <= MAX_LOSS * float(tensor.norm()):
                    tensor.copy_(half)
    return module


def halved(array: np.ndarray) -> np.ndarray | None:
    """The array in FP16 when that changes no value, else None."""
    if array.dtype != np.float32:
        return None
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), array) else None


def cast_from_half(name: str) -> onnx.NodeProto:
    """The node that makes the FP32 tensor ``name`` from its stored FP16 form."""
    import onnx

    return onnx.helper.make_node("Cast", [stored_name(name)], [name], to=onnx.TensorProto.FLOAT)


def stored_name(name: str) -> str:
    """The name of the FP16 form of a tensor."""
    return f"{name}.half"
