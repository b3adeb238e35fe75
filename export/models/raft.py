"""RAFT optical flow (Teed and Deng, ECCV 2020, section 3), small and large, as four graphs.

Key names are those of princeton-vl/RAFT (core/raft.py, extractor.py, update.py); torchvision's are
the alternative table. The flow runs from image 1 (frame t) to image 2 (frame t-1):

    encode    image -> fmap, hidden, context       once per frame, fmap is kept for the next pair
    corr      fmap of t, fmap of t-1 -> pyramid    once per pair
    step      pyramid, coords -> coords            as often as wanted, from the identity grid
    upsample  coords -> flow                       once, after the last step

h, w are H/8, W/8; F, Ch, Cc the widths of features, hidden state and context; r the radius of the
lookup. ``coords`` holds the x and y in frame t-1 of every cell of frame t, in cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambapose.export.checkpoints import Rows, key_table
from mambapose.export.models.images import Normalise, orientations
from mambapose.runtime.errors import ExportError
from mambapose.runtime.types import GraphSpec, TensorSpec

STRIDE = 8
LEVELS = 4
MIN_SIDE = 128  # below, the coarsest level is one cell wide and the grid divides by zero


@dataclass(frozen=True)
class Variant:
    """Widths of one size of RAFT. stem and stages are those of both encoders."""

    bottleneck: bool
    stem: int
    stages: tuple[int, int, int]
    features: int
    hidden: int
    context: int
    radius: int
    context_norm: str
    corr_widths: tuple[int, ...]
    flow_widths: tuple[int, int]
    motion: int
    head: int
    separable: bool
    mask: bool


VARIANTS = {
    "small": Variant(
        bottleneck=True,
        stem=32,
        stages=(32, 64, 96),
        features=128,
        hidden=96,
        context=64,
        radius=3,
        context_norm="none",
        corr_widths=(96,),
        flow_widths=(64, 32),
        motion=80,
        head=128,
        separable=False,
        mask=False,
    ),
    "large": Variant(
        bottleneck=False,
        stem=64,
        stages=(64, 96, 128),
        features=256,
        hidden=128,
        context=128,
        radius=4,
        context_norm="batch",
        corr_widths=(256, 192),
        flow_widths=(128, 64),
        motion=126,
        head=256,
        separable=True,
        mask=True,
    ),
}

_NORMS = {"instance": nn.InstanceNorm2d, "batch": nn.BatchNorm2d, "none": nn.Identity}


class ResidualBlock(nn.Module):
    """(1, inputs, h, w) -> (1, outputs, h/stride, w/stride): convolutions plus a shortcut.

    Two 3x3, or 1x1, 3x3, 1x1 at a quarter of the width. A strided block has its shortcut's norm
    under two names, as the official files do.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str, bottleneck: bool) -> None:
        super().__init__()
        narrow = outputs // 4
        if bottleneck:
            plan = [(inputs, narrow, 1, 1), (narrow, narrow, 3, stride), (narrow, outputs, 1, 1)]
        else:
            plan = [(inputs, outputs, 3, stride), (outputs, outputs, 3, 1)]
        self.depth = len(plan)
        for i, (have, make, kernel, step) in enumerate(plan, start=1):
            self.add_module(f"conv{i}", nn.Conv2d(have, make, kernel, step, kernel // 2))
            self.add_module(f"norm{i}", _NORMS[norm](make))
        self.downsample: nn.Module = nn.Identity()
        if stride > 1:
            shortcut = _NORMS[norm](outputs)
            self.add_module(f"norm{self.depth + 1}", shortcut)
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.depth + 1):
            y = self.get_submodule(f"norm{i}")(self.get_submodule(f"conv{i}")(y)).relu()
        return (self.downsample(x) + y).relu()


class Encoder(nn.Module):
    """(1, 3, H, W) in [-1, 1] -> (1, outputs, h, w)."""

    def __init__(self, variant: Variant, outputs: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, variant.stem, 7, stride=2, padding=3)
        self.norm1 = _NORMS[norm](variant.stem)
        width = variant.stem
        for i, stage in enumerate(variant.stages, start=1):
            stride = 1 if i == 1 else 2
            blocks = (
                ResidualBlock(width, stage, stride, norm, variant.bottleneck),
                ResidualBlock(stage, stage, 1, norm, variant.bottleneck),
            )
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
            width = stage
        self.conv2 = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        for i in (1, 2, 3):
            x = self.get_submodule(f"layer{i}")(x)
        return self.conv2(x)


class MotionEncoder(nn.Module):
    """Lookup (1, 4 (2r+1)^2, h, w) and flow (1, 2, h, w) -> (1, motion + 2, h, w)."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        width = LEVELS * (2 * variant.radius + 1) ** 2
        for i, make in enumerate(variant.corr_widths, start=1):
            kernel = 1 if i == 1 else 3
            self.add_module(f"convc{i}", nn.Conv2d(width, make, kernel, padding=kernel // 2))
            width = make
        first, second = variant.flow_widths
        self.corr_depth = len(variant.corr_widths)
        self.convf1 = nn.Conv2d(2, first, 7, padding=3)
        self.convf2 = nn.Conv2d(first, second, 3, padding=1)
        self.conv = nn.Conv2d(width + second, variant.motion, 3, padding=1)

    def forward(self, flow: Tensor, lookup: Tensor) -> Tensor:
        for i in range(1, self.corr_depth + 1):
            lookup = self.get_submodule(f"convc{i}")(lookup).relu()
        moved = self.convf2(self.convf1(flow).relu()).relu()
        return torch.cat([self.conv(torch.cat([lookup, moved], 1)).relu(), flow], 1)


class GatedUnit(nn.Module):
    """Convolutional GRU: hidden (1, Ch, h, w), input (1, C, h, w) -> hidden.

    One 3x3 pass, or a horizontal 1x5 and a vertical 5x1 pass whose keys end in 1 and 2.
    """

    def __init__(self, hidden: int, inputs: int, separable: bool) -> None:
        super().__init__()
        passes = {"1": (1, 5), "2": (5, 1)} if separable else {"": (3, 3)}
        self.passes = tuple(passes)
        for suffix, kernel in passes.items():
            padding = (kernel[0] // 2, kernel[1] // 2)
            for gate in "zrq":
                conv = nn.Conv2d(hidden + inputs, hidden, kernel, padding=padding)
                self.add_module(f"conv{gate}{suffix}", conv)

    def forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        for suffix in self.passes:
            both = torch.cat([hidden, x], 1)
            update = self.get_submodule(f"convz{suffix}")(both).sigmoid()
            reset = self.get_submodule(f"convr{suffix}")(both).sigmoid()
            both = torch.cat([reset * hidden, x], 1)
            fresh = self.get_submodule(f"convq{suffix}")(both).tanh()
            hidden = (1 - update) * hidden + update * fresh
        return hidden


class FlowHead(nn.Module):
    """Hidden (1, Ch, h, w) -> change of the flow (1, 2, h, w), in cells."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(hidden, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv2(self.conv1(hidden).relu())


class UpdateBlock(nn.Module):
    """The parts of one refinement; ``mask`` (large only) weighs the convex upsampling."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        inputs = variant.context + variant.motion + 2
        self.encoder = MotionEncoder(variant)
        self.gru = GatedUnit(variant.hidden, inputs, variant.separable)
        self.flow_head = FlowHead(variant.hidden, variant.head)
        if variant.mask:
            self.mask = nn.Sequential(
                nn.Conv2d(variant.hidden, 256, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(256, 9 * STRIDE**2, 1),
            )


class Raft(nn.Module):
    """The weights of RAFT under their official names; the graphs below compute with them."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant = variant
        self.fnet = Encoder(variant, variant.features, "instance")
        self.cnet = Encoder(variant, variant.hidden + variant.context, variant.context_norm)
        self.update_block = UpdateBlock(variant)


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


def build(*, variant: str) -> Raft:
    """RAFT ``small`` or ``large`` in eval mode, weights as torch initialises them."""
    return Raft(VARIANTS[variant]).eval()


def graphs(
    model: Raft, size: tuple[int, int], *, both_orientations: bool = True
) -> dict[str, tuple[nn.Module, GraphSpec]]:
    """The four graphs at (H, W) and, unless square or told not to, at (W, H).

    ExportError unless both sides are multiples of 8 and at least 128.
    """
    if min(size) < MIN_SIDE or any(side % STRIDE for side in size):
        raise ExportError(
            f"a flow size with sides from {MIN_SIDE} up in multiples of {STRIDE} was wanted, "
            f"found {size[0]}x{size[1]}; change the flow size"
        )
    made: dict[str, tuple[nn.Module, GraphSpec]] = {}
    for height, width in orientations(size) if both_orientations else (size,):
        for name, (module, inputs, outputs) in _graphs_at(model, (height, width)).items():
            full = f"{name}@{height}x{width}"
            made[full] = (module.eval(), GraphSpec(full, inputs, outputs))
    return made


_Graph = tuple[nn.Module, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]


def _graphs_at(model: Raft, size: tuple[int, int]) -> dict[str, _Graph]:
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
    step_out = cells("coords_next", 2), cells("hidden_next", variant.hidden)
    upsample: _Graph = (
        (ConvexUpsample(model, size), (coords, hidden), (flow,))
        if variant.mask
        else (BilinearUpsample(size), (coords,), (flow,))
    )
    return {
        "encode": (Encode(model), (image,), (cells("fmap", variant.features), hidden, context)),
        "corr": (Corr(), fmaps, pyramid),
        "step": (Step(model, size), (*pyramid, coords, hidden, context), step_out),
        "upsample": upsample,
    }


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


def key_tables(model: Raft) -> list[dict[str, str | Rows]]:
    """torchvision's names -> ours. It stores the norm of a shortcut once, under ``downsample``."""
    keys = []
    for key in model.state_dict():
        block = model.get_submodule(key.rsplit(".", 2)[0])
        if not (isinstance(block, ResidualBlock) and f".norm{block.depth + 1}." in key):
            keys.append(key)
    return [key_table(keys, _TORCHVISION)]
