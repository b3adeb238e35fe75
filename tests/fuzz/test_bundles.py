"""Damaged and hostile bundles: one line or poses, never a crash, a hang or a file elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from .cases import numbers
from .worker import run_cases


def test_damaged_bundles(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from .bundle_cases import make_seed

    make_seed(tmp_path / "seed")
    outcome = run_cases("tests.fuzz.bundle_cases", numbers(300), tmp_path)
    print(outcome)
    assert outcome.failures == []
    assert outcome.accepted >= outcome.tried / 5
