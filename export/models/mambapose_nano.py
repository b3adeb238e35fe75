"""mambapose-nano: top-down 2D pose from colour, flow and depth for training with little compute.

Our own definition: a small residual convolutional encoder whose coarsest level mixes its tokens
with bidirectional Mamba layers (those of Vim v2), a top-down decoder, and a head for the eight
left-minus-right vectors that is fed back, because left and right are what heatmaps learn last.
The network works on crops of half the size; heatmaps are posteriors: a softmax over the cells of a
32x24 grid and "not in this crop", in which the two joints of a limb's pair give way to each other,
blurred to the usual Gaussian, so that the height of a peak is about the probability that the joint
is there. A modality that is absent enters as zeros and a learned offset, so one checkpoint runs
with any of them.

Keys: ``stem.*``, ``levels.i.*``, ``mixer.layers.k.*`` and ``mixer.norm_f`` as in Vim,
``laterals.i``, ``smooth.i``, ``side_in``, ``side_mid``, ``side_out``, ``side_back``,
``absent_head``, ``heat_head``, ``missing_embed`` (2, 24) for flow and depth.
Letters: B batch, C channels, H W pixels of the crop, h w cells.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mambapose.export.checkpoints import KeyTable
from mambapose.export.models.folding import freeze
from mambapose.export.models.images import IMAGENET_MEAN, IMAGENET_STD
from mambapose.export.models.mambapose import FLOW_UNIT_PX, IMAGE, MODALITIES, standardised
from mambapose.export.models.seeds import seeded
from mambapose.export.models.simple_head import JOINTS
from mambapose.export.models.vim import Encoder
from mambapose.runtime.errors import ExportError
from mambapose.runtime.skeleton import COCO17
from mambapose.runtime.types import GraphSpec, TensorSpec

CHANNELS = 6  # red, green, blue, flow x, flow y, depth
STEM, WIDTHS, NECK = 24, (48, 128, 192), 64
BLOCKS, MIXED = (2, 2, 1), 2  # residual blocks per level, Mamba layers after the last
POOL = 2  # the network sees crops of half the size
CELL = 8  # crop pixels of a heatmap cell
HEATMAPS = (64, 48)
CELL_SIGMA = 0.8  # cells, of the target
HEATMAP_SIGMA = 2.0  # heatmap pixels, as every pose network's here
SIDES, SIDE_UNIT_PX = 8, 32.0
LIMBS = COCO17.pairs[2:]  # shoulders to ankles: eyes and ears are too close to give way
# Chosen on rendered held-out people: fewest collapsed pairs at an unchanged PCK (decision 0011).
GIVE_WAY, GIVE_WAY_SIGMA = 0.7, 2.0  # share of a joint's posterior, cells
LEAST_MASS = 1e-4  # of a posterior that is scaled back; float16 holds it
FLOW_LIMIT = 4.0  # patches of motion beyond which a flow is no better than its direction


class Answer(NamedTuple):
    """The network's output before it becomes heatmaps.

    logits: (B, 17, 32*24 + 1), one per cell and a last one for "not in this crop"; sides:
    (B, 8, 2), left minus right of eyes, ears, shoulders, elbows, wrists, hips, knees, ankles, in
    ``SIDE_UNIT_PX``.
    """

    logits: Tensor
    sides: Tensor


class ConvNorm(nn.Sequential):
    """A convolution and a batch normalisation, exported as one convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def layers(self) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
        """The convolution and the normalisation, as they are before they are fused."""
        conv, norm = self
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        return conv, norm


class Residual(nn.Module):
    """x + two convolutions, then ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = ConvNorm(width, width), ConvNorm(width, width)
        nn.init.zeros_(self.second.layers()[1].weight)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.second(functional.relu(self.first(x))))


class Level(nn.Module):
    """Halves the map and adds channels: (B, C, 2h, 2w) -> (B, C', h, w)."""

    def __init__(self, inputs: int, width: int, blocks: int) -> None:
        super().__init__()
        self.down = ConvNorm(inputs, width, stride=2)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(functional.relu(self.down(x)))
        return out


class Mixing(Encoder):
    """Bidirectional Mamba layers over the cells of a map, row by row, beside the map itself."""

    def forward(self, x: Tensor) -> Tensor:
        batch, width, h, w = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(batch, h * w, width)
        mixed = self.encode(tokens).reshape(batch, h, w, width).permute(0, 3, 1, 2)
        return x + mixed


class MambaPoseNano(nn.Module):
    """Crops of people -> heatmaps (B, 17, 64, 48)."""

    grid = (IMAGE[0] // CELL, IMAGE[1] // CELL)
    mean: Tensor
    std: Tensor
    down: Tensor
    across: Tensor
    near_rows: Tensor
    near_columns: Tensor
    partner: Tensor
    share: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            scaled = 255 * torch.tensor(values).view(1, 3, 1, 1)
            self.register_buffer(name, scaled, persistent=False)
        self.stem = ConvNorm(CHANNELS, STEM, stride=2)
        self.missing_embed = nn.Parameter(torch.zeros(len(MODALITIES), STEM))
        inputs = (STEM, *WIDTHS[:-1])
        self.levels = nn.ModuleList(map(Level, inputs, WIDTHS, BLOCKS))
        self.mixer = Mixing(WIDTHS[-1], MIXED)
        self.laterals = nn.ModuleList(nn.Conv2d(width, NECK, 1) for width in WIDTHS)
        self.smooth = nn.ModuleList(ConvNorm(NECK, NECK) for _ in WIDTHS)
        cells = math.prod(self.grid) // 16
        self.side_in = nn.Conv2d(WIDTHS[-1], SIDES * 3, 1)
        self.side_mid = nn.Linear(SIDES * 3 * cells, 128)
        self.side_out = nn.Linear(128, SIDES * 2)
        self.side_back = nn.Linear(SIDES * 2, WIDTHS[-1])
        self.absent_head = nn.Linear(WIDTHS[-1], JOINTS)
        self.heat_head = nn.Conv2d(NECK, JOINTS, 1)
        for name, matrix in zip(("down", "across"), spreads(self.grid), strict=True):
            self.register_buffer(name, matrix, persistent=False)
        for name, cells_along in zip(("near_rows", "near_columns"), self.grid, strict=True):
            self.register_buffer(name, nearness(cells_along), persistent=False)
        partner, share = partners()
        self.register_buffer("partner", partner, persistent=False)
        self.register_buffer("share", share, persistent=False)

    def planes(self, rgb: Tensor, flow: Tensor, depth: Tensor, present: Tensor) -> Tensor:
        """(B, 6, h, w) the input of the first layer, from pictures of the network's own size.

        rgb: (B, 3, h, w), 0..255; flow: (B, 2, h, w) pixels of the whole crop; depth: (B, 1, h, w).
        """
        with_flow, with_depth = (present[:, :, None, None] > 0.5).split(1, 1)
        flow = torch.where(with_flow, flow / FLOW_UNIT_PX, 0.0).clamp(-FLOW_LIMIT, FLOW_LIMIT)
        depth = standardised(torch.where(with_depth, depth, 0.0))
        return torch.cat([(rgb - self.mean) / self.std, flow, depth], 1)

    def answer(self, planes: Tensor, present: Tensor) -> Answer:
        """Logits and sides from planes (B, 6, h, w) and present (B, 2)."""
        absent = (present <= 0.5).to(planes.dtype) @ self.missing_embed
        x = functional.relu(self.stem(planes) + absent[:, :, None, None])
        maps = []
        for level in self.levels:
            x = level(x)
            maps.append(x)
        x = self.mixer(x)
        hidden = functional.relu(self.side_mid(functional.relu(self.side_in(x)).flatten(1)))
        sides = self.side_out(hidden)
        maps[-1] = x + self.side_back(sides)[:, :, None, None]
        neck = None
        for lateral, smooth, level_map in zip(
            reversed(self.laterals), reversed(self.smooth), reversed(maps), strict=True
        ):
            summed = lateral(level_map)
            if neck is not None:
                summed = summed + functional.interpolate(neck, scale_factor=2.0, mode="nearest")
            neck = functional.relu(smooth(summed))
        outside = self.absent_head(maps[-1].mean((2, 3)))
        logits = torch.cat([self.heat_head(neck).flatten(2), outside[:, :, None]], 2)
        return Answer(logits, sides.unflatten(1, (SIDES, 2)))

    def heatmaps(self, logits: Tensor) -> Tensor:
        """Heatmaps (B, 17, 64, 48) from logits (B, 17, 32*24 + 1)."""
        cells = torch.softmax(logits, -1)[:, :, :-1].unflatten(2, self.grid)
        return self.down @ self.apart(cells) @ self.across

    def apart(self, cells: Tensor) -> Tensor:
        """Posteriors (B, 17, 32, 24) after the two joints of a limb's pair gave way to each other.

        With the factor 1 - GIVE_WAY * exp(-d^2 / 2 sigma^2) for a pair at distance d, these are the
        exact marginals of both joints: each loses where the other is, and is scaled back to its
        sum. So when both joints were found on one limb and one of them is in doubt, they part; two
        that are sure stay where they are.
        """
        near = self.near_rows @ cells.index_select(1, self.partner) @ self.near_columns
        kept = cells * (1 - self.share * near)
        mass, left = (maps.sum((2, 3), keepdim=True) for maps in (cells, kept))
        return kept * (mass / left.clamp(min=LEAST_MASS))

    def forward(self, rgb: Tensor, flow: Tensor, depth: Tensor, present: Tensor) -> Tensor:
        """Heatmaps (B, 17, 64, 48).

        rgb: (B, 256, 192, 3) uint8; flow: (B, 2, 256, 192) crop pixels; depth: (B, 1, 256, 192)
        inverse depth in any unit; present: (B, 2), 1 or 0 for flow and depth. What a modality with
        present 0 holds does not matter, not even when it is not a number.
        """
        colour = rgb.to(flow.dtype).permute(0, 3, 1, 2)
        colour, flow, depth = (functional.avg_pool2d(maps, POOL) for maps in (colour, flow, depth))
        planes = self.planes(colour, flow, depth, present)
        return self.heatmaps(self.answer(planes, present).logits)


def spreads(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Matrices (64, 32) and (24, 48) that turn cell probabilities into heatmap rows and columns.

    Pixels of a heatmap sit where UDP has them (first and last on those of the crop), cells where
    the convolutions have them. The blur widens the training target's sigma to that of a heatmap; an
    output that is certain and exact has a peak of 1.
    """
    matrices = []
    for cells, pixels in zip(grid, HEATMAPS, strict=True):
        at_pixel = torch.arange(pixels, dtype=torch.float64) * (cells * CELL - 1) / (pixels - 1)
        at_cell = torch.arange(cells, dtype=torch.float64) * CELL + (CELL - 1) / 2
        target = CELL_SIGMA * CELL
        wanted = HEATMAP_SIGMA * (cells * CELL - 1) / (pixels - 1)
        blur = math.sqrt(wanted**2 - target**2)
        taps = torch.exp(-((at_pixel[:, None] - at_cell) ** 2) / (2 * blur**2)) * (wanted / blur)
        matrices.append(taps.float())
    return matrices[0], matrices[1].T.contiguous()


def nearness(cells: int) -> Tensor:
    """(cells, cells): 1 on the diagonal, a Gaussian of GIVE_WAY_SIGMA beside it."""
    away = torch.arange(cells)[:, None] - torch.arange(cells)
    return torch.exp(-((away / GIVE_WAY_SIGMA) ** 2) / 2)


def partners() -> tuple[Tensor, Tensor]:
    """(17,) the other joint of a limb's pair and (17, 1, 1) how far a joint gives way to it.

    The second is 0 for a joint that has no partner.
    """
    partner, share = torch.arange(JOINTS), torch.zeros(JOINTS, 1, 1)
    for left, right in LIMBS:
        partner[left], partner[right] = right, left
        share[[left, right]] = GIVE_WAY
    return partner, share


def build(*, seed: int = 0) -> MambaPoseNano:
    """A seeded random network."""
    return seeded(MambaPoseNano, seed)


def fused(model: MambaPoseNano) -> MambaPoseNano:
    """A copy in eval mode whose batch normalisations are part of the convolutions before them."""
    copied = copy.deepcopy(model).eval()
    for module in copied.modules():
        if isinstance(module, ConvNorm):
            module[0], module[1] = fuse_conv_bn_eval(*module.layers()), nn.Identity()
    return copied


def graphs(model: MambaPoseNano, size: tuple[int, int]) -> dict[str, tuple[nn.Module, GraphSpec]]:
    """The one graph of the stage, for any number of people. ExportError for another size."""
    if size != IMAGE:
        raise ExportError(
            f"crops of {IMAGE[0]}x{IMAGE[1]} were wanted, the only size of mambapose-nano, found "
            f"{size[0]}x{size[1]}; leave --size pose2d out or take mambapose-tiny"
        )
    height, width = size
    inputs = (
        TensorSpec("rgb", "uint8", ("N", height, width, 3)),
        TensorSpec("flow", "float32", ("N", 2, height, width)),
        TensorSpec("depth", "float32", ("N", 1, height, width)),
        TensorSpec("present", "float32", ("N", len(MODALITIES))),
    )
    outputs = (TensorSpec("heatmaps", "float32", ("N", JOINTS, *HEATMAPS)),)
    return {"main": (freeze(fused(model)), GraphSpec("main", inputs, outputs))}


def key_tables(model: MambaPoseNano) -> list[KeyTable]:
    """An empty list: no second naming scheme exists."""
    return []
