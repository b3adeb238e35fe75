"""Moments of motion: CMU clips drawn by activity, mixed and changed to make hard poses.

A moment is (3, 17, 3): the joints before, now and after, metres, y up, Human3.6M order. Every
random change is drawn once and applied to all three; otherwise the flow would show a jump.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mambapose.benchmarks.truth.motion import RATE_HZ, MotionClip
from mambapose.train.world.rotations import Vectors, about, frame, swing

CLIP_HZ = RATE_HZ
_ARMS = ((11, 12, 13, 1.0), (14, 15, 16, -1.0))
_LEGS = ((4, 5, 6, 1.0), (1, 2, 3, -1.0))
# Subtrees (root, joints that follow, spread in radians) turned at random.
_SUBTREES = (
    (0, tuple(range(7, 17)), 0.30), (11, (12, 13), 0.60), (12, (13,), 0.40), (14, (15, 16), 0.60),
    (15, (16,), 0.40), (4, (5, 6), 0.40), (5, (6,), 0.25), (1, (2, 3), 0.40), (2, (3,), 0.25),
)  # fmt: skip


@dataclass(frozen=True)
class Variety:
    """Probabilities of the changes to a clip's pose; ``Variety.none()`` keeps the recorded pose."""

    other_upper: float = 0.35
    perturbed: float = 0.60
    free_arm: float = 0.30
    free_leg: float = 0.20
    low: float = 0.12

    @staticmethod
    def none() -> Variety:
        """No changes: poses stay as recorded."""
        return Variety(0.0, 0.0, 0.0, 0.0, 0.0)


class Motion:
    """Clips grouped by activity, so that rare activities are drawn as often as walking."""

    def __init__(self, clips: Sequence[MotionClip]) -> None:
        self.clips = {clip.name: clip.xyz for clip in clips if len(clip.xyz) > 12}
        groups: dict[str, list[str]] = {}
        for clip in clips:
            if clip.name in self.clips:
                groups.setdefault(clip.activity, []).append(clip.name)
        if not groups:
            raise ValueError("motion clips of more than 12 frames were wanted, found none")
        self.groups = [sorted(groups[name]) for name in sorted(groups)]

    def pick(self, rng: np.random.Generator) -> tuple[str, Vectors]:
        """(name of a clip, a moment of it); 1/60 to 4/60 s lie between its three frames.

        That is the step of videos of 15 to 60 Hz.
        """
        group = self.groups[rng.integers(len(self.groups))]
        name = group[rng.integers(len(group))]
        step = int(rng.integers(1, 5))
        now = int(rng.integers(step, len(self.clips[name]) - step))
        return name, self.clips[name][[now - step, now, now + step]].astype(np.float64)

    def moment(self, rng: np.random.Generator, variety: Variety | None = None) -> Vectors:
        """A random moment with the changes of ``variety``."""
        variety = variety or Variety()
        _, p = self.pick(rng)
        if rng.random() < variety.other_upper:
            _, other = self.pick(rng)
            for t in range(3):
                turn = _pelvis(p[t]) @ _pelvis(other[t]).T
                p[t, 7:] = p[t, 0] + (other[t, 7:] - other[t, 0]) @ turn.T
        if rng.random() < variety.perturbed:
            _perturb(p, rng)
        low = rng.random() < variety.low
        if low:
            _bring_down(p, rng)
        for arm in _ARMS:
            if rng.random() < variety.free_arm:
                _free_arm(p, arm, rng)
        for leg in _LEGS:
            if not low and rng.random() < variety.free_leg:
                _free_leg(p, leg, rng)
        return p


def _pelvis(p: Vectors) -> Vectors:
    """(3, 3) the pelvis' directions as columns left, up, forward."""
    return frame(p[4] - p[1], p[7] - p[0])


def _perturb(p: Vectors, rng: np.random.Generator) -> None:
    amplitude = rng.uniform(0.3, 1.0)
    for root, follow, spread in _SUBTREES:
        turn = about(rng.normal(size=3), float(rng.normal(0, spread * amplitude)))
        for t in range(3):
            axes = _pelvis(p[t])
            world = axes @ turn @ axes.T
            joints = list(follow)
            p[t, joints] = p[t, root] + (p[t, joints] - p[t, root]) @ world.T


def _free_arm(p: Vectors, arm: tuple[int, int, int, float], rng: np.random.Generator) -> None:
    """Turn the arm anywhere but straight back, with the forearm bent forwards or inwards."""
    shoulder, elbow, wrist, sign = arm
    upper = rng.normal(size=3)
    upper[2] = abs(upper[2]) if rng.random() < 0.8 else 0.5 * upper[2]
    upper[0] = abs(upper[0]) if rng.random() < 0.8 else upper[0]
    upper /= np.linalg.norm(upper)
    upper[0] *= sign
    bend = np.array([-0.5 * np.sign(upper[0]), rng.normal(0, 0.7), 0.7])
    lower = upper + rng.uniform(0, 1.6) * bend
    lower /= np.linalg.norm(lower)
    drift = rng.normal(0, 0.06, 3)
    for t in range(3):
        chest = frame(p[t, 11] - p[t, 14], (p[t, 11] + p[t, 14]) / 2 - p[t, 7])
        turn = chest @ swing(np.array([0.0, 1.0, 0.0]), np.array([0.0, 1.0, 0.0]) + (t - 1) * drift)
        long_upper = np.linalg.norm(p[t, elbow] - p[t, shoulder])
        long_lower = np.linalg.norm(p[t, wrist] - p[t, elbow])
        p[t, elbow] = p[t, shoulder] + long_upper * turn @ upper
        p[t, wrist] = p[t, elbow] + long_lower * turn @ lower


def _free_leg(p: Vectors, leg: tuple[int, int, int, float], rng: np.random.Generator) -> None:
    """Raise, spread or bend the leg."""
    sign = leg[3]
    thigh = about((0, 0, 1), sign * rng.uniform(-0.15, 1.1)) @ about(
        (1, 0, 0), -rng.uniform(-0.5, 1.7)
    )
    _set_leg(p, leg, thigh, float(rng.uniform(0, 1.9)) if rng.random() < 0.7 else 0.0)


def _set_leg(p: Vectors, leg: tuple[int, int, int, float], thigh: Vectors, bend: float) -> None:
    hip, knee, ankle, _ = leg
    shin = thigh @ about((1, 0, 0), bend)
    for t in range(3):
        axes = _pelvis(p[t])
        down = np.array([0.0, -1.0, 0.0])
        long_thigh = np.linalg.norm(p[t, knee] - p[t, hip])
        long_shin = np.linalg.norm(p[t, ankle] - p[t, knee])
        p[t, knee] = p[t, hip] + long_thigh * axes @ thigh @ down
        p[t, ankle] = p[t, knee] + long_shin * axes @ shin @ down


def _bring_down(p: Vectors, rng: np.random.Generator) -> None:
    """Make the person squat, sit, kneel or lie, of which the clips have nearly nothing."""
    kind = rng.choice(4, p=[0.3, 0.4, 0.15, 0.15])
    lift, bend, lean = ((1.9, 2.2, 0.45), (1.45, 1.4, 0.1), (0.2, 1.9, 0.1), (0.3, 0.4, 0.0))[kind]
    for leg in _LEGS:
        angle = lift + rng.normal(0, 0.2)
        thigh = about((0, 0, 1), leg[3] * rng.uniform(0, 0.4)) @ about((1, 0, 0), -angle)
        _set_leg(p, leg, thigh, max(0.0, bend + rng.normal(0, 0.25)))
    upper = list(range(7, 17))
    back = lean + rng.normal(0, 0.15)
    roll = about((rng.normal(), 0.0, rng.normal()), np.pi / 2) if kind == 3 else np.eye(3)
    for t in range(3):
        axes = _pelvis(p[t])
        turn = axes @ about((1, 0, 0), back) @ axes.T
        p[t, upper] = p[t, 0] + (p[t, upper] - p[t, 0]) @ turn.T
        p[t] = p[t, 0] + (p[t] - p[t, 0]) @ (axes @ roll @ axes.T).T
