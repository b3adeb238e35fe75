"""The targets of pose2d's training: where each joint is, whether it is there, and which is left.

Cross-entropy of the softmax over cells and "not in this crop" with a Gaussian around the joint,
and L1 of the eight left-minus-right vectors (heatmaps of left and right start out alike).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mambapose.export.models.mambapose_nano import CELL, CELL_SIGMA, SIDE_UNIT_PX, Answer
from mambapose.runtime.skeleton import COCO17

SIDE_WEIGHT = 1.5


def targets(xy: Tensor, inside: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, 17, h*w + 1): a Gaussian over the cells around joints xy (B, 17, 2) px of the crop.

    Where ``inside`` (B, 17) is false everything is in the last place, "not in this crop".
    """
    axes = []
    for axis, cells in enumerate(reversed(grid)):
        centres = torch.arange(cells, device=xy.device) * CELL + (CELL - 1) / 2
        away = (xy[..., axis, None] - centres) / (CELL * CELL_SIGMA)
        axes.append(torch.exp(-away.square() / 2))
    maps = (axes[1][..., :, None] * axes[0][..., None, :]).flatten(2) * inside[..., None]
    maps = maps / maps.sum(-1, keepdim=True).clamp(min=1e-6)
    return torch.cat([maps, 1 - inside[..., None].to(maps)], -1)


def side_vectors(xy: Tensor) -> Tensor:
    """(B, 8, 2) left minus right of joints (B, 17, 2)."""
    left, right = torch.tensor(COCO17.pairs, device=xy.device).T
    return xy[:, left] - xy[:, right]


def losses(
    answer: Answer, xy: Tensor, inside: Tensor, grid: tuple[int, int], known: Tensor | None = None
) -> dict[str, Tensor]:
    """``total``, ``place`` (nats per joint) and ``side`` (``SIDE_UNIT_PX``) for a network's output.

    xy: (B, 17, 2) px of the crop; inside: (B, 17) bool. A vector counts where both its ends are
    inside. known: (B, 17) bool, None for all; a joint that is not known does not count and must not
    be inside.
    """
    logits = functional.log_softmax(answer.logits.float(), -1)
    nats = -(targets(xy, inside, grid) * logits).sum(-1)
    place = nats.mean() if known is None else (nats * known).sum() / known.sum().clamp(min=1)
    left, right = torch.tensor(COCO17.pairs, device=xy.device).T
    known = (inside[:, left] & inside[:, right])[..., None]
    away = (answer.sides.float() - side_vectors(xy) / SIDE_UNIT_PX).abs() * known
    side = away.sum() / (2 * known.sum().clamp(min=1))
    return {"total": place + SIDE_WEIGHT * side, "place": place, "side": side}
