"""The published page is what the measured files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mambapose.benchmarks.page import page

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def test_the_page_is_generated_from_the_results() -> None:
    comparisons = sorted(RESULTS.glob("*-cpu-comparison.jsonl"))
    scans = sorted(RESULTS.glob("*-cpu-scan.jsonl"))
    if not comparisons or not scans:
        pytest.skip("no measured results in this tree")
    networks = sorted(RESULTS.glob("*-cpu-networks.jsonl"))
    gpus = sorted(RESULTS.glob("gpu_*.jsonl"))
    written = page(comparisons[-1], scans[-1], [*networks, *gpus])
    assert (ROOT / "docs" / "benchmarks.md").read_text() == written


def test_a_missed_bar_is_published_as_missed() -> None:
    from mambapose.benchmarks.page import scan_section

    row = {
        "what": "two threads", "shape": "D 1", "isa": "avx2", "limit": 1.7, "at_least": True,
        "measured": 1.5, "unit": "x", "best_ms": 0.5, "ok": False,
        "machine": {"cpu": "c", "commit": "abc", "date": "2026-01-01T00:00:00"},
    }  # fmt: skip
    assert scan_section([row])[-1].split("|")[4].strip() == "missed"


def test_sweeps_have_tables_beside_their_yardsticks() -> None:
    from dataclasses import asdict, replace

    from mambapose.benchmarks.jobs import Row
    from mambapose.benchmarks.page import comparison_section

    stage = Row("lift3d", "stage", "net", "T=27", 10**6, 4.0, 10.0, 18.0, 19.0, 20.0, 20, 2, 9)
    window = replace(stage, label="net", group="T sweep")
    like = replace(window, label="transformer:5", peak_mib=5.0, p50_ms=9.0)
    longer = replace(like, size="T=81", p50_ms=54.0, frames=27)
    step = replace(window, label="causal", size="step", p50_ms=2.0, frames=1)
    crop = replace(window, label="mambapose-tiny", group="size sweep", size="64x48", frames=1)
    about = {"cpu": "c", "onnxruntime": "1", "commit": "abc", "date": "2026-01-01T00:00:00"}
    rows = [stage, window, step, like, longer, crop, replace(crop, label="vitpose-s")]
    text = "\n".join(comparison_section([{**asdict(row), **about} for row in rows]))
    first, rest = text.split("### Over the window and the crop")
    assert "| stage | lift3d | net | T=27 | 1.00 | 4.0 | 10.0 | 18.0 | 19.0 | 20.0 | 9 |" in first
    assert "sweep" not in first
    assert "| net | T=27 | transformer:5 | 1.00 | 18.0 | 9 | 2.00 | 10.0 | 2.00x | 2.00x |" in rest
    assert (
        "| causal | step | transformer:5 T=27<br>transformer:5 T=81 | 1.00 | 2.0 | 1 | 2.00 | 10.0 "
        "| 2.00x<br>1.00x | 2.00x<br>2.00x |"
    ) in rest
    assert "| transformer:5 | T=27 |  | 1.00 | 9.0 | 9 | 1.00 | 5.0 |  |  |" in rest
    assert "| mambapose-tiny | 64x48 | vitpose-s | " in rest
    assert rest.count("| network | size | beside |") == 2


MACHINE = {
    "name": "NVIDIA Test 1", "multiprocessors": 132, "clock_hz": 1.98e9, "bandwidth": 4.3e12,
    "nvcc": "13.0.88", "torch": "2.11", "commit": "abc", "date": "2026-01-02T00:00:00",
}  # fmt: skip


def test_networks_have_a_section_of_their_own(tmp_path: Path) -> None:
    about = {"cpu": "c", "onnxruntime": "1", "commit": "abc", "date": "2026-01-01T00:00:00"}
    row = {
        "label": "glsmamba-s", "group": "size sweep", "network": "n", "size": "64x48",
        "params": 10**6, "weights_mib": 4.0, "peak_mib": 10.0, "p50_ms": 18.0, "p90_ms": 19.0,
        "p99_ms": 20.0, "calls": 20, "threads": 2, "frames": 1,
    }  # fmt: skip
    file = tmp_path / "n.jsonl"
    rows = [row, {**row, "label": "vitpose-s", "p50_ms": 9.0}]
    file.write_text("".join(json.dumps({**item, **about}) + "\n" for item in rows))
    comparisons = sorted(RESULTS.glob("*-cpu-comparison.jsonl"))
    scans = sorted(RESULTS.glob("*-cpu-scan.jsonl"))
    if not comparisons or not scans:
        pytest.skip("no measured results in this tree")
    written = page(comparisons[-1], scans[-1], [file])
    section = written.split("## Networks, by `mp-bench networks`")[1].split("## The selective")[0]
    assert "c, 2 threads, ONNX Runtime 1, commit abc, 2026-01-01." in section
    assert "| glsmamba-s | 64x48 | vitpose-s | 1.00 | 18.0 | 1 | 18.00 | 10.0 | 2.00x" in section


def test_a_gpu_has_a_section_with_its_last_run_alone() -> None:
    from mambapose.benchmarks.page import gpu_section

    time = {"bench": "gpu-time", "name": "x", "shape": "K 2", "dtype": "fp16", "spread": 0.0}
    time |= {"floor_us": 4.0, "form": "chunked"}
    lines = [
        {**time, "candidate": "auto", "graph_us": 10.0, "plain_us": 15.0},
        {**time, "candidate": "loop", "graph_us": None, "plain_us": 1000.0, "form": ""},
        {"bench": "gpu-bar", "what": "times the floor", "shape": "K 2", "isa": "fp16",
         "limit": 3.0, "at_least": False, "measured": 3.1, "unit": "x", "ok": False},
        {"bench": "gpu-check", "check": "forward fp16 auto", "cases": 9, "refused": 0,
         "worst": 4e-4, "limit": 1.5e-3, "failures": 0, "ok": True},
    ]  # fmt: skip
    older = {**lines[0], "graph_us": 77.7, "machine": {**MACHINE, "date": "2026-01-01"}}
    text = "\n".join(gpu_section([older, *({**line, "machine": MACHINE} for line in lines)]))
    assert "132 multiprocessors at 1980 MHz, copies at 4.30 TB/s" in text
    assert "| times the floor | K 2 | fp16 | missed | <= 3 | 3.1 x |" in text
    assert "| forward fp16 auto | ok | 9 | 0.0004 | 0.0015 |" in text
    assert "| K 2 | fp16 | auto (chunked) | 10.0 | 15.0 | 1.00 | 2.50 |" in text
    assert "| K 2 | fp16 | loop |  | 1000.0 | 100.00 | 250.00 |" in text
    assert "77.7" not in text
