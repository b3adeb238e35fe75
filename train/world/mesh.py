"""Meshes that bones move, and simple solids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mambapose.train.world.rig import skinned, turned

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Mesh:
    """A mesh moved by bones.

    rest, normals (V, 3) m; weights (V, B), rows sum to 1; triangles (F, 3); base (V, 3) and limbs
    (V, 2): coordinates that place patterns and clothes; material (V,): a row of table (rows, 4).
    """

    rest: Points
    normals: Points
    weights: Points
    triangles: NDArray[np.int32]
    base: NDArray[np.float32]
    limbs: NDArray[np.float32]
    material: NDArray[np.float32]
    table: NDArray[np.float32]

    def points(self, transforms: Points, index: NDArray[np.intp] | None = None) -> Points:
        """(V, 3) or (len(index), 3) world points under transforms (B, 3, 4), in float64."""
        rest, weights = self.rest, self.weights
        if index is not None:
            rest, weights = rest[index], weights[index]
        return np.asarray(skinned(rest, weights, transforms), np.float64)

    def drawn(self, transforms: Points) -> NDArray[np.float32]:
        """(V, 8) world point, 0, normal, 0 in float32: two texels of the renderer."""
        moves = transforms.astype(np.float32)
        weights = self.weights.astype(np.float32)
        out = np.zeros((len(self.rest), 8), np.float32)
        out[:, :3] = skinned(self.rest.astype(np.float32), weights, moves)
        out[:, 4:7] = turned(self.normals.astype(np.float32), weights, moves)
        return out


def _solid(rest: Points, normals: Points, triangles: NDArray[np.int32], base: Points,
           table: NDArray[np.float32]) -> Mesh:  # fmt: skip
    count = len(rest)
    return Mesh(
        rest, normals, np.ones((count, 1)), triangles, base.astype(np.float32),
        np.full((count, 2), -0.4, np.float32), np.zeros(count, np.float32), table,
    )  # fmt: skip


def box(size: Points, table: NDArray[np.float32]) -> Mesh:
    """A box (3,) m around the origin, patterned in decimetres."""
    rest: list[Points] = []
    normals: list[Points] = []
    triangles: list[tuple[int, int, int]] = []
    for axis in range(3):
        u, v = np.eye(3)[(axis + 1) % 3], np.eye(3)[(axis + 2) % 3]
        for sign in (-1.0, 1.0):
            start = len(rest)
            for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
                rest.append((sign * np.eye(3)[axis] + a * u + b * v) * size / 2)
                normals.append(sign * np.eye(3)[axis])
            triangles += [(start, start + 1, start + 2), (start, start + 2, start + 3)]
    points = np.array(rest)
    return _solid(points, np.array(normals), np.array(triangles, np.int32), points * 10, table)


def cylinder(radius: float, length: float, table: NDArray[np.float32], sides: int = 20) -> Mesh:
    """An upright cylinder around the origin with closed ends."""
    angle = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    ring = np.stack([np.cos(angle), np.zeros(sides), np.sin(angle)], axis=1)
    rest, normals = [], []
    triangles: list[tuple[int, int, int]] = []
    for end in (-1.0, 1.0):
        rest += list(ring * radius + [0, end * length / 2, 0])
        normals += list(ring)
    for k in range(sides):
        n = (k + 1) % sides
        triangles += [(k, n, sides + k), (n, sides + n, sides + k)]
    for end in (-1.0, 1.0):
        start = len(rest)
        rest += [np.array([0, end * length / 2, 0]), *(ring * radius + [0, end * length / 2, 0])]
        normals += [np.array([0, end, 0])] * (sides + 1)
        triangles += [(start, start + 1 + k, start + 1 + (k + 1) % sides) for k in range(sides)]
    points = np.array(rest)
    return _solid(points, np.array(normals), np.array(triangles, np.int32), points * 10, table)


def quad(centre: Points, u: Points, v: Points, table: NDArray[np.float32], base: Points) -> Mesh:
    """A rectangle with the corners centre +- u +- v.

    base (4, 3): pattern coordinates of its corners in the order (-,-), (+,-), (+,+), (-,+).
    """
    rest = np.stack([centre - u - v, centre + u - v, centre + u + v, centre - u + v])
    across = np.cross(v, u)
    normals = np.tile(across / np.linalg.norm(across), (4, 1))
    return _solid(rest, normals, np.array([(0, 1, 2), (0, 2, 3)], np.int32), base, table)
