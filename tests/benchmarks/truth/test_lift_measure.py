"""Measuring a lifter that is only an engine: perfect answers, and nothing of torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mambapose.benchmarks.truth import lift_measure
from mambapose.benchmarks.truth.lift_metrics import MEASURED
from mambapose.benchmarks.truth.motion import MotionClip, clips_from_file, split_from_clips
from mambapose.benchmarks.truth.pose2sim import FOLDER
from mambapose.benchmarks.truth.windows import Batch
from mambapose.runtime.backends.fake import FakeEngine
from mambapose.runtime.types import GraphSpec, TensorSpec

FRAMES = 9


def engine(function, *, cues: bool = False) -> FakeEngine:
    tail = {"keypoints": (17, 2)}
    if cues:
        tail |= {"score": (17,), "depth": (17,), "flow": (17, 2)}
    inputs = [TensorSpec(name, "float32", ("N", FRAMES, *shape)) for name, shape in tail.items()]
    if cues:
        inputs.append(TensorSpec("present", "float32", ("N", 3)))
    output = TensorSpec("xyz", "float32", ("N", FRAMES, 17, 3))
    return FakeEngine(GraphSpec("main", tuple(inputs), (output,)), function)


@pytest.fixture(scope="module")
def test_clips(motion_folder: Path) -> tuple[MotionClip, ...]:
    return split_from_clips(clips_from_file(motion_folder)).test


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """Every batch that is measured."""
    seen: list[Batch] = []
    make = lift_measure.seen_batch

    def remember(*arguments, **options) -> Batch:
        seen.append(make(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr(lift_measure, "seen_batch", remember)
    return seen


def test_an_engine_that_knows_the_truth_has_no_error(test_clips, batches) -> None:
    given = []

    def perfect(inputs):
        given.append(sorted(inputs))
        return {"xyz": batches[-1].xyz}

    found = lift_measure.held_out_metrics(engine(perfect, cues=True), test_clips)
    assert set(found) == {"jumping", "soccer", "washing", "mean"}
    for row in found.values():
        assert row["mpjpe_mm"] == row["acceleration_mm"] == 0
        assert row["pa_mpjpe_mm"] < 1e-3
    assert given[0] == ["depth", "flow", "keypoints", "present", "score"]
    lift_measure.held_out_metrics(engine(perfect), test_clips, quick=True)
    assert given[-1] == ["keypoints"]


def test_a_constant_pose_gives_the_number_by_hand(test_clips, batches) -> None:
    nothing = engine(lambda inputs: {"xyz": np.zeros((len(inputs["keypoints"]), FRAMES, 17, 3),
                                                     np.float32)})  # fmt: skip
    row = lift_measure.held_out_metrics(nothing, test_clips)["mean"]
    truth = np.concatenate([batch.xyz for batch in batches])[:, :, list(MEASURED)]
    assert row["mpjpe_mm"] == pytest.approx(1750 * np.linalg.norm(truth, axis=-1).mean(), rel=1e-5)
    assert row["poses"] == truth.shape[0] * truth.shape[1]


def test_real_video_goes_through_the_windows_of_the_runtime(assets: Path) -> None:
    """A lifter that answers the joints on a plane: finite numbers for every frame."""

    def flat(inputs):
        xy = inputs["keypoints"] - inputs["keypoints"][:, :, :1]
        return {"xyz": np.concatenate([xy, np.zeros_like(xy[..., :1])], axis=-1)}

    found = lift_measure.pose2sim_metrics(engine(flat), assets / FOLDER)
    assert set(found) == {"cam01", "cam02"}
    for row in found.values():
        assert row["poses"] == 100
        assert 50 < row["pa_mpjpe_mm"] < 300  # flat, but a body


def test_the_module_needs_no_torch() -> None:
    code = "import sys, mambapose.benchmarks.truth.lift_measure; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_causal_lifter_is_given_its_frames_one_by_one(test_clips, batches) -> None:
    """An engine that knows the truth of the frame it has reached; every window begins anew."""
    reached = []

    def perfect(inputs):
        (frame,) = {int(count) for count in inputs["count_state"][:, 0]}
        reached.append(frame)
        return {
            "xyz": batches[-1].xyz[:, frame],
            "count_state_next": inputs["count_state"] + 1,
        }

    shapes = {"keypoints": (17, 2), "score": (17,), "count_state": (1,)}
    inputs = [TensorSpec(name, "float32", ("N", *shape)) for name, shape in shapes.items()]
    shapes = {"xyz": (17, 3), "count_state_next": (1,)}
    outputs = [TensorSpec(name, "float32", ("N", *shape)) for name, shape in shapes.items()]
    step = FakeEngine(GraphSpec("step", tuple(inputs), tuple(outputs)), perfect)
    found = lift_measure.held_out_metrics(step, test_clips, quick=True)
    assert found["mean"]["mpjpe_mm"] < 1e-3
    assert reached == list(range(lift_measure.SEQUENCE)) * len(batches)
