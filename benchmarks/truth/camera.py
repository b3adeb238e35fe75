"""Random cameras, projection to a picture, and what a body hides of itself.

Camera axes: x right, y down, z away from the camera. Picture coordinates are the lifters' own
(``runtime.stages.joints.normalised``): both axes in half widths from the centre.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mambapose.benchmarks.truth.body import rotations_from_vectors
from mambapose.runtime.types import FloatArray

# (W, H) px of usual videos; only the ratio matters here.
SIZES = ((1920, 1080), (1080, 1920), (640, 480), (1280, 720), (720, 1280), (1080, 1080))
# Body heights between the camera and the nearest joint, at least: of a recipe for training, so that
# nobody reaches through the camera; the exact value is free.
NEAREST = 0.45


@dataclass(frozen=True)
class Cameras:
    """One camera per window.

    rotation: (B, 3, 3); place: (B, 3), where the origin of the body is in camera axes; focal: (B,)
    focal lengths in half widths.
    """

    rotation: FloatArray
    place: FloatArray
    focal: FloatArray

    def view(self, xyz: FloatArray) -> FloatArray:
        """(B, T, N, 3) points (B, T, N, 3) of the bodies in camera axes."""
        seen: FloatArray = xyz @ np.swapaxes(self.rotation, -1, -2)[:, None]
        return seen + self.place[:, None, None]

    def project(self, seen: FloatArray) -> FloatArray:
        """(B, T, N, 2) picture coordinates of points in camera axes."""
        flat: FloatArray = seen[..., :2] / seen[..., 2:] * self.focal[:, None, None, None]
        return flat

    def back(self, flat: FloatArray, depth: FloatArray) -> FloatArray:
        """(B, T, N, 3) the points at ``depth`` (B, T, N) along z: the inverse of ``project``."""
        rays = flat / self.focal[:, None, None, None]
        return np.concatenate([rays * depth[..., None], depth[..., None]], -1)


def cameras_drawn(rng: np.random.Generator, xyz: FloatArray) -> Cameras:
    """Cameras looking at bodies (B, T, 17, 3) of height 1 whose paths are about the origin.

    Focal length 0.6 to 2.2 of the longer side, the person 0.2 to 1 of the picture's height,
    anywhere in it, seen from a little above or below, in a third of the windows steeply, in a
    quarter of them by a camera that is not held level.
    """
    count = len(xyz)
    size = np.array(SIZES, np.float64)[rng.integers(len(SIZES), size=count)]
    height = 2 * size[:, 1] / size[:, 0]
    longer = np.maximum(height, 2.0)
    focal = longer * np.exp(rng.uniform(np.log(0.6), np.log(2.2), count))
    share = np.exp(rng.uniform(np.log(0.2), np.log(1.0), count))
    distance = focal / (share * height)
    steep, askew = rng.random(count) < 0.33, rng.random(count) < 0.25
    pitch = np.where(steep, rng.uniform(-0.35, 0.9, count), rng.normal(0.05, 0.16, count))
    roll = rng.normal(0, 1, count) * np.where(askew, 0.2, 0.04)
    # A camera that looks down by the pitch: the body is turned towards it about x.
    about_x = rotations_from_vectors(np.stack([pitch, 0 * pitch, 0 * pitch], -1))
    about_z = rotations_from_vectors(np.stack([0 * roll, 0 * roll, roll], -1))
    rotation = about_z @ about_x
    at = rng.uniform(-1, 1, (count, 2)) * np.stack([np.full(count, 0.7), 0.25 * height], -1)
    place = np.concatenate([at / focal[:, None], np.ones((count, 1))], -1) * distance[:, None]
    # Whoever comes too near is watched from farther away.
    depth = (xyz @ np.swapaxes(rotation, -1, -2)[:, None])[..., 2].min(axis=(1, 2)) + place[:, 2]
    place *= (1 + np.maximum(NEAREST - depth, 0) / place[:, 2])[:, None]
    return Cameras(rotation, place.astype(np.float32), focal.astype(np.float32))


# Spheres that fill a body: (from joint, to joint, share of the way, radius in body heights).
SPHERES = tuple(
    (a, b, share, radius)
    for a, b, radius, shares in (
        (8, 9, 0.04, (0.5,)), (9, 10, 0.065, (0.0, 0.6)),
        (11, 12, 0.032, (0.0, 0.5)), (12, 13, 0.026, (0.0, 0.5, 1.0)),
        (14, 15, 0.032, (0.0, 0.5)), (15, 16, 0.026, (0.0, 0.5, 1.0)),
        (1, 2, 0.048, (0.0, 0.35, 0.7)), (2, 3, 0.034, (0.0, 0.35, 0.7, 1.0)),
        (4, 5, 0.048, (0.0, 0.35, 0.7)), (5, 6, 0.034, (0.0, 0.35, 0.7, 1.0)),
        (0, 8, 0.075, (0.1, 0.4, 0.75)), (11, 4, 0.055, (0.3, 0.65)), (14, 1, 0.055, (0.3, 0.65)),
    )
    for share in shares
)  # fmt: skip


def spheres_from_joints(xyz: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Centres (B, T, S, 3) and radii (S) of the spheres that make up the bodies."""
    first, second, share, radius = (np.array(column) for column in zip(*SPHERES, strict=True))
    start, end = xyz[..., first, :], xyz[..., second, :]
    centres: FloatArray = (start + (end - start) * share[:, None]).astype(np.float32)
    return centres, radius.astype(np.float32)


def surfaces(
    cameras: Cameras, spheres: FloatArray, radii: FloatArray, flat: FloatArray
) -> tuple[FloatArray, NDArray[np.int64]]:
    """(depth, owner) (B, T, N) of the nearest surface in the picture at ``flat`` (B, T, N, 2).

    spheres: (B, T, S, 3) in camera axes. depth is infinite and owner -1 where no sphere is hit.
    """
    centre = cameras.project(spheres)
    seen_radius = radii * cameras.focal[:, None, None] / spheres[..., 2]
    apart = flat[..., :, None, :] - centre[..., None, :, :]
    part = (apart[..., 0] ** 2 + apart[..., 1] ** 2) / (seen_radius**2)[..., None, :]
    bulge = radii * np.sqrt(np.maximum(1 - part, 0))
    depth = np.where(part < 1, spheres[..., None, :, 2] - bulge, np.inf)
    owner = depth.argmin(axis=-1)
    nearest: FloatArray = np.take_along_axis(depth, owner[..., None], -1)[..., 0]
    return nearest.astype(np.float32), np.where(np.isfinite(nearest), owner, -1)
