"""Damaged and hostile checkpoints: one line or weights, never a crash, a hang or code that runs."""

from __future__ import annotations

from pathlib import Path

from .cases import numbers
from .worker import run_cases


def test_damaged_checkpoints(tmp_path: Path) -> None:
    outcome = run_cases("tests.fuzz.checkpoint_cases", numbers(400), tmp_path)
    print(outcome)
    assert outcome.failures == []
    assert outcome.accepted >= outcome.tried / 5
