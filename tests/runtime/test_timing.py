"""Durations of the stages: percentiles of the newest, totals of all."""

from __future__ import annotations

import pytest

from mambapose.runtime import timing
from mambapose.runtime.timing import StageTimes


def test_half_of_the_runs_are_below_p50_and_nine_tenths_below_p90() -> None:
    times = StageTimes()
    for k in range(101):
        times.add("pose2d", k / 1e3)
    summary = times.summary()["pose2d"]
    assert summary == {"runs": 101, "total_s": 5.05, "p50_ms": 50.0, "p90_ms": 90.0}


def test_percentiles_forget_what_totals_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "KEPT", 4)
    times = StageTimes()
    for seconds in (100.0, 100.0, 0.001, 0.001, 0.001, 0.001):
        times.add("pose2d", seconds)
    summary = times.summary()["pose2d"]
    assert summary == {"runs": 6, "total_s": 200.004, "p50_ms": 1.0, "p90_ms": 1.0}
