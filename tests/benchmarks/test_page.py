"""The published page is what the measured files say."""

from __future__ import annotations

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
    assert (ROOT / "docs" / "benchmarks.md").read_text() == page(comparisons[-1], scans[-1])


def test_a_missed_bar_is_published_as_missed() -> None:
    from mambapose.benchmarks.page import scan_section

    row = {
        "what": "two threads", "shape": "D 1", "isa": "avx2", "limit": 1.7, "at_least": True,
        "measured": 1.5, "unit": "x", "best_ms": 0.5, "ok": False,
        "machine": {"cpu": "c", "commit": "abc", "date": "2026-01-01T00:00:00"},
    }  # fmt: skip
    assert scan_section([row])[-1].split("|")[4].strip() == "missed"
