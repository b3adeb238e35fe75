"""Position embeddings that were learned on one grid of patches, resized for another."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def resized_positions(embed: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """(1, h*w, d) positions of the grid ``old`` (h, w), resized to the grid ``new``, bicubic.

    The same tensor when the grids are equal.
    """
    if old == new:
        return embed
    image = embed.transpose(1, 2).unflatten(2, old)
    image = functional.interpolate(image, new, mode="bicubic", align_corners=False)
    return image.flatten(2).transpose(1, 2)
