"""Training samples of real people, changed as rendered ones are: boxes too small or too large,
turned, mirrored, behind things, cut by the frame, in other light, blurred and noisy.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mambapose.benchmarks.truth.pose_metrics import MIRROR
from mambapose.runtime.types import ImageArray
from mambapose.train.real.people import People, read_people
from mambapose.train.world.effects import apply_effects, random_effects
from mambapose.train.world.sample import (
    CROP,
    Canvas,
    Mixture,
    cut_at,
    cutting_frame,
    occlude,
    random_affine,
    within,
)
from mambapose.train.world.textures import random_textures
from mambapose.train.world.truth import OUTSIDE, SEEN, UNKNOWN

# Of the box at the crop's aspect, on each side: what the pictures of the folder were cut to. A side
# that is nearer to the box is the edge of the photograph, beyond which a crop is black.
MARGIN, MARGIN_LOST = 0.3, 0.02
ASPECT = CROP[1] / CROP[0]
HALVED_BELOW = 0.7
_DOUBLE = np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1.0]])
DISTANCE_M = 4.0  # of everything in a photograph: no depth is known, only things in front need one

Vectors = NDArray[np.float64]


class RealSample(NamedTuple):
    """One crop of a real person.

    rgb: (H, W, 3) uint8; xy: (17, 2) px of rgb; visibility: (17,) SEEN, OUTSIDE or UNKNOWN.
    """

    rgb: ImageArray
    xy: Vectors
    visibility: NDArray[np.uint8]


class RealSource:
    """Makes samples by number: ``source.sample(n, mixture)``.

    A sample depends on the seed, the crops, n and the mixture alone.
    """

    def __init__(
        self, folder: Path, size: tuple[int, int] = CROP, seed: int = 0, textures: int = 48
    ) -> None:
        import cv2

        cv2.setNumThreads(0)  # OpenCV's threads deadlock forked loaders
        self._people = read_people(folder)
        self._chosen = self._people.trained_on()
        self._size, self._seed = size, seed
        self._textures = random_textures(textures, np.random.default_rng([seed, 7]))

    def sample(self, number: int, mixture: Mixture) -> RealSample:
        """Sample ``number``."""
        rng = np.random.default_rng([self._seed, 8, number])
        person = int(self._chosen[int(rng.integers(len(self._chosen)))])
        # Nobody is much smaller than his picture allows, and everybody is there.
        affine, mirrored = random_affine(
            self._people.box[person].astype(np.float64), replace(mixture, far=0.0), self._size, rng
        )
        canvas = canvas_of(self._people, person, affine, self._size)
        if rng.random() < mixture.occluders:
            occlude(canvas, self._textures, rng)
        xy, seen = moved_joints(self._people, person, affine, mirrored, self._size)
        frame = cutting_frame(canvas, rng) if rng.random() < mixture.edges else None
        rgb = _with_effects(canvas.rgb, mixture.strength, rng)
        if frame is not None:
            cut_at(frame, canvas, rgb, None)
            seen[~within(xy, frame) & (seen != UNKNOWN)] = OUTSIDE
        return RealSample(rgb, xy, seen)


def canvas_of(people: People, number: int, affine: Vectors, size: tuple[int, int]) -> Canvas:
    """A canvas with the picture moved by affine (2, 3) to a crop of ``size``.

    The mask of the person is the person's box.
    """
    import cv2

    image, shift = widened(people.image(number), people.box[number])
    how: Vectors = affine.copy()
    how[:, 2] -= affine[:, :2] @ shift
    if np.sqrt(abs(np.linalg.det(how[:, :2]))) < HALVED_BELOW:
        # The mean of four pixels first: a warp picks single ones.
        even = image[: len(image) // 2 * 2, : image.shape[1] // 2 * 2]
        image = np.asarray(cv2.resize(even, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
        how = how @ _DOUBLE
    rgb = np.asarray(cv2.warpAffine(image, how, size[::-1], flags=cv2.INTER_LINEAR), np.uint8)
    left, top, right, bottom = people.box[number].astype(np.float64)
    corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    person = np.zeros(size, np.uint8)
    moved = np.round(corners @ affine[:, :2].T + affine[:, 2]).astype(np.int32)
    cv2.fillPoly(person, [moved], 1)
    inverse = np.full(size, 1 / DISTANCE_M, np.float32)
    return Canvas(rgb, inverse, _still(size), _still(size), person, None)


def widened(image: ImageArray, box: NDArray[np.floating]) -> tuple[ImageArray, Vectors]:
    """The picture with a border, and (2,) the place of its first pixel in the new picture.

    The outermost pixels are repeated on the sides where the folder, not the camera, cut the
    picture.
    """
    import cv2

    height, width = image.shape[:2]
    left, top, right, bottom = (float(value) for value in box)
    wide = max(right - left, (bottom - top) * ASPECT)
    tall = max(bottom - top, (right - left) / ASPECT)
    across, along = (left + right) / 2, (top + bottom) / 2
    least = 0.5 + MARGIN - MARGIN_LOST
    # Distances of the picture's sides from the middle of the box, as shares of the box in 3:4.
    sides = (along / tall, (height - along) / tall, across / wide, (width - across) / wide)
    extents = (tall, tall, wide, wide)
    up, down, before, after = (
        int(np.ceil(MARGIN * extent)) if side > least else 0
        for side, extent in zip(sides, extents, strict=True)
    )
    out = cv2.copyMakeBorder(image, up, down, before, after, cv2.BORDER_REPLICATE)
    return np.asarray(out, np.uint8), np.array([before, up], np.float64)


def moved_joints(
    people: People, number: int, affine: Vectors, mirrored: bool, size: tuple[int, int]
) -> tuple[Vectors, NDArray[np.uint8]]:
    """xy (17, 2) px of the crop and visibility (17,); a mirror image exchanges left and right."""
    xy = people.xy[number].astype(np.float64) @ affine[:, :2].T + affine[:, 2]
    known = people.ok[number]
    if mirrored:
        xy, known = xy[MIRROR], known[MIRROR]
    inside = within(xy, (slice(0, size[0]), slice(0, size[1])))
    seen = np.where(known, np.where(inside, SEEN, OUTSIDE), UNKNOWN)
    return xy, seen.astype(np.uint8)


def _still(size: tuple[int, int]) -> NDArray[np.float32]:
    return np.zeros((*size, 2), np.float32)


def _with_effects(rgb: ImageArray, strength: float, rng: np.random.Generator) -> ImageArray:
    """The picture with changed colour, blur, noise and codec.

    Haze and motion blur are left out, because depth and motion are not known.
    """
    size = rgb.shape[:2]
    effects = random_effects(rng, strength).scaled(size[0] / CROP[0])
    effects = replace(effects, haze=0.0, shutter=0.0, pixelated=False)
    flat = np.ones(size, np.float32)
    return apply_effects(rgb, effects, rng, flow=_still((size[0], size[1])), inverse_depth=flat)
