"""RAFT optical flow (Teed and Deng, ECCV 2020, section 3), small and large, as four graphs.

The weights are those of raft_network.py; torchvision's key names are the alternative table. The
flow runs from image 1 (frame t) to image 2 (frame t-1):

    encode    image -> fmap, hidden, context       once per frame, fmap is kept for the next pair
    corr      fmap of t, fmap of t-1 -> pyramid    once per pair
    step      pyramid, coords -> coords            as often as wanted, from the identity grid
    upsample  coords -> flow                       once, after the last step

h, w are H/8, W/8; F, Ch, Cc the widths of features, hidden state and context; r the radius of the
lookup. ``coords`` holds the x and y in frame t-1 of every cell of frame t, in cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambapose.export.checkpoints import KeyTable, key_table
from mambapose.export.models.images import Normalise
from mambapose.export.models.raft_network import LEVELS, STRIDE, VARIANTS, Raft, ResidualBlock
from mambapose.export.models.seeds import seeded
from mambapose.export.sizes import check_size
from mambapose.runtime.types import GraphName, GraphSpec, Size, TensorSpec


class Encode(nn.Module):
    """image (1, H, W, 3) uint8 -> fmap, hidden and context, (1, F or Ch or Cc, h, w) each."""

    def __init__(self, model: Raft) -> None:
        super().__init__()
        self.model = model
        self.normalise = Normalise((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.normalise(image)
        variant = self.model.variant
        hidden, context = self.model.cnet(x).split([variant.hidden, variant.context], 1)
        return self.model.fnet(x), hidden.tanh(), context.relu()


class Corr(nn.Module):
    """Two fmaps (1, F, h, w) -> the volume of all pairs (h w, 1, h, w) and three poolings of it.

    The factor 1/sqrt(F) goes into fmap1: on the volume it would cost a second tensor of its size.
    """

    def forward(self, fmap1: Tensor, fmap2: Tensor) -> tuple[Tensor, ...]:
        _, width, h, w = fmap1.shape
        rows = (fmap1 * width**-0.5).reshape(width, h * w).t()
        levels = [(rows @ fmap2.reshape(width, h * w)).reshape(h * w, 1, h, w)]
        for _ in range(LEVELS - 1):
            levels.append(F.avg_pool2d(levels[-1], 2, stride=2))
        return tuple(levels)


class Step(nn.Module):
    """corr0..3, coords (1, 2, h, w), hidden, context -> coords and hidden after one refinement."""

    grid: Tensor

    def __init__(self, model: Raft, size: tuple[int, int]) -> None:
        super().__init__()
        self.block = model.update_block
        self.h, self.w = size[0] // STRIDE, size[1] // STRIDE
        self.register_buffer("grid", identity_grid(self.h, self.w), persistent=False)
        # GridSample wants -1..1 across a level: one Mul and one Add, offsets included. The first
        # axis of the offsets moves x, as in the official code, which fixes the channel order.
        steps = torch.arange(-model.variant.radius, model.variant.radius + 1).double()
        offsets = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)[None]
        for i in range(LEVELS):
            cells = torch.tensor([self.w >> i, self.h >> i]).double() - 1
            scale = (2 / cells / 2**i).float().view(1, 1, 1, 2)
            shift = (offsets * 2 / cells - 1).float()
            self.register_buffer(f"scale{i}", scale, persistent=False)
            self.register_buffer(f"shift{i}", shift, persistent=False)

    def lookup(self, levels: tuple[Tensor, ...], coords: Tensor) -> Tensor:
        """(1, 4 (2r+1)^2, h, w): the correlations around coords at every level."""
        centres = coords.permute(0, 2, 3, 1).reshape(self.h * self.w, 1, 1, 2)
        found = []
        for i, level in enumerate(levels):
            where = centres * self.get_buffer(f"scale{i}") + self.get_buffer(f"shift{i}")
            values = F.grid_sample(level, where, align_corners=True)
            found.append(values.reshape(1, self.h, self.w, -1))
        return torch.cat(found, 3).permute(0, 3, 1, 2)

    def forward(
        self,
        corr0: Tensor,
        corr1: Tensor,
        corr2: Tensor,
        corr3: Tensor,
        coords: Tensor,
        hidden: Tensor,
        context: Tensor,
    ) -> tuple[Tensor, Tensor]:
        lookup = self.lookup((corr0, corr1, corr2, corr3), coords)
        motion = self.block.encoder(coords - self.grid, lookup)
        hidden = self.block.gru(hidden, torch.cat([context, motion], 1))
        return coords + self.block.flow_head(hidden), hidden


class BilinearUpsample(nn.Module):
    """coords (1, 2, h, w) -> flow (1, 2, H, W) in pixels."""

    grid: Tensor

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        grid = identity_grid(size[0] // STRIDE, size[1] // STRIDE)
        self.register_buffer("grid", grid, persistent=False)

    def forward(self, coords: Tensor) -> Tensor:
        flow = (coords - self.grid) * STRIDE
        return F.interpolate(flow, size=self.size, mode="bilinear", align_corners=True)


class ConvexUpsample(nn.Module):
    """coords, hidden -> flow (1, 2, H, W): each pixel a learned mean of 3x3 cells."""

    grid: Tensor

    def __init__(self, model: Raft, size: tuple[int, int]) -> None:
        super().__init__()
        self.mask = model.update_block.mask
        self.h, self.w = size[0] // STRIDE, size[1] // STRIDE
        self.register_buffer("grid", identity_grid(self.h, self.w), persistent=False)

    def forward(self, coords: Tensor, hidden: Tensor) -> Tensor:
        # 0.25 is the official balance of gradients; the weights were trained with it.
        weights = (0.25 * self.mask(hidden)).reshape(9, STRIDE**2, self.h, self.w).softmax(0)
        flow = F.pad((coords - self.grid) * STRIDE, (1, 1, 1, 1))
        near = torch.cat(
            [flow[:, :, y : y + self.h, x : x + self.w] for y in range(3) for x in range(3)]
        )
        pixels = [(weights * near[:, i : i + 1]).sum(0, keepdim=True) for i in (0, 1)]
        return F.pixel_shuffle(torch.cat(pixels, 1), STRIDE)


def identity_grid(h: int, w: int) -> Tensor:
    """(1, 2, h, w) float32: the x and y of every cell, where the first step starts."""
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([x, y])[None].float()


def build(*, seed: int = 0, variant: str) -> Raft:
    """A seeded random RAFT ``small`` or ``large`` with the official keys."""
    return seeded(lambda: Raft(VARIANTS[variant]), seed)


def graphs(model: Raft, size: tuple[int, int]) -> dict[str, tuple[nn.Module, GraphSpec]]:
    """The four graphs for images of ``size`` (H, W), which is part of their names.

    ExportError unless both sides are multiples of 8 and at least 128.
    """
    check_size("flow", size)
    variant = model.variant
    h, w = size[0] // STRIDE, size[1] // STRIDE

    def cells(name: str, channels: int) -> TensorSpec:
        return TensorSpec(name, "float32", (1, channels, h, w))

    image = TensorSpec("image", "uint8", (1, *size, 3))
    flow = TensorSpec("flow", "float32", (1, 2, *size))
    pyramid = tuple(
        TensorSpec(f"corr{i}", "float32", (h * w, 1, h >> i, w >> i)) for i in range(LEVELS)
    )
    coords, hidden = cells("coords", 2), cells("hidden", variant.hidden)
    context = cells("context", variant.context)
    fmaps = cells("fmap1", variant.features), cells("fmap2", variant.features)
    encoded = cells("fmap", variant.features), hidden, context
    after = cells("coords_next", 2), cells("hidden_next", variant.hidden)
    parts: dict[str, tuple[nn.Module, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]] = {
        "encode": (Encode(model), (image,), encoded),
        "corr": (Corr(), fmaps, pyramid),
        "step": (Step(model, size), (*pyramid, coords, hidden, context), after),
        "upsample": (
            (ConvexUpsample(model, size), (coords, hidden), (flow,))
            if variant.mask
            else (BilinearUpsample(size), (coords,), (flow,))
        ),
    }
    made: dict[str, tuple[nn.Module, GraphSpec]] = {}
    for part, (module, inputs, outputs) in parts.items():
        name = str(GraphName(part, Size(*size)))
        made[name] = (module.eval(), GraphSpec(name, inputs, outputs))
    return made


# Official name -> torchvision name (torchvision/models/optical_flow/raft.py), applied in turn.
_TORCHVISION = (
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"_encoder\.conv1\.", "_encoder.convnormrelu.0."),
    (r"_encoder\.norm1\.", "_encoder.convnormrelu.1."),
    (r"_encoder\.conv2\.", "_encoder.conv."),
    (r"(layer\d\.\d)\.conv(\d)\.", r"\1.convnormrelu\2.0."),
    (r"(layer\d\.\d)\.norm(\d)\.", r"\1.convnormrelu\2.1."),
    (r"block\.encoder\.convc(\d)\.", r"block.motion_encoder.convcorr\1.0."),
    (r"block\.encoder\.convf(\d)\.", r"block.motion_encoder.convflow\1.0."),
    (r"block\.encoder\.conv\.", "block.motion_encoder.conv.0."),
    (r"block\.gru\.conv([zrq])1?\.", r"block.recurrent_block.convgru1.conv\1."),
    (r"block\.gru\.conv([zrq])2\.", r"block.recurrent_block.convgru2.conv\1."),
    (r"update_block\.mask\.0\.", "mask_predictor.convrelu.0."),
    (r"update_block\.mask\.2\.", "mask_predictor.conv."),
)


def key_tables(model: Raft) -> list[KeyTable]:
    """torchvision's names -> ours. It stores the norm of a shortcut once, under ``downsample``."""
    keys = []
    for key in model.state_dict():
        block = model.get_submodule(key.rsplit(".", 2)[0])
        if not (isinstance(block, ResidualBlock) and f".norm{block.depth + 1}." in key):
            keys.append(key)
    return [key_table(keys, _TORCHVISION)]
