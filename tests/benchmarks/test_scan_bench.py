"""`mp-bench scan`: its yardsticks compute the scan, its rows and its table."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from mambapose.benchmarks import scan, scan_graphs
from mambapose.plugins.reference import selective_scan_reference
from mambapose.runtime.backends.native import find_library
from mambapose.runtime.errors import EngineError

SMALL = scan.Shape(16, 4, 32)


def _row(**changes):
    row = {
        "what": "permuted order", "shape": "D 16 N 4 L 32", "isa": "avx2", "limit": 1.4,
        "at_least": False, "measured": 1.5, "unit": "x", "best_ms": 0.25, "ok": False,
    }  # fmt: skip
    return {**row, **changes}


@pytest.mark.parametrize("graph", ["scan_graph", "linear_attention_graph", "operator_graph"])
def test_the_graphs_compute_the_scan(graph):
    pytest.importorskip("onnxruntime")
    x = scan._inputs(SMALL)
    model = getattr(scan_graphs, graph)(SMALL.D, SMALL.L, SMALL.N)
    wanted, _ = selective_scan_reference(**x)
    assert scan._error(scan._graph(model, x)(), wanted) < 2e-6


def test_the_plain_loop_computes_the_scan():
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    x = scan._inputs(SMALL)
    run, y = scan._plain(SMALL, x)
    run()
    assert scan._error(y, selective_scan_reference(**x)[0]) < 1e-5


def test_no_compiler_is_one_clear_line(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EngineError, match=r"a C\+\+ compiler was wanted"):
        scan.plain_library()


def test_a_yardstick_that_computes_something_else_is_refused():
    with pytest.raises(EngineError, match=r"the plain loop was to compute the same scan"):
        scan._check_yardstick("the plain loop", np.zeros(3), np.ones(3))


def test_every_bar_is_measured(monkeypatch):
    pytest.importorskip("onnxruntime")
    if find_library() is None or shutil.which("g++") is None:
        pytest.skip("no compiled operator library or no g++")
    monkeypatch.setattr(scan, "SECONDS_PER_COMPARISON", 0.0)
    rows = scan.run([(16, 4, 32)])
    whats = {row["what"] for row in rows}
    assert {"faster than plain C++ loop", "both directions in one node", "error in fp16"} <= whats
    assert all(row["measured"] >= 0 and np.isfinite(row["measured"]) for row in rows)
    errors = [row for row in rows if row["what"].startswith(("error", "extra memory"))]
    assert len(errors) == 4
    assert all(row["ok"] for row in errors)


def test_a_missed_bar_is_shown(tmp_path):
    lines = scan.table([_row(), _row(measured=1.2, ok=True), _row(limit=None, best_ms=None)])
    assert [line.split()[-1] for line in lines[1:3]] == ["MISS", "ok"]
    assert lines[3].endswith("1.5 x")
    path = tmp_path / "new" / "scan.jsonl"
    scan.write_json_lines([_row()], path, {"cpu": "x"})
    scan.write_json_lines([_row()], path, {"cpu": "x"})
    first, second = map(json.loads, path.read_text().splitlines())
    assert first == second
    assert first["machine"] == {"cpu": "x"}
    assert first["measured"] == 1.5


@pytest.mark.parametrize(
    ("measured", "limit", "at_least", "ok"),
    [(5, 5, True, True), (4.9, 5, True, False), (1.1, 1, False, False), (0, None, True, True)],
)
def test_a_bar_is_kept_or_missed(measured, limit, at_least, ok):
    bar = scan.Bar("x", "y", measured, limit, at_least, "x", "avx2")
    assert bar.ok is ok
