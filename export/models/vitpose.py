"""ViTPose: joint heatmaps of person crops (Xu et al., NeurIPS 2022, section 3.1).

A plain Vision Transformer with one of two heads: ``classic`` has two deconvolutions, ``simple`` one
bilinear upsampling. Key names are those of ViTAE-Transformer/ViTPose (mmpose/models/backbones/
vit.py, heads/topdown_heatmap_simple_head.py); transformers' are the alternative table.
h, w are H/16, W/16 of a crop of H x W pixels; D is the width of the backbone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mambapose.export.checkpoints import KeyTable, key_table
from mambapose.export.models.folding import freeze
from mambapose.export.models.images import IMAGENET_MEAN, IMAGENET_STD, Normalise
from mambapose.export.models.positions import resized_positions
from mambapose.export.models.seeds import seeded
from mambapose.export.models.simple_head import JOINTS, SCALE, SimpleHead
from mambapose.export.models.vit import NORM_EPS, Block, PatchEmbed
from mambapose.export.sizes import check_size
from mambapose.runtime.types import GraphSpec, TensorSpec

CROP = (256, 192)
GRID = (16, 12)  # of the positions in every checkpoint
PATCH = 16
PATCH_PADDING = 2
ENLARGED = 256  # channels of the classic decoder


@dataclass(frozen=True)
class Variant:
    """Width, blocks and attention heads of the backbone."""

    width: int
    depth: int
    heads: int


VARIANTS = {
    "s": Variant(384, 12, 12),
    "b": Variant(768, 12, 12),
    "l": Variant(1024, 24, 16),
    "h": Variant(1280, 32, 16),
}


class Backbone(nn.Module):
    """Crops (N, 3, H, W), normalised -> tokens (N, h*w, D)."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        width = variant.width
        self.patch_embed = PatchEmbed(width, PATCH, PATCH_PADDING)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + GRID[0] * GRID[1], width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, variant.heads) for _ in range(variant.depth))
        self.last_norm = nn.LayerNorm(width, eps=NORM_EPS)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """(1, h*w, D) positions; slot 0, once that of a class token, is added to every token."""
        first, cells = self.pos_embed.detach().split([1, GRID[0] * GRID[1]], dim=1)
        positions: Tensor = resized_positions(cells, GRID, grid) + first
        return positions

    def forward(self, crops: Tensor, positions: Tensor) -> Tensor:
        tokens = self.patch_embed(crops).flatten(2).transpose(1, 2) + positions
        for block in self.blocks:
            tokens = block(tokens)
        normed: Tensor = self.last_norm(tokens)
        return normed


def deconvolutions(width: int, channels: int = ENLARGED) -> nn.Sequential:
    """Features (N, D, h, w) -> (N, channels, 4h, 4w): the classic decoder up to its last layer."""
    layers: list[nn.Module] = []
    for inputs in (width, channels):
        layers += [
            nn.ConvTranspose2d(inputs, channels, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


class ClassicHead(nn.Module):
    """Tokens (N, h*w, D) of a grid (h, w) -> heatmaps (N, 17, 4h, 4w): two deconvolutions."""

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.deconv_layers = deconvolutions(width)
        self.final_layer = nn.Conv2d(ENLARGED, JOINTS, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        features = tokens.transpose(1, 2).unflatten(2, self.grid)
        heatmaps: Tensor = self.final_layer(self.deconv_layers(features))
        return heatmaps


Head = ClassicHead | SimpleHead
HEADS: dict[str, Callable[[int, tuple[int, int]], Head]] = {
    "classic": ClassicHead,
    "simple": SimpleHead,
}


class VitPose(nn.Module):
    """The weights under their official names; ``Pose`` computes with them."""

    def __init__(self, variant: Variant, head: str) -> None:
        super().__init__()
        self.backbone = Backbone(variant)
        self.keypoint_head = HEADS[head](variant.width, GRID)


class Pose(nn.Module):
    """rgb (N, H, W, 3) uint8 -> heatmaps (N, 17, H/4, W/4) float32, for one crop size (H, W)."""

    positions: Tensor

    def __init__(self, model: VitPose, size: tuple[int, int]) -> None:
        super().__init__()
        # The patch convolution pads by 2 and drops what is left over: H/16 x W/16 patches.
        grid = (size[0] // PATCH, size[1] // PATCH)
        self.normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)
        self.backbone = model.backbone
        self.register_buffer("positions", model.backbone.positions(grid), persistent=False)
        head = copy.deepcopy(model.keypoint_head)
        head.grid = grid
        self.head = freeze(head)

    def forward(self, rgb: Tensor) -> Tensor:
        heatmaps: Tensor = self.head(self.backbone(self.normalise(rgb), self.positions))
        return heatmaps


def build(*, seed: int = 0, size: str, head: str) -> VitPose:
    """A seeded random ViTPose ``s``, ``b``, ``l`` or ``h`` with the official keys and a head."""
    return seeded(lambda: VitPose(VARIANTS[size], head), seed)


def graphs(model: VitPose, size: tuple[int, int] = CROP) -> dict[str, tuple[nn.Module, GraphSpec]]:
    """``main`` for crops of ``size`` (H, W) and any number N of people.

    ViTPose is trained at 256x192; for another size its positions are resized. ExportError unless
    both sides are multiples of 16.
    """
    check_size("pose2d", size)
    height, width = size
    rgb = TensorSpec("rgb", "uint8", ("N", height, width, 3))
    shape = ("N", JOINTS, SCALE * (height // PATCH), SCALE * (width // PATCH))
    heatmaps = TensorSpec("heatmaps", "float32", shape)
    return {"main": (Pose(model, size).eval(), GraphSpec("main", (rgb,), (heatmaps,)))}


# Official name -> transformers name (models/vitpose, vitpose_backbone), applied in turn.
_TRANSFORMERS = (
    (r"\.pos_embed$", ".embeddings.position_embeddings"),
    (r"\.patch_embed\.proj\.", ".embeddings.patch_embeddings.projection."),
    (r"\.last_norm\.", ".layernorm."),
    (r"\.blocks\.", ".encoder.layer."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.qkv\.", ".attention.attention.{query,key,value}."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"^keypoint_head\.deconv_layers\.0\.", "head.deconv1."),
    (r"^keypoint_head\.deconv_layers\.1\.", "head.batchnorm1."),
    (r"^keypoint_head\.deconv_layers\.3\.", "head.deconv2."),
    (r"^keypoint_head\.deconv_layers\.4\.", "head.batchnorm2."),
    (r"^keypoint_head\.final_layer\.", "head.conv."),
)


def key_tables(model: VitPose) -> list[KeyTable]:
    """The table from transformers' names to ours."""
    return [key_table(model.state_dict(), _TRANSFORMERS)]
