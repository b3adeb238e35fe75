"""Operators on point clouds against slow loops: nearest neighbours, sampling, gathering."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mambapose.plugins.points import (
    KNN,
    furthest_point_sample,
    gather_operation,
    grouping_operation,
    knn,
)

SIZES = [(1, 1, 1, 1), (1, 7, 3, 2), (2, 20, 6, 5), (3, 33, 33, 33)]


def points(batch: int, count: int, channels: int = 3, seed: int = 0) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.standard_normal((batch, count, channels), np.float32))


def nearest(ref: np.ndarray, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances and indices (M, k): a full sort of every distance."""
    found = []
    for asked in query:
        distances = np.array([np.linalg.norm(asked - point) for point in ref])
        found.append((np.sort(distances)[:k], np.argsort(distances, kind="stable")[:k]))
    return tuple(np.stack(part) for part in zip(*found, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize(("batch", "count", "asked", "k"), SIZES)
def test_nearest_neighbours(batch: int, count: int, asked: int, k: int, channels: int) -> None:
    ref, query = points(batch, count, channels), points(batch, asked, channels, seed=1)
    distances, indices = KNN(k=k, transpose_mode=True)(ref, query)
    assert indices.dtype == torch.int64
    for b in range(batch):
        wanted, order = nearest(ref[b].double().numpy(), query[b].double().numpy(), k)
        np.testing.assert_allclose(distances[b].numpy(), wanted, rtol=1e-5)
        np.testing.assert_array_equal(indices[b].numpy(), order)
    columns = KNN(k)(ref.transpose(1, 2), query.transpose(1, 2))
    single = knn(ref[0].T, query[0].T, k)
    for found, alone, rows in zip(columns, single, (distances, indices), strict=True):
        torch.testing.assert_close(found, rows.transpose(1, 2))
        torch.testing.assert_close(alone, rows[0].T)


def furthest(cloud: np.ndarray, number: int) -> list[int]:
    """As the kernel does it: points near the origin neither win nor count."""
    taken = [0]
    while len(taken) < number:
        best, winner = -1.0, 0
        for k, point in enumerate(cloud):
            if (point**2).sum() <= 1e-3:
                continue
            reach = min(((point - cloud[other]) ** 2).sum() for other in taken)
            if reach > best:
                best, winner = reach, k
        taken.append(winner)
    return taken


@pytest.mark.parametrize(
    ("batch", "count", "number"), [(1, 1, 1), (2, 9, 4), (3, 40, 17), (1, 5, 5)]
)
def test_furthest_points(batch: int, count: int, number: int) -> None:
    cloud = points(batch, count, seed=count)
    cloud[0, count // 2] = 0.01  # left out
    found = furthest_point_sample(cloud, number)
    assert (found.dtype, found.shape) == (torch.int32, (batch, number))
    for b in range(batch):
        assert found[b].tolist() == furthest(cloud[b].numpy(), number)


def test_points_all_at_the_origin_give_the_first() -> None:
    assert furthest_point_sample(torch.zeros(1, 6, 3), 3).tolist() == [[0, 0, 0]]


def test_gathering() -> None:
    features = points(2, 4, 9)  # (B, C, N)
    picked = torch.tensor([[[0, 8, 3], [2, 2, 7]], [[5, 1, 0], [6, 4, 4]]], dtype=torch.int32)
    grouped = grouping_operation(features, picked)
    assert grouped.shape == (2, 4, 2, 3)
    for b, m, k in np.ndindex(2, 2, 3):
        torch.testing.assert_close(grouped[b, :, m, k], features[b, :, int(picked[b, m, k])])
    torch.testing.assert_close(gather_operation(features, picked[:, 1]), grouped[:, :, 1])
