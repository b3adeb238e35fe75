"""What a detector makes of a person: noise, outliers, swapped sides, lost joints, lost frames.

Errors are shares of the body height in the picture. The levels range from those of OpenPose on real
video (0.5 to 1 %) to those of small networks trained on rendered people (3 to 5 %, both joints of
a pair on one limb). Noise that lasts is an autoregressive process; whatever comes in bursts is
such a process above a threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambapose.benchmarks.truth.camera import Cameras, surfaces
from mambapose.runtime.skeleton import COCO17
from mambapose.runtime.types import FloatArray

BoolArray = NDArray[np.bool_]

# A recipe for training, as in windows.py: its numbers are chosen, not derived.
LEVEL = (0.004, 0.03)  # deviation of a joint, lowest and highest of a window
LEFT, RIGHT = (np.array(side) for side in zip(*COCO17.pairs, strict=True))
LIMBS = {"all": (5, 7, 9, 11, 13, 15), "arms": (7, 9), "legs": (13, 15)}  # left COCO joints
# Head joints are found best, wrists and hips worst.
EASE = np.array([0.6, 0.5, 0.5, 0.7, 0.7, 0.9, 0.9, 1.1, 1.1, 1.2, 1.2, 1.2, 1.2, 1, 1, 1, 1])


def wandering(
    rng: np.random.Generator, shape: tuple[int, ...], steps: NDArray[np.floating[Any]]
) -> FloatArray:
    """(B, T, ...) unit Gaussian noise whose correlation fades over ``steps`` (B) frames."""
    keep = np.exp(-1 / np.maximum(steps, 1e-3)).astype(np.float32)
    keep = keep.reshape(-1, *(1 for _ in shape[2:]))
    fresh = np.sqrt(1 - keep**2)
    out = rng.standard_normal(shape, np.float32)
    for t in range(1, shape[1]):
        out[:, t] = keep * out[:, t - 1] + fresh * out[:, t]
    return out


def bursts(
    rng: np.random.Generator, shape: tuple[int, ...], share: float, thresholds: tuple[float, float]
) -> BoolArray:
    """(B, T, ...) flags that come in runs, in about ``share`` of the windows.

    thresholds: the range from which a window with runs draws its threshold on unit Gaussian noise.
    """
    count = shape[0]
    level = np.where(rng.random(count) < share, rng.uniform(*thresholds, count), np.inf)
    noise = wandering(rng, shape, np.exp(rng.uniform(0.5, 3.2, count)))
    flags: BoolArray = noise > level.reshape(-1, *(1 for _ in shape[1:]))
    return flags


def detected(
    rng: np.random.Generator, flat: FloatArray, scale: FloatArray, hidden: BoolArray
) -> tuple[FloatArray, FloatArray]:
    """COCO joints (B, T, 17, 2) and scores (B, T, 17) as a detector reports them.

    flat: where the joints are; scale: (B, T) body height in the picture; hidden: (B, T, 17)
    joints behind the person's own body.
    """
    count, frames = flat.shape[:2]
    level = np.exp(rng.uniform(np.log(LEVEL[0]), np.log(LEVEL[1]), count)).astype(np.float32)
    ease = EASE * np.exp(rng.normal(size=(count, 17)) * 0.25)
    grid = (count, frames, 17, 2)
    error = 0.8 * wandering(rng, grid, rng.uniform(2, 12, size=(count,)))
    error += 0.35 * rng.standard_normal(grid, np.float32)
    error += 0.5 * rng.standard_normal((count, 1, 17, 2), np.float32)
    error *= (level[:, None] * ease)[:, None, :, None] * (1 + 1.5 * hidden)[..., None]
    trust = np.ones((count, frames, 17), np.float32)
    error += _outliers(rng, grid, trust)
    error += _lost(rng, grid, hidden, trust)
    place = flat + (error * scale[..., None, None]).astype(np.float32)
    place = _collapsed(rng, place, trust)
    place = _swapped(rng, place, trust)
    wrong = np.linalg.norm(place - flat, axis=-1) / scale[..., None]
    best = rng.uniform(0.35, 1.0, (count, 1, 1)) * np.exp(rng.normal(size=(count, 1, 17)) * 0.06)
    score = best * trust * np.exp(-wrong / 0.15) * np.where(hidden, 0.8, 1.0)
    score += 0.04 * rng.standard_normal(score.shape, np.float32)
    return place, np.clip(score, 0, 1).astype(np.float32)


def _outliers(rng: np.random.Generator, grid: tuple[int, ...], trust: FloatArray) -> FloatArray:
    """Offsets of joints that are found far off for some frames."""
    found = bursts(rng, grid[:3], 0.6, (2.0, 3.4))
    trust[found] *= rng.uniform(0.25, 1.0, int(found.sum())).astype(np.float32)
    far = 0.12 * wandering(rng, grid, rng.uniform(2, 20, grid[0]))
    return np.where(found[..., None], far, np.float32(0))


def _lost(
    rng: np.random.Generator, grid: tuple[int, ...], hidden: BoolArray, trust: FloatArray
) -> FloatArray:
    """Offsets of joints the detector does not find: its guess is poor and its score low."""
    count = grid[0]
    found = bursts(rng, grid[:3], 0.25, (1.0, 2.5))
    found |= hidden & bursts(rng, grid[:3], 0.4, (0.0, 2.0))
    cut = (rng.random((count, 1, 17)) < 0.25) & (rng.random((count, 1, 1)) < 0.1)
    found |= cut
    trust[found] *= rng.uniform(0.0, 0.3, int(found.sum())).astype(np.float32)
    spread = np.exp(rng.uniform(np.log(0.05), np.log(0.3), (count, 1, 1, 1))).astype(np.float32)
    guess = spread * wandering(rng, grid, rng.uniform(3, 30, count))
    return np.where(found[..., None], guess, np.float32(0))


def _collapsed(rng: np.random.Generator, place: FloatArray, trust: FloatArray) -> FloatArray:
    """Move both joints of some pairs onto one limb."""
    out: FloatArray = place.copy()
    found = bursts(rng, (*place.shape[:2], len(LEFT)), 0.25, (0.3, 2.2))
    to_left = rng.random((len(place), 1, len(LEFT))) < 0.5
    for source, target, side in ((LEFT, RIGHT, to_left), (RIGHT, LEFT, ~to_left)):
        moved = found & side
        shift = 0.3 * (out[:, :, target] - out[:, :, source]) * rng.random((len(place), 1, 1, 1))
        out[:, :, target] = np.where(
            moved[..., None], place[:, :, source] + shift, out[:, :, target]
        )
        trust[:, :, target] *= np.where(moved, 0.8, 1.0)
    return out


def _swapped(rng: np.random.Generator, place: FloatArray, trust: FloatArray) -> FloatArray:
    """Exchange left and right of some limbs, or of the whole body, for some frames."""
    out: FloatArray = place.copy()
    for name, share in (("all", 0.07), ("arms", 0.07), ("legs", 0.1)):
        left = np.array(LIMBS[name])
        found = bursts(rng, place.shape[:2], share, (0.8, 2.2))[..., None]
        a, b = out[:, :, left], out[:, :, left + 1]
        out[:, :, left] = np.where(found[..., None], b, a)
        out[:, :, left + 1] = np.where(found[..., None], a, b)
        trust[:, :, np.concatenate([left, left + 1])] *= np.where(found, 0.85, 1.0)
    return out


def frames_seen(rng: np.random.Generator, count: int, frames: int) -> BoolArray:
    """(B, T) whether the person is found at all: with gaps, and videos that begin or end."""
    seen = ~bursts(rng, (count, frames), 0.15, (0.8, 2.0))
    at = np.arange(frames)
    ends = rng.random((count, 2)) < 0.08
    cut = np.where(ends, rng.integers(0, max(frames // 2, 1), (count, 2)), 0)
    seen &= (at >= cut[:, :1]) & (at < frames - cut[:, 1:])
    seen[np.arange(count), rng.integers(frames, size=count)] = True
    return seen


def filled(rows: FloatArray, seen: BoolArray) -> FloatArray:
    """Rows (B, T, ...) in which the frames not seen are filled as the runtime fills them.

    That is a straight line between the frames around a gap; before the first frame seen and after
    the last they are repeated.
    """
    frames = seen.shape[1]
    at = np.arange(frames)
    left = np.maximum.accumulate(np.where(seen, at, -1), axis=1)
    right = np.minimum.accumulate(np.where(seen, at, frames)[:, ::-1], axis=1)[:, ::-1]
    left, right = np.where(left < 0, right, left), np.where(right == frames, left, right)
    share = ((at - left) / np.maximum(right - left, 1)).astype(np.float32)
    share = np.clip(share, 0, 1).reshape(*share.shape, *(1 for _ in rows.shape[2:]))
    every = np.arange(len(rows))[:, None]
    out: FloatArray = rows[every, left] + (rows[every, right] - rows[every, left]) * share
    return out


def cues_at(
    rng: np.random.Generator,
    cameras: Cameras,
    spheres: FloatArray,
    radii: FloatArray,
    flat: FloatArray,
    scale: FloatArray,
) -> Mapping[str, FloatArray]:
    """``depth`` (B, T-1, N) and ``flow`` (B, T-1, N, 2) of frames 1.. at ``flat`` (B, T, N, 2).

    depth: inverse depth of the surface at that place, in an unknown unit; flow: from frame t to
    where the surface was in frame t-1, as the runtime's flow points. Behind the person is a wall.
    """
    count, frames = flat.shape[:2]
    later = spheres[:, 1:]
    depth, owner = surfaces(cameras, later, radii, flat[:, 1:])
    wall = later[..., 2].max(axis=(1, 2)) + np.exp(rng.uniform(-1.5, 1.2, count))
    depth = np.where(owner < 0, wall[:, None, None], depth)
    inverse = 1 / depth
    spread = np.maximum(np.std(1 / later[..., 2], axis=(1, 2)), 1e-6)[:, None, None]
    rough = np.exp(rng.uniform(np.log(0.03), np.log(0.6), count)).astype(np.float32)[:, None, None]
    inverse += rough * spread * wandering(rng, inverse.shape, rng.uniform(1, 15, size=(count,)))
    shaking = wandering(rng, (count, frames - 1, 1), rng.uniform(1, 8, size=(count,)))
    unsteady = 0.5 * rough * spread * shaking
    unit = np.exp(rng.normal(size=(count, 1, 1)) * 2)
    where = cameras.project(spheres)
    moved = where[:, :-1] - where[:, 1:]
    flow = np.take_along_axis(moved, np.maximum(owner, 0)[..., None], axis=2)
    flow = np.where((owner < 0)[..., None], np.float32(0), flow)
    size = scale[:, 1:, None, None]
    blur = np.exp(rng.normal(size=(count, 1, 1, 1)) * 0.1)
    fault = rng.uniform(0.001, 0.006, (count, 1, 1, 1)) * size
    flow = flow * blur + fault * rng.standard_normal(flow.shape, np.float32)
    lost = bursts(rng, flow.shape[:3], 0.3, (2.0, 3.0))[..., None]
    flow = np.where(lost, flow * 0.3, flow)
    return {
        "depth": ((inverse + unsteady) * unit).astype(np.float32),
        "flow": flow.astype(np.float32),
    }
