"""What the words of ``mp-bench`` ask for; without --engine it measures the bundle that ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mambapose.benchmarks import accuracy, bench, sweeps
from mambapose.benchmarks.cli import command
from mambapose.benchmarks.jobs import Job
from mambapose.runtime import loading
from mambapose.runtime.bundle.bundle import read_bundle
from mambapose.runtime.errors import BundleError, MambaPoseError


@pytest.mark.parametrize("words", [[], ["accuracy"]])
def test_the_bundle_that_ships_is_the_default(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Path] = []

    def measure(engine: Path, *rest: Any) -> bool:
        measured.append(engine)
        return True

    monkeypatch.setattr(bench, "bench", measure)
    monkeypatch.setattr(accuracy, "measure", measure)
    monkeypatch.setattr(loading, "SHIPPED", tmp_path)
    done = CliRunner().invoke(command, words)
    assert isinstance(done.exception, BundleError)
    assert "make weights" in str(done.exception)
    (tmp_path / "bundle.json").write_text("{}")
    assert CliRunner().invoke(command, words).exit_code == 0
    assert CliRunner().invoke(command, [*words, "--engine", "mine"]).exit_code == 0
    assert measured == [tmp_path, Path("mine")]


def test_networks_and_baselines_reach_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(bench, "bench_networks", lambda *given: asked.append(given))
    monkeypatch.setattr(bench, "bench", lambda *given: asked.append(given) or True)
    words = ["networks", "posemamba-s", "mine", "--clip-frames", "9", "--sizes", "64x48"]
    done = CliRunner().invoke(command, [*words, "--threads", "1", "--json", "rows"])
    assert done.exit_code == 0, done.output
    names, sizes, clips, job, json_file = asked.pop()
    assert (names, sizes, clips) == (("posemamba-s", "mine"), ((64, 48),), (9,))
    assert (job.where.threads, json_file) == (1, Path("rows"))
    done = CliRunner().invoke(command, ["--engine", "a", "--vs", "b", "--vs", "vitpose-b"])
    assert done.exit_code == 0, done.output
    assert asked.pop()[1] == ("b", "vitpose-b")
    assert isinstance(
        CliRunner().invoke(command, ["networks", "--sizes", "7"]).exception, MambaPoseError
    )
    assert not asked


def test_without_names_the_networks_that_ship_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[str] = []
    monkeypatch.setattr(bench, "measure_all", lambda sides, *rest: [])
    monkeypatch.setattr(bench, "show", lambda *rest: None)
    monkeypatch.setattr(
        bench.sweeps,
        "sides",
        lambda candidates, *sizes: swept.extend(c.label for c in candidates) or [],
    )
    bench.bench_networks((), (), (), Job("stages"), None)
    shipped = read_bundle(loading.shipped_bundle())
    assert swept == [
        *(entry.network for entry in shipped.stages.values()),
        *sweeps.LIFTERS,
        *sweeps.POSE_NETWORKS,
    ]


def test_a_missed_bar_of_the_scan_is_exit_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mambapose.benchmarks import scan

    file = tmp_path / "scan.jsonl"
    for kept, code in ((True, 0), (False, 1)):
        rows = [{"ok": kept}]
        monkeypatch.setattr(scan, "run", lambda rows=rows: rows)
        monkeypatch.setattr(scan, "table", lambda rows: ["a line"])
        monkeypatch.setattr(
            scan, "write_json_lines", lambda rows, path, about: path.write_text("{}")
        )
        done = CliRunner().invoke(command, ["scan", "--json", str(file)])
        assert (done.exit_code, done.output.splitlines()[0]) == (code, "a line")
        assert file.exists()
