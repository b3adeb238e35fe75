"""A drawn clip: a figure that walks and waves, with joints, depth and motion known exactly.

Everything is computed from the seed, in any size and length, without a renderer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from mambapose.runtime.results.overlay import Overlay
from mambapose.runtime.types import FloatArray, ImageArray, Size

from .figure import STATURE, Figure, Vector, Walk, figure_at, turn_x, turn_y
from .raycast import Camera, Look, Surface, cast, motion, shade

# Distance in metres beyond which a surface in front of a joint hides it: the face lies on the
# skin, the other joints inside limbs and trunk.
HIDDEN_FACE, HIDDEN_BODY = 0.05, 0.16
FACE_JOINTS = 5


@dataclass(frozen=True)
class DrawnClip:
    """size: (W, H). A frame number t counts from 0; pixel (x, y) whole numbers are centres."""

    frames: int = 90
    size: tuple[int, int] = (640, 360)
    fps: float = 30.0
    seed: int = 0

    def image(self, t: int) -> ImageArray:
        """(H, W, 3) RGB picture of frame t."""
        return shade(_surface(self, t), self.camera(t), self.figure(t), _look(self.seed))

    def depth(self, t: int) -> FloatArray:
        """(H, W) inverse depth in 1/m, larger = nearer."""
        return _surface(self, t).inverse_depth

    def flow(self, t: int) -> FloatArray:
        """(H, W, 2) px (x, y), t >= 1: where each pixel of frame t was in t-1, minus where it is.

        As RAFT gives it with image1 = t and image2 = t-1; hidden points included.
        """
        if t < 1:
            raise ValueError(f"flow needs a frame before it: t >= 1, not {t}")
        before = self.camera(t - 1), self.figure(t - 1)
        return motion(_surface(self, t), self.camera(t), self.figure(t), *before)

    def mask(self, t: int) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
        """(H, W) True where the figure is."""
        return np.asarray(_surface(self, t).part >= 0)

    def box(self, t: int) -> FloatArray:
        """(4,) xyxy px of the outermost pixel centres of the figure; NaN when it is not seen."""
        rows, columns = np.nonzero(self.mask(t))
        if rows.size == 0:
            return np.full(4, np.nan, np.float32)
        return np.array([columns.min(), rows.min(), columns.max(), rows.max()], np.float32)

    def coco_xy(self, t: int) -> FloatArray:
        """(17, 2) px of the COCO joints, hidden ones included."""
        return np.asarray(self.camera(t).project(self.figure(t).coco), np.float32)

    def visibility(self, t: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """(17,) of the COCO joints: 0 outside the picture, 1 hidden, 2 seen."""
        xy = np.round(self.coco_xy(t)).astype(int)
        width, height = self.size
        inside = (xy >= 0).all(axis=1) & (xy[:, 0] < width) & (xy[:, 1] < height)
        depth = self.camera(t).view(self.figure(t).coco)[:, 2]
        x, y = xy[:, 0].clip(0, width - 1), xy[:, 1].clip(0, height - 1)
        behind = depth - _surface(self, t).points[y, x, 2]
        slack = np.where(np.arange(len(xy)) < FACE_JOINTS, HIDDEN_FACE, HIDDEN_BODY)
        return np.where(inside, np.where(behind > slack, 1, 2), 0).astype(np.uint8)

    def h36m_xyz(self, t: int) -> FloatArray:
        """(17, 3) Human3.6M joints, camera axes (y down), relative to the pelvis, body heights."""
        seen = self.camera(t).view(self.figure(t).h36m)
        return np.asarray((seen - seen[0]) / STATURE, np.float32)

    def root(self, t: int) -> FloatArray:
        """(3,) pelvis in camera coordinates, metres."""
        return np.asarray(self.camera(t).view(self.figure(t).h36m[0]), np.float32)

    def camera(self, t: int) -> Camera:
        """A hand-held camera: it sways by centimetres and half degrees."""
        time = t / self.fps
        width, height = self.size
        position = np.array([0.10 * math.sin(0.9 * time), -1.25, 0.05 * math.sin(0.7 * time)])
        yaw, pitch = 0.010 * math.sin(1.1 * time), 0.045 + 0.006 * math.sin(1.7 * time)
        return Camera(
            turn_x(pitch) @ turn_y(yaw),
            position,
            _focal(self.size),
            ((width - 1) / 2, (height - 1) / 2),
            self.size,
        )

    def figure(self, t: int) -> Figure:
        """The figure at frame t."""
        return figure_at(_walk(self), t / self.fps)


def _focal(size: tuple[int, int]) -> float:
    """Pixels; five metres away the figure fills 60 % of the height, less in narrow pictures."""
    return 1.7 * min(size[1], 1.3 * size[0])


@lru_cache(maxsize=8)
def _walk(clip: DrawnClip) -> Walk:
    rng = np.random.default_rng(clip.seed)
    # As wide as the picture allows where the figure is nearest, with an arm stretched out.
    half_view = 4.2 * clip.size[0] / _focal(clip.size) / 2
    across, away = min(max(0.1, half_view - 0.95), 1.35), 0.75
    start, gait = rng.uniform(-0.25, 0.25), rng.uniform(0, 2 * math.pi)
    # Half a turn away from the camera and back; speed of a stroll, 1.15 m per double step.
    period = 8.0
    length = 2 * math.pi * math.sqrt((across**2 + away**2) / 2)
    return Walk(
        (0.0, 5.0), (across, away), period, math.pi / 2 + start, gait, length / period / 1.15
    )


@lru_cache(maxsize=4)
def _look(seed: int) -> Look:
    rng = np.random.default_rng([seed, 1])
    size = 256
    texture = np.zeros((size, size))
    for cells, weight in ((8, 0.35), (32, 0.35), (128, 0.30)):
        coarse = rng.uniform(0, 1, (cells, cells))
        texture += weight * coarse.repeat(size // cells, 0).repeat(size // cells, 1)
    # Blurred by two texels, so that no edge is sharper than a pixel.
    for axis in (0, 1):
        texture = np.mean([np.roll(texture, shift, axis) for shift in range(-2, 3)], axis=0)
    hue = rng.uniform(0, 1)
    colours = {
        "shirt": _colour(hue, 0.75, 0.85),
        "trousers": _colour(hue + 0.45, 0.55, 0.42),
        "skin": np.array([0.87, 0.66, 0.53]) * rng.uniform(0.75, 1.05),
        "hair": np.array([0.20, 0.13, 0.08]),
        "shoe": np.array([0.13, 0.12, 0.13]),
        "paint": _colour(hue + 0.2, 0.6, 0.9),
        "canvas": _colour(hue + 0.7, 0.5, 0.5),
        "floor": np.array([0.78, 0.72, 0.64]),
        "wall": np.array([0.70, 0.80, 0.84]),
    }
    single = {name: colour.astype(np.float32) for name, colour in colours.items()}
    return Look(texture.astype(np.float32), single)


def _colour(hue: float, saturation: float, value: float) -> Vector:
    wheel = np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    return np.asarray(value * (1 - saturation + saturation * wheel.clip(0, 1)))


@lru_cache(maxsize=2)
def _surface(clip: DrawnClip, t: int) -> Surface:
    return cast(clip.camera(t), clip.figure(t))


def write_clip(path: Path, clip: DrawnClip) -> None:
    """Write the clip to ``path`` (MP4)."""
    with Overlay(path, Size(clip.size[1], clip.size[0]), clip.fps, crf=16) as video:
        for t in range(clip.frames):
            video.write(clip.image(t), t / clip.fps)
