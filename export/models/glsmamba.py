"""GLSMamba, 2D pose from five frames: our own re-implementation, no code of the authors exists.

After the public description of Feng et al., "High-Resolution Spatiotemporal Modeling with
Global-Local State Space Models for Video-Based Human Pose Estimation" (ICCV 2025, arXiv
2510.11017). No figure of the paper is one of this network's. What we chose,
because it is not told: the widths of FFN (1), channel attention (1/16) and head (a norm and a
linear layer), the six orders (glsmamba_orders.py), COCO's 17 joints for PoseTrack's 15; what we
changed: STMM's deformable convolutions (glsmamba_blocks.py). docs/decisions/0008 has the reasons.

    encode  crops of one frame -> features: ViTPose encoder, its two deconvolutions, a linear layer,
            sine-cosine places. All that depends on one frame alone, so it is done once per frame
    main    features of T frames around the key frame -> its heatmaps: embedding of the time, global
            blocks, local blocks, head

Keys: ``backbone.*`` and ``keypoint_head.deconv_layers.*`` as in official ViTPose files, and our
own ``embed.{weight (d, 256), bias}``, ``time_embed`` (T, d), ``global_blocks.i.*``,
``local_blocks.i.*``, ``head_norm.*``, ``head.{weight (17, d), bias}``; those of a block are in
glsmamba_blocks.py. A file of ViTPose itself gives the encoder (``load_encoder``), the rest then
stays random.
Letters: N people, T frames, P = H/4 * W/4 tokens of a crop of H x W pixels, d width.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from mambapose.export.checkpoints import KeyTable, Tell, load_weights, read_state_dict
from mambapose.export.models import vitpose
from mambapose.export.models.folding import freeze
from mambapose.export.models.glsmamba_blocks import EXPANSION, GROUP, GlobalBlock, LocalBlock
from mambapose.export.models.glsmamba_orders import order_table, window_table
from mambapose.export.models.images import IMAGENET_MEAN, IMAGENET_STD, Normalise
from mambapose.export.models.seeds import seeded
from mambapose.export.models.simple_head import JOINTS, SCALE
from mambapose.export.sizes import check_size
from mambapose.runtime.errors import ExportError
from mambapose.runtime.types import GraphSpec, TensorSpec

FRAMES = 5
WINDOW = (8, 6)  # tokens of a local window, through all frames
WAVELENGTH = 10000.0
# Only files of ViTPose hold these: its last layer, in official and in transformers' names.
VITPOSE_KEYS = ("keypoint_head.final_layer.weight", "head.conv.weight")
CLASSIC_KEYS = ("keypoint_head.deconv_layers.0.weight", "head.deconv1.weight")


class Deconvolutions(nn.Module):
    """ViTPose's classic decoder without its last layer, under its official keys."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.deconv_layers = vitpose.deconvolutions(width)
        for layer in self.deconv_layers:
            if isinstance(layer, nn.ConvTranspose2d):
                # Four of the sixteen taps meet at a pixel: random features as large as the places.
                nn.init.normal_(layer.weight, std=(2 / (4 * layer.in_channels)) ** 0.5)


class GlsMamba(nn.Module):
    """The weights; ``Encode`` and ``Window`` compute with them."""

    def __init__(
        self,
        variant: vitpose.Variant,
        width: int,
        global_blocks: int,
        local_blocks: int,
        frames: int = FRAMES,
        window: tuple[int, int] = WINDOW,
    ) -> None:
        super().__init__()
        if width % 4 or EXPANSION * width % GROUP or frames % 2 == 0 or local_blocks < 1:
            raise ValueError(
                "a width of whole quarters and modulated groups, an odd number of frames and a "
                f"local block were wanted, found {width}, {frames}, {local_blocks}"
            )
        self.variant, self.frames, self.window = variant, frames, window
        self.backbone = vitpose.Backbone(variant)
        self.keypoint_head = Deconvolutions(variant.width)
        self.embed = nn.Linear(vitpose.ENLARGED, width)
        self.time_embed = nn.Parameter(torch.empty(frames, width))
        self.global_blocks = nn.ModuleList(GlobalBlock(width, frames) for _ in range(global_blocks))
        self.local_blocks = nn.ModuleList(LocalBlock(width) for _ in range(local_blocks))
        self.head_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, JOINTS)
        nn.init.trunc_normal_(self.time_embed, std=0.02)


class Encode(nn.Module):
    """rgb (N, H, W, 3) uint8 -> features (N, P, d) float32 of one frame, with place embeddings."""

    positions: Tensor
    places: Tensor

    def __init__(self, model: GlsMamba, size: tuple[int, int]) -> None:
        super().__init__()
        self.grid = (size[0] // vitpose.PATCH, size[1] // vitpose.PATCH)
        self.normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)
        self.backbone = model.backbone
        self.deconvolutions = model.keypoint_head.deconv_layers
        self.embed = model.embed
        positions = model.backbone.positions(self.grid)
        self.register_buffer("positions", positions, persistent=False)
        tokens = (SCALE * self.grid[0], SCALE * self.grid[1])
        places = sine_cosine_places(tokens, model.embed.out_features)
        self.register_buffer("places", places, persistent=False)

    def forward(self, rgb: Tensor) -> Tensor:
        tokens = self.backbone(self.normalise(rgb), self.positions)
        enlarged = self.deconvolutions(tokens.transpose(1, 2).unflatten(2, self.grid))
        features: Tensor = self.embed(enlarged.flatten(2).transpose(1, 2)) + self.places
        return features


class Window(nn.Module):
    """Features (N, T, P, d) of T frames -> heatmaps (N, 17, H/4, W/4) of the middle one."""

    order: Tensor
    windows: Tensor

    def __init__(self, model: GlsMamba, size: tuple[int, int]) -> None:
        super().__init__()
        self.grid = (size[0] * SCALE // vitpose.PATCH, size[1] * SCALE // vitpose.PATCH)
        self.frames = model.frames
        self.steps = model.frames * model.window[0] * model.window[1]
        self.time_embed = model.time_embed
        self.global_blocks = freeze(model.global_blocks)
        self.local_blocks = freeze(model.local_blocks)
        self.head_norm, self.head = model.head_norm, model.head
        order = torch.from_numpy(order_table(self.frames, self.grid))
        self.register_buffer("order", order, persistent=False)
        windows = torch.from_numpy(window_table(self.frames, self.grid, model.window))
        self.register_buffer("windows", windows, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        x = features + self.time_embed[:, None]
        for block in self.global_blocks:
            x = block(x, self.grid, self.order)
        *others, last = self.local_blocks
        for block in others:
            x = block(x, self.grid, self.windows, self.steps)
        # Behind the last scan the other frames matter no more.
        key = self.frames // 2
        x = last(x, self.grid, self.windows, self.steps, slice(key, key + 1))
        joints = self.head(self.head_norm(x)).squeeze(1).transpose(1, 2)
        heatmaps: Tensor = joints.unflatten(2, self.grid)
        return heatmaps


def sine_cosine_places(grid: tuple[int, int], width: int) -> Tensor:
    """(P, d) place embeddings: sines and cosines of the row, then of the column.

    Each of the four has a quarter of the channels.
    """
    step = math.log(WAVELENGTH) / (width // 4)
    rate = torch.exp(-step * torch.arange(width // 4, dtype=torch.float64))
    row, column = (torch.arange(side, dtype=torch.float64)[:, None] * rate for side in grid)
    row = row[:, None].expand(-1, grid[1], -1).flatten(0, 1)
    column = column[None].expand(grid[0], -1, -1).flatten(0, 1)
    parts = [torch.sin(row), torch.cos(row), torch.sin(column), torch.cos(column)]
    return torch.cat(parts, 1).float()


def build(
    *,
    seed: int = 0,
    encoder: str | vitpose.Variant = "b",
    width: int = 256,
    global_blocks: int = 4,
    local_blocks: int = 2,
    frames: int = FRAMES,
    window: tuple[int, int] = WINDOW,
) -> GlsMamba:
    """A seeded random GLSMamba on the encoder of ViTPose ``s``, ``b``, ``l``, ``h``, or another."""
    variant = vitpose.VARIANTS[encoder] if isinstance(encoder, str) else encoder
    return seeded(
        lambda: GlsMamba(variant, width, global_blocks, local_blocks, frames, window), seed
    )


def graphs(
    model: GlsMamba, size: tuple[int, int] = vitpose.CROP
) -> dict[str, tuple[nn.Module, GraphSpec]]:
    """``encode`` and ``main`` for crops of ``size`` (H, W) and any number N of people.

    ExportError unless the grid of tokens (a quarter of each side of the crop) divides into whole
    windows.
    """
    check_size("pose2d", size)
    grid = (size[0] * SCALE // vitpose.PATCH, size[1] * SCALE // vitpose.PATCH)
    if any(side % part for side, part in zip(grid, model.window, strict=True)):
        rows, columns = (math.lcm(vitpose.PATCH // SCALE, part) for part in model.window)
        unit = vitpose.PATCH // SCALE
        raise ExportError(
            f"size of pose2d must be multiples of {rows * unit}x{columns * unit} px for GLSMamba's "
            f"windows, found {size[0]}x{size[1]}"
        )
    rgb = TensorSpec("rgb", "uint8", ("N", *size, 3))
    tokens = (grid[0] * grid[1], model.embed.out_features)
    one = TensorSpec("features", "float32", ("N", *tokens))
    window = TensorSpec("features", "float32", ("N", model.frames, *tokens))
    heatmaps = TensorSpec("heatmaps", "float32", ("N", JOINTS, *grid))
    return {
        "encode": (Encode(model, size).eval(), GraphSpec("encode", (rgb,), (one,))),
        "main": (Window(model, size).eval(), GraphSpec("main", (window,), (heatmaps,))),
    }


def load_encoder(
    model: GlsMamba, path: Path, weights_key: str | None = None, tell: Tell | None = None
) -> bool:
    """True after the encoder got its weights from a file of ViTPose, official or transformers'.

    The file's deconvolutions are taken too when it has them; all other weights stay as they were.
    False, and nothing is changed, for any other file. ExportError when it is ViTPose of another
    size.
    """
    state = read_state_dict(path, weights_key)
    if not any(key in state for key in VITPOSE_KEYS):
        return False
    classic = any(key in state for key in CLASSIC_KEYS)
    whole = seeded(lambda: vitpose.VitPose(model.variant, "classic" if classic else "simple"), 0)
    load_weights(
        whole, path, vitpose.key_tables(whole), network="the encoder of GLSMamba",
        weights_key=weights_key, tell=tell,
    )  # fmt: skip
    model.backbone.load_state_dict(whole.backbone.state_dict())
    if classic:
        layers = whole.keypoint_head.deconv_layers
        assert isinstance(layers, nn.Module)
        model.keypoint_head.deconv_layers.load_state_dict(layers.state_dict())
    return True


def key_tables(model: GlsMamba) -> list[KeyTable]:
    """An empty list: no second naming scheme of the whole network exists."""
    return []
