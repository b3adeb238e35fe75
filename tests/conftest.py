"""Fixtures for material outside the repository (absent: skip), and the tables of what ran.

Under pytest-xdist every worker computes with one thread: the cores are busy with its neighbours.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
from collections.abc import Callable, Generator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SLOWEST = 20  # tests named at the end of a run

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch
    os.sched_getaffinity = lambda pid: {0}  # an engine takes as many threads as it may use cores


def shared_folder() -> Path:
    """The folder of MAMBAPOSE_ASSETS; relative paths count from the repository root."""
    return (ROOT / os.environ.get("MAMBAPOSE_ASSETS", "../shared")).resolve()


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real videos, weights and motion capture."""
    folder = shared_folder() / "assets"
    if not folder.is_dir():
        pytest.skip("no assets folder: set MAMBAPOSE_ASSETS to the folder that holds it")
    return folder


def _deterministic_state_dict(folder: Path) -> Callable[..., dict[str, np.ndarray]]:
    spec = importlib.util.spec_from_file_location("golden_weights", folder / "weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[..., dict[str, np.ndarray]] = module.deterministic_state_dict
    return function


@pytest.fixture(scope="session")
def golden() -> Callable[[str], SimpleNamespace]:
    """A function from case name to its arrays, meta and deterministic weights (None for scans)."""
    folder = shared_folder() / "golden"
    if not folder.is_dir():
        pytest.skip("no golden vectors: set MAMBAPOSE_ASSETS to the folder that holds golden/")
    make_weights = _deterministic_state_dict(folder)

    def load(name: str) -> SimpleNamespace:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            arrays: dict[str, Any] = {key: file[key] for key in file.files}
        meta = json.loads(str(arrays.pop("meta")))
        shapes = meta.get("shapes") or meta.get("keys")
        weights = make_weights(shapes, meta["salt"]) if shapes and meta["salt"] else None
        if weights is not None:
            for key, source in (meta.get("aliases") or {}).items():
                weights[key] = weights[source]
        return SimpleNamespace(name=name, folder=folder, arrays=arrays, meta=meta, weights=weights)

    return load


@pytest.fixture(scope="session")
def lift_motion() -> ModuleType:
    """The module that makes motion capture from nothing."""
    path = Path(__file__).with_name("lift_motion.py")
    spec = importlib.util.spec_from_file_location("lift_motion", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def motion_folder(lift_motion: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small motion capture file."""
    folder: Path = lift_motion.write(tmp_path_factory.mktemp("motion"))
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--strict-skips", action="store_true", help="fail when any test was skipped")


def _cpu_seconds() -> float:
    """Of this process and of those it waited for."""
    return sum(os.times()[:4])


_last = _cpu_seconds()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logstart() -> None:
    global _last
    _last = _cpu_seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The CPU time of each phase goes with its report: on a busy machine, seconds say little."""
    global _last
    report = yield
    now = _cpu_seconds()
    # A report keeps and sends on what is set on it; its class declares only pytest's own.
    vars(report)["cpu_seconds"], _last = now - _last, now
    return report


def _skip_reason(report: pytest.TestReport) -> str:
    # Of a skipped test it is (file, line, reason).
    told = report.longrepr
    return told[2].removeprefix("Skipped: ") if isinstance(told, tuple) else "no reason given"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """What ran in each file, every reason for a skip with its count, and the slowest tests."""
    stats = terminalreporter.stats
    files: dict[str, dict[str, int]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in stats.get(outcome, []):
            row = files.setdefault(report.nodeid.split("::")[0], {})
            row[outcome] = row.get(outcome, 0) + 1
    terminalreporter.section("what ran")
    terminalreporter.write_line(f"{'file':<48}{'passed':>8}{'failed':>8}{'skipped':>8}")
    for name, row in sorted(files.items()):
        failed = row.get("failed", 0) + row.get("error", 0)
        terminalreporter.write_line(
            f"{name:<48}{row.get('passed', 0):>8}{failed:>8}{row.get('skipped', 0):>8}"
        )
    reasons: dict[str, int] = {}
    for report in stats.get("skipped", []):
        reasons[_skip_reason(report)] = reasons.get(_skip_reason(report), 0) + 1
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"skipped {count}: {reason}")
    _write_slowest(terminalreporter)


def _write_slowest(terminalreporter: Any) -> None:
    """The tests that took longest with their fixtures, by CPU time, and the time of all."""
    spent: dict[str, tuple[float, float]] = {}
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        if hasattr(report, "cpu_seconds"):
            cpu, wall = spent.get(report.nodeid, (0.0, 0.0))
            spent[report.nodeid] = (cpu + report.cpu_seconds, wall + report.duration)
    terminalreporter.section("slow")
    terminalreporter.write_line(f"{'CPU s':>7}{'wall s':>8}")
    for name, times in sorted(spent.items(), key=lambda row: -row[1][0])[:SLOWEST]:
        terminalreporter.write_line(f"{times[0]:>7.1f}{times[1]:>8.1f}  {name}")
    total = [sum(column) for column in zip(*spent.values(), strict=True)] or [0.0, 0.0]
    terminalreporter.write_line(f"{total[0]:>7.1f}{total[1]:>8.1f}  all {len(spent)} tests")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With --strict-skips a run that skipped anything is a failed run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    strict = exitstatus == 0 and session.config.getoption("--strict-skips")
    if strict and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
