"""The sampler: determinism, what the runtime would feed, and the statistics of the noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mambapose.benchmarks.truth import simulated_detector as noise
from mambapose.benchmarks.truth.camera import Cameras, spheres_from_joints
from mambapose.benchmarks.truth.motion import clips_from_file
from mambapose.benchmarks.truth.windows import (
    Motions,
    seen_batch,
    windows_from_clip,
)
from mambapose.runtime.errors import ExportError
from mambapose.runtime.stages import lifting


@pytest.fixture(scope="module")
def motions(motion_folder: Path) -> Motions:
    return Motions(clips_from_file(motion_folder))


def test_exact_joints_are_the_projection_of_the_truth(motions: Motions) -> None:
    """Without faults, depth times ray gives the truth back: knees and ankles to rounding."""
    windows = windows_from_clip(motions, 0, 9)
    rng = np.random.default_rng(0)
    batch = seen_batch(rng, windows, np.ones((len(windows), 3), np.float32), noisy=False)
    flat, xyz = batch.inputs["keypoints"], batch.xyz
    for window in range(len(flat)):
        # x = f (X + x0) / (Z + z0) for all joints: linear in f, f x0 and z0, so those follow.
        joints = [1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16]
        places, truth = (
            flat[window][:, joints].reshape(-1, 2),
            xyz[window][:, joints].reshape(-1, 3),
        )
        root = np.repeat(np.arange(9), len(joints))
        rows = []
        for axis in (0, 1):
            row = np.zeros((len(places), 1 + 27))
            row[:, 0] = truth[:, axis]
            row[np.arange(len(places)), 1 + root * 3 + axis] = 1
            row[np.arange(len(places)), 1 + root * 3 + 2] = -places[:, axis]
            rows.append((row, places[:, axis] * truth[:, 2]))
        matrix = np.concatenate([row for row, _ in rows])
        wanted = np.concatenate([value for _, value in rows])
        solution, *_ = np.linalg.lstsq(matrix, wanted, rcond=None)
        assert np.abs(matrix @ solution - wanted).max() < 1e-5
        assert solution[0] > 0.5  # the focal length


def test_windows_cover_a_clip_and_its_end(motions: Motions) -> None:
    clip = motions.clips[0]
    windows = windows_from_clip(motions, 0, 9, rate_hz=60.0)
    height = np.linalg.norm(windows[0, 1, 3] - windows[0, 1, 2])
    metres = np.linalg.norm(clip.xyz[0, 3] - clip.xyz[0, 2])
    travel = (windows[-1, -1, 0] - windows[0, 1, 0]) * metres / height
    truth = clip.xyz[-1, [1, 4]].mean(0) - clip.xyz[0, [1, 4]].mean(0)
    np.testing.assert_allclose(travel, truth * [1, -1, -1], atol=1e-4)
    np.testing.assert_allclose(
        windows[1, 1] - windows[0, -1], windows[0, -1] - windows[0, -2], atol=0.01
    )


def test_windows_at_30_hz_take_every_second_captured_frame(motions: Motions) -> None:
    """The capture has 60; by default windows have the rate of a usual video."""
    captured = windows_from_clip(motions, 0, 9, rate_hz=60.0)
    usual = windows_from_clip(motions, 0, 5)
    np.testing.assert_allclose(usual[0, 1:], captured[0, 1::2], atol=1e-5)


def test_gaps_are_filled_as_the_runtime_fills_them() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(6, 20, 17, 6)).astype(np.float32)
    seen = rng.random((6, 20)) < 0.5
    seen[:, 10] = True
    filled = noise.filled(rows, seen)
    for number in range(len(rows)):
        frames = np.flatnonzero(seen[number])
        track = lifting._Track(
            frames.tolist(), list(rows[number, frames]), [(True, True)] * len(frames)
        )
        joints, _ = lifting._clip(track, 0, 19)
        np.testing.assert_allclose(filled[number], joints, atol=1e-6)


def test_wandering_noise_is_unit_and_forgets() -> None:
    steps = np.full(400, 5.0)
    x = noise.wandering(np.random.default_rng(0), (400, 50, 17), steps)
    assert x.std() == pytest.approx(1, abs=0.02)
    lag = (x[:, 5:] * x[:, :-5]).mean()
    assert lag == pytest.approx(np.exp(-1), abs=0.03)


def _standing(count: int, frames: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """COCO joints far apart, their scale, and nothing hidden."""
    flat = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 1, 17, 2)).astype(np.float32)
    flat = np.tile(flat, (count, frames, 1, 1))
    return flat, np.full((count, frames), 0.5, np.float32), np.zeros((count, frames, 17), bool)


def test_detector_noise_has_a_core_and_a_tail() -> None:
    flat, scale, hidden = _standing(300, 40)
    found, score = noise.detected(np.random.default_rng(1), flat, scale, hidden)
    error = np.linalg.norm(found - flat, axis=-1) / 0.5
    assert 0.008 < np.median(error) < 0.025
    assert 0.05 < np.percentile(error, 95) < 0.5
    good, bad = score[error < 0.02].mean(), score[error > 0.1].mean()
    assert good - bad > 0.15  # a low score means something
    smooth = np.linalg.norm(np.diff(found, axis=1), axis=-1) / 0.5
    assert np.median(smooth) < 0.8 * np.median(error)  # correlated in time


def test_noise_scales_with_the_person() -> None:
    flat, scale, hidden = _standing(200, 10)
    sizes = []
    for factor in (1, 4):
        found, _ = noise.detected(np.random.default_rng(2), flat * factor, scale * factor, hidden)
        sizes.append(np.median(np.linalg.norm(found - flat * factor, axis=-1)))
    assert sizes[1] / sizes[0] == pytest.approx(4, rel=1e-3)


def test_hidden_joints_are_worse() -> None:
    flat, scale, hidden = _standing(300, 20)
    hidden[:, :, 9] = True
    found, score = noise.detected(np.random.default_rng(3), flat, scale, hidden)
    error = np.median(np.linalg.norm(found - flat, axis=-1), axis=(0, 1))
    assert error[9] > 1.5 * error[10]
    assert score[..., 9].mean() < 0.9 * score[..., 10].mean()


def test_sides_collapse_and_swap_sometimes() -> None:
    flat, scale, hidden = _standing(400, 20)
    found, _ = noise.detected(np.random.default_rng(4), flat, scale, hidden)
    left, right = 13, 14  # knees
    apart = np.linalg.norm(flat[..., left, :] - flat[..., right, :], axis=-1)
    swapped = np.linalg.norm(found[..., left, :] - flat[..., right, :], axis=-1) < 0.1 * apart
    collapsed = np.linalg.norm(found[..., left, :] - found[..., right, :], axis=-1) < 0.25 * apart
    assert 0.005 < swapped.mean() < 0.15
    assert 0.005 < collapsed.mean() < 0.2


def test_someone_is_always_seen() -> None:
    for frames in (1, 2, 9):
        seen = noise.frames_seen(np.random.default_rng(0), 500, frames)
        assert seen.any(axis=1).all()
    assert 0.8 < seen.mean() < 1


def test_flow_points_to_the_frame_before_and_depth_is_inverse(motions: Motions) -> None:
    """A body that moves right by a known step: the runtime's flow at its joints is to the left."""
    xyz = np.tile(windows_from_clip(motions, 0, 4)[:1, :1], (64, 5, 1, 1))
    xyz[..., 0] += 0.1 * np.arange(5)[:, None]
    turn, place = np.eye(3, dtype=np.float32), np.array([0, 0, 4], np.float32)
    focal = np.full(64, 2, np.float32)
    cameras = Cameras(np.tile(turn, (64, 1, 1)), np.tile(place, (64, 1)), focal)
    seen = cameras.view(xyz - xyz[:, :1, :1])
    spheres, radii = spheres_from_joints(seen)
    flat = cameras.project(seen)
    scale = 2 / seen[:, :, 0, 2]
    cues = noise.cues_at(np.random.default_rng(0), cameras, spheres, radii, flat, scale)
    knee = np.median(cues["flow"][..., 2, 0])
    assert knee == pytest.approx(np.median(flat[:, 0, 2, 0] - flat[:, 1, 2, 0]), rel=0.1)
    assert np.median(cues["flow"][..., 2, 1]) == pytest.approx(0, abs=0.002)
    # Joints nearer to the camera have the larger depth value, in most windows.
    order = np.argsort(seen[0, 0, [3, 6, 13, 16], 2])
    found = cues["depth"][:, :, [3, 6, 13, 16]].mean(axis=1)
    assert np.median(found[:, order[0]] - found[:, order[-1]]) > -1e-3


def test_no_clips_are_refused() -> None:
    with pytest.raises(ExportError, match="clips of motion were wanted"):
        Motions(())
