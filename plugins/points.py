"""Operators on point clouds that public code takes from CUDA packages, in plain torch.

Signatures and results are those of knn_cuda (unlimblue/KNN_CUDA, knn_cuda/__init__.py and
csrc/cuda/knn.cu) and pointnet2_ops (erikwijmans/Pointnet2_PyTorch, pointnet2_ops/
pointnet2_utils.py and _ext-src/src/sampling_gpu.cu). Sizes come from shapes and steps are a fixed
number, so that a network that uses them can be exported. `mambapose.plugins.standins` puts them
where an import statement finds them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

AT_ORIGIN = 1e-3  # squared distance; such points are padding and never sampled
UNREACHED = 1e10  # squared distance of a point to an empty set


def _squared_distances(query: Tensor, points: Tensor) -> Tensor:
    """(B, M, N) squared distances of (B, M, C) and (B, N, C).

    Differences are taken before they are squared, so that close points stay exact.
    """
    return (query[:, :, None] - points[:, None]).square().sum(-1)


def knn(ref: Tensor, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Distances and indices of the k points of ref nearest to each query, nearest first.

    ref: (C, N) or (B, C, N); query: (C, M) or (B, C, M); both results are (k, M) or (B, k, M).
    """
    single = ref.ndim == 2
    points, asked = (t[None] if single else t for t in (ref.float(), query.float()))
    squared = _squared_distances(asked.transpose(1, 2), points.transpose(1, 2))
    values, indices = squared.topk(k, dim=-1, largest=False)
    distances, indices = values.sqrt().transpose(1, 2), indices.transpose(1, 2)
    return (distances[0], indices[0]) if single else (distances, indices)


class KNN(nn.Module):
    """knn_cuda.KNN: `knn` of batches. transpose_mode: points and results are rows, (B, N, C)."""

    def __init__(self, k: int, transpose_mode: bool = False) -> None:
        super().__init__()
        self.k, self.transpose_mode = k, transpose_mode

    def forward(self, ref: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """(B, M, k) distances and indices with transpose_mode, else (B, k, M)."""
        if not self.transpose_mode:
            return knn(ref, query, self.k)
        distances, indices = knn(ref.transpose(-1, -2), query.transpose(-1, -2), self.k)
        return distances.transpose(-1, -2), indices.transpose(-1, -2)


def furthest_point_sample(xyz: Tensor, npoint: int) -> Tensor:
    """(B, npoint) int32 indices: point 0, then each time the point furthest from those before it.

    xyz: (B, N, 3). Points at the origin are left out. Of equally far points the first is taken; the
    CUDA kernel takes the one of the lowest thread.
    """
    left_out = xyz.square().sum(-1) <= AT_ORIGIN
    nearest = torch.full_like(xyz[..., 0], UNREACHED)  # squared distance to the points taken
    last = torch.zeros_like(xyz[:, :1, 0], dtype=torch.int64)  # (B, 1)
    taken = [last]
    for _ in range(npoint - 1):
        center = xyz.gather(1, last[..., None].expand(-1, -1, xyz.shape[2]))  # (B, 1, 3)
        nearest = torch.minimum(nearest, (xyz - center).square().sum(-1))
        last = nearest.masked_fill(left_out, -1.0).argmax(-1, keepdim=True)
        taken.append(last)
    return torch.cat(taken, dim=1).int()


def gather_operation(features: Tensor, idx: Tensor) -> Tensor:
    """(B, C, M) columns of features (B, C, N) at idx (B, M)."""
    return features.gather(2, idx.long()[:, None].expand(-1, features.shape[1], -1))


def grouping_operation(features: Tensor, idx: Tensor) -> Tensor:
    """(B, C, M, K) columns of features (B, C, N) at idx (B, M, K)."""
    columns = gather_operation(features, idx.flatten(1))
    grouped: Tensor = columns.unflatten(2, idx.shape[1:])
    return grouped
