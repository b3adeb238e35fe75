"""Finished training samples: a shot set into a new background with other people and occluders.

    source = SampleSource(shots, films, seed=0)
    sample = source.draw()

The crop is the runtime's own (runtime/stages/crop.py) around the person's visible box, then turned,
scaled, shifted and mirrored; it may be made at a part of the size, as a network that begins by
halving its crop sees it. Truth moves with the picture: reprojecting ``coco_xyz`` with
``matrix`` gives ``coco_xy`` exactly, flow and depth are those of the nearest stored pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.stages.crop import crops_from_boxes
from mambapose.train.world.background import (
    Backdrop,
    draw_backdrop,
    random_cards,
    random_sky,
)
from mambapose.train.world.camera import Camera
from mambapose.train.world.effects import Effects, apply_effects, random_effects
from mambapose.train.world.shot import DEAD, Shot
from mambapose.train.world.textures import random_textures
from mambapose.train.world.truth import HIDDEN, OUTSIDE, SEEN, THICKNESS, h36m_from_landmarks
from mambapose.train.world.truth import visibility as seen_joints

CROP = (256, 192)  # H, W of pose2d
_DOUBLE = np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1.0]])  # pixels of half a picture to its own
_MIRROR = np.diag([-1.0, 1.0, 1.0])
# Left and right of the 19 landmarks change places in a mirror.
_SWAPPED = np.array([0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15, 17, 18])

Vectors = NDArray[np.float64]
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Mixture:
    """Shares and spreads of what is done to a shot; ``strength`` 0 is clean, 1 everything.

    box: the range of box sizes, as shares of the right size, drawn evenly on a log scale; with None
    the logarithm of the size has the spread ``scale``; edges: share of people at the edge of the
    frame, beyond which a crop is black; far: share of crops that show a person much smaller than
    they should, as a first look without a detector does; empty: share of crops without the person.
    """

    strength: float = 1.0
    mirror: float = 0.5
    turned: float = 0.5
    turn_rad: float = 0.30
    scale: float = 0.16
    shift: float = 0.05
    others: float = 0.35
    occluders: float = 0.30
    edges: float = 0.12
    far: float = 0.08
    empty: float = 0.02
    box: tuple[float, float] | None = None


@dataclass(frozen=True)
class Sample:
    """One crop with its truth, H x W as the source makes them, 256 x 192 for instance.

    rgb: (256, 192, 3) uint8; flow, flow_after: (2, 256, 192) float32 px, where each point was one
    frame before (will be one after), minus where it is; depth: (1, 256, 192) float32 inverse
    depth, 1/m; person: (256, 192) uint8, 1 the person, 2.. others, 200 things, 0 background;
    coco_xy (17, 2) px, visibility (17,) 0 outside, 1 hidden, 2 seen; coco_xyz, h36m_xyz (17, 3) m
    in camera axes; h36m_xy (17, 2) px; matrix (3, 3) projects xyz to xy; stature m; rgb_before:
    the frame before, for flow networks, or None.
    """

    rgb: Image
    flow: NDArray[np.float32]
    flow_after: NDArray[np.float32]
    depth: NDArray[np.float32]
    person: NDArray[np.uint8]
    coco_xy: Vectors
    visibility: NDArray[np.uint8]
    coco_xyz: Vectors
    h36m_xy: Vectors
    h36m_xyz: Vectors
    matrix: Vectors
    stature: float
    rgb_before: Image | None = None


@dataclass
class Canvas:
    """A picture while it is put together; all planes are (256, 192, ...).

    ``person`` is as in Sample, ``inverse`` is inverse depth, ``flow`` and ``after`` are in px,
    ``before`` is the picture before or None.
    """

    rgb: Image
    inverse: NDArray[np.float32]
    flow: NDArray[np.float32]
    after: NDArray[np.float32]
    person: NDArray[np.uint8]
    before: Image | None


class SampleSource:
    """Draws samples without end; the n-th depends only on the seed, the shots and n."""

    def __init__(
        self, shots: Sequence[Shot], films: Sequence[Image] = (), *, seed: int = 0,
        mixture: Mixture | None = None, textures: int = 48, size: tuple[int, int] = CROP,
    ) -> None:  # fmt: skip
        import cv2

        cv2.setNumThreads(0)  # OpenCV's threads deadlock forked loaders
        self._shots = shots
        self._films = list(films)
        self.mixture = mixture or Mixture()
        self._seed = seed
        self._count = 0
        self._size = size
        self._textures = random_textures(textures, np.random.default_rng([seed, 0]))

    def draw(self) -> Sample:
        """The next sample."""
        self._count += 1
        return self.sample(self._count - 1)

    def sample(self, number: int) -> Sample:
        """Sample ``number`` of the source."""
        rng = np.random.default_rng([self._seed, 1, number])
        shot = self._shots[int(rng.integers(len(self._shots)))]
        mixture = self.mixture
        affine, mirrored = random_affine(visible_box(shot), mixture, self._size, rng)
        cameras = tuple(camera.cropped(affine, self._size[::-1]) for camera in shot.cameras)
        empty = rng.random() < mixture.empty * mixture.strength
        canvas = self._backdrop(shot, (cameras[0], cameras[1], cameras[2]), rng)
        layers = [] if empty else [(_depth_of(shot), shot, affine)]
        for _ in range(
            int(rng.random() < mixture.others) + int(rng.random() < 0.3 * mixture.others)
        ):
            layers.append(self._other(shot, affine, rng))
        layers.sort(key=lambda layer: -layer[0])
        for _, layer, how in layers:
            _paint(canvas, layer, how, main=layer is shot)
        if rng.random() < mixture.occluders:
            occlude(canvas, self._textures, rng)
        sample = self._finished(canvas, shot, cameras[1], mirrored, rng)
        return replace(sample, visibility=np.zeros_like(sample.visibility)) if empty else sample

    def _backdrop(
        self, shot: Shot, cameras: tuple[Camera, Camera, Camera], rng: np.random.Generator
    ) -> Canvas:
        now = shot.cameras[1]
        pelvis = shot.marks[0, 11:13].mean(axis=0)
        centre = pelvis @ now.rotation + now.position
        cards = random_cards(now, centre, float(pelvis[2]), self._textures, self._films, rng)
        sky = random_sky(self._size[::-1], rng)
        drawn = draw_backdrop(cards, cameras, sky)
        before = None
        if shot.rgba_before is not None:
            earlier = (cameras[0], cameras[0], cameras[0])
            before = draw_backdrop(cards, earlier, sky).rgb
        return _canvas(drawn, before)

    def _other(
        self, shot: Shot, affine: Vectors, rng: np.random.Generator
    ) -> tuple[float, Shot, Vectors]:
        """Another shot placed beside, with its depth scaled so that size and depth agree."""
        other = self._shots[int(rng.integers(len(self._shots)))]
        rows, columns = self._size
        place = np.array([rng.normal(0.5, 0.45) * columns, rng.uniform(0.3, 0.8) * rows])
        factor = float(np.exp(rng.normal(-0.2, 0.35)))
        height, width = other.person.shape
        flip = -1.0 if rng.random() < 0.5 else 1.0
        scale = 205.0 / 230.0 * factor * rows / CROP[0]
        how = np.array([[flip * scale, 0, 0], [0, scale, 0]])
        how[:, 2] = place - how[:, :2] @ ((width - 1) / 2, (height - 1) / 2)
        # Seen through the main camera the same size means another distance.
        focal = _focal(shot.cameras[1].cropped(affine, self._size))
        ratio = focal / _focal(other.cameras[1].cropped(how, self._size))
        moved = replace(other, inverse_depth=other.inverse_depth / np.float32(ratio))
        return _depth_of(moved), moved, how

    def _finished(
        self, canvas: Canvas, shot: Shot, camera: Camera, mirrored: bool, rng: np.random.Generator
    ) -> Sample:
        marks, matrix = shot.marks[0], camera.matrix
        if mirrored:  # the mirrored person in the mirrored camera gives the same picture
            marks, matrix = (marks @ _MIRROR)[_SWAPPED], matrix @ _MIRROR
        coco, h36m = marks[:17], h36m_from_landmarks(marks)
        xy = _projected(coco, matrix)
        depth = 1 / np.maximum(canvas.inverse, 1e-6)
        seen = seen_joints(xy, coco[:, 2], depth)
        hidden_by_other = _covered(xy, canvas.person) & (seen == SEEN)
        seen[hidden_by_other & _in_front(xy, coco[:, 2], depth)] = HIDDEN
        effects = random_effects(rng, self.mixture.strength).scaled(self._size[0] / CROP[0])
        head = _head(xy)
        frame = cutting_frame(canvas, rng) if rng.random() < self.mixture.edges else None
        rgb = _with_effects(canvas, canvas.rgb, effects, rng, head)
        before = None if canvas.before is None else _with_effects(
            canvas, canvas.before, effects, rng, head)  # fmt: skip
        if frame is not None:
            cut_at(frame, canvas, rgb, before)
            seen[~within(xy, frame)] = OUTSIDE
        return Sample(
            rgb,
            np.ascontiguousarray(canvas.flow.transpose(2, 0, 1)),
            np.ascontiguousarray(canvas.after.transpose(2, 0, 1)),
            canvas.inverse[None],
            canvas.person,
            xy,
            seen,
            coco,
            _projected(h36m, matrix),
            h36m,
            matrix,
            float(shot.stature[0]),
            before,
        )


Window = tuple[slice, slice]


def cutting_frame(canvas: Canvas, rng: np.random.Generator) -> Window:
    """Rows and columns of the crop inside the camera's frame, which cuts the person on one side."""
    rows, columns = np.nonzero(canvas.person == 1)
    size = canvas.person.shape
    limits = [[0, size[0]], [0, size[1]]]
    if len(rows):
        axis, end = int(rng.integers(2)), int(rng.integers(2))
        place = (rows, columns)[axis]
        low, high = int(place.min()), int(place.max())
        inward = rng.uniform(-0.15, 0.35) * (high - low)
        edge = low + inward if end == 0 else high - inward
        limits[axis][end] = int(np.clip(edge, 0, size[axis]))
    return slice(*limits[0]), slice(*limits[1])


def cut_at(frame: Window, canvas: Canvas, rgb: Image, before: Image | None) -> None:
    """Make everything outside the frame black.

    Flow and depth repeat their edge there, as in the runtime's crops.
    """
    size = canvas.person.shape
    outside = np.ones(size, bool)
    outside[frame] = False
    for image in (rgb, before):
        if image is not None:
            image[outside] = 0
    canvas.person[outside] = 0
    rows = np.arange(size[0]).clip(frame[0].start, frame[0].stop - 1)
    columns = np.arange(size[1]).clip(frame[1].start, frame[1].stop - 1)
    for plane in (canvas.inverse, canvas.flow, canvas.after):
        plane[:] = plane[rows][:, columns]


def within(xy: Vectors, frame: Window) -> NDArray[np.bool_]:
    """(17,) which joints lie inside the frame."""
    x, y = np.round(xy).T
    inside = (x >= frame[1].start) & (x < frame[1].stop)
    return np.asarray(inside & (y >= frame[0].start) & (y < frame[0].stop))


def _with_effects(
    canvas: Canvas, rgb: Image, effects: Effects, rng: np.random.Generator,
    head: tuple[float, float, float],
) -> Image:  # fmt: skip
    return apply_effects(
        rgb, effects, rng, flow=canvas.flow, inverse_depth=canvas.inverse, head=head
    )


def _canvas(drawn: Backdrop, before: Image | None) -> Canvas:
    return Canvas(
        drawn.rgb, drawn.inverse_depth, drawn.flow_before, drawn.flow_after,
        np.zeros(drawn.rgb.shape[:2], np.uint8), before,
    )  # fmt: skip


def _projected(points: Vectors, matrix: Vectors) -> Vectors:
    flat = points @ matrix.T
    return np.asarray(flat[:, :2] / flat[:, 2:])


def _focal(camera: Camera) -> float:
    return float(np.sqrt(abs(np.linalg.det(camera.matrix[:2, :2]))))


def _depth_of(shot: Shot) -> float:
    """Metres to the middle of the shot's first person as drawn."""
    values = shot.inverse_depth[shot.person == 1]
    return float(1 / np.median(values)) if values.size else 1e3


def _head(xy: Vectors) -> tuple[float, float, float]:
    """x, y and half size of the head in pixels."""
    middle = xy[:5].mean(axis=0)
    size = float(np.linalg.norm(xy[5:7].mean(axis=0) - middle)) * 0.7
    return float(middle[0]), float(middle[1]), size


def visible_box(shot: Shot) -> Vectors:
    """(4,) xyxy box of the visible part of the shot's first person."""
    here = shot.person == 1
    rows, columns = np.flatnonzero(here.any(axis=1)), np.flatnonzero(here.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float64)


def random_affine(
    box: Vectors, mixture: Mixture, size: tuple[int, int], rng: np.random.Generator
) -> tuple[Vectors, bool]:
    """(2, 3) from the picture to the crop, and whether it mirrors; box: (4,) xyxy of the person."""
    crop = crops_from_boxes(box[None], size)
    affine = crop.matrices[0]
    height, width = size
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    strength = mixture.strength
    angle = rng.normal(0, mixture.turn_rad) if rng.random() < mixture.turned * strength else 0.0
    if mixture.box is None:
        scale = float(np.exp(rng.normal(0, mixture.scale * strength)))
    else:
        scale = float(np.exp(-rng.uniform(*np.log(mixture.box))))
    shift = rng.normal(0, mixture.shift * strength, 2) * height
    if rng.random() < mixture.far * strength:
        scale *= float(np.exp(rng.uniform(np.log(0.25), 0)))
        shift = rng.uniform(-0.4, 0.4, 2) * (1 - min(scale, 1)) * (width, height)
    mirrored = bool(rng.random() < mixture.mirror)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if mirrored:
        turn = turn @ np.diag([-1.0, 1.0])
    out = np.empty((2, 3))
    out[:, :2] = turn @ affine[:, :2]
    out[:, 2] = turn @ (affine[:, 2] - middle) + middle + shift
    return out, mirrored


def _paint(canvas: Canvas, shot: Shot, affine: Vectors, *, main: bool) -> None:
    """Lay a shot over the canvas; people of other shots are numbered from 2."""
    import cv2

    height, width = canvas.person.shape
    size = (width, height)
    halved = np.sqrt(abs(np.linalg.det(affine[:, :2]))) < 0.7
    for target, plane in ((canvas.rgb, shot.rgba), (canvas.before, shot.rgba_before)):
        if target is not None:
            source = shot.rgba if plane is None else plane
            how = affine
            if halved:  # the mean of four pixels first: a warp picks single ones
                even = source[: len(source) // 2 * 2, : source.shape[1] // 2 * 2]
                smaller = cv2.resize(even, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
                source = np.asarray(smaller, np.uint8)
                how = affine @ _DOUBLE
            warped = cv2.warpAffine(source, how, size, flags=cv2.INTER_LINEAR)
            bare = 255 - warped[..., 3].astype(np.uint16)
            under = (target * bare[..., None] + 127) // 255
            target[:] = np.minimum(warped[..., :3] + under, 255)
    nearest = cv2.INTER_NEAREST
    person = cv2.warpAffine(shot.person, affine, size, flags=nearest)
    here = person > 0
    numbers = person if main else np.where(person == DEAD, DEAD, person + 1).astype(np.uint8)
    np.copyto(canvas.person, numbers, where=here)
    np.copyto(canvas.inverse, _nearest(shot.inverse_depth, affine, size), where=here)
    turn = affine[:, :2].T.astype(np.float32)
    for target_flow, flow in ((canvas.flow, shot.flow_before), (canvas.after, shot.flow_after)):
        np.copyto(target_flow, _nearest(flow, affine, size) @ turn, where=here[..., None])


def _nearest(
    plane: NDArray[np.floating[Any]], affine: Vectors, size: tuple[int, int]
) -> NDArray[np.float32]:
    """(H, W, ...) the nearest pixels of a stored plane.

    float16 values are moved as their bits, and only those that are used are converted.
    """
    import cv2

    bits = plane.view(np.int16) if plane.dtype == np.float16 else plane
    moved = cv2.warpAffine(bits, affine, size, flags=cv2.INTER_NEAREST)
    return np.asarray(moved.view(plane.dtype), np.float32)


def occlude(canvas: Canvas, textures: Sequence[Image], rng: np.random.Generator) -> None:
    """Put a flat thing in front: a bar, a disc or a piece at the picture's edge."""
    import cv2

    height, width = canvas.person.shape
    unit = height / CROP[0]
    nearest = float(canvas.inverse[canvas.person == 1].max(initial=0.2))
    for _ in range(int(rng.integers(1, 4))):
        cover = np.zeros((height, width), np.uint8)
        kind = rng.choice(3)
        x, y = int(rng.uniform(0, width)), int(rng.uniform(0, height))
        if kind == 0:
            size = (float(rng.uniform(8, 45)) * unit, float(rng.uniform(40, 260)) * unit)
            box = cv2.boxPoints(((x, y), size, float(rng.choice([0, 90, rng.uniform(0, 180)]))))
            cv2.fillPoly(cover, [box.astype(np.int32)], 255, lineType=cv2.LINE_AA)
        elif kind == 1:
            axes = (int(rng.uniform(6, 35) * unit), int(rng.uniform(6, 35) * unit))
            cv2.ellipse(cover, (x, y), axes, 0, 0, 360, 255, -1, cv2.LINE_AA)
        else:
            level = int(height * rng.uniform(0.6, 0.95))
            cv2.rectangle(cover, (0, level), (width, height), 255, -1)
        texture = textures[int(rng.integers(len(textures)))]
        filled = cv2.resize(texture, (width, height)) if rng.random() < 0.5 else np.full(
            (height, width, 3), texture[5, 7])  # fmt: skip
        share = cover[..., None].astype(np.float32) / 255
        for target in (canvas.rgb, canvas.before):
            if target is not None:
                target[:] = target * (1 - share) + filled * share
        here = cover > 127
        canvas.person[here] = DEAD
        canvas.inverse[here] = nearest * float(rng.uniform(1.05, 1.6))
        canvas.flow[here] = 0
        canvas.after[here] = 0


def _at(xy: Vectors, size: tuple[int, ...]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    height, width = size
    column, row = np.round(xy).clip(0, (width - 1, height - 1)).astype(np.intp).T
    return row, column


def _covered(xy: Vectors, person: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(17,) whether something that is not the person lies over a joint."""
    number = person[_at(xy, person.shape)]
    return np.asarray((number != 1) & (number != 0))


def _in_front(xy: Vectors, z: Vectors, depth: NDArray[np.floating]) -> NDArray[np.bool_]:
    """(17,) whether the surface that covers a joint is nearer than the joint's own skin."""
    return np.asarray(depth[_at(xy, depth.shape)] < z - THICKNESS * 0.25)
