"""``docs/benchmarks.md`` from the measured JSON lines: ``python -m mambapose.benchmarks.page``.

Arguments: the file of the comparison, of the scan, and of any number of runs of ``mp-bench
networks`` and of GPUs. The page holds no number of its own; a test compares it with what this
module writes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mambapose.benchmarks.comparison import TIERS
from mambapose.benchmarks.gpu_check.bars import last_run
from mambapose.benchmarks.jobs import Row, row_from_dict
from mambapose.benchmarks.report import cells, columns, ratios
from mambapose.benchmarks.sweeps import GROUPS, held_against, shares

BASELINE = "vitpose-b"
INTRO = """# Measured

Generated from the JSON lines in `benchmarks/results/` by `python -m mambapose.benchmarks.page`;
repeat the measurement with `make bench`. Everything here ran on the CPU named below, nothing on a
Jetson. Weights are random: they change neither memory nor latency. Each row of the first table is
a process of its own; peak memory is above that of an empty backend process."""

ON_CPU, ON_ITS_MACHINE = "on the CPU named below", "on the machine its section names"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one per line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def markdown_table(heads: Sequence[str], lines: Iterable[Sequence[str]], left: int) -> list[str]:
    """A table whose first ``left`` columns are text, the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(heads) - left)
    return ["| " + " | ".join(line) + " |" for line in (heads, rule, *lines)]


def comparison_section(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Memory and latency: the machine, the goals, the table, then what grows with the input."""
    every = [row_from_dict(item) for item in found]
    swept = [row for row in every if is_swept(row)]
    rows = [row for row in every if not is_swept(row)]
    shown = columns(rows)
    heads = ("group", *(name for name, _ in shown))
    texts = ((row.group, *cells(row)[: len(shown)]) for row in rows)
    lines = [
        "## Memory and latency",
        "",
        _machine(found[0]),
        "",
        *(f"- {sentence}" for sentence in ratios(rows, TIERS, (BASELINE,))),
        "",
        *markdown_table(heads, texts, 4),
    ]
    if swept:
        lines += ["", "### Over the window and the crop", "", SWEEP_INTRO, *sweep_tables(swept)]
    return lines


def networks_section(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """The section on the runs of ``mp-bench networks``, each with its machine."""
    lines = ["## Networks, by `mp-bench networks`", "", SWEEP_INTRO]
    for found in runs:
        lines += ["", _machine(found[0]), *sweep_tables([row_from_dict(item) for item in found])]
    return lines


def _machine(about: Mapping[str, Any]) -> str:
    return (
        f"{about['cpu']}, {about['threads']} threads, ONNX Runtime {about['onnxruntime']}, "
        f"commit {about['commit']}, {about['date'][:10]}."
    )


def is_swept(row: Row) -> bool:
    """Whether the row belongs in the tables of sweeps.

    Rows measured before frames were counted do not.
    """
    return row.group in GROUPS.values() and row.frames is not None


def sweep_tables(rows: Sequence[Row]) -> list[str]:
    """Lifters over the window, 2D networks over the crop, each beside its yardstick."""
    lines: list[str] = []
    for group in GROUPS.values():
        texts = [_sweep_cells(row, rows) for row in rows if row.group == group]
        if texts:
            lines += ["", *markdown_table(SWEEP_HEADS, texts, 3)]
    return lines


SWEEP_INTRO = """\
Every network at every size it takes, in processes as above. Frames are those the pipeline takes
from one call: of a lifter with a window of T frames its hop, a third of T; of a lifter that goes
frame by frame (step) one; of an image network one, and of a video network, which encodes the new
frame and then looks at its window, one. `transformer:5` is a yardstick without weights: attention
among the joints of a frame, then among the frames of a joint, five times. Time and memory, the last
two columns, are those of a frame and the peak over those of the yardstick in column three: the one
of the same size with the nearest number of parameters, measured in the same run."""

SWEEP_HEADS = (
    "network", "size", "beside", "params M", "p50 ms", "frames", "ms/frame", "peak MiB", "time",
    "memory",
)  # fmt: skip


def _sweep_cells(row: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    beside = held_against(row, rows)
    alike = {other.size for other in beside} == {row.size}
    names = (other.label if alike else f"{other.label} {other.size}" for other in beside)
    each = [[f"{share:.2f}x" for share in shares(row, other)] for other in beside]
    return (
        row.label, row.size, "<br>".join(names), f"{row.params / 1e6:.2f}", f"{row.p50_ms:.1f}",
        str(row.frames), f"{row.frame_ms:.2f}", f"{row.peak_mib:.1f}",
        "<br>".join(time for time, _ in each), "<br>".join(memory for _, memory in each),
    )  # fmt: skip


def scan_section(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The section on the operator's bars."""
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


def gpu_section(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The last run of benchmarks/gpu_check/check.sh on one GPU: bars, comparisons, times."""
    last = last_run(found)
    about = last[0]["machine"]
    kinds = {kind: [row for row in last if row["bench"] == kind] for kind in GPU_HEADS}
    lines = [
        f"## {about['name']}",
        "",
        f"{about['multiprocessors']} multiprocessors at {about['clock_hz'] / 1e6:.0f} MHz, copies "
        f"at {about['bandwidth'] / 1e12:.2f} TB/s (both measured), nvcc {about['nvcc']}, torch "
        f"{about['torch']}, commit {about['commit']}, {about['date'][:10]}; by "
        "`benchmarks/gpu_check/check.sh`. Times are those of one call in a CUDA graph, batch 1 "
        "unless the row says otherwise; / auto is the time in times of the kernel's own choice.",
    ]
    cells = {"gpu-bar": _bar_cells, "gpu-check": _check_cells, "gpu-time": _time_cells(last)}
    for kind, rows in kinds.items():
        if rows:
            heads, left = GPU_HEADS[kind]
            lines += ["", *markdown_table(heads, map(cells[kind], rows), left)]
    return lines


GPU_HEADS = {
    "gpu-bar": (("what", "shape", "type", "", "bar", "measured"), 4),
    "gpu-check": (("compared with float64", "", "cases", "worst", "limit"), 2),
    "gpu-time": (
        ("shape", "type", "candidate", "graph us", "plain us", "/ auto", "/ floor"),
        3,
    ),
}


def _bar_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    sign = ">=" if row["at_least"] else "<="
    bar = "" if row["limit"] is None else f"{sign} {row['limit']:g}"
    verdict = "" if row["limit"] is None else ("ok" if row["ok"] else "missed")
    value = f"{row['measured']:.3g} {row['unit']}".strip()
    return row["what"], row["shape"], row["isa"], verdict, bar, value


def _check_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    verdict = "ok" if row["ok"] else f"{row['failures']} failed"
    return row["check"], verdict, str(row["cases"]), f"{row['worst']:.2g}", f"{row['limit']:.2g}"


def _time_cells(
    lines: Sequence[Mapping[str, Any]],
) -> Callable[[Mapping[str, Any]], tuple[str, ...]]:
    def time_of(row: Mapping[str, Any]) -> float:
        return float(row["graph_us"] or row["plain_us"])

    autos = {
        (row["name"], row["dtype"]): time_of(row)
        for row in lines
        if row["bench"] == "gpu-time" and row["candidate"] == "auto"
    }

    def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
        graph = "" if row["graph_us"] is None else f"{row['graph_us']:.1f}"
        auto = autos.get((row["name"], row["dtype"]))
        ratio = "" if auto is None else f"{time_of(row) / auto:.2f}"
        floor = "" if row["floor_us"] is None else f"{time_of(row) / row['floor_us']:.2f}"
        named = f"{row['candidate']} ({row['form']})" if row["form"] else row["candidate"]
        plain = f"{row['plain_us']:.1f}"
        return row["shape"], row["dtype"], named, graph, plain, ratio, floor

    return cells


def page(comparison: Path, scan: Path, others: Iterable[Path] = ()) -> str:
    """The whole page as text; others: results of ``mp-bench networks``, and one for each GPU that
    was measured.
    """
    files = [read_rows(path) for path in others]
    runs = [rows for rows in files if "bench" not in rows[0]]
    on_gpus = [gpu_section(rows) for rows in files if "bench" in rows[0]]
    first, last = comparison_section(read_rows(comparison)), scan_section(read_rows(scan))
    sections = [first, *([networks_section(runs)] if runs else []), last, *on_gpus]
    intro = INTRO.replace(ON_CPU, ON_ITS_MACHINE) if on_gpus else INTRO
    return "\n".join([intro, *(line for part in sections for line in ("", *part))]) + "\n"


def main() -> None:
    """Write the page of the given files to standard output."""
    comparison, scan, *others = map(Path, sys.argv[1:])
    sys.stdout.write(page(comparison, scan, others))


if __name__ == "__main__":
    main()
