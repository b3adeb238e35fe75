"""What the Mamba networks share: the call of the scan, the decay, initial values.

Letters: B batch, L tokens, D channels of one direction, N states, R rank of the step size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mambapose.plugins.torch_op import selective_scan

STATES = 16
DT_RANGE = (1e-3, 1e-1)
DT_FLOOR = 1e-4


class ScanConstants(NamedTuple):
    """The parameters of one scan node with two directions on tokens (B, L, D) or (B, L, 2*D).

    Of a scan with one direction every 2 of these sizes is 1.
    """

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


def scan_one_way(
    u: Tensor,
    rank: Tensor,
    b: Tensor,
    c: Tensor,
    constants: ScanConstants,
    *,
    z: Tensor | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(B, L, D) the scan along the tokens, and (B, D, N) its state after them.

    u, z: (B, L, D); rank: (B, L, R); b, c: (B, L, N); initial_state: (B, D, N), None for zeros.
    """
    return selective_scan(
        u,
        rank @ constants.dt,
        constants.decay,
        b,
        c,
        constants.skip,
        z,
        constants.dt_bias,
        initial_state=initial_state,
    )


def route_constants(
    x_proj: Tensor,
    dt_projs: Tensor,
    dt_bias: Tensor,
    decay_logs: Tensor,
    skips: Tensor,
    routes: Sequence[int],
) -> dict[str, Tensor]:
    """The parameters of K routes over the same tokens, joined for one scan node.

    Given M routes: x_proj (M, R + 2N, D), dt_projs (M, D, R), dt_bias (M, D), decay_logs (M*D, N),
    skips (M*D); routes: the K of them that are wanted. Returns ``rank`` (D, K*R), ``b`` and ``c``
    (D, K*N), block diagonal ``dt`` (K*R, K*D), ``dt_bias``, ``decay`` and ``skip``.
    """
    chosen = list(routes)
    count, inner, rank = dt_projs.shape
    parts = x_proj[chosen].transpose(1, 2).split([rank, STATES, STATES], -1)
    rows = {
        name: part.transpose(0, 1).flatten(1)
        for name, part in zip(("rank", "b", "c"), parts, strict=True)
    }
    return {
        **rows,
        "dt": torch.block_diag(*dt_projs[chosen].transpose(1, 2)),
        "dt_bias": dt_bias[chosen].flatten(),
        "decay": decay_from_log(decay_logs).reshape(count, inner, STATES)[chosen].flatten(0, 1),
        "skip": skips.reshape(count, inner)[chosen].flatten(),
    }


def decay_from_log(a_log: Tensor) -> Tensor:
    """The negative decay rate for the operator, in float32 or better."""
    return -torch.exp(a_log if a_log.dtype == torch.float64 else a_log.float())


def initial_decay_log(channels: int) -> Tensor:
    """(channels, N) the initial values of Mamba: log of 1..N in every row."""
    return torch.log(torch.arange(1, STATES + 1, dtype=torch.float32)).repeat(channels, 1)


def initial_dt_bias(*shape: int) -> Tensor:
    """Biases whose softplus gives step sizes spread evenly on a log scale over ``DT_RANGE``."""
    low, high = (math.log(end) for end in DT_RANGE)
    step = torch.exp(torch.rand(*shape) * (high - low) + low).clamp(min=DT_FLOOR)
    return step + torch.log(-torch.expm1(-step))
