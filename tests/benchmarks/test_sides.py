"""What a row states of a stage: its size, the frames of a call, and that all its graphs ran."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mambapose.benchmarks import sides, worker
from mambapose.benchmarks.jobs import Job
from mambapose.benchmarks.sides import Side, frames_of, measure_all, size_of
from mambapose.runtime.targets import Schedule
from mambapose.runtime.types import TensorSpec, Where

WINDOW = (TensorSpec("keypoints", "float32", ("N", 81, 17, 2)),)
STEP = (
    TensorSpec("keypoints", "float32", ("N", 17, 2)),
    TensorSpec("state", "float32", ("N", 4, 17, 16)),
)
IMAGE = (TensorSpec("rgb", "uint8", ("N", 256, 192, 3)),)
FEATURES = (TensorSpec("features", "float32", ("N", 5, 64, 8)),)
DETECT = (TensorSpec("images", "float32", (1, 3, 416, 320)),)
OWN = (TensorSpec("x", "float32", ("N", 27, 17, 3)),)


@pytest.mark.parametrize(
    ("stage", "graphs", "size", "frames"),
    [
        ("lift3d", {"main": WINDOW}, "T=81", 27),
        ("lift3d", {"step": STEP}, "step", 1),
        ("pose2d", {"main": IMAGE}, "256x192", 1),
        ("pose2d", {"main": FEATURES, "encode": IMAGE}, "256x192", 1),
        ("depth", {"main@256x192": IMAGE}, "256x192", 1),
        ("detect", {"main": DETECT}, "416x320", 1),
        ("model", {"main": OWN}, "27x17x3", None),
    ],
)
def test_size_and_frames_of_a_stage(stage, graphs, size, frames, make_bundle) -> None:
    bundle = make_bundle(stage, graphs)
    assert size_of(bundle, stage) == size
    assert frames_of(Side("x", "stage", ((bundle, stage),))) == frames


def test_a_window_shorter_than_the_hop_answers_itself(make_bundle) -> None:
    short = (TensorSpec("keypoints", "float32", ("N", 9, 17, 2)),)
    bundle = make_bundle("lift3d", {"main": short}, schedule=Schedule(hop=27))
    assert frames_of(Side("x", "stage", ((bundle, "lift3d"),))) == 9


def test_stages_that_answer_unlike_numbers_of_frames_state_none(make_bundle) -> None:
    image, lifter = make_bundle("pose2d", {"main": IMAGE}), make_bundle("lift3d", {"main": WINDOW})
    both = ((image, "pose2d"), (lifter, "lift3d"))
    assert frames_of(Side("x", "baseline", both)) is None
    assert frames_of(Side("x", "pipeline", both, kind="pipeline")) == 1
    assert frames_of(Side("x", "T sweep", ((lifter, "lift3d"),), frames=5)) == 5


class CountingEngine:
    """Checks its inputs as an engine does, and counts its calls."""

    def __init__(self, spec: Any, calls: list[str]) -> None:
        self.spec, self.calls = spec, calls

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.spec.check_inputs(inputs)
        self.calls.append(self.spec.name)
        return {}


@pytest.mark.parametrize(
    ("stage", "graphs"),
    [
        ("pose2d", {"encode": IMAGE, "main": FEATURES}),
        ("lift3d", {"step": STEP}),
        ("lift3d", {"main": WINDOW}),
    ],
)
def test_a_call_runs_every_graph_of_the_stage_once(
    stage, graphs, make_bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, calls = make_bundle(stage, graphs), []

    def load(bundle, stage, name, where):
        return CountingEngine(bundle.stages[stage].graphs[name].spec, calls)

    monkeypatch.setattr(worker, "load_engine", load)
    step = worker.stage_step(bundle, stage, Job("stages"))
    step()
    step()
    assert calls == 2 * list(graphs)


def test_what_two_rows_share_is_measured_once(make_bundle, monkeypatch) -> None:
    bundle = make_bundle("pose2d", {"main": IMAGE}, params=7)
    jobs: list[Job] = []

    def run(job: Job) -> dict[str, Any]:
        jobs.append(job)
        return {"peak_kib": 1000 + 2048, "times_ms": [4.0, 6.0]}

    monkeypatch.setattr(sides, "run_job", run)
    monkeypatch.setattr(sides, "empty_peak_kib", lambda job: 1000)
    part = ((bundle, "pose2d"),)
    asked = [Side("a", "stage", part), Side("a", "tier", part), Side("a", "stage", part)]
    said: list[str] = []
    rows = measure_all(asked, Job("stages", where=Where("onnxruntime", threads=3)), said.append)
    assert [(row.label, row.group) for row in rows] == [("a", "stage"), ("a", "tier")]
    assert len(jobs) == 1
    assert jobs[0].parts == ((str(bundle.path), "pose2d"),)
    assert (rows[0].params, rows[0].peak_mib, rows[0].frame_ms, rows[0].threads) == (7, 2.0, 5.0, 3)
    assert said == ["empty onnxruntime process: 1 MiB, taken off every row", "measuring a (stage)"]
