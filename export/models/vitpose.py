"""ViTPose: joint heatmaps of person crops (Xu et al., NeurIPS 2022, section 3.1).

A plain Vision Transformer with one of two heads: ``classic`` has two deconvolutions, ``simple`` one
bilinear upsampling. Key names are those of ViTAE-Transformer/ViTPose (mmpose/models/backbones/
vit.py, heads/topdown_heatmap_simple_head.py); transformers' are the alternative table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambapose.export.checkpoints import Rows, key_table
from mambapose.export.models.images import IMAGENET_MEAN, IMAGENET_STD, Normalise
from mambapose.export.models.vit import NORM_EPS, Block, PatchEmbed
from mambapose.runtime.errors import ExportError
from mambapose.runtime.types import GraphSpec, TensorSpec

CROP = (256, 192)
GRID = (16, 12)
HEATMAP = (64, 48)
JOINTS = 17
PATCH = 16
PATCH_PADDING = 2


@dataclass(frozen=True)
class Variant:
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
    """Crops (N, 3, 256, 192), normalised -> features (N, D, 16, 12)."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        width = variant.width
        self.patch_embed = PatchEmbed(width, PATCH, PATCH_PADDING)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + GRID[0] * GRID[1], width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, variant.heads) for _ in range(variant.depth))
        self.last_norm = nn.LayerNorm(width, eps=NORM_EPS)

    def positions(self) -> Tensor:
        """(1, 192, D): slot 0, once the class token's, is added to every token."""
        return (self.pos_embed[:, 1:] + self.pos_embed[:, :1]).detach()

    def forward(self, crops: Tensor, positions: Tensor) -> Tensor:
        tokens = self.patch_embed(crops).flatten(2).transpose(1, 2) + positions
        for block in self.blocks:
            tokens = block(tokens)
        return self.last_norm(tokens).transpose(1, 2).reshape(crops.shape[0], -1, *GRID)


class ClassicHead(nn.Module):
    """(N, D, 16, 12) -> heatmaps (N, 17, 64, 48) by two deconvolutions of 256 channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (width, 256):
            layers += [
                nn.ConvTranspose2d(inputs, 256, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(256),
                nn.ReLU(),
            ]
        self.deconv_layers = nn.Sequential(*layers)
        self.final_layer = nn.Conv2d(256, JOINTS, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.final_layer(self.deconv_layers(features))


class SimpleHead(nn.Module):
    """(N, D, 16, 12) -> heatmaps (N, 17, 64, 48) by bilinear upsampling and one convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.final_layer = nn.Conv2d(width, JOINTS, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        return self.final_layer(F.interpolate(features.relu(), scale_factor=4.0, mode="bilinear"))


HEADS: dict[str, type[nn.Module]] = {"classic": ClassicHead, "simple": SimpleHead}


class VitPose(nn.Module):
    """The weights under their official names; ``Pose`` computes with them."""

    def __init__(self, variant: Variant, head: type[nn.Module]) -> None:
        super().__init__()
        self.backbone = Backbone(variant)
        self.keypoint_head = head(variant.width)


class Pose(nn.Module):
    """rgb (N, 256, 192, 3) uint8 -> heatmaps (N, 17, 64, 48) float32."""

    positions: Tensor

    def __init__(self, model: VitPose) -> None:
        super().__init__()
        self.model = model
        self.normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)
        self.register_buffer("positions", model.backbone.positions(), persistent=False)

    def forward(self, rgb: Tensor) -> Tensor:
        return self.model.keypoint_head(self.model.backbone(self.normalise(rgb), self.positions))


def build(*, size: str, head: str) -> VitPose:
    """ViTPose ``s``, ``b``, ``l`` or ``h`` with a head, in eval mode, weights untrained."""
    return VitPose(VARIANTS[size], HEADS[head]).eval()


def graphs(model: VitPose, size: tuple[int, int] = CROP) -> dict[str, tuple[nn.Module, GraphSpec]]:
    """``main``, free in the number of people N. ExportError unless the size is 256x192."""
    if tuple(size) != CROP:
        raise ExportError(
            f"a crop size of {CROP[0]}x{CROP[1]} was wanted, found {size[0]}x{size[1]}; "
            "ViTPose is trained for this size alone"
        )
    rgb = TensorSpec("rgb", "uint8", ("N", *CROP, 3))
    heatmaps = TensorSpec("heatmaps", "float32", ("N", JOINTS, *HEATMAP))
    return {"main": (Pose(model).eval(), GraphSpec("main", (rgb,), (heatmaps,)))}


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


def key_tables(model: VitPose) -> list[dict[str, str | Rows]]:
    """transformers' names -> ours."""
    return [key_table(model.state_dict(), _TRANSFORMERS)]
