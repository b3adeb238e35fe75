"""What the Mamba networks share: the scan call, constants folded from parameters, initial values.

Letters: B batch, L tokens, D channels of one direction, N states, R rank of the step size.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mambapose.plugins.torch_op import selective_scan

STATES = 16
DT_RANGE = (1e-3, 1e-1)
DT_FLOOR = 1e-4


class Foldable(nn.Module):
    """A module whose forward works on constants computed from its (official) parameters.

    Training and the state dict know the parameters; an exported graph knows the constants only,
    so that no arithmetic on weights is left in it (``freeze``).
    """

    def __init__(self) -> None:
        super().__init__()
        self._kind: Any = None

    def fold(self) -> Any:
        """A NamedTuple of tensors; written by the subclass."""
        raise NotImplementedError

    def constants(self) -> Any:
        """What ``fold`` returns, from the frozen copies when there are any."""
        if self._kind is None:
            return self.fold()
        return self._kind(*(getattr(self, f"folded_{name}") for name in self._kind._fields))

    def _freeze(self) -> None:
        values = self.fold()
        for key in [key for key, _ in self.named_parameters(recurse=False)]:
            delattr(self, key)
        for key in [key for key, _ in self.named_children()]:
            delattr(self, key)
        for name, value in values._asdict().items():
            frozen = value.detach().contiguous().clone()
            self.register_buffer(f"folded_{name}", frozen, persistent=False)
        self._kind = type(values)


def freeze(model: nn.Module) -> nn.Module:
    """A copy of the model in eval mode that holds folded constants in place of parameters."""
    frozen = copy.deepcopy(model).eval()
    for module in list(frozen.modules()):
        if isinstance(module, Foldable):
            module._freeze()
    return frozen


class ScanConstants(NamedTuple):
    """The parameters of one scan node with two directions on tokens (B, L, D) or (B, L, 2*D)."""

    dt: Tensor  # (2R, 2D), the step sizes of both directions from their low-rank forms
    dt_bias: Tensor  # (2D)
    decay: Tensor  # (2D, N), negative
    skip: Tensor  # (2D)


def scan_both_ways(
    u: Tensor,
    rank: Tensor,
    b: Tensor,
    c: Tensor,
    constants: ScanConstants,
    *,
    z: Tensor | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """(B, L, D): the sum of the scan along the tokens and the scan against them, in one node.

    u: (B, L, D), or (B, L, 2*D) when the directions see different values; rank: (B, L, 2R);
    b, c: (B, L, 2N); z: (B, L, D), gates the sum; order: int32 (L), the token visited at each step.
    """
    y, _ = selective_scan(
        u,
        rank @ constants.dt,
        constants.decay,
        b,
        c,
        constants.skip,
        z,
        constants.dt_bias,
        order,
        directions=2,
        reverse=(0, 1),
        merge="sum",
    )
    return y


def decay_from_log(a_log: Tensor) -> Tensor:
    """The negative decay rate of the operator, never below float32."""
    return -torch.exp(a_log if a_log.dtype == torch.float64 else a_log.float())


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis.

    Written in the order ONNX Runtime recognises and replaces by one node.
    """
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def initial_decay_log(channels: int) -> Tensor:
    """(channels, N): log of 1..N in every row, as Mamba starts."""
    return torch.log(torch.arange(1, STATES + 1, dtype=torch.float32)).repeat(channels, 1)


def initial_dt_bias(*shape: int) -> Tensor:
    """What softplus turns into step sizes spread evenly on a log scale over ``DT_RANGE``."""
    low, high = (math.log(end) for end in DT_RANGE)
    step = torch.exp(torch.rand(*shape) * (high - low) + low).clamp(min=DT_FLOOR)
    return step + torch.log(-torch.expm1(-step))


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """What ``build`` makes under this seed, in eval mode; torch's own random state is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()
