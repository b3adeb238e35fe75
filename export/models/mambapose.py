"""mambapose: top-down 2D pose from colour, optical flow and depth with a Vim v2 encoder.

Our own definition (no public code matches the poster's network): 16x16 patches of six channels
(3 colour, 2 flow, 1 depth), learned positions, the bidirectional layers of Vim without a class
token, the simple decoder of ViTPose. A modality that is absent is replaced by a learned embedding,
so one checkpoint runs with any of them.

Keys: ``patch_embed.proj.{weight (d, 6, 16, 16), bias}``, ``pos_embed`` (1, h*w, d),
``missing_embed`` (2, d) for flow and depth, ``layers.i.*`` and ``norm_f.weight`` as in Vim,
``keypoint_head.final_layer.{weight (17, d, 3, 3), bias}`` as in ViTPose.
Letters: B batch, M = h*w tokens, d width, H W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mambapose.export.checkpoints import KeyTable
from mambapose.export.models.folding import Foldable, bias_of, freeze
from mambapose.export.models.images import IMAGENET_MEAN, IMAGENET_STD
from mambapose.export.models.positions import resized_positions
from mambapose.export.models.seeds import seeded
from mambapose.export.models.simple_head import JOINTS, SCALE, SimpleHead
from mambapose.export.models.vim import PATCH, Encoder
from mambapose.export.sizes import check_size
from mambapose.runtime.errors import ExportError
from mambapose.runtime.types import GraphSpec, TensorSpec

CHANNELS = 6  # red, green, blue, flow x, flow y, depth
MODALITIES = ("flow", "depth")
IMAGE = (256, 192)
FLOW_UNIT_PX = float(PATCH)  # a motion of one patch enters as 1
DEPTH_FLOOR = 1e-8  # of the mean square: what rounding leaves of a constant depth
DEPTH_TINY = 1e-12
_OTHER_VIM = "give the weights of a square-image Vim of the same width and depth"


class PatchConstants(NamedTuple):
    """The patch convolution as one matrix per modality, including all scaling of the inputs."""

    colour: Tensor  # (16*16*3, d), for uint8 values
    flow: Tensor  # (2*16*16, d), for pixels
    depth: Tensor  # (16*16, d)
    bias: Tensor  # (d)


class PatchEmbed(Foldable):
    """Images of a crop -> tokens (B, M, d)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(CHANNELS, width, PATCH, PATCH)
        nn.init.trunc_normal_(self.proj.weight, std=(CHANNELS * PATCH * PATCH) ** -0.5)
        nn.init.zeros_(bias_of(self.proj))

    def fold(self) -> PatchConstants:
        weight = self.proj.weight.double()
        mean, std = (
            torch.tensor(values, dtype=torch.float64, device=weight.device).view(1, 3, 1, 1)
            for values in (IMAGENET_MEAN, IMAGENET_STD)
        )
        colour = weight[:, :3] / std
        bias = bias_of(self.proj) - (colour * mean).sum((1, 2, 3))
        parts = (
            (colour / 255).permute(2, 3, 1, 0).flatten(0, 2),
            (weight[:, 3:5] / FLOW_UNIT_PX).permute(1, 2, 3, 0).flatten(0, 2),
            weight[:, 5:].permute(1, 2, 3, 0).flatten(0, 2),
            bias,
        )
        return PatchConstants(*(part.to(self.proj.weight) for part in parts))

    def forward(self, rgb: Tensor, flow: Tensor, depth: Tensor) -> Tensor:
        c: PatchConstants = self.constants()
        n, height, width = rgb.shape[:3]
        h, w = height // PATCH, width // PATCH
        # The cast comes first: TensorRT takes uint8 at a graph's edge and nowhere else.
        colour = rgb.to(flow.dtype).reshape(n, h, PATCH, w, PATCH, 3)
        tokens = colour.permute(0, 1, 3, 2, 4, 5).reshape(n, h * w, -1) @ c.colour
        for maps, matrix in ((flow, c.flow), (depth, c.depth)):
            blocks = maps.reshape(n, -1, h, PATCH, w, PATCH).permute(0, 2, 4, 1, 3, 5)
            tokens = tokens + blocks.reshape(n, h * w, -1) @ matrix
        return tokens + c.bias


class MambaPose(Encoder):
    """Crops of people -> heatmaps (B, 17, H/4, W/4)."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__(width, depth)
        grid = (IMAGE[0] // PATCH, IMAGE[1] // PATCH)
        self.patch_embed = PatchEmbed(width)
        self.pos_embed = nn.Parameter(torch.empty(1, grid[0] * grid[1], width))
        self.missing_embed = nn.Parameter(torch.empty(len(MODALITIES), width))
        self.keypoint_head = SimpleHead(width, grid)
        for tensor in (self.pos_embed, self.missing_embed):
            nn.init.trunc_normal_(tensor, std=0.02)

    def forward(self, rgb: Tensor, flow: Tensor, depth: Tensor, present: Tensor) -> Tensor:
        """Heatmaps (B, 17, H/4, W/4).

        rgb: (B, H, W, 3) uint8; flow: (B, 2, H, W) crop pixels; depth: (B, 1, H, W) inverse depth
        in any unit; present: (B, 2), 1 or 0 for flow and depth. What a modality with present 0
        holds does not matter, not even when it is not a number.
        """
        with_flow, with_depth = (present[:, :, None, None] > 0.5).split(1, 1)
        flow = torch.where(with_flow, flow, 0.0)
        depth = torch.where(with_depth, depth, 0.0)
        tokens = self.patch_embed(rgb, flow, standardised(depth))
        absent = (present <= 0.5).to(tokens.dtype) @ self.missing_embed
        tokens = tokens + self.pos_embed + absent[:, None]
        heatmaps: Tensor = self.keypoint_head(self.encode(tokens))
        return heatmaps


def standardised(depth: Tensor) -> Tensor:
    """Zero mean and unit deviation per crop, because scale and offset of a depth map are unknown.

    Zeros stay zeros. The smallest variance is applied as a maximum, not added: the ONNX exporter
    takes a summand of 1e-12 for zero and drops it.
    """
    axes = tuple(range(1, depth.ndim))
    mean = depth.mean(axes, keepdim=True)
    centred = depth - mean
    variance = centred.square().mean(axes, keepdim=True)
    least = torch.clamp(DEPTH_FLOOR * mean.square(), min=DEPTH_TINY)
    return centred / torch.sqrt(torch.maximum(variance, least))


def at_size(model: MambaPose, size: tuple[int, int]) -> MambaPose:
    """A copy of the network for crops of another size (H, W), with resized position embeddings."""
    check_size("pose2d", size)
    resized = copy.deepcopy(model)
    grid = (size[0] // PATCH, size[1] // PATCH)
    positions = resized_positions(model.pos_embed.detach(), model.keypoint_head.grid, grid)
    resized.pos_embed = nn.Parameter(positions)
    resized.keypoint_head.grid = grid
    return resized


def encoder_from_vim(model: MambaPose, state: Mapping[str, Tensor]) -> None:
    """Starts the encoder from an official Vim state dict of the same width and depth.

    Layers and last norm are copied, and so are the colour channels of the patch convolution; its
    flow and depth channels start at zero, so that the network first sees what Vim saw. The position
    of the class token is dropped and the other positions, a square grid, are resized. Class token
    and head are not used. ExportError names the first tensor that is absent or has another shape.
    """
    width = model.pos_embed.shape[2]
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    wanted = {key: shape for key, shape in wanted.items() if _is_encoder(key)}
    extra = sorted(key for key in state if _is_encoder(key) and key not in wanted)
    if extra:
        raise ExportError(
            f"a Vim of {len(model.layers)} layers was wanted, found also {extra[0]}; {_OTHER_VIM}"
        )
    wanted["patch_embed.proj.weight"] = (width, 3, PATCH, PATCH)
    wanted["patch_embed.proj.bias"] = (width,)
    for key, shape in wanted.items():
        found = tuple(state[key].shape) if key in state else None
        if found != shape:
            raise ExportError(
                f"{key} of shape {shape} was wanted in the Vim, found {found}; {_OTHER_VIM}"
            )
    embed = state.get("pos_embed", torch.empty(0, 0, 0))
    side = max(1, round(max(embed.shape[1] - 1, 0) ** 0.5))
    if tuple(embed.shape) != (1, side * side + 1, width):
        raise ExportError(
            f"pos_embed of shape (1, side*side + 1, {width}) was wanted in the Vim, "
            f"found {tuple(embed.shape)}; {_OTHER_VIM}"
        )
    middle = side * side // 2
    squared = torch.cat([embed[:, :middle], embed[:, middle + 1 :]], 1)
    proj = model.patch_embed.proj
    encoder = {key: value for key, value in state.items() if _is_encoder(key)}
    model.load_state_dict(encoder, strict=False)
    with torch.no_grad():
        proj.weight.zero_()
        proj.weight[:, :3] = state["patch_embed.proj.weight"]
        bias_of(proj).copy_(state["patch_embed.proj.bias"])
        model.pos_embed.copy_(resized_positions(squared, (side, side), model.keypoint_head.grid))


def _is_encoder(key: str) -> bool:
    return key.startswith(("layers.", "norm_f."))


def build(*, seed: int = 0, width: int = 192, depth: int = 24) -> MambaPose:
    """A seeded random mambapose; widths and depths as in ``vim.CONFIGS``."""
    return seeded(lambda: MambaPose(width, depth), seed)


def graphs(model: MambaPose, size: tuple[int, int]) -> dict[str, tuple[nn.Module, GraphSpec]]:
    """The one graph of the stage for crops of ``size`` (H, W), any number of people."""
    height, width = size
    inputs = (
        TensorSpec("rgb", "uint8", ("N", height, width, 3)),
        TensorSpec("flow", "float32", ("N", 2, height, width)),
        TensorSpec("depth", "float32", ("N", 1, height, width)),
        TensorSpec("present", "float32", ("N", len(MODALITIES))),
    )
    grid = (height // PATCH, width // PATCH)
    heatmaps = ("N", JOINTS, SCALE * grid[0], SCALE * grid[1])
    outputs = (TensorSpec("heatmaps", "float32", heatmaps),)
    return {"main": (freeze(at_size(model, size)), GraphSpec("main", inputs, outputs))}


def key_tables(model: MambaPose) -> list[KeyTable]:
    """An empty list: no second naming scheme exists."""
    return []
