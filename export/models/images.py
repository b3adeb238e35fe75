"""The uint8 inputs of the image networks: what the graph does before their first layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalise(nn.Module):
    """uint8 RGB (N, H, W, 3) to float32 (N, 3, H, W): (x / 255 - mean) / std per channel.

    The cast comes first, because TensorRT takes uint8 only as the input or output of a graph.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        shift = torch.tensor(mean, dtype=torch.float64) * 255
        scale = 1 / (torch.tensor(std, dtype=torch.float64) * 255)
        self.register_buffer("shift", shift.float().view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", scale.float().view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return (image.float().permute(0, 3, 1, 2) - self.shift) * self.scale
