"""Depth Anything V1 and V2: inverse depth of one image (Yang et al., CVPR and NeurIPS 2024).

A DINOv2 backbone (section 2 of Oquab et al. 2023) gives four intermediate token maps to a DPT head
(Ranftl et al., ICCV 2021, section 3). Key names are those of DepthAnything/Depth-Anything-V2
(depth_anything_v2/dinov2.py, dpt.py); those of transformers 4 and 5 are the alternative tables.
V1 and V2 have the same keys and shapes and differ in the blocks they tap, so the version is part of
the network's name, not of its file. h, w are H/14, W/14; D is the width of the backbone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambapose.export.checkpoints import KeyTable, key_table
from mambapose.export.models.images import IMAGENET_MEAN, IMAGENET_STD, Normalise
from mambapose.export.models.seeds import seeded
from mambapose.export.models.vit import NORM_EPS, Block, PatchEmbed
from mambapose.export.sizes import check_size
from mambapose.runtime.types import GraphName, GraphSpec, Size, TensorSpec

PATCH = 14
TRAINED_GRID = 37  # the position embedding was trained on 518x518 px
GRID_OFFSET = 0.1  # the official guard against a floor one cell short; it moves every sample


@dataclass(frozen=True)
class Variant:
    """Backbone width, blocks and heads; head widths; the blocks whose outputs the head reads."""

    width: int
    depth: int
    heads: int
    features: int
    out_channels: tuple[int, int, int, int]
    taps: tuple[int, int, int, int]


VARIANTS = {
    ("small", 2): Variant(384, 12, 6, 64, (48, 96, 192, 384), (2, 5, 8, 11)),
    ("base", 2): Variant(768, 12, 12, 128, (96, 192, 384, 768), (2, 5, 8, 11)),
    ("large", 2): Variant(1024, 24, 16, 256, (256, 512, 1024, 1024), (4, 11, 17, 23)),
    ("small", 1): Variant(384, 12, 6, 64, (48, 96, 192, 384), (8, 9, 10, 11)),
    ("base", 1): Variant(768, 12, 12, 128, (96, 192, 384, 768), (8, 9, 10, 11)),
    ("large", 1): Variant(1024, 24, 16, 256, (256, 512, 1024, 1024), (20, 21, 22, 23)),
}


class Backbone(nn.Module):
    """DINOv2 without registers. ``mask_token`` is in the official files but is not used here."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        width = variant.width
        self.taps = variant.taps
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + TRAINED_GRID**2, width) * 0.02)
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.patch_embed = PatchEmbed(width, PATCH)
        blocks = (Block(width, variant.heads, layer_scale=True) for _ in range(variant.depth))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def positions(self, h: int, w: int) -> Tensor:
        """(1, 1 + h w, D): the position embedding for a grid of h x w patches.

        The official rule: bicubic, without antialiasing, source coordinates from the scale
        (n + 0.1) / 37 rather than from the sizes.
        """
        if (h, w) == (TRAINED_GRID, TRAINED_GRID):
            return self.pos_embed.detach()
        first, patches = self.pos_embed.detach().split([1, TRAINED_GRID**2], dim=1)
        grid = patches.reshape(1, TRAINED_GRID, TRAINED_GRID, -1).permute(0, 3, 1, 2)
        scale = ((h + GRID_OFFSET) / TRAINED_GRID, (w + GRID_OFFSET) / TRAINED_GRID)
        resized = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat([first, resized.flatten(2).transpose(1, 2)], dim=1)

    def tapped(self, tokens: Tensor) -> list[Tensor]:
        """Tokens (1, L, D) -> the outputs (1, L, D) of the four tapped blocks, each normalised."""
        found = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in self.taps:
                found.append(self.norm(tokens))
        return found


class ResidualUnit(nn.Module):
    """(1, C, h, w) -> (1, C, h, w): ReLU before each of two convolutions, plus the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.conv2(self.conv1(x.relu()).relu())
        return added


class Fusion(nn.Module):
    """Adds a finer map (or None) to a coarse map, refines the sum and resizes it to ``size``.

    The 1x1 convolution runs before the resize, where it is up to 4 times cheaper: both are linear
    and bilinear weights add up to 1, so the order does not matter.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(width, width, 1)
        self.resConfUnit1 = ResidualUnit(width)
        self.resConfUnit2 = ResidualUnit(width)

    def forward(self, coarse: Tensor, fine: Tensor | None, size: tuple[int, int]) -> Tensor:
        if fine is not None:
            coarse = coarse + self.resConfUnit1(fine)
        return _resize(self.out_conv(self.resConfUnit2(coarse)), size)


class Head(nn.Module):
    """Four tapped maps (1, D, h, w) -> (1, 1, 14 h, 14 w) before the last ReLU."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        one, two, three, four = variant.out_channels
        width = variant.features
        self.projects = nn.ModuleList(
            nn.Conv2d(variant.width, channels, 1) for channels in variant.out_channels
        )
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(one, one, 4, stride=4),
                nn.ConvTranspose2d(two, two, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(four, four, 3, stride=2, padding=1),
            ]
        )
        self.scratch = nn.Module()
        for i, channels in enumerate((one, two, three, four), start=1):
            reduce = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            self.scratch.add_module(f"layer{i}_rn", reduce)
            self.scratch.add_module(f"refinenet{i}", Fusion(width))
        self.scratch.output_conv1 = nn.Conv2d(width, width // 2, 3, padding=1)
        self.scratch.output_conv2 = nn.Sequential(
            nn.Conv2d(width // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 1, 1)
        )

    def paths(self, maps: list[Tensor]) -> list[Tensor]:
        """Outputs of refinenet4, 3, 2 and 1, coarse to fine."""
        layers = [
            self.scratch.get_submodule(f"layer{i}_rn")(resize(project(x)))
            for i, (x, project, resize) in enumerate(
                zip(maps, self.projects, self.resize_layers, strict=True), start=1
            )
        ]
        made: list[Tensor] = []
        for i in (4, 3, 2, 1):
            height, width = layers[i - 2].shape[-2:] if i > 1 else made[-1].shape[-2:]
            size = (height, width) if i > 1 else (2 * height, 2 * width)
            coarse, fine = (made[-1], layers[i - 1]) if made else (layers[3], None)
            made.append(self.scratch.get_submodule(f"refinenet{i}")(coarse, fine, size))
        return made

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        x = self.scratch.get_submodule("output_conv1")(self.paths(maps)[-1])
        depth: Tensor = self.scratch.get_submodule("output_conv2")(_resize(x, size))
        return depth


class DepthAnything(nn.Module):
    """The weights of one variant under their official names; ``Depth`` computes with them."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.pretrained = Backbone(variant)
        self.depth_head = Head(variant)


class Depth(nn.Module):
    """image (1, H, W, 3) uint8 -> inverse depth (1, 1, H, W) float32, larger = nearer, from 0."""

    first: Tensor
    positions: Tensor

    def __init__(self, model: DepthAnything, size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.size = size
        self.normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)
        embedding = model.pretrained.positions(size[0] // PATCH, size[1] // PATCH)
        first = model.pretrained.cls_token.detach() + embedding[:, :1]
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("positions", embedding[:, 1:].contiguous(), persistent=False)

    def tapped(self, image: Tensor) -> list[Tensor]:
        """The four normalised token maps (1, 1 + h w, D)."""
        patches = self.model.pretrained.patch_embed(self.normalise(image))
        tokens = patches.flatten(2).transpose(1, 2) + self.positions
        return self.model.pretrained.tapped(torch.cat([self.first, tokens], dim=1))

    def maps(self, image: Tensor) -> list[Tensor]:
        """The four token maps as images (1, D, h, w)."""
        h, w = self.size[0] // PATCH, self.size[1] // PATCH
        return [x[:, 1:].transpose(1, 2).reshape(1, -1, h, w) for x in self.tapped(image)]

    def forward(self, image: Tensor) -> Tensor:
        depth: Tensor = self.model.depth_head(self.maps(image), self.size).relu()
        return depth


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def build(*, seed: int = 0, size: str, version: int) -> DepthAnything:
    """A seeded random Depth Anything ``small``, ``base`` or ``large`` with the official keys."""
    return seeded(lambda: DepthAnything(VARIANTS[size, version]), seed)


def graphs(model: DepthAnything, size: tuple[int, int]) -> dict[str, tuple[nn.Module, GraphSpec]]:
    """The graph ``main@HxW`` for images of ``size`` (H, W).

    ExportError unless both sides are multiples of 14.
    """
    check_size("depth", size)
    name = str(GraphName("main", Size(*size)))
    image = TensorSpec("image", "uint8", (1, *size, 3))
    depth = TensorSpec("depth", "float32", (1, 1, *size))
    return {name: (Depth(model, size).eval(), GraphSpec(name, (image,), (depth,)))}


# Official name -> transformers name (models/depth_anything, models/dinov2), applied in turn.
_TRANSFORMERS = (
    (r"^pretrained\.pos_embed$", "backbone.embeddings.position_embeddings"),
    (r"^pretrained\.(cls_token|mask_token)$", r"backbone.embeddings.\1"),
    (r"^pretrained\.patch_embed\.proj\.", "backbone.embeddings.patch_embeddings.projection."),
    (r"^pretrained\.norm\.", "backbone.layernorm."),
    (r"^pretrained\.blocks\.", "backbone.encoder.layer."),
    (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
    (r"^depth_head\.projects\.(\d)\.", r"neck.reassemble_stage.layers.\1.projection."),
    (r"^depth_head\.resize_layers\.(\d)\.", r"neck.reassemble_stage.layers.\1.resize."),
    *((rf"^depth_head\.scratch\.layer{i}_rn\.", f"neck.convs.{i - 1}.") for i in (1, 2, 3, 4)),
    *(
        (rf"^depth_head\.scratch\.refinenet{i}\.", f"neck.fusion_stage.layers.{4 - i}.")
        for i in (1, 2, 3, 4)
    ),
    (r"\.resConfUnit([12])\.conv([12])\.", r".residual_layer\1.convolution\2."),
    (r"\.out_conv\.", ".projection."),
    (r"^depth_head\.scratch\.output_conv1\.", "head.conv1."),
    (r"^depth_head\.scratch\.output_conv2\.0\.", "head.conv2."),
    (r"^depth_head\.scratch\.output_conv2\.2\.", "head.conv3."),
)
_ATTENTION_4 = (
    (r"\.attn\.qkv\.", ".attention.attention.{query,key,value}."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
)
_ATTENTION_5 = (
    (r"\.attn\.qkv\.", ".attention.{q_proj,k_proj,v_proj}."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
)


def key_tables(model: DepthAnything) -> list[KeyTable]:
    """The names of transformers 4 (and of the published files) and of transformers 5 -> ours."""
    keys = list(model.state_dict())
    return [key_table(keys, _TRANSFORMERS + names) for names in (_ATTENTION_4, _ATTENTION_5)]
