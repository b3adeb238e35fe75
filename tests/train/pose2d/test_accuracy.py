"""Rendered samples through a bundle: every row is there, and a crop of another size is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mambapose.benchmarks.accuracy_video import Where
from mambapose.runtime.errors import EngineError
from mambapose.train.pose2d.accuracy import world_scores
from mambapose.train.pose2d.measure import COMBINATIONS, FAULTS, FLOW_STAGE
from mambapose.train.world.cache import write_store

from ...runtime.fakes import flow_engines, pose_engine
from ...runtime.small_bundle import use_fakes, write_fake_bundle
from ..pose2d_shots import drawn_shot

WHERE = Where(threads=1)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    shots = [replace(shot, rgba_before=shot.rgba) for shot in map(drawn_shot, range(2))]
    write_store(tmp_path / "store", shots, len(shots))
    return tmp_path / "store"


def test_rows_of_a_bundle_with_flow(monkeypatch, tmp_path: Path, store: Path) -> None:
    size = (256, 192)
    still = flow_engines(size, lambda _: np.zeros((1, 2, *size), np.float32))
    engines = {**still, "pose2d": pose_engine()}
    use_fakes(monkeypatch, engines)
    bundle = write_fake_bundle(tmp_path / "bundle", engines)
    scores = world_scores(bundle, WHERE, [store, store], None, 2)
    assert [score.key for score in scores] == [
        *(("pose2d", "2 rendered", name) for name in (*COMBINATIONS, FLOW_STAGE)),
        *(("pose2d", f"2 rendered, {name}", "rgb") for name in FAULTS),
    ]
    assert all(score.values["pck20"] < 0.5 for score in scores)  # zeros find nobody


def test_other_crops_are_refused(monkeypatch, tmp_path: Path, store: Path) -> None:
    engines = {"pose2d": pose_engine(size=(128, 96), heat=(32, 24))}
    use_fakes(monkeypatch, engines)
    bundle = write_fake_bundle(tmp_path / "bundle", engines)
    with pytest.raises(EngineError, match=r"takes 128x96; export it without --size"):
        world_scores(bundle, WHERE, [store], None, 2)
