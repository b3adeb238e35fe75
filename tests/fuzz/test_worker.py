"""The fuzz tests see what they are there to see: crashes, hangs, bugs, files touched elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import worker
from .cases import numbers
from .worker import check_line, run_cases


def test_every_kind_of_failure_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "HANG_S", 1.0)
    folder = tmp_path / "cases"
    folder.mkdir()
    outcome = run_cases("tests.fuzz.bad_cases", range(0, 10), folder)
    assert (outcome.tried, outcome.accepted) == (10, 3)
    found = {int(text.split(" ")[0]): text for text in outcome.failures}
    assert sorted(found) == [2, 4, 6, 7, 8]
    assert "ended with -11" in found[2]
    assert "silent for 1 s" in found[4]
    assert "wrote" in found[6]
    assert "socket" in found[7]
    assert "TypeError" in found[8]
    assert "bad_cases.py" in found[8]


def test_a_run_goes_on_from_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert numbers(5) == range(0, 5)
    monkeypatch.setenv("MAMBAPOSE_FUZZ", "100")
    monkeypatch.setenv("MAMBAPOSE_FUZZ_FROM", "40")
    assert numbers(5) == range(40, 140)


def test_a_message_of_two_lines_is_a_failure() -> None:
    check_line(ValueError("one"))
    for text in ("", "one\ntwo"):
        with pytest.raises(AssertionError):
            check_line(ValueError(text))
