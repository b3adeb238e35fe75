"""One rendered picture of people with its truth, cut to where something is.

Shots are what is stored; they are set into a new picture at every use.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mambapose.benchmarks.truth.motion import clips_from_file, split_from_clips
from mambapose.train.world.assets import BODY_FOLDER, MOTION_FOLDER
from mambapose.train.world.body import Body, load_body
from mambapose.train.world.camera import Camera
from mambapose.train.world.clothes import random_person
from mambapose.train.world.motion import Motion, Variety
from mambapose.train.world.render import Renderer
from mambapose.train.world.scene import BEFORE, NOW, Scene, random_scene
from mambapose.train.world.truth import SEEN, surface_of, visibility

PEOPLE = 3  # at most in one shot
DEAD = 200  # number of everything that is no person, in Shot.person
POSES_PER_PERSON = 6
LEAST_SEEN = 6  # joints of the first person


@dataclass(frozen=True)
class Shot:
    """A window (h, w) of a rendered picture with its truth.

    cameras: before, now, after; their matrices and sizes are those of the window. rgba: (h, w, 4)
    uint8, colours multiplied by alpha; person: (h, w) uint8, 1 for the person the shot is framed
    on, 2, 3 for others, DEAD for things, 0 for nothing; inverse_depth: (h, w) 1/m; flow_before,
    flow_after: (h, w, 2) px; marks: (n, 19, 3) m, the people's landmarks in camera axes; stature:
    (n,) m; rgba_before: (h, w, 4) the picture before, or None.
    """

    rgba: NDArray[np.uint8]
    person: NDArray[np.uint8]
    inverse_depth: NDArray[np.floating]
    flow_before: NDArray[np.floating]
    flow_after: NDArray[np.floating]
    marks: NDArray[np.float64]
    stature: NDArray[np.float64]
    cameras: tuple[Camera, Camera, Camera]
    rgba_before: NDArray[np.uint8] | None = None


def shot_of(scene: Scene, renderer: Renderer, *, pair: bool = False) -> Shot:
    """The shot of a scene; pair: with the picture before."""
    picture = renderer.picture(scene)
    surface = surface_of(scene, picture.triangle)
    people = scene.people[:PEOPLE]
    person = np.full(len(scene.things) + 1, DEAD, np.uint8)
    person[: len(people)] = np.arange(1, len(people) + 1)
    person[-1] = 0  # thing -1: nothing
    number = person[surface.thing]
    earlier = renderer.picture(scene, BEFORE).rgba if pair else None
    shown = picture.rgba[..., 3] if earlier is None else picture.rgba[..., 3] | earlier[..., 3]
    window = _window((shown > 2) | (number > 0))
    top, left = window[0].start, window[1].start
    size = (window[1].stop - left, window[0].stop - top)
    shift = np.array([[1.0, 0, -left], [0, 1.0, -top]])
    before, now, after = (camera.cropped(shift, size) for camera in scene.cameras)
    marks = [
        now.view(thing.person.landmarks(thing.transforms[NOW]))
        for thing in people
        if thing.person is not None
    ]
    return Shot(
        picture.rgba[window],
        number[window],
        (1 / surface.depth)[window].astype(np.float32),
        surface.flow_before[window].astype(np.float32),
        surface.flow_after[window].astype(np.float32),
        np.stack(marks),
        np.array([thing.person.stature for thing in people if thing.person is not None]),
        (before, now, after),
        None if earlier is None else earlier[window],
    )


def _window(shown: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The rows and columns that hold everything shown."""
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    if not len(rows):
        return slice(0, 1), slice(0, 1)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _seen(shot: Shot) -> int:
    """How many joints of the first person are seen."""
    coco = shot.marks[0, :17]
    with np.errstate(divide="ignore"):
        depth = 1 / shot.inverse_depth.astype(np.float64)
    found = visibility(shot.cameras[NOW].pixels(coco), coco[:, 2], depth)
    return int((found == SEEN).sum())


@dataclass(frozen=True)
class World:
    """The body and the motions from which people are made."""

    body: Body
    motion: Motion


def load_world(assets: Path, *, held_out: bool = False) -> World:
    """The CC0 body and the CMU clips of the assets folder.

    held_out: only the activities kept out of training (benchmarks/truth/motion.py); otherwise only
    the others.
    """
    split = split_from_clips(clips_from_file(assets / MOTION_FOLDER))
    chosen = split.test if held_out else split.train
    return World(load_body(assets / BODY_FOLDER), Motion(chosen))


def shots(
    world: World, renderer: Renderer, seed: int, *, pair: bool = False,
    variety: Variety | None = None, poses: int = POSES_PER_PERSON,
) -> Iterator[Shot]:  # fmt: skip
    """Shots without end, all from the seed.

    A person is dressed once for ``poses`` shots: dressing costs as much as posing it.
    """
    rng = np.random.default_rng(seed)
    people = [random_person(world.body, rng)]
    count = 0
    while True:
        if count % poses == 0 and count:
            people = [random_person(world.body, rng), *people[:2]]
        crowd = 1 + int(rng.choice(3, p=[0.86, 0.11, 0.03]))
        scene = random_scene(world.body.rig, people[:crowd], world.motion, rng, variety=variety)
        shot = shot_of(scene, renderer, pair=pair)
        count += 1
        # Others and things may hide the person nearly wholly; such a shot teaches nothing.
        if (shot.person == 1).sum() > 400 and _seen(shot) >= LEAST_SEEN:
            yield shot
