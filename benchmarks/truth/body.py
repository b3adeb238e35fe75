"""Motion capture made into people: bone lengths, mirror images, mixed limbs, faces, skeletons.

Axes are the camera's from here on: x right, y down, z away. The unit is the body height, so that
bones are shares of it. Human3.6M joints are defined in three dimensions by the rule by which the
runtime makes them from a detector's COCO joints: the pelvis is the middle of the hips, the neck
lies a quarter of the way from the nose to the shoulders.
Letters: B windows, T frames, J = 17 joints.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.skeleton import H36M17
from mambapose.runtime.stages.joints import COCO_COPIED, H36M_COPIED
from mambapose.runtime.types import FloatArray

# Parent of each joint; the hips and the thorax hang on the middle of the hips.
PARENT = (0, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15)
# Bones that are turned together, in what share of the windows, by how much (radians, per axis):
# the whole upper body, each arm, each leg. A recipe for training, as in windows.py.
TURNED: tuple[tuple[tuple[int, ...], float, float], ...] = (
    ((7, 8, 9, 10, 11, 12, 13, 14, 15, 16), 0.4, 0.35),
    ((12, 13), 0.4, 0.6), ((15, 16), 0.4, 0.6), ((2, 3), 0.35, 0.4), ((5, 6), 0.35, 0.4),
)  # fmt: skip

# Length of the bone that ends in each joint, in body heights: thigh, shank and trunk of Drillis
# and Contini (1966), arms and widths as detectors place those joints (inside the surface marks).
LENGTHS = np.array([
    0.0, 0.055, 0.245, 0.246, 0.055, 0.245, 0.246, 0.140, 0.148, 0.085, 0.095,
    0.105, 0.168, 0.148, 0.105, 0.168, 0.148,
])  # fmt: skip
# Bones of one number vary together, so that a person stays symmetric.
FAMILY = np.array([0, 1, 2, 3, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 7, 8, 9])
FAMILY_SPREAD = np.array([0, 0.12, 0.05, 0.05, 0.06, 0.10, 0.08, 0.08, 0.07, 0.08])
TRUNK_AND_LEG = 0.245 + 0.246 + 0.288  # hip to ankle and hips to shoulders, in body heights

# Nose, eyes and ears over the top of the neck: to the left, up, forward, in body heights.
FACE = np.array([
    [0.0, 0.012, 0.068], [0.018, 0.034, 0.056], [-0.018, 0.034, 0.056],
    [0.044, 0.026, -0.004], [-0.044, 0.026, -0.004],
])  # fmt: skip

MIRROR = np.arange(17)
for _left, _right in H36M17.pairs:
    MIRROR[_left], MIRROR[_right] = _right, _left


def camera_axes(xyz: NDArray[np.floating]) -> FloatArray:
    """Joints with y down from joints with y up, by half a turn about x, which keeps handedness."""
    out: FloatArray = (xyz * np.array([1.0, -1.0, -1.0])).astype(np.float32)
    return out


def redefined(xyz: FloatArray) -> FloatArray:
    """(..., 17, 3) captured joints with pelvis, spine and thorax where a detector's would be."""
    out: FloatArray = xyz.copy()
    hips = xyz[..., [1, 4], :].mean(axis=-2)
    shoulders = xyz[..., [11, 14], :].mean(axis=-2)
    out[..., 0, :] = hips
    out[..., 8, :] = shoulders
    # The captured spine is at 0.63 of the trunk, Human3.6M's near its middle, with the same bend.
    out[..., 7, :] = hips + (xyz[..., 7, :] - hips) * 0.77
    return out


def leg_and_trunk(xyz: FloatArray) -> float:
    """Median length of hip-knee-ankle and hips-shoulders in a clip (T, 17, 3).

    A body height is estimated from it where no head is known. Joints that are not numbers are left
    out.
    """
    bones = np.linalg.norm(xyz[:, [1, 2, 4, 5]] - xyz[:, [2, 3, 5, 6]], axis=-1)
    trunk = np.linalg.norm(xyz[:, [1, 4]].mean(1) - xyz[:, [11, 14]].mean(1), axis=-1)
    return float(np.nanmedian(bones.sum(axis=1) / 2) + np.nanmedian(trunk))


def bones_from_joints(xyz: FloatArray) -> FloatArray:
    """(..., 17, 3) the vector to each joint from its parent; for joint 0 it is its place."""
    bones: FloatArray = xyz - xyz[..., list(PARENT), :]
    bones[..., 0, :] = xyz[..., 0, :]
    return bones


def joints_from_bones(bones: FloatArray) -> FloatArray:
    """The inverse of ``bones_from_joints``."""
    xyz: FloatArray = bones.copy()
    for joint in range(1, 17):
        xyz[..., joint, :] += xyz[..., PARENT[joint], :]
    return xyz


def lengths_drawn(rng: np.random.Generator, count: int) -> FloatArray:
    """(B, 17) random bone lengths of ``count`` people of height 1."""
    spread = np.exp(rng.normal(size=(count, len(FAMILY_SPREAD))) * FAMILY_SPREAD)
    drawn: FloatArray = (LENGTHS * spread[:, FAMILY]).astype(np.float32)
    return drawn


def resized(bones: FloatArray, lengths: FloatArray) -> FloatArray:
    """Bones (B, T, 17, 3) scaled to mean lengths (B, 17); joint 0's path scales with the legs."""
    found = np.linalg.norm(bones, axis=-1).mean(axis=1)
    found[:, 0] = found[:, [2, 3, 5, 6]].sum(axis=1)
    wanted = lengths.copy()
    wanted[:, 0] = lengths[:, [2, 3, 5, 6]].sum(axis=1)
    out: FloatArray = bones * (wanted / np.maximum(found, 1e-6))[:, None, :, None]
    return out


def mirrored(xyz: FloatArray) -> FloatArray:
    """The mirror image of (..., 17, 3): x changes sign and left joints swap with right ones."""
    out: FloatArray = xyz[..., MIRROR, :]
    out[..., 0] *= -1
    return out


def rotations_from_vectors(vectors: NDArray[np.floating]) -> FloatArray:
    """(..., 3, 3) rotations by |v| radians about v (Rodrigues)."""
    angle = np.linalg.norm(vectors, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(vectors / np.maximum(angle[..., 0], 1e-12), -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*x.shape, 3, 3)
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)
    rotation: FloatArray = turn.astype(np.float32)
    return rotation


def frames_from_axes(left: FloatArray, up: FloatArray) -> FloatArray:
    """(..., 3, 3) with the columns left, up, forward.

    up keeps its direction; left is made perpendicular to it.
    """
    up = up / np.maximum(np.linalg.norm(up, axis=-1, keepdims=True), 1e-6)
    left = left - (left * up).sum(-1, keepdims=True) * up
    left = left / np.maximum(np.linalg.norm(left, axis=-1, keepdims=True), 1e-6)
    return np.stack([left, up, np.cross(left, up)], axis=-1)


def chest_frames(bones: FloatArray) -> FloatArray:
    """(B, T, 3, 3) the chest's left, up and forward."""
    return frames_from_axes(
        bones[..., 11, :] - bones[..., 14, :], bones[..., 7, :] + bones[..., 8, :]
    )


def hip_frames(bones: FloatArray) -> FloatArray:
    """(B, T, 3, 3) the hips' left, up and forward."""
    return frames_from_axes(bones[..., 4, :] - bones[..., 1, :], bones[..., 7, :])


# Limbs that are taken from another window: on what they hang, and in what share of the windows.
# Both arms together, each leg alone: people stand on one of them.
TAKEN: tuple[tuple[tuple[int, ...], Callable[[FloatArray], FloatArray], float], ...] = (
    ((12, 13, 15, 16), chest_frames, 0.35), ((2, 3), hip_frames, 0.2), ((5, 6), hip_frames, 0.2),
)  # fmt: skip


def varied(rng: np.random.Generator, bones: FloatArray) -> FloatArray:
    """Bones (B, T, 17, 3) of new poses: some limbs from another window, some turned as a whole."""
    out: FloatArray = bones.copy()
    count = len(bones)
    for joints, frames, share in TAKEN:
        swap = np.flatnonzero(rng.random(count) < share)
        donor = rng.integers(count, size=len(swap))
        turn = frames(bones[swap]) @ np.swapaxes(frames(bones[donor]), -1, -2)
        out[swap[:, None], :, joints] = np.einsum(
            "btij,btkj->bkti", turn, bones[donor][:, :, joints], optimize=True
        )
    for joints, share, spread in TURNED:
        angle = rng.normal(size=(count, 3)) * spread * (rng.random((count, 1)) < share)
        back = np.swapaxes(rotations_from_vectors(angle), -1, -2)[:, None]
        out[:, :, list(joints)] = out[:, :, list(joints)] @ back
    return out


def turned_bodies(rng: np.random.Generator, bones: FloatArray) -> FloatArray:
    """Bones turned at random: any yaw, a slight lean, seldom lying or upside down."""
    count = len(bones)
    lean = np.where(rng.random(count) < 0.06, 1.0, 0.07)[:, None]
    tilt = rotations_from_vectors(rng.normal(size=(count, 3)) * lean * np.array([1, 0, 1]))
    yaw = rotations_from_vectors(rng.uniform(-np.pi, np.pi, (count, 1)) * np.array([0, 1, 0]))
    out: FloatArray = bones @ np.swapaxes(tilt @ yaw, -1, -2)[:, None]
    return out


def coco_from_bones(rng: np.random.Generator, bones: FloatArray, xyz: FloatArray) -> FloatArray:
    """(B, T, 17, 3) COCO joints: the limbs unchanged, and a face on a head that looks around."""
    count, frames = xyz.shape[:2]
    up = bones[..., 9, :] + bones[..., 10, :]
    head = frames_from_axes(bones[..., 11, :] - bones[..., 14, :], up)
    look = rng.normal(size=(count, 2, 2)) * np.array([0.4, 0.35])
    share = np.linspace(0, 1, frames)[None, :, None]
    yaw_pitch = look[:, None, 0] * (1 - share) + look[:, None, 1] * share
    # In the head's own axes (left, up, forward): pitch turns about left, yaw about up.
    turn = np.stack([yaw_pitch[..., 1], yaw_pitch[..., 0], np.zeros((count, frames))], -1)
    face = FACE * np.exp(rng.normal(size=(count, 1, 1, 3)) * 0.12)
    local = face @ np.swapaxes(rotations_from_vectors(turn), -1, -2)
    coco: FloatArray = np.empty_like(xyz)
    coco[..., COCO_COPIED, :] = xyz[..., H36M_COPIED, :]
    coco[..., :5, :] = xyz[..., None, 9, :] + local @ np.swapaxes(head, -1, -2)
    return coco


def h36m_from_body(xyz: FloatArray, coco: FloatArray) -> FloatArray:
    """Joints with the neck where the runtime puts it: a quarter from the nose to the shoulders."""
    out: FloatArray = xyz.copy()
    shoulders = coco[..., 5:7, :].mean(axis=-2)
    out[..., 9, :] = coco[..., 0, :] - (coco[..., 0, :] - shoulders) / 4
    return out
