"""``mp-bench`` without --engine measures the bundle that ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mambapose.benchmarks import accuracy, compare
from mambapose.benchmarks.cli import command
from mambapose.runtime import loading
from mambapose.runtime.errors import BundleError


@pytest.mark.parametrize("words", [[], ["accuracy"]])
def test_the_bundle_that_ships_is_the_default(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Path] = []

    def measure(engine: Path, *rest: Any) -> bool:
        measured.append(engine)
        return True

    monkeypatch.setattr(compare, "bench", measure)
    monkeypatch.setattr(accuracy, "measure", measure)
    monkeypatch.setattr(loading, "SHIPPED", tmp_path)
    done = CliRunner().invoke(command, words)
    assert isinstance(done.exception, BundleError)
    assert "make weights" in str(done.exception)
    (tmp_path / "bundle.json").write_text("{}")
    assert CliRunner().invoke(command, words).exit_code == 0
    assert CliRunner().invoke(command, [*words, "--engine", "mine"]).exit_code == 0
    assert measured == [tmp_path, Path("mine")]
