"""The two blocks of GLSMamba, in our own reading of its public description (glsmamba.py).

    global  channel attention -> six scans -> modulated merge -> times gate -> FFN
    local   scans of small windows, both ways                 -> times gate -> FFN

Keys of a block: ``norm``, ``norm2``, ``out_norm``, ``gate_norm`` (LayerNorm), ``value``, ``gate``
(``proj``, ``mix``), ``out_proj``, ``fc1``, ``fc2``, ``scan.{x_proj_weight (K, R+2N, D),
dt_projs_weight (K, D, R), dt_projs_bias (K, D), A_logs (K*D, N), Ds (K*D)}``; a global one also has
``attention.{fc1, fc2}`` and ``merge.{modulation, spatial, temporal}``.

The scans of a block are one node; which token comes when is its order table (glsmamba_orders.py).
Letters: B batch, T frames, P = H*W tokens of a frame, L = T*P, d model width, D inner width,
K directions, R rank of the step size, N states.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mambapose.export.models.folding import Foldable
from mambapose.export.models.gelu import gelu
from mambapose.export.models.glsmamba_orders import KINDS, ORDERS, reverse_flags
from mambapose.export.models.selective import (
    STATES,
    initial_decay_log,
    initial_dt_bias,
    route_constants,
)
from mambapose.plugins.torch_op import selective_scan

EXPANSION = 2  # D by d
SQUEEZE = 16  # of the channel attention
GROUP = 32  # channels that share one modulation


class RouteConstants(NamedTuple):
    """The parameters of one node, its directions side by side."""

    rank: Tensor  # (D, K*R)
    b: Tensor  # (D, K*N)
    c: Tensor  # (D, K*N)
    dt: Tensor  # (K*R, K*D)
    dt_bias: Tensor  # (K*D)
    decay: Tensor  # (K*D, N)
    skip: Tensor  # (K*D)


class Routes(Foldable):
    """K scans over the same tokens (B, L, D), each with parameters of its own, in one node.

    Their step sizes, B and C are made in token order by one product each for all directions. The
    step sizes come from one block diagonal matrix: K products would need their results side by
    side, and at L = 15360 that copy is 180 MiB.
    """

    def __init__(self, inner: int, rank: int, directions: int) -> None:
        super().__init__()
        bound = inner**-0.5
        parts = torch.empty(directions, rank + 2 * STATES, inner).uniform_(-bound, bound)
        self.x_proj_weight = nn.Parameter(parts)
        lift = torch.empty(directions, inner, rank).uniform_(-(rank**-0.5), rank**-0.5)
        self.dt_projs_weight = nn.Parameter(lift)
        self.dt_projs_bias = nn.Parameter(initial_dt_bias(directions, inner))
        self.A_logs = nn.Parameter(initial_decay_log(directions * inner))
        self.Ds = nn.Parameter(torch.ones(directions * inner))
        self.directions = directions

    def fold(self) -> RouteConstants:
        return RouteConstants(
            **route_constants(
                self.x_proj_weight, self.dt_projs_weight, self.dt_projs_bias, self.A_logs, self.Ds,
                range(self.directions),
            )
        )  # fmt: skip

    def forward(
        self, u: Tensor, order: Tensor, reverse: tuple[int, ...], merge: str, segment: int = 0
    ) -> Tensor:
        """(B, L, K*D) in token order, or (B, L, D) with merge "sum"."""
        c: RouteConstants = self.constants()
        y, _ = selective_scan(
            u,
            (u @ c.rank) @ c.dt,
            c.decay,
            u @ c.b,
            u @ c.c,
            c.skip,
            None,
            c.dt_bias,
            order,
            directions=self.directions,
            reverse=reverse,
            merge=merge,
            segment=segment,
        )
        return y


class ChannelAttention(nn.Module):
    """Weighs every channel of every frame by a summary of all frames: (B, T, P, d) -> the same."""

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        channels = frames * width
        self.fc1 = nn.Linear(channels, max(1, channels // SQUEEZE))
        self.fc2 = nn.Linear(max(1, channels // SQUEEZE), channels)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean(2).flatten(1)
        weights = torch.sigmoid(self.fc2(functional.relu(self.fc1(pooled))))
        return x * weights.reshape(-1, x.shape[1], 1, x.shape[3])


class Stream(nn.Module):
    """(B, T, P, d) -> (B, T, P, D): linear, then a 3x3 depthwise convolution in every frame."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        # 1x1 convolution, not a matrix product: the value stays in the layout of the next one.
        self.proj = nn.Conv2d(width, inner, 1, bias=False)
        self.mix = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return tokens_of(self.mix(self.proj(pictures_of(x, grid))), x.shape)


class ModulatedMerge(nn.Module):
    """The three kinds of scan (B, T, P, 3D) merged to one (B, T, P, D); it takes the place of STMM.

    merged = unified + m_s * conv_s(spatial) + m_t * conv_t(temporal)

    conv_s is a 3x3 depthwise convolution in every frame, conv_t one over three frames at every
    pixel; the m are sigmoids of all three kinds, one for every token and group of GROUP channels.
    The paper has modulated deformable convolutions here, which TensorRT's parser refuses. This is
    the special case in which all offsets are zero and all taps share one modulation: a token can no
    longer look at places of its choice.
    """

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(len(KINDS) * inner, 2 * (inner // GROUP))
        self.spatial = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.temporal = nn.Conv2d(inner, inner, (3, 1), padding=(1, 0), groups=inner)

    def forward(self, y: Tensor, grid: tuple[int, int]) -> Tensor:
        unified, spatial, temporal = y.chunk(len(KINDS), -1)
        by_space, by_time = torch.sigmoid(self.modulation(y)).chunk(2, -1)
        spatial = tokens_of(self.spatial(pictures_of(spatial, grid)), spatial.shape)
        temporal = self.temporal(temporal.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return unified + _modulated(spatial, by_space) + _modulated(temporal, by_time)


def _modulated(x: Tensor, weights: Tensor) -> Tensor:
    """x (.., D) times weights (.., D / GROUP), one for every group of channels."""
    modulated: Tensor = (x.unflatten(-1, (-1, GROUP)) * weights.unsqueeze(-1)).flatten(-2)
    return modulated


class Block(nn.Module):
    """The parts that both blocks have before and after their scans; x: (B, T, P, d)."""

    def __init__(self, width: int, directions: int) -> None:
        super().__init__()
        inner = EXPANSION * width
        self.norm = nn.LayerNorm(width)
        self.value = Stream(width, inner)
        self.scan = Routes(inner, math.ceil(width / 16), directions)
        self.out_norm = nn.LayerNorm(inner)
        self.gate = Stream(width, inner)
        self.gate_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, width, bias=False)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)

    def seen(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """The input of the scans, (B, L, D)."""
        return functional.silu(self.value(x, grid)).flatten(1, 2)

    def answer(self, x: Tensor, y: Tensor, inside: Tensor, grid: tuple[int, int]) -> Tensor:
        """x plus the gated result of the scans, then the FFN.

        y: (B, T, P, D) result of the scans; inside: (B, T, P, d) what their input was made from.
        """
        gate = functional.silu(self.gate_norm(self.gate(inside, grid)))
        x = x + self.out_proj(self.out_norm(y) * gate)
        answer: Tensor = x + self.fc2(gelu(self.fc1(self.norm2(x))))
        return answer


class GlobalBlock(Block):
    """Global Spatiotemporal Mamba: (B, T, P, d) -> (B, T, P, d). order: int32 (6, L)."""

    def __init__(self, width: int, frames: int) -> None:
        super().__init__(width, len(ORDERS))
        self.attention = ChannelAttention(width, frames)
        self.merge = ModulatedMerge(EXPANSION * width)

    def forward(self, x: Tensor, grid: tuple[int, int], order: Tensor) -> Tensor:
        inside = self.attention(self.norm(x))
        y = self.scan(self.seen(inside, grid), order, reverse_flags(), "none")
        # (B, T, P, pair member, kind and channel): both members of every pair are added.
        pairs = y.reshape(*x.shape[:3], 2, -1).sum(3)
        return self.answer(x, self.merge(pairs, grid), inside, grid)


class LocalBlock(Block):
    """Local Refinement Mamba: (B, T, P, d) -> (B, T, P, d), or only the frames ``kept``.

    order: int32 (L), window by window; steps: the number of steps in one window, after which the
    state of the scan is reset.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, 2)

    def forward(
        self,
        x: Tensor,
        grid: tuple[int, int],
        order: Tensor,
        steps: int,
        kept: slice = slice(None),
    ) -> Tensor:
        inside = self.norm(x)
        y = self.scan(self.seen(inside, grid), order, (0, 1), "sum", segment=steps)
        y = y.reshape(*x.shape[:3], -1)
        return self.answer(x[:, kept], y[:, kept], inside[:, kept], grid)


def pictures_of(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Pictures (B*T, C, H, W) from tokens (B, T, P, C)."""
    return x.reshape(-1, *grid, x.shape[3]).permute(0, 3, 1, 2)


def tokens_of(pictures: Tensor, shape: torch.Size) -> Tensor:
    """Tokens from pictures (B*T, C, H, W); ``shape`` begins with their B, T and P."""
    return pictures.permute(0, 2, 3, 1).reshape(*shape[:3], -1)
