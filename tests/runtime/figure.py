"""A walking, waving figure with exactly known joints, for clips whose every pixel is known.

Metres. World axes: x right, y down (the floor is y = 0), z away from the camera. Body axes: x to
the figure's left, y down, z backwards, so a figure with identity rotation faces the camera. Every
part moves rigidly with one frame (rotation, origin), which makes its motion between two times
known at every point of its surface.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.skeleton import COCO17, H36M17

Vector = NDArray[np.floating[Any]]

STATURE = 1.75
# Lengths as fractions of the stature; the sum of foot, shank, thigh, trunk and head is 1.
FOOT, SHANK, THIGH = 0.045, 0.245, 0.245
SPINE, TRUNK = 0.125, 0.280
UPPER_ARM, FOREARM, HAND = 0.165, 0.145, 0.055
HIP, SHOULDER = 0.055, 0.105
# Head frame: origin at the middle of the shoulders.
HEAD_TOP, HEAD_CENTRE = -0.185, -0.113
FACE = {
    "nose": (0.0, -0.105, -0.063),
    "left_eye": (0.018, -0.122, -0.052),
    "right_eye": (-0.018, -0.122, -0.052),
    "left_ear": (0.043, -0.115, 0.004),
    "right_ear": (-0.043, -0.115, 0.004),
}


@dataclass(frozen=True)
class Part:
    """A capsule from start to end (radii (1,)) or an ellipsoid around start (radii (3,)).

    start, end and radii are metres in the part's own frame; material names its colour.
    """

    material: str
    rotation: Vector
    origin: Vector
    start: Vector
    end: Vector
    radii: Vector

    @property
    def is_capsule(self) -> bool:
        return self.radii.size == 1


@dataclass(frozen=True)
class Figure:
    """coco, h36m: joints (17, 3) in world metres; parts always in the same order."""

    coco: Vector
    h36m: Vector
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Walk:
    """An ellipse walked around ``centre`` (x, z) with radii (x, z) in ``period`` seconds.

    start: angle at time 0 (0 is the rightmost point, a quarter turn the farthest one); the gait
    makes ``steps`` double steps per second from angle ``gait``.
    """

    centre: tuple[float, float]
    radii: tuple[float, float]
    period: float
    start: float
    gait: float
    steps: float


def figure_at(walk: Walk, time: float) -> Figure:
    """The figure at that time in seconds; smooth in time, defined for every time."""
    phase = walk.gait + 2 * math.pi * walk.steps * time
    pelvis = turn_y(_heading(walk, time)) @ turn_x(0.04)
    chest = pelvis @ turn_y(0.16 * math.sin(phase)) @ turn_x(0.03)
    head = chest @ turn_y(0.15 * math.sin(0.9 * time)) @ turn_x(0.05 * math.sin(phase))
    frames: dict[str, tuple[Vector, Vector]] = {"pelvis": (pelvis, np.zeros(3))}
    frames["chest"] = (chest, pelvis @ _scaled(0, -SPINE, 0))
    neck = frames["chest"][1] + chest @ _scaled(0, SPINE - TRUNK, 0)
    frames["head"] = (head, neck)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        _add_leg(frames, side, sign, phase if sign > 0 else phase + math.pi)
        _add_arm(frames, side, sign, phase if sign > 0 else phase + math.pi, time)
    lowest = max(_end_of(frames, f"{side}_shank", SHANK)[1] for side in ("left", "right"))
    x, z = _place(walk, time)
    root = np.array([x, -FOOT * STATURE - lowest, z])
    frames = {name: (rotation, origin + root) for name, (rotation, origin) in frames.items()}
    joints = _joints(frames)
    return Figure(
        np.stack([joints[name] for name in COCO17.joints]),
        np.stack([joints[f"h36m_{name}"] for name in H36M17.joints]),
        _parts(frames),
    )


def _place(walk: Walk, time: float) -> tuple[float, float]:
    angle = walk.start + 2 * math.pi * time / walk.period
    return (
        walk.centre[0] + walk.radii[0] * math.cos(angle),
        walk.centre[1] + walk.radii[1] * math.sin(angle),
    )


def _heading(walk: Walk, time: float) -> float:
    """Turn about the vertical that makes the figure face where it walks."""
    angle = walk.start + 2 * math.pi * time / walk.period
    return math.atan2(walk.radii[0] * math.sin(angle), -walk.radii[1] * math.cos(angle))


def _add_leg(
    frames: dict[str, tuple[Vector, Vector]], side: str, sign: float, phase: float
) -> None:
    pelvis, origin = frames["pelvis"]
    thigh = pelvis @ turn_x(-0.05 - 0.42 * math.sin(phase)) @ turn_z(-0.03 * sign)
    # The knee bends while the leg swings forward.
    shank = thigh @ turn_x(0.10 + 0.85 * max(0.0, math.cos(phase)) ** 2)
    frames[f"{side}_thigh"] = (thigh, origin + pelvis @ _scaled(sign * HIP, 0, 0))
    frames[f"{side}_shank"] = (shank, _end_of(frames, f"{side}_thigh", THIGH))
    foot = shank @ turn_x(-0.10 - 0.25 * max(0.0, math.cos(phase)))
    frames[f"{side}_foot"] = (foot, _end_of(frames, f"{side}_shank", SHANK))


def _add_arm(
    frames: dict[str, tuple[Vector, Vector]], side: str, sign: float, phase: float, time: float
) -> None:
    chest, origin = frames["chest"]
    swing = 0.45 * math.sin(phase)
    bend = 0.45 - 0.25 * math.sin(phase)
    # The right hand goes up to wave and comes down again every six seconds.
    wave = 0.0 if sign > 0 else math.sin(math.pi * time / 6.0) ** 2
    upper = chest @ turn_z(-sign * (0.14 * (1 - wave) + 2.0 * wave)) @ turn_x(swing * (1 - wave))
    waved = -sign * wave * (0.75 + 0.5 * math.sin(2 * math.pi * 1.3 * time))
    fore = upper @ turn_z(waved) @ turn_x(-bend * (1 - wave))
    top = (SPINE - TRUNK) * STATURE
    frames[f"{side}_upper_arm"] = (
        upper,
        origin + chest @ np.array([sign * SHOULDER * STATURE, top, 0.0]),
    )
    frames[f"{side}_forearm"] = (fore, _end_of(frames, f"{side}_upper_arm", UPPER_ARM))


def _end_of(frames: dict[str, tuple[Vector, Vector]], name: str, length: float) -> Vector:
    """World position of the far end of a limb of that length (fraction of the stature)."""
    rotation, origin = frames[name]
    return np.asarray(origin + rotation @ _scaled(0, length, 0))


def _joints(frames: dict[str, tuple[Vector, Vector]]) -> dict[str, Vector]:
    """COCO joints by name and Human3.6M joints by ``h36m_`` name, from the same frames."""
    joints: dict[str, Vector] = {}
    head, neck = frames["head"]
    for name, place in FACE.items():
        joints[name] = neck + head @ _scaled(*place)
    for side in ("left", "right"):
        joints[f"{side}_shoulder"] = frames[f"{side}_upper_arm"][1]
        joints[f"{side}_elbow"] = frames[f"{side}_forearm"][1]
        joints[f"{side}_wrist"] = _end_of(frames, f"{side}_forearm", FOREARM)
        joints[f"{side}_hip"] = frames[f"{side}_thigh"][1]
        joints[f"{side}_knee"] = frames[f"{side}_shank"][1]
        joints[f"{side}_ankle"] = frames[f"{side}_foot"][1]
    for name in ("hip", "knee", "shoulder", "elbow", "wrist"):
        for side in ("left", "right"):
            joints[f"h36m_{side}_{name}"] = joints[f"{side}_{name}"]
    joints["h36m_left_foot"], joints["h36m_right_foot"] = (
        joints["left_ankle"],
        joints["right_ankle"],
    )
    joints["h36m_pelvis"] = frames["pelvis"][1]
    joints["h36m_spine"] = frames["chest"][1]
    joints["h36m_thorax"] = neck
    joints["h36m_neck"] = joints["nose"]
    joints["h36m_head"] = neck + head @ _scaled(0, HEAD_TOP, 0)
    return joints


def _parts(frames: dict[str, tuple[Vector, Vector]]) -> tuple[Part, ...]:
    parts = [
        _part(frames, "pelvis", "trousers", (0, -0.015, 0), None, (0.092, 0.070, 0.068)),
        _part(frames, "chest", "shirt", (0, 0.045, 0), None, (0.080, 0.115, 0.062)),
        _part(frames, "chest", "shirt", (0, -0.085, 0), None, (0.112, 0.100, 0.070)),
        _part(frames, "head", "skin", (0, 0.01, 0), (0, -0.07, 0), (0.030,)),
        _part(frames, "head", "head", (0, HEAD_CENTRE, 0), None, (0.044, 0.072, 0.055)),
        _part(frames, "head", "skin", (0, -0.100, -0.052), (0, -0.105, -0.056), (0.008,)),
    ]
    for side in ("left", "right"):
        # The shoe's sole is level with the floor when the foot is flat.
        toe, heel = (0, FOOT - 0.019, -0.085), (0, FOOT - 0.021, 0.022)
        hand = (0, FOREARM + HAND, 0)
        parts += [
            _part(frames, f"{side}_thigh", "trousers", (0, 0, 0), (0, THIGH, 0), (0.043,)),
            _part(frames, f"{side}_shank", "trousers", (0, 0, 0), (0, SHANK, 0), (0.031,)),
            _part(frames, f"{side}_foot", "shoe", heel, toe, (0.021,)),
            _part(frames, f"{side}_upper_arm", "shirt", (0, 0, 0), (0, UPPER_ARM, 0), (0.030,)),
            _part(frames, f"{side}_forearm", "skin", (0, 0, 0), (0, FOREARM, 0), (0.023,)),
            _part(frames, f"{side}_forearm", "skin", (0, FOREARM + 0.015, 0), hand, (0.025,)),
        ]
    return tuple(parts)


def _part(
    frames: dict[str, tuple[Vector, Vector]],
    frame: str,
    material: str,
    start: tuple[float, float, float],
    end: tuple[float, float, float] | None,
    radii: tuple[float, ...],
) -> Part:
    rotation, origin = frames[frame]
    return Part(
        material,
        rotation,
        origin,
        _scaled(*start),
        _scaled(*(end or start)),
        np.array(radii) * STATURE,
    )


def _scaled(x: float, y: float, z: float) -> Vector:
    return np.array([x, y, z], np.float64) * STATURE


def turn_x(angle: float) -> Vector:
    """Rotation about x; a positive angle takes y (down) towards z (backwards)."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def turn_y(angle: float) -> Vector:
    """Rotation about y; a positive angle takes z towards x."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def turn_z(angle: float) -> Vector:
    """Rotation about z; a positive angle takes x towards y, and y (down) away from x."""
    c, s = math.cos(angle), math.sin(angle)
    matrix: Any = [[c, -s, 0], [s, c, 0], [0, 0, 1]]
    return np.array(matrix)
