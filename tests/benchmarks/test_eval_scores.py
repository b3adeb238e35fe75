"""Scores: the table, the JSON lines and the gate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mambapose.benchmarks.scores import (
    METRICS,
    Score,
    joint_table,
    read_scores,
    table,
    worse,
    write_scores,
)
from mambapose.runtime.errors import MambaPoseError
from mambapose.runtime.skeleton import COCO17

FLAT = Score("pose2d", "film", "rgb", {"pck20": 0.8, "collapsed": 0.05, "median": 0.03},
             dict.fromkeys(COCO17.joints, 0.0123))  # fmt: skip
SOLID = Score("lift3d", "film", "joints", {"pa_mpjpe_mm": 50.0}, {})


def changed(score: Score, **values: float) -> Score:
    return replace(score, values={**score.values, **values})


def test_table_has_a_block_for_each_set_of_metrics() -> None:
    lines = table([FLAT, changed(FLAT, median=float("inf")), SOLID])
    assert lines[0].split() == ["stage", "material", "inputs", "PCK@.2", "collapsed", "med.",
                                "height"]  # fmt: skip
    assert lines[1].split() == ["pose2d", "film", "rgb", "0.800", "0.050", "0.0300"]
    assert lines[2].split()[-1] == "-"
    assert lines[3] == ""
    assert lines[5].split() == ["lift3d", "film", "joints", "50.0"]
    assert len({len(line) for line in lines[:3]}) == 1
    (line,) = joint_table([FLAT])
    assert line.startswith("film, rgb: nose 1.2, eye 1.2/1.2")
    assert line.endswith("ankle 1.2/1.2")


def test_json_lines_come_back_and_the_last_one_counts(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "scores.jsonl"
    about = {"bundle": "abc", "backend": "fake"}
    write_scores([FLAT, changed(SOLID, pa_mpjpe_mm=float("nan"))], file, about)
    write_scores([SOLID], file, about)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["bundle"] for row in rows] == ["abc"] * 3
    assert rows[1]["values"]["pa_mpjpe_mm"] is None
    assert read_scores(file) == {FLAT.key: FLAT, SOLID.key: SOLID}


@pytest.mark.parametrize("text", ["{", "[1]", '{"stage": "x"}'])
def test_a_file_that_holds_no_scores_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "scores.jsonl"
    file.write_text(text)
    with pytest.raises(MambaPoseError, match="scores written by mp-bench accuracy"):
        read_scores(file)


@pytest.mark.parametrize(
    ("name", "kept", "failing"),
    [
        ("pck20", 0.781, 0.779),  # a share: two points of 0.80
        ("collapsed", 0.069, 0.071),
        ("median", 0.0305, 0.0307),  # an error by height: two percent of 0.03
        ("pck20", 0.95, float("nan")),
        ("median", 0.01, float("inf")),
    ],
)
def test_the_gate_holds_each_number_to_its_tolerance(
    name: str, kept: float, failing: float
) -> None:
    baseline = {FLAT.key: FLAT}
    assert worse([changed(FLAT, **{name: kept})], baseline, 0.02) == []
    (line,) = worse([changed(FLAT, **{name: failing})], baseline, 0.02)
    assert line.startswith(f"pose2d film rgb: {name} ")
    assert ("at least" in line) == (METRICS[name].better > 0)


def test_lengths_are_held_by_share_and_unknown_numbers_hold_nothing() -> None:
    baseline = {SOLID.key: SOLID}
    assert worse([changed(SOLID, pa_mpjpe_mm=50.9)], baseline, 0.02) == []
    assert len(worse([changed(SOLID, pa_mpjpe_mm=51.1)], baseline, 0.02)) == 1
    unknown = {SOLID.key: changed(SOLID, pa_mpjpe_mm=float("nan"))}
    assert worse([SOLID], unknown, 0.02) == []


def test_a_baseline_of_something_else_is_no_pass() -> None:
    with pytest.raises(MambaPoseError, match="none of the scores"):
        worse([FLAT], {SOLID.key: SOLID}, 0.02)
