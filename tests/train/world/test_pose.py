"""Rotations, and bodies whose limbs point where the motion says."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from mambapose.benchmarks.truth.motion import MotionClip
from mambapose.train.world.motion import Motion, Variety
from mambapose.train.world.pose import Freedom, bones_from_joints, random_freedom
from mambapose.train.world.rotations import about, between, frame, swing

LIMBS = (
    ("LeftArm", "LeftForeArm", 11, 12), ("LeftForeArm", "LeftHand", 12, 13),
    ("RightArm", "RightForeArm", 14, 15), ("RightForeArm", "RightHand", 15, 16),
    ("LeftUpLeg", "LeftLeg", 4, 5), ("LeftLeg", "LeftFoot", 5, 6),
    ("RightUpLeg", "RightLeg", 1, 2), ("RightLeg", "RightFoot", 2, 3),
)  # fmt: skip


def is_rotation(matrix: np.ndarray) -> bool:
    """Orthogonal with determinant 1."""
    orthogonal = np.allclose(matrix @ np.swapaxes(matrix, -1, -2), np.eye(3), atol=1e-9)
    return bool(orthogonal and np.allclose(np.linalg.det(matrix), 1))


def test_rotations_do_what_they_say() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        u, v = rng.normal(size=(2, 3))
        turn = swing(u, v)
        assert is_rotation(turn)
        np.testing.assert_allclose(turn @ u / np.linalg.norm(u), v / np.linalg.norm(v), atol=1e-9)
        axes = frame(u, v)
        assert is_rotation(axes)
        np.testing.assert_allclose(axes[:, 0], u / np.linalg.norm(u), atol=1e-9)
        assert axes[:, 1] @ v > 0
        a, b = about(u, 0.3), about(v, 1.1) @ about(u, 0.3)
        np.testing.assert_allclose(between(a, b, 0.0), a, atol=1e-9)
        np.testing.assert_allclose(between(a, b, 1.0), b, atol=1e-9)
        np.testing.assert_allclose(between(a, b, 0.5), about(v, 0.55) @ a, atol=1e-9)
    for u in np.eye(3):  # the degenerate cases
        assert is_rotation(swing(u, -u))
        np.testing.assert_allclose(swing(u, -u) @ u, -u, atol=1e-9)
        assert is_rotation(frame(u, u))


def test_activities_are_drawn_evenly() -> None:
    still = np.zeros((40, 17, 3), np.float32)
    clips = [MotionClip(f"walk{k}", "walking", "exp", still) for k in range(9)]
    motion = Motion([*clips, MotionClip("run", "running", "exp", still)])
    rng = np.random.default_rng(1)
    names = [motion.pick(rng)[0] for _ in range(200)]
    assert 70 < names.count("run") < 130
    with pytest.raises(ValueError, match="found none"):
        Motion([MotionClip("short", "walking", "exp", still[:3])])


def test_limbs_point_as_the_motion_does(world: Any) -> None:
    rig = world.body.rig
    rest = rig.heads(world.body.base * 0.1)
    rng = np.random.default_rng(2)
    lengths = [np.linalg.norm(rest[rig.index(b)] - rest[rig.index(a)]) for a, b, _, _ in LIMBS]
    for number in range(60):
        variety = Variety() if number % 2 else Variety.none()
        joints = world.motion.moment(rng, variety)[1]
        pose = bones_from_joints(rig, rest, joints, random_freedom(rng))
        assert is_rotation(pose.rotation)
        for (first, second, a, b), length in zip(LIMBS, lengths, strict=True):
            bone = pose.head[rig.index(second)] - pose.head[rig.index(first)]
            want = (joints[b] - joints[a]) / np.linalg.norm(joints[b] - joints[a])
            np.testing.assert_allclose(bone / length, want, atol=1e-9)
        np.testing.assert_allclose(pose.head[0], joints[0])
        hips = pose.head[rig.index("LeftUpLeg")] - pose.head[rig.index("RightUpLeg")]
        assert hips @ (joints[4] - joints[1]) > 0.9 * np.linalg.norm(hips) * np.linalg.norm(
            joints[4] - joints[1]
        )


def test_limbs_never_flip_between_frames(world: Any) -> None:
    """The twist is smooth: 1/60 s never turns a bone by more than a fast motion does."""
    rig = world.body.rig
    rest = rig.heads(world.body.base * 0.1)
    for name in ("exp_walking__walking_2", "exp_basketball__basketball_1", "asf_02_07"):
        clip = world.motion.clips[name][::1].astype(np.float64)
        poses = [bones_from_joints(rig, rest, frame_, Freedom()).rotation for frame_ in clip[:150]]
        for bone in ("LeftArm", "RightForeArm", "LeftUpLeg", "RightLeg", "Spine", "LeftFoot"):
            k = rig.index(bone)
            turns = [q[k] @ p[k].T for p, q in itertools.pairwise(poses)]
            angle = np.arccos(np.clip([(np.trace(t) - 1) / 2 for t in turns], -1, 1))
            assert np.degrees(angle.max()) < 25, (name, bone)


def test_knees_bend_backwards(world: Any) -> None:
    """A bent knee lies in front of the line from hip to ankle, seen by the pelvis."""
    rig = world.body.rig
    rest = rig.heads(world.body.base * 0.1)
    joints = world.motion.clips["exp_running__running_1"][:60].astype(np.float64)
    for frame_ in joints:
        pose = bones_from_joints(rig, rest, frame_, Freedom())
        shin = pose.rotation[rig.index("LeftLeg")]
        thigh = pose.rotation[rig.index("LeftUpLeg")]
        hip, knee, ankle = (frame_[k] for k in (4, 5, 6))
        bend = np.cross(knee - hip, ankle - knee)
        if np.linalg.norm(bend) > 0.35 * np.linalg.norm(knee - hip) * np.linalg.norm(ankle - knee):
            # The hinge of the rest pose is the x axis of thigh and shin.
            assert thigh[:, 0] @ bend > 0.9 * np.linalg.norm(bend)
            assert shin[:, 0] @ bend > 0.9 * np.linalg.norm(bend)
