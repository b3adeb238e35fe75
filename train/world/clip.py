"""Full-frame clips of people in a room, every frame with its truth.

Frames count from 0; pixel (x, y) whole numbers are centres.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.errors import ExportError
from mambapose.runtime.types import FloatArray, ImageArray
from mambapose.train.world.camera import Camera, look_at
from mambapose.train.world.clothes import random_person
from mambapose.train.world.colours import Pattern, Role, cloth_colour, material
from mambapose.train.world.mesh import box, quad
from mambapose.train.world.motion import CLIP_HZ
from mambapose.train.world.render import Picture, Renderer
from mambapose.train.world.scene import (
    STILL,
    Light,
    Scene,
    Thing,
    performed,
)
from mambapose.train.world.shot import World
from mambapose.train.world.truth import Joints, Surface, joints_of, surface_of

Vectors = NDArray[np.float64]
MAIN_CLIP, OTHER_CLIP = (
    "exp_directing_traffic__directing_traffic_4",
    "exp_walking_extra__walking_22",
)


class WorldClip:
    """A clip of ``people`` people in a room; most methods are about the first of them."""

    def __init__(
        self, world: World, renderer: Renderer, *, frames: int = 90,
        size: tuple[int, int] = (640, 360), fps: float = 30.0, seed: int = 0, people: int = 1,
        motions: tuple[str, ...] = (MAIN_CLIP, OTHER_CLIP), start: int = 240, zoom: float = 1.0,
    ) -> None:  # fmt: skip
        self.frames, self.size, self.fps, self.seed, self._zoom = frames, size, fps, seed, zoom
        self._renderer = renderer
        rng = np.random.default_rng([seed, 7])
        step = round(CLIP_HZ / fps)
        self._people: list[list[Thing]] = []
        for number in range(people):
            name = motions[number % len(motions)]
            if name not in world.motion.clips:
                raise ExportError(f"motion clip {name} was wanted, the motion file has none")
            whole = world.motion.clips[name]
            first = start if len(whole) > start + frames * step else 0
            chosen = whole[first : first + frames * step : step]
            if len(chosen) < frames:
                raise ExportError(
                    f"{frames} frames of {name} were wanted, found {len(chosen)}; ask for fewer"
                )
            person = random_person(world.body, rng)
            place = np.array([0.0, 0.0]) if number == 0 else np.array([-1.1 * number, 1.6])
            turn = math.pi - _heading(chosen) + (0.0 if number == 0 else math.pi / 2)
            self._people.append(
                performed(
                    world.body.rig, person, chosen.astype(np.float64), rng, turn=turn, place=place
                )
            )
        self._room = _room(rng)
        self._light = Light(
            np.array([-0.45, 0.72, -0.53]), np.full(3, 0.75) * (1.0, 0.97, 0.92),
            np.array([[0.7, 0.3, -0.6], [0, 1.0, 0.0]]), np.array([[0.16] * 3, [0.05] * 3]),
            np.array([0.36, 0.38, 0.42]), np.array([0.24, 0.22, 0.20]), 0.012,
        )  # fmt: skip

    def camera(self, t: int) -> Camera:
        """A hand-held camera in front of the first person; it sways by centimetres."""
        time = t / self.fps
        width, height = self.size
        focal = 1.55 * self._zoom * min(height, 1.3 * width)
        sway = np.array([0.06 * math.sin(0.9 * time), 0.02 * math.sin(1.3 * time), 0.0])
        position = np.array([0.0, 1.35, -4.2]) + sway
        target = np.array([0.02 * math.sin(0.7 * time), 0.92, 0.0])
        matrix = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
        return Camera(look_at(position, target, 0.004 * math.sin(1.1 * time)), position, matrix,
                      self.size)  # fmt: skip

    def scene(self, t: int) -> Scene:
        """The scene of frame t with the frames before and after."""
        if not 0 <= t < self.frames:
            raise ValueError(f"a frame of 0 to {self.frames - 1} was wanted, not {t}")
        around = (max(t - 1, 0), t, min(t + 1, self.frames - 1))
        before, now, after = (self.camera(k) for k in around)
        things = (*(person[t] for person in self._people), *self._room)
        return Scene(things, (before, now, after), self._light, shadows=False)

    def image(self, t: int) -> ImageArray:
        """(H, W, 3) RGB picture of frame t."""
        return np.ascontiguousarray(self._shown(t)[0].rgba[..., :3])

    def depth(self, t: int) -> FloatArray:
        """(H, W) inverse depth in 1/m, larger = nearer."""
        return np.asarray(1 / self.surface(t).depth, np.float32)

    def flow(self, t: int) -> FloatArray:
        """(H, W, 2) px, t >= 1: where each pixel of frame t was in t-1, minus where it is."""
        if t < 1:
            raise ValueError(f"flow needs a frame before it: t >= 1, not {t}")
        return np.asarray(self.surface(t).flow_before, np.float32)

    def flow_after(self, t: int) -> FloatArray:
        """(H, W, 2) px, t < frames - 1: where each pixel of frame t will be, minus where it is."""
        if t >= self.frames - 1:
            raise ValueError(f"flow needs a frame after it: t < {self.frames - 1}, not {t}")
        return np.asarray(self.surface(t).flow_after, np.float32)

    def mask(self, t: int, person: int = 0) -> NDArray[np.bool_]:
        """(H, W) True where the person is seen."""
        return np.asarray(self.surface(t).thing == person)

    def box(self, t: int, person: int = 0) -> FloatArray:
        """(4,) xyxy px of the outermost pixel centres of a person; NaN when it is not seen."""
        rows, columns = np.nonzero(self.mask(t, person))
        if rows.size == 0:
            return np.full(4, np.nan, np.float32)
        return np.array([columns.min(), rows.min(), columns.max(), rows.max()], np.float32)

    def coco_xy(self, t: int, person: int = 0) -> FloatArray:
        """(17, 2) px of the COCO joints, hidden ones included."""
        return np.asarray(self.joints(t, person).coco_xy, np.float32)

    def visibility(self, t: int, person: int = 0) -> NDArray[np.uint8]:
        """(17,) of the COCO joints: 0 outside the picture, 1 hidden, 2 seen."""
        return self.joints(t, person).visibility

    def h36m_xyz(self, t: int, person: int = 0) -> FloatArray:
        """(17, 3) Human3.6M joints, camera axes (y down), relative to the pelvis, body heights."""
        joints = self.joints(t, person)
        return np.asarray((joints.h36m_xyz - joints.h36m_xyz[0]) / joints.stature, np.float32)

    def root(self, t: int, person: int = 0) -> FloatArray:
        """(3,) pelvis in camera coordinates, metres."""
        return np.asarray(self.joints(t, person).h36m_xyz[0], np.float32)

    @property
    def lens(self) -> tuple[float, float, float]:
        """Focal length and the picture's centre, px."""
        matrix = self.camera(0).matrix
        return (float(matrix[0, 0]), float(matrix[0, 2]), float(matrix[1, 2]))

    @property
    def stature(self) -> float:
        """Standing height of the first person in metres."""
        return self.joints(0).stature

    def surface(self, t: int) -> Surface:
        """Everything known about the pixels of frame t."""
        return self._shown(t)[1]

    def joints(self, t: int, person: int = 0) -> Joints:
        """Everything known about the joints of a person in frame t."""
        scene = self.scene(t)
        return joints_of(scene, scene.people[person], self.surface(t))

    def _shown(self, t: int) -> tuple[Picture, Surface]:
        return _shown(self, t)


@lru_cache(maxsize=2)
def _shown(clip: WorldClip, t: int) -> tuple[Picture, Surface]:
    scene = clip.scene(t)
    picture = clip._renderer.picture(scene)
    return picture, surface_of(scene, picture.triangle)


def _heading(joints: NDArray[np.floating[Any]]) -> float:
    """Radians about the vertical, from +z to where the chest mostly points in a clip (T, 17, 3)."""
    left = (joints[:, 11] - joints[:, 14]).mean(axis=0)
    return float(np.arctan2(-left[2], left[0]))


def _room(rng: np.random.Generator) -> list[Thing]:
    """Floor, three walls and some boxes, around the origin; the camera looks along +z."""
    things = []

    def surface(
        centre: Vectors, u: Vectors, v: Vectors, pattern: Pattern, frequency: float
    ) -> None:
        block = material(rng, Role.PLAIN, 0.25 + 0.45 * rng.random(3) ** 2, wrinkle=0.0, grain=0.35)
        block[1][3], block[2][0], block[2][3] = float(pattern), frequency, 0.0
        block[1][:3] = [0.7 * value for value in block[0][:3]]
        reach = 10 * np.array([np.linalg.norm(u), np.linalg.norm(v)])
        base = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * reach
        table = np.asarray(block, np.float32)
        mesh = quad(centre, u, v, table, np.column_stack([base, np.zeros(4)]))
        things.append(Thing(mesh, STILL, room=True))

    x, y, z = np.eye(3)
    surface(np.zeros(3), 6 * x, 9 * z, Pattern.PLAID, 0.16)
    surface(np.array([0, 3.0, 4.0]), 6 * x, 3 * y, Pattern.STRIPES, 0.23)
    surface(np.array([-5.0, 3.0, 0.0]), 9 * z, 3 * y, Pattern.RINGS, 0.3)
    surface(np.array([5.0, 3.0, 0.0]), 9 * z, 3 * y, Pattern.CLOUDS, 0.1)
    solids = []
    for place in ((-2.6, 3.2), (2.2, 3.4), (3.4, 2.2)):
        size = np.array([rng.uniform(0.4, 1.0), rng.uniform(0.5, 1.5), rng.uniform(0.3, 0.6)])
        block = material(rng, Role.PLAIN, cloth_colour(rng), wrinkle=0.0, grain=0.25)
        move = np.eye(3, 4)
        move[:, 3] = (place[0], size[1] / 2, place[1])
        solids.append(Thing(box(size, np.asarray(block, np.float32)), np.tile(move, (3, 1, 1, 1))))
    return solids + things
