"""Windows of captured motion for a 2D-to-3D lifter, exactly as the runtime feeds it.

Random cameras see the people; a detector's faults are put on COCO joints, which the runtime's own
converter turns into Human3.6M joints. Letters: B windows, T frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mambapose.benchmarks.truth import body
from mambapose.benchmarks.truth.camera import (
    Cameras,
    cameras_drawn,
    spheres_from_joints,
    surfaces,
)
from mambapose.benchmarks.truth.motion import RATE_HZ, MotionClip
from mambapose.benchmarks.truth.simulated_detector import cues_at, detected, filled, frames_seen
from mambapose.runtime.errors import ExportError
from mambapose.runtime.stages.joints import h36m_from_coco, h36m_scores
from mambapose.runtime.types import FloatArray

STEP = (0.8, 4.0)  # captured frames between two frames of a window: 75 to 15 Hz, or faster motion
SELF_HIDDEN = 0.10  # body heights between a joint and the surface in front of it


@dataclass(frozen=True)
class Batch:
    """Inputs of a lifter and their truth, all float32.

    inputs: keypoints (B, T, 17, 2), score and depth (B, T, 17), flow (B, T, 17, 2) and
    present (B, 3), in the runtime's units; xyz: (B, T, 17, 3) the truth, root-relative, y down,
    in body heights.
    """

    inputs: Mapping[str, FloatArray]
    xyz: FloatArray


class Motions:
    """Clips in camera axes, joined to one array, from which windows at any rate are read."""

    def __init__(self, clips: Sequence[MotionClip]) -> None:
        if not clips:
            raise ExportError("clips of motion were wanted, found none; choose another split")
        self.clips = tuple(clips)
        self.lengths = np.array([len(clip.xyz) for clip in clips])
        self._first = np.cumsum(self.lengths) - self.lengths
        self._xyz = np.concatenate([body.redefined(body.camera_axes(clip.xyz)) for clip in clips])
        frames = {name: 0 for name in sorted({clip.activity for clip in clips})}
        for clip in clips:
            frames[clip.activity] += len(clip.xyz)
        # By the square root of what there is of an activity, then by the length of the clip.
        share = np.array([len(clip.xyz) / frames[clip.activity] ** 0.5 for clip in clips])
        self._share = share / share.sum()

    def drawn(self, rng: np.random.Generator, count: int, frames: int) -> FloatArray:
        """(B, T, 17, 3) windows of random clips, starts and rates, some of them reversed."""
        clip = rng.choice(len(self.clips), size=count, p=self._share)
        room = (self.lengths[clip] - 1) / max(frames - 1, 1)
        fastest = np.clip(room, STEP[0], STEP[1])
        step = np.exp(rng.uniform(np.log(STEP[0]), np.log(fastest)))
        slack = np.maximum(self.lengths[clip] - 1 - step * (frames - 1), 0)
        start = rng.uniform(0, 1, count) * slack
        windows = self.windows(clip, start, step, frames)
        back = rng.random(count) < 0.25
        windows[back] = windows[back, ::-1]
        return windows

    def facing(self) -> FloatArray:
        """(N, 17, 3) every captured pose of height 1, turned about the vertical to face us."""
        found = []
        for number, clip in enumerate(self.clips):
            first = self._first[number]
            xyz = self._xyz[first : first + len(clip.xyz)]
            xyz = (xyz - xyz[:, :1]) * (body.TRUNK_AND_LEG / body.leg_and_trunk(clip.xyz))
            left = xyz[:, 11] - xyz[:, 14]
            yaw = np.arctan2(left[:, 2], left[:, 0])
            turn = body.rotations_from_vectors(yaw[:, None] * np.array([0, 1, 0]))
            found.append(xyz @ np.swapaxes(turn, -1, -2))
        return np.concatenate(found)

    def windows(
        self,
        clip: NDArray[np.integer],
        start: NDArray[np.floating],
        step: NDArray[np.floating],
        frames: int,
    ) -> FloatArray:
        """(B, T, 17, 3) joints at start, start + step, ...; beyond its ends a clip stands still."""
        last = self.lengths[clip][:, None] - 1
        at = np.clip(start[:, None] + step[:, None] * np.arange(frames), 0, last)
        low = np.minimum(at.astype(np.int64), last - 1)
        share = (at - low).astype(np.float32)[..., None, None]
        first = self._first[clip][:, None] + low
        joints: FloatArray = self._xyz[first] + (self._xyz[first + 1] - self._xyz[first]) * share
        return joints


def seen_batch(
    rng: np.random.Generator, xyz: FloatArray, present: FloatArray, *, noisy: bool
) -> Batch:
    """The batch of people (B, T+1, 17, 3) of height 1 before random cameras.

    The first frame serves the flow only. noisy: with the faults of a detector, else exact joints
    that are all seen.
    """
    xyz = xyz - xyz[:, :, :1].mean(axis=1, keepdims=True)
    bones = body.bones_from_joints(xyz)
    coco = body.coco_from_bones(rng, bones, xyz)
    xyz = body.h36m_from_body(xyz, coco)
    cameras = cameras_drawn(rng, xyz)
    seen, seen_coco = cameras.view(xyz), cameras.view(coco)
    flat = cameras.project(seen_coco)
    scale = cameras.focal[:, None] / seen[:, :, 0, 2]
    score = np.ones(flat.shape[:3], np.float32)
    spheres, radii = spheres_from_joints(seen)
    if noisy:
        front, _ = surfaces(cameras, spheres, radii, flat)
        flat, score = detected(rng, flat, scale, seen_coco[..., 2] - front > SELF_HIDDEN)
    joints = h36m_from_coco(flat).astype(np.float32)
    rows = np.zeros((*joints[:, 1:].shape[:3], 6), np.float32)
    rows[..., :2], rows[..., 2] = joints[:, 1:], h36m_scores(score[:, 1:])
    _add_cues(rng, cameras, (spheres, radii), joints, scale, present, rows)
    if noisy:
        rows = filled(rows, frames_seen(rng, *rows.shape[:2]))
    inputs = {
        "keypoints": rows[..., :2],
        "score": rows[..., 2],
        "depth": rows[..., 3],
        "flow": rows[..., 4:],
        "present": present,
    }
    truth = seen[:, 1:] - seen[:, 1:, :1]
    return Batch({name: np.ascontiguousarray(value) for name, value in inputs.items()}, truth)


def _add_cues(
    rng: np.random.Generator,
    cameras: Cameras,
    solid: tuple[FloatArray, FloatArray],
    joints: FloatArray,
    scale: FloatArray,
    present: FloatArray,
    rows: FloatArray,
) -> None:
    """Write depth and flow into the rows, for windows in which one of them is present."""
    spheres, radii = solid
    some = np.flatnonzero(present[:, 1:].any(axis=1))
    if not len(some):
        return
    few = Cameras(cameras.rotation[some], cameras.place[some], cameras.focal[some])
    cues = cues_at(rng, few, spheres[some], radii, joints[some], scale[some])
    rows[some, :, :, 3] = cues["depth"] * present[some, None, None, 1]
    rows[some, :, :, 4:] = cues["flow"] * present[some, None, None, None, 2]


def windows_from_clip(
    motions: Motions, clip: int, frames: int, rate_hz: float = 30.0
) -> FloatArray:
    """(B, T+1, 17, 3) windows over a whole clip, with its own proportions, scaled to height 1.

    The last window ends with the clip.
    """
    step = RATE_HZ / rate_hz
    span = step * (frames - 1)
    last = max(float(motions.lengths[clip]) - 1 - span, 0.0)
    count = int(np.ceil(last / (step * frames))) + 1
    starts = np.minimum(np.arange(count) * step * frames, last) - step
    index = np.full(count, clip)
    windows = motions.windows(index, starts, np.full(count, step), frames + 1)
    height = body.leg_and_trunk(motions.clips[clip].xyz) / body.TRUNK_AND_LEG
    return (windows / height).astype(np.float32)
