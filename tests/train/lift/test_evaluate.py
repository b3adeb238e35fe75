"""Measuring networks in torch: they answer as engines do, and all of them see the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from mambapose.benchmarks.lift_baselines import build
from mambapose.benchmarks.truth import lift_measure
from mambapose.benchmarks.truth import lift_metrics as metrics
from mambapose.benchmarks.truth.body import rotations_from_vectors
from mambapose.benchmarks.truth.motion import MotionClip, clips_from_file, split_from_clips
from mambapose.benchmarks.truth.pose2sim import (
    FOLDER,
    camera_from_toml,
    coco_height,
    pose2sim_views,
)
from mambapose.benchmarks.truth.windows import Batch, Motions
from mambapose.runtime.stages.joints import COCO_COPIED, H36M_COPIED
from mambapose.train.lift import evaluate as lift_eval
from mambapose.train.lift import networks as lift_networks
from mambapose.train.lift import state as lift_state
from mambapose.train.lift import sweep as lift_sweep
from mambapose.train.lift import train as lift
from mambapose.train.lift.data import mean_pose
from mambapose.train.lift.state import Settings


@pytest.fixture(scope="module")
def test_clips(motion_folder: Path) -> tuple[MotionClip, ...]:
    return split_from_clips(clips_from_file(motion_folder)).test


@pytest.fixture
def batches_seen(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """Every batch that is measured."""
    seen: list[Batch] = []
    make = lift_measure.seen_batch

    def remember(*arguments: object, **options: bool) -> Batch:
        seen.append(make(*arguments, **options))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(lift_measure, "seen_batch", remember)
    return seen


def engine(model: nn.Module, frames: int = 5, *, cues: bool = False) -> lift_eval.TorchEngine:
    return lift_eval.TorchEngine(model, frames, cues)


def test_a_constant_pose_gives_the_number_by_hand(
    test_clips: tuple[MotionClip, ...], batches_seen: list[Batch]
) -> None:
    model = build("mean")
    pose = mean_pose(Motions(test_clips))
    model.pose.data = torch.from_numpy(pose)
    row = lift_measure.held_out_metrics(engine(model, 9), test_clips)["mean"]
    joints = list(metrics.MEASURED)
    truth = np.concatenate([batch.xyz for batch in batches_seen])[:, :, joints]
    by_hand = 1750 * np.linalg.norm(pose[joints] - truth, axis=-1).mean()
    assert row["mpjpe_mm"] == pytest.approx(by_hand, rel=1e-5)
    assert row["jitter_mm"] == 0
    assert row["pa_mpjpe_mm"] < row["mpjpe_mm"]


def test_all_networks_see_the_same(
    test_clips: tuple[MotionClip, ...], batches_seen: list[Batch]
) -> None:
    lift_measure.held_out_metrics(engine(build("linear")), test_clips)
    count = len(batches_seen)
    other_network = engine(build("tcn", cues=True), cues=True)
    lift_measure.held_out_metrics(other_network, test_clips, present=(1, 1, 1))
    for one, other in zip(batches_seen[:count], batches_seen[count:], strict=True):
        np.testing.assert_array_equal(one.inputs["keypoints"], other.inputs["keypoints"])


def test_faults_change_what_they_say(test_clips: tuple[MotionClip, ...]) -> None:
    rows = lift_measure.corruption_metrics(engine(build("linear")), test_clips)
    assert set(rows) == set(lift_measure.FAULTS)
    clean = rows["none"]
    for name in rows.keys() - {"none", "60 Hz", "15 Hz"}:
        assert rows[name]["mpjpe_mm"] != clean["mpjpe_mm"], name
    for name in ("noise 3 %", "outliers 5 %"):
        assert rows[name]["jitter_mm"] > clean["jitter_mm"], name


def test_the_cameras_of_the_real_video_are_understood(assets: Path) -> None:
    """The truth in camera axes falls on OpenPose's joints: no axis or sign is wrong."""
    folder = assets / FOLDER
    with np.load(folder / "reference.npz") as file:
        world = file["xyz_world_m"].astype(np.float64)
    for view in pose2sim_views(folder):
        camera = camera_from_toml(folder / "calibration.toml", view.name)
        turn = rotations_from_vectors(camera["rotation"])
        rays = (world @ turn.T + camera["translation"]) @ camera["matrix"].T
        error = np.linalg.norm(rays[..., :2] / rays[..., 2:] - view.rows[..., :2], axis=-1)
        assert np.nanmedian(error) < 10, view.name
    assert coco_height(world) == pytest.approx(1.72, abs=0.04)  # the man's height


def test_truth_lifted_on_real_video_is_perfect(
    assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Joints, axes and unit of the comparison: the truth itself has no error."""
    folder = assets / FOLDER
    with np.load(folder / "reference.npz") as file:
        world = file["xyz_world_m"].astype(np.float64)
    answers = []
    for view in pose2sim_views(folder):
        camera = camera_from_toml(folder / "calibration.toml", view.name)
        seen = world @ rotations_from_vectors(camera["rotation"]).T / coco_height(world)
        h36m = np.zeros_like(seen)
        h36m[:, H36M_COPIED] = seen[:, COCO_COPIED]
        h36m[:, 0] = seen[:, 11:13].mean(axis=1)
        answers.append(h36m - h36m[:, :1])
    monkeypatch.setattr(lift_measure, "lifted_video", lambda *_: answers.pop(0))
    rows = lift_measure.pose2sim_metrics(engine(build("mean")), folder)
    for row in rows.values():
        assert row["mpjpe_mm"] == pytest.approx(0, abs=0.01)
        assert row["pa_mpjpe_mm"] == pytest.approx(0, abs=0.01)


@pytest.fixture(scope="module")
def finished_run(motion_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    state = lift_state.fresh(
        Settings("linear", frames=(5,), batch=2, cues=True), torch.device("cpu")
    )
    lift.train(state, clips_from_file(motion_folder), out, lift.Limits(steps=2))
    return out


def test_the_commands_report(finished_run: Path, motion_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    words = [str(finished_run), "--data", str(motion_folder), "--json", str(file)]
    result = CliRunner().invoke(lift_eval.main, words)
    assert result.exit_code == 0, result.output
    assert "held_out soccer" in result.output
    found = json.loads(file.read_text())
    assert found["held_out"]["mean"]["poses"] > 0
    brief = CliRunner().invoke(lift_eval.main, [*words, "--brief"])
    assert brief.exit_code == 0, brief.output
    less = json.loads(file.read_text())
    assert found.keys() - less.keys() == {"held_out_exact_2d", "corruption", "cues"}
    assert less["held_out"] == found["held_out"]
    wrong = CliRunner().invoke(lift_eval.main, [str(tmp_path), "--data", str(motion_folder)])
    assert wrong.exit_code == 1
    assert "cannot be read" in wrong.output


@pytest.mark.parametrize("case", lift_sweep.CASES)
def test_a_case_of_the_sweep_is_measured(case: str) -> None:
    row = lift_sweep.measured_case("transformer:1", 5, 1, case, "cpu", 2)
    assert row["ms"] > 0
    assert row["mib"] >= 0
    assert 200_000 < row["parameters"] < 400_000
    with_cues = lift_networks.build("transformer", 0, cues=True, pairs=1)
    assert row["parameters"] == lift_networks.parameters(with_cues)


@pytest.mark.parametrize("name", ["resnet", "tcn:", "transformer:0", "transformer:x"])
def test_the_sweep_says_which_networks_it_knows(name: str) -> None:
    result = CliRunner().invoke(lift_sweep.main, ["--networks", name])
    assert result.exit_code == 2
    assert "with :PAIRS or without, were wanted" in result.output.replace("\n", " ")
