"""Pinhole cameras. A world point p is seen at R (p - position): x right, y down, z forward."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mambapose.train.world.rotations import about

Vectors = NDArray[np.float64]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    rotation R (3, 3), world to camera; position (3,) m; matrix (3, 3): camera to pixels, whole
    numbers are pixel centres; size (W, H). Rotation and matrix may mirror (for mirrored pictures).
    """

    rotation: Vectors
    position: Vectors
    matrix: Vectors
    size: tuple[int, int]

    def view(self, points: Vectors) -> Vectors:
        """(..., 3) camera coordinates of world points."""
        return np.asarray((points - self.position) @ self.rotation.T)

    def pixels(self, seen: Vectors) -> Vectors:
        """(..., 2) pixels of camera coordinates with z > 0."""
        flat = seen @ self.matrix.T
        return np.asarray(flat[..., :2] / flat[..., 2:])

    def project(self, points: Vectors) -> Vectors:
        """(..., 2) pixels of world points in front of the camera."""
        return self.pixels(self.view(points))

    def rays(self, xy: Vectors) -> Vectors:
        """(..., 3) directions with z = 1, in camera axes, of pixels (..., 2)."""
        inverse = np.linalg.inv(self.matrix)
        rays = xy @ inverse[:, :2].T + inverse[:, 2]
        return np.asarray(rays / rays[..., 2:])

    def grid(self) -> Vectors:
        """(H, W, 3) directions of all pixel centres."""
        width, height = self.size
        rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
        return self.rays(np.stack([columns, rows], axis=-1))

    def cropped(self, affine: Vectors, size: tuple[int, int]) -> Camera:
        """The camera of the picture that affine (2, 3) makes from this camera's picture."""
        return replace(self, matrix=np.vstack([affine, [0, 0, 1]]) @ self.matrix, size=size)

    def clip_matrix(self, near: float, far: float) -> NDArray[np.float32]:
        """(4, 4) projection for OpenGL and column vectors: buffer row j is row j of the picture.

        OpenGL's pixel centres are halves, ours whole numbers: hence the half pixel.
        """
        width, height = self.size
        to_ndc = np.array([[2 / width, 0, 1 / width - 1], [0, 2 / height, 1 / height - 1]])
        pixel = self.matrix @ np.hstack([self.rotation, -(self.rotation @ self.position)[:, None]])
        depth = self.rotation[2] @ np.hstack([np.eye(3), -self.position[:, None]])
        depth = depth / 1.0
        out = np.empty((4, 4))
        out[:2] = to_ndc @ pixel
        out[3] = pixel[2]
        out[2] = depth * (far + near) / (far - near)
        out[2, 3] -= 2 * far * near / (far - near)
        return out.astype(np.float32)


def look_at(position: Vectors, target: Vectors, roll: float = 0.0) -> Vectors:
    """(3, 3) rotation of a camera at ``position`` that looks at ``target``."""
    forward = target - position
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right = right / np.linalg.norm(right)
    down = np.cross(forward, right)
    return np.asarray(about((0, 0, 1), roll) @ np.stack([right, down, forward]))


def moved(camera: Camera, turn: Vectors, shift: Vectors) -> Camera:
    """The camera turned by turn (3,) radians about its own axes and shifted by (3,) m."""
    angle = float(np.linalg.norm(turn))
    rotation = about(turn, angle) @ camera.rotation if angle > 0 else camera.rotation
    return replace(camera, rotation=rotation, position=camera.position + shift)
