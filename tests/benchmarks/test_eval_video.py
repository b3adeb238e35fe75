"""Video with known joints: engines that know the truth get perfect scores, others what is due."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mambapose.benchmarks.accuracy_dense import dense_scores, flow_score
from mambapose.benchmarks.accuracy_video import (
    Answer,
    Clip,
    Where,
    clip_from_truth,
    lifted_values,
    modalities,
    same_person,
    video_scores,
)
from mambapose.benchmarks.cli import command
from mambapose.benchmarks.truth.lift_metrics import measured_h36m
from mambapose.runtime.bundle.bundle import read_bundle
from mambapose.runtime.run_options import RunOptions
from mambapose.runtime.stages.crop import crops_from_boxes
from mambapose.runtime.stages.flow import GRAPHS, FlowStage
from mambapose.runtime.types import Pose
from mambapose.runtime.video.sample import Truth, read_truth

from ..runtime.fakes import depth_engine, flow_engines, gaussians, lift_engine, pose_engine
from ..runtime.small_bundle import use_fakes, write_fake_bundle

WHERE = Where(threads=1)
FLOW_SIZE, DEPTH_SIZE = (72, 128), (36, 64)


@pytest.fixture(scope="module")
def truth() -> Truth:
    return read_truth()


@pytest.fixture(scope="module")
def clip(truth: Truth) -> Clip:
    return clip_from_truth(truth)


@pytest.fixture(scope="module")
def short(clip: Clip) -> Clip:
    """Its first frames."""
    arrays = ("xy", "valid", "boxes", "height", "xyz")
    return replace(clip, **{name: getattr(clip, name)[:12] for name in arrays})


def knowing(clip: Clip, shift_px: float = 0.0):
    """A pose engine that answers the true joints, to the right by pixels of the frame."""
    calls = cycle(range(len(clip.xy)))

    def answer(inputs):
        t = next(calls)
        crops = crops_from_boxes(clip.boxes[t : t + 1], (256, 192))
        moved = clip.xy[t] + [shift_px, 0]
        inside = moved * crops.scale[0] + crops.shift[0]
        return {"heatmaps": gaussians((inside * [47 / 191, 63 / 255])[None])}

    return pose_engine(answer)


def test_a_network_that_knows_the_truth_has_no_error(monkeypatch, tmp_path, short) -> None:
    engines = {"pose2d": knowing(short)}
    use_fakes(monkeypatch, engines)
    bundle = write_fake_bundle(tmp_path / "bundle", engines)
    (score,) = video_scores(bundle, WHERE, [short], RunOptions(), "rgb", known=True)
    assert score.key == ("pose2d", "sample", "rgb")
    assert score.values["pck10"] == score.values["pck20_side_ignored"] == 1
    assert score.values["collapsed"] == 0
    assert score.values["median"] < 1e-4
    assert score.joints["left_wrist"] < 1e-3


def test_a_known_shift_is_the_error(monkeypatch, tmp_path, short) -> None:
    engines = {"pose2d": knowing(short, shift_px=4.0)}
    use_fakes(monkeypatch, engines)
    bundle = write_fake_bundle(tmp_path / "bundle", engines)
    (score,) = video_scores(bundle, WHERE, [short], RunOptions(), "rgb", known=True)
    by_hand = np.median(np.repeat(4 / short.height, 17))
    assert score.values["median"] == pytest.approx(by_hand, rel=1e-3)
    assert score.values["mean"] == pytest.approx(np.mean(4 / short.height), rel=1e-3)


def test_the_chain_has_to_find_the_person_itself(monkeypatch, tmp_path, short) -> None:
    """An untrained bundle looks at the whole frame: that is not where the person is."""
    engines = {"pose2d": knowing(short), "lift3d": lift_engine()}
    use_fakes(monkeypatch, engines)
    bundle = write_fake_bundle(tmp_path / "bundle", engines, trained=False)
    flat, solid = video_scores(bundle, WHERE, [short], RunOptions(), "rgb", known=False)
    assert flat.values["found"] == flat.values["pck20"] == 0
    assert np.isinf(flat.values["median"])
    assert solid.key == ("chain 3D", "sample", "rgb")
    assert np.isnan(solid.values["pa_mpjpe_mm"])


def test_the_pose_on_the_true_box_is_the_person() -> None:
    def at(x: float) -> Pose:
        box = np.array([x, 0, x + 10, 20], np.float32)
        return Pose(0, 1, box, np.zeros((17, 2), np.float32), np.ones(17, np.float32))

    box = np.array([0.0, 0, 10, 20])
    assert same_person([at(8), at(2)], box, known=False).box[0] == 2
    assert same_person([at(8)], box, known=False) is None
    assert same_person([], box, known=False) is None
    assert same_person([at(8)], box, known=True) is not None


def test_3d_is_measured_on_the_frames_that_were_answered(clip, truth) -> None:
    xyz = truth.h36m_xyz.astype(float)
    perfect = Answer(clip.xy, xyz)
    assert lifted_values(perfect, clip)["mpjpe_mm"] == pytest.approx(0, abs=1e-6)
    wrong = xyz.copy()
    wrong[:, 1:] += [0, 0, 0.01]
    wrong[40:] = np.nan
    found = lifted_values(Answer(clip.xy, wrong), clip)
    # Twelve of the thirteen joints are 0.01 heights of 1.75 m off.
    assert found["mpjpe_mm"] == pytest.approx(17.5 * 12 / 13, rel=1e-6)
    assert found["acceleration_mm"] == pytest.approx(0, abs=1e-6)
    lone = np.full_like(xyz, np.nan)
    lone[::2] = xyz[::2]
    assert np.isnan(lifted_values(Answer(clip.xy, lone), clip)["mpjpe_mm"])
    np.testing.assert_array_equal(clip.xyz, measured_h36m(truth.h36m_xyz))


def test_combinations_are_those_the_bundle_can_run(monkeypatch, tmp_path, clip) -> None:
    dense = {**flow_engines(FLOW_SIZE), "depth": depth_engine(DEPTH_SIZE)}
    for pose, stages, wanted in (
        (pose_engine(), dense, ["rgb", "rgb+flow", "rgb+depth", "rgb+flow+depth"]),
        (pose_engine(), {}, ["rgb"]),
        (pose_engine(dense=False), dense, ["rgb"]),
    ):
        bundle = write_fake_bundle(tmp_path / f"b{len(wanted)}{len(stages)}",
                                   {**stages, "pose2d": pose})  # fmt: skip
        assert [name for name, _ in modalities(bundle)] == wanted


def test_flow_and_depth_are_compared_where_the_truth_is_known(
    monkeypatch, tmp_path, clip, truth
) -> None:
    """Answers that are the truth's own mean motion, and a plane of depth, by hand."""
    still = flow_engines(FLOW_SIZE, lambda _: np.zeros((1, 2, *FLOW_SIZE), np.float32))
    rows, columns = np.mgrid[: DEPTH_SIZE[0], : DEPTH_SIZE[1]].astype(np.float32)
    plane = depth_engine(DEPTH_SIZE, lambda _: {"depth": (rows + columns)[None, None]})
    engines = {**still, "depth": plane, "pose2d": pose_engine()}
    use_fakes(monkeypatch, engines)
    bundle = write_fake_bundle(tmp_path / "bundle", engines)
    flow, depth = dense_scores(bundle, WHERE, clip, truth)
    lengths = np.linalg.norm(truth.flow.astype(float), axis=-1)
    assert flow.values["epe_px"] == pytest.approx(lengths.mean(), rel=1e-6)
    assert flow.values["epe_person_px"] == pytest.approx(lengths[truth.person].mean(), rel=1e-6)
    x, y = np.meshgrid(truth.columns, truth.rows)
    expected = np.mean([np.corrcoef((x + y).ravel(), m.ravel())[0, 1]
                        for m in truth.inverse_depth.astype(float)])  # fmt: skip
    assert depth.values["correlation"] == pytest.approx(expected, abs=1e-3)


def test_flow_is_scaled_to_pixels_of_the_frame(clip, truth) -> None:
    """One pixel to the right everywhere in a map of a fifth of the frame is five in the frame."""
    moving = np.zeros((1, 2, *FLOW_SIZE), np.float32)
    moving[:, 0] = 1
    engines = flow_engines(FLOW_SIZE, lambda _: moving)
    stage = FlowStage({name: engines[f"flow.{name}"] for name in GRAPHS}, 1)
    frames = {frame.index: frame for frame in clip.frames()}
    found = flow_score(stage, "sample", frames, truth)
    error = np.linalg.norm(truth.flow.astype(float) - [5.0, 0.0], axis=-1)
    assert found.values["epe_px"] == pytest.approx(error.mean(), rel=1e-6)


def test_command_writes_scores_and_holds_them_to_a_baseline(
    monkeypatch, tmp_path: Path, short
) -> None:
    monkeypatch.setattr("mambapose.benchmarks.accuracy.clip_from_truth", lambda _: short)
    folder = tmp_path / "bundle"
    write_fake_bundle(folder, {"pose2d": pose_engine()}, trained=False)
    file = tmp_path / "scores.jsonl"

    def run(shift: float, *options: str):
        use_fakes(monkeypatch, {"pose2d": knowing(short, shift)})
        words = ["accuracy", "--engine", str(folder), "--only", "sample", "--threads", "1"]
        return CliRunner().invoke(command, [*words, *options])

    done = run(0.0, "--json", str(file))
    assert done.exit_code == 0, done.output
    assert "untrained: its numbers mean nothing" in done.output
    row = json.loads(file.read_text().splitlines()[0])
    assert row["values"]["pck20"] == 1
    assert row["bundle"] == read_bundle(folder).hash
    assert row["networks"]["pose2d"]["precision"] == "fp32"
    assert (row["backend"], row["device"], row["threads"]) == ("onnxruntime", "cpu", 1)
    assert run(0.0, "--baseline", str(file)).exit_code == 0
    failed = run(9.0, "--baseline", str(file))
    assert failed.exit_code == 1
    assert "WORSE pose2d sample rgb: median" in failed.output


def test_what_needs_material_is_named_when_it_is_absent(monkeypatch, tmp_path: Path) -> None:
    write_fake_bundle(tmp_path / "bundle", {"pose2d": pose_engine()})
    words = ["accuracy", "--engine", str(tmp_path / "bundle")]
    for part in ("pose2d", "lift3d"):
        words += ["--only", part]
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 0, done.output
    assert "not measured without --assets: pose2d, lift3d" in done.output


def test_measuring_needs_no_torch_no_renderer_and_no_checkout() -> None:
    """An installed mp-bench has no mambapose.train beside it."""
    heavy = ("torch", "onnx", "cv2", "moderngl", "matplotlib")
    code = (
        "import sys\n"
        "sys.modules['mambapose.train'] = None\n"
        "import mambapose.benchmarks.accuracy, mambapose.benchmarks.accuracy_dense\n"
        "import mambapose.benchmarks.accuracy_lift\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
