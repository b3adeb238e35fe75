"""The weights of RAFT under their official names (Teed and Deng, ECCV 2020, section 3).

Key names are those of princeton-vl/RAFT (core/raft.py, extractor.py, update.py). What runs is put
together from these parts in raft.py.
h, w are H/8, W/8; Ch the width of the hidden state; r the radius of the lookup.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

STRIDE = 8
LEVELS = 4


@dataclass(frozen=True)
class Variant:
    """The widths of one size of RAFT. stem and stages apply to both encoders."""

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
        added: Tensor = (self.downsample(x) + y).relu()
        return added


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
        encoded: Tensor = self.conv2(x)
        return encoded


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
        change: Tensor = self.conv2(self.conv1(hidden).relu())
        return change


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
    """The weights of RAFT under their official names; the graphs in raft.py compute with them."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant = variant
        self.fnet = Encoder(variant, variant.features, "instance")
        self.cnet = Encoder(variant, variant.hidden + variant.context, variant.context_norm)
        self.update_block = UpdateBlock(variant)
