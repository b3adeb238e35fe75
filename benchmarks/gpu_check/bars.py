"""The timed rows as a table, as JSON lines and as bars that are kept or missed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mambapose.benchmarks.scan import Bar

MAMBA = "mamba-ssm with its copies"
AUTO = "auto"
MODEL_BARS = ("pair-384", "cross-128", "pair-768")
FLOOR_BARS = ("cross-128", "pair-768")
TIMES_FASTER, TIMES_FLOOR, HALF_ERROR = 2.0, 3.0, 1.5e-3
BAR_TYPE = "fp16"


@dataclass(frozen=True)
class Row:
    """One candidate on one shape: microseconds in a CUDA graph and launched from Python.

    candidate: "auto" or another tactic of ours, MAMBA, or another yardstick; form: the launch plan
    in words, for our own candidates.
    """

    name: str
    shape: str
    dtype: str
    candidate: str
    graph_us: float | None
    plain_us: float
    spread: float
    floor_us: float | None
    form: str = ""


def _times(rows: Iterable[Row], name: str, dtype: str) -> dict[str, Row]:
    return {row.candidate: row for row in rows if (row.name, row.dtype) == (name, dtype)}


def judged(rows: Sequence[Row], errors: Mapping[str, float]) -> list[Bar]:
    """Every bar; those whose yardstick was not measured are left out (see `unmeasured`).

    errors: type -> the worst error of the forward pass.
    """
    bars = []
    for name in MODEL_BARS:
        for dtype in ("fp16", "fp32"):
            found = _times(rows, name, dtype)
            if AUTO in found and MAMBA in found:
                limit = TIMES_FASTER if dtype == BAR_TYPE else None
                bars.append(_ratio_bar(found[MAMBA], found[AUTO], limit))
    for name in FLOOR_BARS:
        ours = _times(rows, name, BAR_TYPE).get(AUTO)
        if ours is not None and ours.floor_us and ours.graph_us:
            bars.append(
                Bar("times the floor", ours.shape, ours.graph_us / ours.floor_us, TIMES_FLOOR,
                    False, "x", BAR_TYPE, ours.graph_us / 1e3)
            )  # fmt: skip
    if BAR_TYPE in errors:
        bars.append(Bar("largest error", "all", errors[BAR_TYPE], HALF_ERROR, False, "", BAR_TYPE))
    return bars


def _ratio_bar(theirs: Row, ours: Row, limit: float | None) -> Bar:
    assert theirs.graph_us is not None
    assert ours.graph_us is not None
    return Bar(f"faster than {MAMBA}", ours.shape, theirs.graph_us / ours.graph_us, limit, True,
               "x", ours.dtype, ours.graph_us / 1e3)  # fmt: skip


def unmeasured(bars: Iterable[Bar]) -> list[str]:
    """The bars that could not be judged because nothing was measured for them."""
    found = {(bar.what, bar.isa) for bar in bars if bar.limit is not None}
    wanted = (f"faster than {MAMBA}", "times the floor", "largest error")
    return [what for what in wanted if (what, BAR_TYPE) not in found]


def table(rows: Iterable[Row]) -> list[str]:
    """Lines of the printed table; ratios are to our automatic choice of the same type."""
    lines = [f"{'shape':28} {'type':5} {'candidate':34} {'graph us':>9} {'plain us':>9} "
             f"{'/ auto':>7} {'/ floor':>7}"]  # fmt: skip
    all_rows = list(rows)
    for row in all_rows:
        auto = _times(all_rows, row.name, row.dtype).get(AUTO)
        graph = "" if row.graph_us is None else f"{row.graph_us:.1f}"
        time = row.plain_us if row.graph_us is None else row.graph_us
        ours = None if auto is None else auto.graph_us or auto.plain_us
        ratio = "" if not ours else f"{time / ours:.2f}"
        floor = "" if row.floor_us is None else f"{time / row.floor_us:.2f}"
        named = f"{row.candidate} ({row.form})" if row.form else row.candidate
        lines.append(
            f"{row.shape:28} {row.dtype:5} {named:34} {graph:>9} {row.plain_us:>9.1f} "
            f"{ratio:>7} {floor:>7}"
        )
    return lines


def results_file(folder: Path, device: str) -> Path:
    """The file of this device's results."""
    return folder / f"gpu_{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.jsonl"


def write_json_lines(
    path: Path,
    rows: Iterable[Row],
    bars: Iterable[Bar],
    checks: Iterable[Mapping[str, Any]],
    machine: Mapping[str, Any],
) -> None:
    """Append what one run found: a line for each number, together with the machine."""
    lines: list[dict[str, Any]] = [{"bench": "gpu-time", **asdict(row)} for row in rows]
    lines += [{"bench": "gpu-bar", **asdict(bar), "ok": bar.ok} for bar in bars]
    lines += [{"bench": "gpu-check", **check} for check in checks]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps({**line, "machine": dict(machine)}) + "\n")


def last_run(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines of a results file that belong to its last run."""
    return [line for line in lines if line["machine"] == lines[-1]["machine"]]
