"""Scenes: things that bones move, the cameras of three moments, and light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mambapose.train.world.camera import Camera, look_at, moved
from mambapose.train.world.clothes import Person
from mambapose.train.world.colours import Role, cloth_colour, material
from mambapose.train.world.mesh import Mesh, box, cylinder
from mambapose.train.world.motion import Motion, Variety
from mambapose.train.world.pose import bones_from_joints, random_freedom
from mambapose.train.world.rig import Rig
from mambapose.train.world.rotations import about

Vectors = NDArray[np.float64]
BEFORE, NOW, AFTER = 0, 1, 2
STILL = np.tile(np.eye(3, 4), (3, 1, 1, 1))


@dataclass(frozen=True)
class Thing:
    """A mesh at three moments.

    transforms: (3, B, 3, 4); person: None for a thing that is no person; room: part of floor and
    walls, listed last.
    """

    mesh: Mesh
    transforms: Vectors
    person: Person | None = None
    room: bool = False


@dataclass(frozen=True)
class Light:
    """key_to, fill_to: directions to the lights; colours linear RGB; blur: of the shadow, 0..1."""

    key_to: Vectors
    key: Vectors
    fill_to: Vectors
    fill: Vectors
    sky: Vectors
    ground: Vectors
    blur: float


@dataclass(frozen=True)
class Scene:
    """Things, cameras and light.

    things: people first, rooms last; cameras: before, now, after; shadows: of the floor y = 0 only
    the shadow on it is drawn.
    """

    things: tuple[Thing, ...]
    cameras: tuple[Camera, Camera, Camera]
    light: Light
    shadows: bool = True

    @property
    def people(self) -> tuple[Thing, ...]:
        """The things that are people."""
        return tuple(thing for thing in self.things if thing.person is not None)


def performed(
    rig: Rig, person: Person, clip: Vectors, rng: np.random.Generator, *, turn: float = 0.0,
    place: Vectors | None = None,
) -> list[Thing]:  # fmt: skip
    """The person in every frame of a clip (T, 17, 3), standing on the floor in its lowest frame.

    turn: radians about the vertical; place: (2,) x and z of the middle of the way. The three
    moments of a thing are the frame before, the frame and the one after; at both ends the clip
    stands still.
    """
    freedom = random_freedom(rng)
    scale = _leg_length(person.heads, rig) / _leg_length_of_joints(clip[0])
    joints = clip.astype(np.float64) @ about((0, 1, 0), turn).T
    middle = (joints[:, 0].min(axis=0) + joints[:, 0].max(axis=0)) / 2
    poses = []
    for frame in joints:
        root = (frame[0] - middle) * scale
        poses.append(bones_from_joints(rig, person.heads, frame - frame[0] + root, freedom))
    moves = np.stack([pose.transforms(person.heads) for pose in poses])
    low = min(float(person.mesh.drawn(move)[:, 1].min()) for move in moves[:: 1 + len(moves) // 20])
    xz = np.zeros(2) if place is None else place
    moves[..., 3] += np.array([xz[0], -low, xz[1]])
    order = np.arange(len(moves))
    around = [np.maximum(order - 1, 0), order, np.minimum(order + 1, len(moves) - 1)]
    return [Thing(person.mesh, np.stack([moves[k[t]] for k in around]), person) for t in order]


def acted(
    rig: Rig, person: Person, moment: Vectors, rng: np.random.Generator, *,
    place: Vectors | None = None, lift: float | None = None,
) -> Thing:  # fmt: skip
    """The person in a moment (3, 17, 3), scaled to its legs; its lowest point now is on the floor.

    place: (2,) x and z of the pelvis now; lift: metres above the floor; None for a jump now and
    then.
    """
    freedom = random_freedom(rng)
    scale = _leg_length(person.heads, rig) / _leg_length_of_joints(moment[NOW])
    poses = []
    for joints in moment:
        root = (joints[0] - moment[NOW, 0]) * scale
        poses.append(bones_from_joints(rig, person.heads, joints - joints[0] + root, freedom))
    if lift is None:
        lift = float(rng.uniform(0, 0.4)) if rng.random() < 0.06 else 0.0
    now = person.mesh.drawn(poses[NOW].transforms(person.heads))
    xz = np.zeros(2) if place is None else place
    offset = np.array([xz[0], lift - float(now[:, 1].min()), xz[1]])
    transforms = np.stack([pose.moved(offset).transforms(person.heads) for pose in poses])
    return Thing(person.mesh, transforms, person)


def _leg_length(heads: Vectors, rig: Rig) -> float:
    hip, knee, ankle = (heads[rig.index("Left" + name)] for name in ("UpLeg", "Leg", "Foot"))
    return float(np.linalg.norm(hip - knee) + np.linalg.norm(knee - ankle))


def _leg_length_of_joints(p: Vectors) -> float:
    return float(np.linalg.norm(p[4] - p[5]) + np.linalg.norm(p[5] - p[6]))


def random_scene(
    rig: Rig, people: list[Person], motion: Motion, rng: np.random.Generator, *,
    variety: Variety | None = None, size: tuple[int, int] = (256, 320), extent: float = 0.72,
) -> Scene:  # fmt: skip
    """A scene framed on its first person, who fills ``extent`` of a canvas ``size`` (W, H)."""
    things = [acted(rig, people[0], motion.moment(rng, variety), rng)]
    for person in people[1:]:
        angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 1.6)
        place = reach * np.array([np.cos(angle), np.sin(angle)])
        things.append(acted(rig, person, motion.moment(rng, variety), rng, place=place))
    camera = _framing(things[0], rng, size, extent)
    things += _props(things[0], rig, camera, rng)
    return Scene(tuple(things), _shaken(camera, rng), random_light(rng))


def _framing(
    thing: Thing, rng: np.random.Generator, size: tuple[int, int], extent: float
) -> Camera:
    points = thing.mesh.points(thing.transforms[NOW])[::3]
    centre = (points.min(axis=0) + points.max(axis=0)) / 2
    distance = float(np.exp(rng.uniform(np.log(1.9), np.log(9.0))))
    azimuth = rng.uniform(0, 2 * np.pi)
    height = rng.choice([rng.normal(1.5, 0.35), rng.uniform(0.2, 1.0), rng.uniform(1.8, 4.5)],
                        p=[0.55, 0.2, 0.25])  # fmt: skip
    height = min(max(0.15, height), centre[1] + 1.2 * distance)
    position = np.array([centre[0] + distance * np.cos(azimuth), height,
                         centre[2] + distance * np.sin(azimuth)])  # fmt: skip
    aside = np.append(rng.normal(0, 0.13, 2) * distance, 0.0)
    rotation = look_at(position, centre, float(rng.normal(0, 0.06)))
    rotation = look_at(position, centre + rotation.T @ aside, float(rng.normal(0, 0.06)))
    seen = (points - position) @ rotation.T
    flat = seen[:, :2] / np.maximum(seen[:, 2:], 0.2)
    low, high = flat.min(axis=0), flat.max(axis=0)
    width, tall = size
    span = max((high[1] - low[1]) / tall, (high[0] - low[0]) / width)
    focal = extent / span
    middle = np.array([(width - 1) / 2, (tall - 1) / 2]) - focal * (low + high) / 2
    matrix = np.array([[focal, 0, middle[0]], [0, focal, middle[1]], [0, 0, 1.0]])
    return Camera(rotation, position, matrix, size)


def _shaken(camera: Camera, rng: np.random.Generator) -> tuple[Camera, Camera, Camera]:
    """A still camera, or one that drifts evenly over the three moments."""
    if rng.random() < 0.4:
        return camera, camera, camera
    # A steady to an unsteady hand: 0.5 to 5 px of the canvas between two moments.
    pixels = rng.normal(0, 1.7, 3) * rng.choice([0.3, 1.0, 3.0])
    turn = pixels / np.array([camera.matrix[0, 0], camera.matrix[0, 0], 150.0])
    shift = rng.normal(0, 0.006, 3)
    return moved(camera, -turn, -shift), camera, moved(camera, turn, shift)


def random_light(rng: np.random.Generator) -> Light:
    """Sun, overcast sky or lamps; one light throws shadows."""
    kind = rng.choice(3, p=[0.35, 0.3, 0.35])
    azimuth, rise = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(18, 75))
    key_to = np.array(
        [np.cos(azimuth) * np.cos(rise), np.sin(rise), np.sin(azimuth) * np.cos(rise)]
    )
    tint = np.exp(rng.normal(0, 0.10, 3))
    if kind == 0:
        key, sky, blur = rng.uniform(0.7, 1.5), rng.uniform(0.15, 0.5), rng.uniform(0.002, 0.01)
    elif kind == 1:
        key, sky, blur = rng.uniform(0.1, 0.4), rng.uniform(0.5, 1.0), rng.uniform(0.02, 0.06)
    else:
        key, sky, blur = rng.uniform(0.3, 1.0), rng.uniform(0.2, 0.6), rng.uniform(0.006, 0.03)
    fill_to = rng.normal(size=(2, 3))
    fill_to[:, 1] = np.abs(fill_to[:, 1]) * 0.6
    fill_to /= np.linalg.norm(fill_to, axis=1, keepdims=True)
    strength = rng.uniform(0, 0.45, (2, 1)) * (rng.random((2, 1)) < 0.6)
    fill = strength * np.exp(rng.normal(0, 0.15, (2, 3)))
    cool = np.array([0.92, 1.0, 1.10]) ** rng.uniform(-1, 2)
    return Light(
        key_to,
        key * tint,
        fill_to,
        fill,
        sky * cool,
        sky * rng.uniform(0.3, 0.8) * tint,
        float(blur),
    )


def _props(main: Thing, rig: Rig, camera: Camera, rng: np.random.Generator) -> list[Thing]:
    """Now and then a held object, a box or a pole near the person."""
    things = []
    if rng.random() < 0.15 and main.person is not None:
        bone = rig.index(("LeftHand", "RightHand")[rng.integers(2)])
        hold = main.person.heads[bone] + (main.person.heads[bone] - main.person.heads[
            rig.parents[bone]]) * 0.25  # fmt: skip
        solid = _random_solid(rng, float(rng.uniform(0.05, 0.18)))
        shift = np.eye(3, 4)
        shift[:, 3] = hold
        things.append(Thing(solid, _after(main.transforms[:, [bone]], shift)))
    for _ in range(int(rng.choice([0, 1, 2], p=[0.80, 0.15, 0.05]))):
        points = main.mesh.points(main.transforms[NOW])[::50]
        centre = points.mean(axis=0)
        toward = camera.position - centre
        toward[1] = 0
        toward /= np.linalg.norm(toward) + 1e-9
        across = np.array([toward[2], 0, -toward[0]])
        place = centre + toward * rng.uniform(-1.0, 0.6) + across * rng.normal(0, 0.6)
        solid = _random_solid(rng, float(rng.uniform(0.12, 0.35)))
        place[1] = -float(solid.rest[:, 1].min())
        move = np.eye(3, 4)
        angle = rng.uniform(0, np.pi)
        move[:, :3] = [
            [np.cos(angle), 0, np.sin(angle)],
            [0, 1, 0],
            [-np.sin(angle), 0, np.cos(angle)],
        ]
        move[:, 3] = place
        things.append(Thing(solid, np.tile(move, (3, 1, 1, 1))))
    return things


def _after(first: Vectors, inner: Vectors) -> Vectors:
    """(..., 3, 4) of the move ``inner`` (3, 4) followed by ``first`` (..., 3, 4)."""
    out: Vectors = first.copy()
    out[..., :3] = first[..., :3] @ inner[:, :3]
    out[..., 3] = first[..., :3] @ inner[:, 3] + first[..., 3]
    return out


def _random_solid(rng: np.random.Generator, size: float) -> Mesh:
    table = np.asarray(material(rng, Role.PLAIN, cloth_colour(rng), wrinkle=0.0), np.float32)
    kind = rng.choice(3)
    if kind == 0:
        return box(size * np.exp(rng.normal(0, 0.5, 3)) * 1.4, table)
    if kind == 1:
        return cylinder(size * 0.35, size * rng.uniform(1, 5), table)
    return box(np.array([size * 0.5, size * rng.uniform(2, 5), size * 0.5]), table)
