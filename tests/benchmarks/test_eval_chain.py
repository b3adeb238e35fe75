"""The sample clip through real networks: what ships, and RAFT's published weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from mambapose.benchmarks.accuracy import sample_scores
from mambapose.benchmarks.accuracy_dense import dense_scores
from mambapose.benchmarks.accuracy_video import Where, clip_from_truth
from mambapose.benchmarks.scores import Score
from mambapose.runtime.bundle.bundle import read_bundle
from mambapose.runtime.errors import MambaPoseError
from mambapose.runtime.loading import shipped_bundle
from mambapose.runtime.video.sample import read_truth

from ..export_cache import reused_stages

WHERE = Where(threads=1)


@pytest.fixture(scope="module")
def shipped() -> dict[tuple[str, str, str], Score]:
    """The scores of the bundle that ships, on the sample clip."""
    try:
        folder = shipped_bundle()
    except MambaPoseError as err:
        pytest.skip(str(err))
    bundle = read_bundle(folder)
    if not bundle.trained:
        pytest.skip(f"the bundle in {folder} is not trained")
    parts = sample_scores(bundle, WHERE, lambda _: None)
    return {score.key: score for part in parts for score in part}


@pytest.mark.slow
def test_the_shipped_network_sees_the_joints_of_the_sample(shipped) -> None:
    values = shipped["pose2d", "sample", "rgb"].values
    # 0.943 and 0.0133 when this was written.
    assert values["pck20"] > 0.9
    assert values["median"] < 0.02


def test_the_shipped_chain_finds_and_follows_the_person_by_itself(shipped) -> None:
    values = shipped["chain", "sample", "rgb"].values
    # 1.0, 0.939 and 88 mm when this was written.
    assert values["found"] > 0.97
    assert values["pck20"] > 0.88
    assert shipped["chain 3D", "sample", "rgb"].values["pa_mpjpe_mm"] < 100


@pytest.mark.slow
def test_published_flow_weights_measure_as_they_should(assets: Path, tmp_path: Path) -> None:
    """RAFT small, at the size the cpu target gives it, against the exact flow of the clip."""
    pytest.importorskip("torch", reason="torch is not installed (extra export)")
    from mambapose.export.cli import main

    words = ["--target", "cpu", "--only", "flow", "--out", str(tmp_path / "bundle")]
    with reused_stages():
        main([*words, "--weights", f"flow={assets / 'raft-small' / 'raft-small.pth'}"])
    truth = read_truth()
    bundle = read_bundle(tmp_path / "bundle")
    (score,) = dense_scores(bundle, WHERE, clip_from_truth(truth), truth)
    # 0.23 and 1.81 px when this was written; the map is 0.4 times the frame.
    assert score.values["epe_px"] < 0.3
    assert score.values["epe_person_px"] < 2.2
