"""Measuring a lifter: a perfect one is perfect, a constant pose gives the number by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mambapose.export.train import lift, lift_eval, lift_state, lift_sweep
from mambapose.export.train import lift_metrics as metrics
from mambapose.export.train.lift_baselines import build
from mambapose.export.train.lift_data import Batch, Motions, mean_pose
from mambapose.export.train.lift_state import Plan
from mambapose.export.train.motion import MotionClip, clips_from_file, split_from_clips
from mambapose.runtime.errors import ExportError
from mambapose.runtime.lifting import COCO_COPIED, H36M_COPIED

PARTS = ("mpjpe_mm", "pa_mpjpe_mm", "acceleration_mm", "jitter_mm")


@pytest.fixture(scope="module")
def test_clips(motion_folder: Path) -> tuple[MotionClip, ...]:
    return split_from_clips(clips_from_file(motion_folder)).test


@pytest.fixture
def batches_seen(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """Every batch that is measured."""
    seen: list[Batch] = []
    make = lift_eval.seen_batch

    def remember(*arguments: object, **options: bool) -> Batch:
        seen.append(make(*arguments, **options))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(lift_eval, "seen_batch", remember)
    return seen


def test_a_perfect_lifter_has_no_error(
    test_clips: tuple[MotionClip, ...],
    batches_seen: list[Batch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lift_eval, "answers", lambda *_: batches_seen[-1].xyz)
    found = lift_eval.held_out_metrics(build("mean"), test_clips, 9, cues=False)
    assert set(found) == {"jumping", "soccer", "washing", "mean"}
    for row in found.values():
        assert row["mpjpe_mm"] == 0
        assert row["acceleration_mm"] == 0
        assert row["pa_mpjpe_mm"] < 1e-3


def test_a_constant_pose_gives_the_number_by_hand(
    test_clips: tuple[MotionClip, ...], batches_seen: list[Batch]
) -> None:
    model = build("mean")
    pose = mean_pose(Motions(test_clips))
    model.pose.data = torch.from_numpy(pose)
    row = lift_eval.held_out_metrics(model, test_clips, 9, cues=False)["mean"]
    joints = list(metrics.MEASURED)
    truth = np.concatenate([batch.xyz for batch in batches_seen])[:, :, joints]
    by_hand = 1750 * np.linalg.norm(pose[joints] - truth, axis=-1).mean()
    assert row["mpjpe_mm"] == pytest.approx(by_hand, rel=1e-5)
    assert row["jitter_mm"] == 0
    assert row["pa_mpjpe_mm"] < row["mpjpe_mm"]
    assert row["poses"] == truth.shape[0] * truth.shape[1]


def test_all_networks_see_the_same(
    test_clips: tuple[MotionClip, ...], batches_seen: list[Batch]
) -> None:
    lift_eval.held_out_metrics(build("linear"), test_clips, 5, cues=False)
    count = len(batches_seen)
    lift_eval.held_out_metrics(build("tcn", cues=True), test_clips, 5, cues=True, present=(1, 1, 1))
    for one, other in zip(batches_seen[:count], batches_seen[count:], strict=True):
        np.testing.assert_array_equal(one.inputs["keypoints"], other.inputs["keypoints"])


def test_faults_change_what_they_say(test_clips: tuple[MotionClip, ...]) -> None:
    rows = lift_eval.corruption_metrics(build("linear"), test_clips, 5, cues=False)
    assert set(rows) == set(lift_eval.FAULTS)
    clean = rows["none"]
    for name in ("noise 3 %", "sides swapped in 20 %", "right arm unseen", "feet unseen"):
        assert rows[name]["mpjpe_mm"] != clean["mpjpe_mm"], name
    assert rows["noise 3 %"]["jitter_mm"] > clean["jitter_mm"]


def test_joints_of_score_zero_are_interpolated() -> None:
    rows = np.zeros((4, 17, 3))
    rows[:, :, 2] = 1
    rows[:, 3, 0] = [1, 0, 0, 4]
    rows[[1, 2], 3, 2] = 0
    filled = lift_eval.without_gaps(rows)
    np.testing.assert_allclose(filled[:, 3, 0], [1, 2, 3, 4])
    np.testing.assert_array_equal(filled[..., 2], rows[..., 2])
    assert rows[1, 3, 0] == 0


def test_calibration_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "calibration.toml"
    path.write_text(
        '[cam_01]\nname = "a"\nsize = [ 10.0, 20.0]\nmatrix = [ [ 1.0, 0.0], [ 0.0, 1.0]]\n'
        "rotation = [ 0.1, 0.2, 0.3]\ntranslation = [ 1.0, 2.0, 3.0]\n[cam_02]\n"
    )
    found = lift_eval.camera_from_toml(path, "cam01")
    np.testing.assert_array_equal(found["rotation"], [0.1, 0.2, 0.3])
    assert found["matrix"].shape == (2, 2)
    with pytest.raises(ExportError, match=r"of \[cam_02\] were wanted"):
        lift_eval.camera_from_toml(path, "cam02")


def test_the_cameras_of_the_real_video_are_understood(assets: Path) -> None:
    """The truth in camera axes falls on OpenPose's joints: no axis or sign is wrong."""
    folder = assets / "pose2sim-single"
    with np.load(folder / "reference.npz") as file:
        world = file["xyz_world_m"].astype(np.float64)
        seen = {name: file[f"openpose_{name}"] for name in lift_eval.CAMERAS}
    for name in lift_eval.CAMERAS:
        camera = lift_eval.camera_from_toml(folder / "calibration.toml", name)
        turn = lift_eval.body.rotations_from_vectors(camera["rotation"])
        rays = (world @ turn.T + camera["translation"]) @ camera["matrix"].T
        error = np.linalg.norm(rays[..., :2] / rays[..., 2:] - seen[name][..., :2], axis=-1)
        assert np.nanmedian(error) < 10, name
    assert lift_eval.coco_height(world) == pytest.approx(1.72, abs=0.04)  # the man's height


def test_truth_lifted_on_real_video_is_perfect(
    assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Joints, axes and unit of the comparison: the truth itself has no error."""
    folder = assets / "pose2sim-single"
    with np.load(folder / "reference.npz") as file:
        world = file["xyz_world_m"].astype(np.float64)
    height = lift_eval.coco_height(world)

    def perfect(camera: str) -> Callable[..., np.ndarray]:
        values = lift_eval.camera_from_toml(folder / "calibration.toml", camera)
        seen = world @ lift_eval.body.rotations_from_vectors(values["rotation"]).T / height
        h36m = np.zeros_like(seen)
        h36m[:, H36M_COPIED] = seen[:, COCO_COPIED]
        h36m[:, 0] = seen[:, 11:13].mean(axis=1)
        return lambda *_: h36m - h36m[:, :1]

    for camera in lift_eval.CAMERAS:
        monkeypatch.setattr(lift_eval, "lifted_video", perfect(camera))
        row = lift_eval.pose2sim_metrics(build("mean"), folder, 9, cues=False)[camera]
        assert row["mpjpe_mm"] == pytest.approx(0, abs=0.01)
        assert row["pa_mpjpe_mm"] == pytest.approx(0, abs=0.01)


def test_real_video_goes_through_the_windows_of_the_runtime(assets: Path) -> None:
    found = lift_eval.pose2sim_metrics(
        build("tcn", cues=True), assets / "pose2sim-single", 27, cues=True
    )
    assert set(found) == {"cam01", "cam02"}
    for row in found.values():
        assert row["poses"] == 100
        assert all(np.isfinite(row[part]) for part in PARTS)


@pytest.fixture(scope="module")
def finished_run(motion_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    state = lift_state.fresh(Plan("linear", frames=(5,), batch=2, cues=True), torch.device("cpu"))
    lift.train(state, clips_from_file(motion_folder), out, lift.Limits(steps=2))
    return out


def test_the_commands_report(finished_run: Path, motion_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    words = [str(finished_run), "--data", str(motion_folder), "--json", str(file)]
    result = CliRunner().invoke(lift_eval.main, words)
    assert result.exit_code == 0, result.output
    assert "held_out soccer" in result.output
    assert json.loads(file.read_text())["held_out"]["mean"]["poses"] > 0
    wrong = CliRunner().invoke(lift_eval.main, [str(tmp_path), "--data", str(motion_folder)])
    assert wrong.exit_code == 1
    assert "cannot be read" in wrong.output


@pytest.mark.parametrize("case", lift_sweep.CASES)
def test_a_case_of_the_sweep_is_measured(case: str) -> None:
    row = lift_sweep.measured_case("transformer:1", 5, 1, case, "cpu", 2)
    assert row["ms"] > 0
    assert row["mib"] >= 0
    assert 200_000 < row["parameters"] < 400_000


@pytest.mark.parametrize("name", ["resnet", "tcn:", "transformer:0", "transformer:x"])
def test_the_sweep_says_which_networks_it_knows(name: str) -> None:
    result = CliRunner().invoke(lift_sweep.main, ["--networks", name])
    assert result.exit_code == 2
    assert "with :PAIRS or without, were wanted" in result.output.replace("\n", " ")
