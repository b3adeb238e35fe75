"""The report's text, its budget and its files, on rows with known numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mambapose.benchmarks import report
from mambapose.benchmarks.jobs import Job, Row, job_from_dict, percentiles_ms, row_from_dict
from mambapose.runtime.errors import MambaPoseError
from mambapose.runtime.types import Where

CHAIN = Row(
    "pipeline",
    "pipeline",
    "raft-small + x",
    "192x256",
    3_000_000,
    12.0,
    60.0,
    33.0,
    40.0,
    50.0,
    20,
    2,
)
BASE = replace(CHAIN, label="vitpose-b", group="baseline", peak_mib=120.0, p50_ms=66.0)


def test_ratio_of_the_pipeline_is_printed_with_its_goal() -> None:
    (line,) = report.ratios([CHAIN, BASE], (), ("vitpose-b",))
    assert "peak memory 0.50x" in line
    assert "latency 0.50x" in line


def test_tiers_compare_rows_of_the_tier_group_only() -> None:
    ours = replace(CHAIN, label="a", group="tier", peak_mib=10.0)
    theirs = replace(CHAIN, label="b", group="tier", peak_mib=40.0)
    decoy = replace(theirs, group="size sweep", peak_mib=1.0)
    (line,) = report.ratios([decoy, ours, theirs], (("a", "b"),), ())
    assert "0.25x" in line


def test_a_lone_network_is_held_against_every_baseline() -> None:
    mine = replace(CHAIN, label="model", group="stage", network="code:net", frames=None)
    window = replace(BASE, label="posemamba-s", frames=27)
    other = replace(BASE, label="theirs model", peak_mib=30.0, frames=None)
    lines = report.ratios([mine, window, other], (), ("posemamba-s", "theirs"))
    assert lines == [
        "code:net / posemamba-s: peak memory 0.50x, time per call 0.50x",
        "model / theirs model: peak memory 2.00x, latency 0.50x",
    ]
    stepping = replace(mine, label="lift3d", frames=1)
    (line,) = report.ratios([stepping, window], (), ("posemamba-s",))
    assert line.endswith("time per frame 13.50x")


def test_a_lifter_is_no_goal_of_the_pipeline() -> None:
    lifter = replace(CHAIN, label="lift3d", group="stage", network="own", peak_mib=30.0)
    stages = [replace(lifter, label="pose2d"), lifter]
    (line,) = report.ratios(
        [*stages, CHAIN, replace(BASE, label="posemamba-s")], (), ("posemamba-s",)
    )
    assert line == "own / posemamba-s: peak memory 0.25x, latency 0.50x"


def test_frames_are_a_column_where_a_row_states_them() -> None:
    window = replace(CHAIN, frames=27, p50_ms=54.0)
    head, _, line, other = report.table([window, CHAIN])
    assert head.split()[-2:] == ["frames", "ms/frame"]
    assert line.split()[-2:] == ["27", "2.00"]
    assert len(other) == len(line)
    assert other.split()[-1] == "50.0"
    assert report.table([CHAIN])[0].split()[-2:] == ["p99", "ms"]


def test_table_lines_up_and_names_each_group_once() -> None:
    lines = report.table([CHAIN, BASE, replace(BASE, label="vitpose-s")])
    assert [line for line in lines if line.startswith("--")] == ["-- pipeline", "-- baseline"]
    rows = [line for line in lines if not line.startswith("--")]
    assert len({len(line) for line in rows}) == 1


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("33ms,4GiB", report.Limits(33.0, 4096.0)),
        ("0.5s", report.Limits(500.0, None)),
        ("100MiB", report.Limits(None, 100.0)),
    ],
)
def test_budget_text(text: str, limits: report.Limits) -> None:
    assert report.limits_from_text(text) == limits


@pytest.mark.parametrize("text", ["33", "fast", "4GB", "msms", ""])
def test_budget_text_that_is_none(text: str) -> None:
    with pytest.raises(MambaPoseError, match="33ms,4GiB"):
        report.limits_from_text(text)


def test_verdicts_hold_the_pipeline_row_against_the_limits() -> None:
    found = report.verdicts([BASE, CHAIN], report.Limits(33.0, 59.0))
    assert [kept for _, kept in found] == [True, False]


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "rows.jsonl"
    report.write_json_lines([CHAIN], file, {"commit": "abc"})
    report.write_json_lines([BASE], file, {"commit": "abc"})
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["label"] for row in rows] == ["pipeline", "vitpose-b"]
    assert rows[0]["commit"] == "abc"
    pytest.importorskip("matplotlib")
    sweep = [replace(CHAIN, label="x", group="size sweep", peak_mib=float(i)) for i in range(3)]
    report.plot([CHAIN, BASE, *sweep], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_rows_of_results_without_frames_are_read() -> None:
    from dataclasses import asdict

    old = {**asdict(CHAIN), "commit": "abc"}
    del old["frames"]
    assert row_from_dict(old) == CHAIN
    assert row_from_dict({**old, "frames": 11}).frame_ms == 3.0
    del old["peak_mib"]
    with pytest.raises(TypeError, match="peak_mib"):
        row_from_dict(old)


def test_job_survives_json() -> None:
    from dataclasses import asdict

    job = Job("stages", parts=(("folder", "pose2d"),), where=Where("onnxruntime", threads=2))
    assert job_from_dict(json.loads(json.dumps(asdict(job)))) == job


def test_percentiles_of_a_ramp() -> None:
    assert percentiles_ms([float(i) for i in range(101)]) == (50.0, 90.0, 99.0)


def test_the_commit_is_ours_wherever_the_user_stands(tmp_path: Path, monkeypatch) -> None:
    import subprocess

    before = report.commit()
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.chdir(tmp_path)
    assert report.commit() == before
    monkeypatch.setattr(report, "__file__", str(tmp_path / "report.py"))
    assert report.commit() == "unknown"
