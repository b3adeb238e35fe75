"""``docs/benchmarks.md`` from the measured JSON lines: ``python -m mambapose.benchmarks.page``.

The page holds no number of its own; a test compares it with what this module writes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mambapose.benchmarks.comparison import TIERS
from mambapose.benchmarks.jobs import Row
from mambapose.benchmarks.report import COLUMNS, cells, ratios

BASELINE = "vitpose-b"
INTRO = """# Measured

Generated from the JSON lines in `benchmarks/results/` by `python -m mambapose.benchmarks.page`;
repeat the measurement with `make bench`. Everything here ran on the CPU named below, nothing on a
Jetson. Weights are random: they change neither memory nor latency. Each row of the first table is
a process of its own; peak memory is above that of an empty backend process."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one per line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def markdown_table(heads: Sequence[str], lines: Iterable[Sequence[str]], left: int) -> list[str]:
    """A table whose first ``left`` columns are text, the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(heads) - left)
    return ["| " + " | ".join(line) + " |" for line in (heads, rule, *lines)]


def comparison_section(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Memory and latency: the machine, the goals, the table."""
    fields = Row.__dataclass_fields__
    rows = [Row(**{name: item[name] for name in fields}) for item in found]
    about = found[0]
    heads = ("group", *(name for name, _ in COLUMNS))
    lines = [
        "## Memory and latency",
        "",
        f"{about['cpu']}, {about['threads']} threads, ONNX Runtime {about['onnxruntime']}, "
        f"commit {about['commit']}, {about['date'][:10]}.",
        "",
        *(f"- {sentence}" for sentence in ratios(rows, TIERS, BASELINE)),
        "",
    ]
    return lines + markdown_table(heads, ((row.group, *cells(row)) for row in rows), 4)


def scan_section(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The operator's bars."""
    about = found[0]["machine"]
    table = []
    for row in found:
        sign = ">=" if row["at_least"] else "<="
        bar = "" if row["limit"] is None else f"{sign} {row['limit']:g}"
        verdict = "" if row["limit"] is None else ("ok" if row["ok"] else "missed")
        ms = "" if row["best_ms"] is None else f"{row['best_ms']:.3f}"
        value = f"{row['measured']:.3g} {row['unit']}".strip()
        table.append((row["what"], row["shape"], row["isa"], verdict, bar, value, ms))
    heads = ("what", "shape", "kernel", "", "bar", "measured", "ms")
    return [
        "## The selective scan",
        "",
        f"{about['cpu']}, one thread unless the row says otherwise, commit {about['commit']}, "
        f"{about['date'][:10]}. Ratios of one run.",
        "",
        *markdown_table(heads, table, 4),
    ]


def page(comparison: Path, scan: Path) -> str:
    """The whole page as text."""
    sections = (comparison_section(read_rows(comparison)), scan_section(read_rows(scan)))
    return "\n".join([INTRO, *(line for part in sections for line in ("", *part))]) + "\n"


def main() -> None:
    """Write the page of the given comparison and scan files to standard output."""
    comparison, scan = map(Path, sys.argv[1:3])
    sys.stdout.write(page(comparison, scan))


if __name__ == "__main__":
    main()
