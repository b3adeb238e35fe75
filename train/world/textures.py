"""Procedural textures for floors, walls and things: (256, 256, 3) uint8, made once per seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
SIZE = 256


def random_textures(count: int, rng: np.random.Generator) -> list[Image]:
    """``count`` textures of all kinds; ``floors`` picks those that floors have."""
    kinds = (_noise, _planks, _bricks, _tiles, _stripes, _leaves, _shapes, _shelf)
    return [_toned(kinds[k % len(kinds)](rng), rng) for k in range(count)]


def floors(textures: Sequence[Image]) -> list[Image]:
    """The textures among these that floors can have: no pictures, no shelves."""
    return [texture for k, texture in enumerate(textures) if k % 8 < 6]


def clouds(rng: np.random.Generator, coarsest: int = 4, power: float = 1.0) -> NDArray[np.float32]:
    """(SIZE, SIZE) smooth noise in 0..1; weights of octaves fall with frequency to ``power``."""
    import cv2

    total = np.zeros((SIZE, SIZE), np.float32)
    weight_sum, cells = 0.0, coarsest
    while cells <= SIZE:
        weight = float((coarsest / cells) ** power)
        layer = rng.random((cells, cells)).astype(np.float32)
        total += weight * cv2.resize(layer, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
        weight_sum += weight
        cells *= 2
    total -= total.min()
    return np.asarray(total / (total.max() + 1e-6), np.float32)


def _colour(rng: np.random.Generator) -> NDArray[np.float32]:
    grey = rng.random() * 0.8 + 0.1
    return np.clip(
        grey + rng.normal(0, rng.choice([0.02, 0.06, 0.2], p=[0.45, 0.4, 0.15]), 3), 0.02, 1
    ).astype(np.float32)


def _mixed(share: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    a, b = _colour(rng), _colour(rng)
    return np.asarray(a * (1 - share[..., None]) + b * share[..., None], np.float32)


def _noise(rng: np.random.Generator) -> NDArray[np.float32]:
    return _mixed(clouds(rng, int(rng.choice([2, 4, 16, 64])), float(rng.uniform(0.3, 1.2))), rng)


def _grid(rng: np.random.Generator, rows: int, columns: int, shift: float) -> tuple[
    NDArray[np.float32], NDArray[np.float32]
]:  # fmt: skip
    """(share of joint, value of the cell) at each pixel of a wall of cells.

    Each row of cells is shifted by ``shift`` against the one above.
    """
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    row = np.floor(y * rows)
    across = x * columns + shift * row
    edge = np.minimum(
        np.abs(across - np.round(across)) / columns, np.abs(y * rows - np.round(y * rows)) / rows
    )
    values = rng.random((rows, columns))
    value = values[row.astype(int) % rows, np.floor(across).astype(int) % columns]
    return (edge < rng.uniform(0.004, 0.012)).astype(np.float32), value.astype(np.float32)


def _celled(rng: np.random.Generator, rows: int, columns: int, shift: float) -> NDArray[np.float32]:
    joint, value = _grid(rng, rows, columns, shift)
    base = _colour(rng) * (0.75 + 0.4 * value[..., None] * rng.uniform(0.2, 1))
    base = base * (0.85 + 0.3 * clouds(rng, 16, 0.5)[..., None])
    return np.asarray(base * (1 - joint[..., None]) + _colour(rng) * joint[..., None], np.float32)


def _planks(rng: np.random.Generator) -> NDArray[np.float32]:
    return _celled(rng, int(rng.integers(3, 9)), int(rng.integers(1, 3)), 0.37)


def _bricks(rng: np.random.Generator) -> NDArray[np.float32]:
    return _celled(rng, int(rng.integers(8, 20)), int(rng.integers(3, 8)), 0.5)


def _tiles(rng: np.random.Generator) -> NDArray[np.float32]:
    number = int(rng.integers(2, 9))
    return _celled(rng, number, number, 0.0)


def _stripes(rng: np.random.Generator) -> NDArray[np.float32]:
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    place = (x if rng.random() < 0.7 else y) * rng.integers(2, 24)
    share = (np.mod(place, 1) < rng.uniform(0.2, 0.8)).astype(np.float32)
    return _mixed(share, rng) * (0.85 + 0.3 * clouds(rng, 8)[..., None])


def _shapes(rng: np.random.Generator) -> NDArray[np.float32]:
    import cv2

    image = _noise(rng)
    for _ in range(int(rng.integers(3, 40))):
        colour = tuple(float(value) for value in _colour(rng))
        centre = tuple(int(value) for value in rng.integers(0, SIZE, 2))
        size = rng.integers(4, 70, 2)
        if rng.random() < 0.5:
            other = (centre[0] + int(size[0]), centre[1] + int(size[1]))
            cv2.rectangle(image, centre, other, colour, -1)
        else:
            axes = (int(size[0]) // 2, int(size[1]) // 2)
            cv2.ellipse(image, centre, axes, float(rng.uniform(0, 180)), 0, 360, colour, -1)
    return image


def _leaves(rng: np.random.Generator) -> NDArray[np.float32]:
    fine = clouds(rng, 32, 0.2) ** 2
    green = np.array([0.25, 0.4, 0.12], np.float32) * rng.uniform(0.5, 1.4)
    return np.asarray(green * (0.2 + 1.5 * fine[..., None]) * (0.5 + clouds(rng, 4)[..., None]))


def _shelf(rng: np.random.Generator) -> NDArray[np.float32]:
    """Rows of upright things in many colours: books, goods, people far away."""
    image = np.ones((SIZE, SIZE, 3), np.float32) * _colour(rng) * 0.5
    rows = int(rng.integers(2, 6))
    for row in range(rows):
        low, x = int((row + 0.95) * SIZE / rows), 0
        while x < SIZE:
            wide = int(rng.integers(3, 28))
            tall = int(SIZE / rows * rng.uniform(0.4, 0.85))
            image[max(0, low - tall) : low, x : x + wide] = _colour(rng)
            x += wide + int(rng.integers(0, 5))
    return image


def _toned(image: NDArray[np.float32], rng: np.random.Generator) -> Image:
    grain = rng.normal(0, rng.uniform(0, 0.05), image.shape[:2])[..., None]
    return np.asarray(((image + grain).clip(0, 1) * 255), np.uint8)
