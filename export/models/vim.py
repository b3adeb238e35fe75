"""Vision Mamba (Vim), bidirectional type v2: Zhu et al. 2024, github.com/hustvl/Vim.

Official state-dict keys. What differs from the official computation is only its order: the
backward branch is not flipped but convolved with reversed taps and scanned backwards, both
directions are one scan node, the gate is applied once, and the division by two sits in out_proj
(operator specification, "Graph rewrites at export").
Letters: B batch, L tokens, d model width, D = 2d inner width, R rank of the step size, N states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mambapose.export.models.folding import Foldable, bias_of
from mambapose.export.models.seeds import seeded
from mambapose.export.models.selective import (
    STATES,
    ScanConstants,
    decay_from_log,
    initial_decay_log,
    initial_dt_bias,
    scan_both_ways,
)
from mambapose.export.models.vit import PatchEmbed

PATCH = 16
TAPS = 4
EPS = 1e-5

CONFIGS: dict[str, Mapping[str, int]] = {
    "vim-tiny": {"width": 192, "depth": 24},
    "vim-small": {"width": 384, "depth": 24},
    "vim-base": {"width": 768, "depth": 24},
}


class MixerConstants(NamedTuple):
    """in_proj in two parts, two depthwise convolutions, x_proj per direction, scan, out_proj."""

    value: Tensor  # (D, d, 1, 1)
    gate: Tensor  # (d, D)
    taps: Tensor  # (D, 1, 1, 4)
    taps_bias: Tensor  # (D)
    taps_b: Tensor  # (D, 1, 1, 4), reversed
    taps_b_bias: Tensor  # (D)
    parts: Tensor  # (D, R + 2N): rank, b, c of the forward direction
    parts_b: Tensor  # (D, R + 2N)
    dt: Tensor
    dt_bias: Tensor
    decay: Tensor
    skip: Tensor
    out: Tensor  # (D, d), halved


class Mixer(Foldable):
    """The bidirectional Mamba mixer: (B, L, d) -> (B, L, d)."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        inner, self.rank = 2 * width, math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, TAPS, groups=inner)
        self.x_proj = nn.Linear(inner, self.rank + 2 * STATES, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(initial_decay_log(inner))
        self.D = nn.Parameter(torch.ones(inner))
        self.conv1d_b = nn.Conv1d(inner, inner, TAPS, groups=inner)
        self.x_proj_b = nn.Linear(inner, self.rank + 2 * STATES, bias=False)
        self.dt_proj_b = nn.Linear(self.rank, inner)
        self.A_b_log = nn.Parameter(initial_decay_log(inner))
        self.D_b = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        with torch.no_grad():
            for proj in (self.dt_proj, self.dt_proj_b):
                proj.weight.uniform_(-(self.rank**-0.5), self.rank**-0.5)
                proj.bias.copy_(initial_dt_bias(inner))
            self.out_proj.weight.div_(math.sqrt(depth))

    def fold(self) -> MixerConstants:
        value, gate = self.in_proj.weight.chunk(2)
        return MixerConstants(
            value=value[:, :, None, None],
            gate=gate.T,
            taps=self.conv1d.weight[:, :, None],
            taps_bias=bias_of(self.conv1d),
            taps_b=self.conv1d_b.weight.flip(-1)[:, :, None],
            taps_b_bias=bias_of(self.conv1d_b),
            parts=self.x_proj.weight.T,
            parts_b=self.x_proj_b.weight.T,
            dt=torch.block_diag(self.dt_proj.weight.T, self.dt_proj_b.weight.T),
            dt_bias=torch.cat([self.dt_proj.bias, self.dt_proj_b.bias]),
            decay=decay_from_log(torch.cat([self.A_log, self.A_b_log])),
            skip=torch.cat([self.D, self.D_b]),
            out=self.out_proj.weight.T * 0.5,
        )

    def forward(self, x: Tensor) -> Tensor:
        c: MixerConstants = self.constants()
        # An image of one row: ONNX Runtime keeps 2-D convolutions in its blocked layout and takes
        # the transposes into it; a Conv1d of the same size is ten times slower there.
        row = functional.conv2d(x.unsqueeze(1).permute(0, 3, 1, 2), c.value)
        ahead = _convolved(row, (TAPS - 1, 0), c.taps, c.taps_bias)
        back = _convolved(row, (0, TAPS - 1), c.taps_b, c.taps_b_bias)
        sizes = [self.rank, STATES, STATES]
        parts = (ahead @ c.parts).split(sizes, -1)
        parts_b = (back @ c.parts_b).split(sizes, -1)
        rank, b, state_out = (torch.cat(p, -1) for p in zip(parts, parts_b, strict=True))
        y = scan_both_ways(
            torch.cat([ahead, back], -1),
            rank,
            b,
            state_out,
            ScanConstants(c.dt, c.dt_bias, c.decay, c.skip),
            z=x @ c.gate,
        )
        return y @ c.out


def _convolved(row: Tensor, pads: tuple[int, int], taps: Tensor, bias: Tensor) -> Tensor:
    """(B, L, D) tokens after depthwise convolution and SiLU of a row (B, D, 1, L).

    Training on a CPU adds shifted copies instead: torch's gradient of a depthwise convolution takes
    longer there than the rest of the layer's products.
    """
    padded = functional.pad(row, pads)
    if row.requires_grad and row.device.type == "cpu":
        length, padded = row.shape[3], padded.float()
        moved = (padded[..., k : k + length] * taps[None, :, 0, :, k, None] for k in range(TAPS))
        mixed = sum(moved, bias[:, None, None])
    else:
        mixed = functional.conv2d(padded, taps, bias, groups=row.shape[1])
    return functional.silu(mixed).permute(0, 2, 3, 1).squeeze(1)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis.

    Written in the order ONNX Runtime recognises and replaces by one node.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * self.weight


class Layer(nn.Module):
    """Add and norm, then the mixer; carries (hidden, residual) as the official layers do."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.mixer = Mixer(width, depth)

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        residual = hidden if residual is None else hidden + residual
        return self.mixer(self.norm(residual)), residual


class Encoder(nn.Module):
    """The layers and the last add and norm: tokens (B, L, d) -> (B, L, d)."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, depth) for _ in range(depth))
        self.norm_f = RMSNorm(width)

    def encode(self, tokens: Tensor) -> Tensor:
        hidden, residual = tokens, None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        normed: Tensor = self.norm_f(hidden if residual is None else hidden + residual)
        return normed


class Vim(Encoder):
    """The classification network: normalised image (B, 3, H, W) -> every token after norm_f.

    The class token stands in the middle. ``classify`` gives the classes when there is a head.
    """

    def __init__(
        self, width: int, depth: int, image: tuple[int, int] = (224, 224), classes: int = 1000
    ) -> None:
        super().__init__(width, depth)
        self.patches = (image[0] // PATCH) * (image[1] // PATCH)
        self.patch_embed = PatchEmbed(width, PATCH)
        nn.init.trunc_normal_(self.patch_embed.proj.weight, std=(3 * PATCH * PATCH) ** -0.5)
        nn.init.zeros_(bias_of(self.patch_embed.proj))
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, self.patches + 1, width))
        self.head = nn.Linear(width, classes) if classes else None
        drawn: list[Tensor] = [self.cls_token, self.pos_embed]
        if self.head is not None:
            drawn.append(self.head.weight)
            nn.init.zeros_(self.head.bias)
        for tensor in drawn:
            nn.init.trunc_normal_(tensor, std=0.02)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patch_embed(image).flatten(2).transpose(1, 2)
        middle = self.patches // 2
        token = self.cls_token.expand(tokens.shape[0], -1, -1)
        tokens = torch.cat([tokens[:, :middle], token, tokens[:, middle:]], 1)
        return self.encode(tokens + self.pos_embed)

    def classify(self, tokens: Tensor) -> Tensor:
        """(B, classes) from the tokens ``forward`` returns; needs a head."""
        assert self.head is not None
        logits: Tensor = self.head(tokens[:, self.patches // 2])
        return logits


def build(
    *,
    seed: int = 0,
    width: int = 192,
    depth: int = 24,
    image: tuple[int, int] = (224, 224),
    classes: int = 1000,
) -> Vim:
    """A seeded random Vim with the official keys; ``CONFIGS`` holds the released sizes."""
    return seeded(lambda: Vim(width, depth, image, classes), seed)
