"""The simple heatmap decoder of ViTPose, applied before the enlargement instead of after it.

ReLU, bilinear enlargement by four, 3x3 convolution: the last two are linear, so the nine taps may
act on the small feature map first (one matrix product that leaves 17 channels of d per tap) and be
enlarged afterwards. Enlarging is one matrix per axis; moving by a tap shifts its rows. The sums are
the same, the work is about a tenth at d = 192, and the enlarged map of d channels, otherwise the
largest tensor of the network, never exists.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mambapose.export.models.folding import Foldable, bias_of

SCALE = 4
JOINTS = 17
KERNEL = 3


class HeadConstants(NamedTuple):
    """The head's constants for a grid of h x w tokens."""

    taps: Tensor  # (d, 17*3*3): joint, vertical tap, horizontal tap
    across: Tensor  # (w*3, 4w): column and horizontal tap -> column of the heatmap
    down: Tensor  # (4h, 3*h): row of the heatmap <- vertical tap and row
    bias: Tensor  # (17, 1, 1)


class SimpleHead(Foldable):
    """Tokens (B, h*w, d) of a grid (h, w) -> heatmaps (B, 17, 4h, 4w)."""

    def __init__(self, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.final_layer = nn.Conv2d(width, JOINTS, KERNEL, padding=1)
        nn.init.normal_(self.final_layer.weight, std=0.001)
        nn.init.zeros_(bias_of(self.final_layer))

    def fold(self) -> HeadConstants:
        weight = self.final_layer.weight
        rows, columns = (shifted_enlargement(side).to(weight) for side in self.grid)
        return HeadConstants(
            taps=weight.permute(1, 0, 2, 3).flatten(1),
            across=columns.permute(2, 0, 1).flatten(0, 1),
            down=rows.permute(1, 0, 2).flatten(1),
            bias=bias_of(self.final_layer)[:, None, None],
        )

    def forward(self, tokens: Tensor) -> Tensor:
        c: HeadConstants = self.constants()
        h, w = self.grid
        taps = (functional.relu(tokens) @ c.taps).reshape(-1, h, w, JOINTS, KERNEL, KERNEL)
        # (B, J, vertical tap, h, w, horizontal tap)
        taps = taps.permute(0, 3, 4, 1, 2, 5)
        wide = taps.reshape(-1, JOINTS, KERNEL * h, w * KERNEL) @ c.across
        return c.down @ wide + c.bias


def shifted_enlargement(side: int) -> Tensor:
    """(3, 4*side, side) matrices that enlarge by four, then move by -1, 0, 1; zero beyond the edge.

    Row i of matrix k gives what the k-th tap of a padded convolution sees at position i.
    """
    corners = torch.eye(side)[None]
    large = functional.interpolate(corners, scale_factor=SCALE, mode="linear", align_corners=False)
    padded = functional.pad(large[0].T, (0, 0, 1, 1))
    return torch.stack([padded[tap : tap + SCALE * side] for tap in range(KERNEL)])
