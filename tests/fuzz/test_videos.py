"""Damaged videos: one line or a result, never a crash, a hang or a file elsewhere."""

from __future__ import annotations

from pathlib import Path

from .cases import numbers
from .video_cases import make_seeds
from .worker import run_cases


def test_damaged_videos(tmp_path: Path) -> None:
    make_seeds(tmp_path / "seeds")
    outcome = run_cases("tests.fuzz.video_cases", numbers(200), tmp_path)
    print(outcome)
    assert outcome.failures == []
    assert outcome.accepted >= outcome.tried / 5
