"""Damaged images: one line or a result, never a crash, a hang or a file elsewhere."""

from __future__ import annotations

from pathlib import Path

from .cases import numbers
from .image_cases import make_seeds
from .worker import run_cases


def test_damaged_images(tmp_path: Path) -> None:
    make_seeds(tmp_path / "seeds")
    outcome = run_cases("tests.fuzz.image_cases", numbers(1000), tmp_path)
    print(outcome)
    assert outcome.failures == []
    assert outcome.accepted >= outcome.tried / 5
