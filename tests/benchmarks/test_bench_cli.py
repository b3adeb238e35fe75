"""What the words of ``mp-bench`` ask for; without --engine it measures the bundle that ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mambapose.benchmarks import accuracy, bench, sweeps
from mambapose.benchmarks.cli import command, main
from mambapose.benchmarks.jobs import Job, run_job
from mambapose.benchmarks.report import limits_from_text
from mambapose.runtime import loading
from mambapose.runtime.bundle.bundle import read_bundle
from mambapose.runtime.errors import BundleError, EngineError, MambaPoseError
from mambapose.runtime.stages.table import DETECT


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
        *(entry.network for name, entry in shipped.stages.items() if name != DETECT),
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


@pytest.mark.parametrize(
    "words",
    [
        ["accuracy", "--tolerance", "nan"],
        ["accuracy", "--tolerance", "-0.1"],
        ["accuracy", "--threads", "0"],
        ["--threads", "0"],
        ["--iterations", "0"],
        ["networks", "--iterations", "-3"],
    ],
)
def test_numbers_that_mean_nothing_are_usage_errors(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert words[-2] in capsys.readouterr().err


@pytest.mark.parametrize("text", ["nanms", "infMiB", "-1ms", "0s", "33ms,nanGiB"])
def test_a_budget_is_a_positive_number(text: str) -> None:
    with pytest.raises(MambaPoseError, match="a budget such as"):
        limits_from_text(text)


@pytest.mark.parametrize("words", [[], ["networks"], ["scan"], ["accuracy"]])
def test_a_place_for_json_is_tried_before_minutes_of_measuring(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (tmp_path, tmp_path / ("a" * 300)):
        with pytest.raises(SystemExit) as caught:
            main([*words, "--json", str(place)])
        assert caught.value.code == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert "a file that can be written was wanted" in said.err


def test_a_refusal_in_the_measured_process_is_passed_on_as_its_sentence(tmp_path: Path) -> None:
    job = Job("stages", parts=((str(tmp_path), "pose2d"),))
    with pytest.raises(EngineError) as caught:
        run_job(job)
    assert str(caught.value).endswith(
        f"failed: {tmp_path} holds no bundle.json, so it is not a bundle; run mp-export"
    )
