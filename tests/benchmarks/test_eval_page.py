"""The page of accuracies: generated from stored scores, and equal to what is committed."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from mambapose.benchmarks.accuracy_page import headline, main, page
from mambapose.benchmarks.scores import Score, read_scores, write_scores
from mambapose.runtime.errors import MambaPoseError
from mambapose.runtime.skeleton import COCO17

ROOT = Path(__file__).resolve().parents[2]
FLAT = Score("pose2d", "pose2sim", "rgb", {"pck20": 0.8, "median": 0.03},
             dict.fromkeys(COCO17.joints, 0.02))  # fmt: skip
SOLID = Score("lift3d", "pose2sim cam01", "joints+score", {"pa_mpjpe_mm": 50.0}, {})
ABOUT = {
    "cpu": "a processor", "backend": "onnxruntime", "device": "cpu", "commit": "abc",
    "date": "2026-11-20T00:00:00+00:00", "bundle": "b" * 64,
    "networks": {"pose2d": {"network": "net", "precision": "fp32", "trained": False}},
}  # fmt: skip


def test_page_and_headline_hold_the_scores_and_what_they_are_of(tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    write_scores([FLAT, SOLID], file, ABOUT)
    text = page(file)
    assert "a processor, onnxruntime on cpu, commit abc, 2026-11-20, bundle bbbbbbbbbbbb." in text
    assert "- pose2d: net, fp32, **untrained" in text
    assert "| pose2d | pose2sim | rgb | 0.800 | 0.0300 |" in text
    assert "| lift3d | pose2sim cam01 | joints+score | 50.0 |" in text
    assert "- pose2sim, rgb: nose 2.0, eye 2.0/2.0" in text
    lines = headline([FLAT, SOLID])
    assert lines[2] == "| pose2d | pose2sim | 0.800 |  | 0.0300 |  |  |  |  |"
    assert lines[3] == "| lift3d | pose2sim cam01 |  |  |  |  |  | 50.0 |  |"
    done = CliRunner().invoke(main, [str(file), "--headline"])
    assert done.output.splitlines() == lines


def test_scores_of_several_bundles_are_no_page(tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    write_scores([FLAT], file, ABOUT)
    write_scores([SOLID], file, {**ABOUT, "bundle": "c" * 64})
    with pytest.raises(MambaPoseError, match="scores of one bundle were wanted"):
        page(file)
    assert CliRunner().invoke(main, [str(file)]).exit_code == 1


def test_the_published_page_is_generated() -> None:
    published = ROOT / "docs" / "accuracy.md"
    files = sorted((ROOT / "benchmarks" / "results").glob("*-accuracy.jsonl"))
    if not files:
        pytest.skip("no accuracies are published yet: benchmarks/results/*-accuracy.jsonl")
    assert published.read_text(encoding="utf-8") == page(files[-1])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for line in headline(list(read_scores(files[-1]).values())):
        assert line in readme
