"""The Vision Transformer block shared by Depth Anything (DINOv2) and ViTPose.

Dosovitskiy et al., ICLR 2021, section 3.1, pre-norm; key names of timm, which both keep. Attention
is written out with the query scaled first: TensorRT 10.7 compiles the fused form wrongly
(NVIDIA/TensorRT#4333), and a scaled query keeps FP16 products small.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mambapose.export.models.gelu import gelu

NORM_EPS = 1e-6


class Attention(nn.Module):
    """Self-attention of (B, L, D) tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        query, key, value = (
            part.reshape(batch, length, self.heads, width // self.heads)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        query = query.transpose(1, 2) * (width // self.heads) ** -0.5
        weights = (query @ key.permute(0, 2, 3, 1)).softmax(-1)
        mixed = (weights @ value.transpose(1, 2)).transpose(1, 2)
        answer: Tensor = self.proj(mixed.reshape(batch, length, width))
        return answer


class Mlp(nn.Module):
    """Two linear layers around an exact GELU; the tanh form misses the tolerance."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.fc2(gelu(self.fc1(x)))
        return answer


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """(B, L, D) -> (B, L, D): attention, then the MLP, each added to its input."""

    def __init__(self, width: int, heads: int, *, layer_scale: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width)
        self.ls2 = LayerScale(width) if layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        answer: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return answer


class PatchEmbed(nn.Module):
    """(B, 3, H, W) -> (B, D, h, w), one cell per patch."""

    def __init__(self, width: int, patch: int, padding: int = 0) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        cells: Tensor = self.proj(x)
        return cells
