"""A measured run as a table, as JSON lines and as one picture."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from mambapose.benchmarks.exported import stage_of
from mambapose.benchmarks.jobs import Row
from mambapose.runtime.errors import MambaPoseError
from mambapose.runtime.text import printable

COLUMNS = (
    ("what", 34),
    ("network", 72),
    ("size", 32),
    ("params M", 9),
    ("weights MiB", 12),
    ("peak MiB", 9),
    ("p50 ms", 9),
    ("p90 ms", 9),
    ("p99 ms", 9),
)
FRAME_COLUMNS = (("frames", 6), ("ms/frame", 9))


@dataclass(frozen=True)
class Limits:
    """The budget that a pipeline must keep; None is no limit."""

    latency_ms: float | None = None
    memory_mib: float | None = None


UNITS = {"ms": ("latency_ms", 1.0), "s": ("latency_ms", 1e3)}
UNITS |= {"MiB": ("memory_mib", 1.0), "GiB": ("memory_mib", 1024.0)}


def limits_from_text(text: str) -> Limits:
    """``33ms,4GiB`` as Limits; MambaPoseError when a part is not a number with a known unit."""
    found: dict[str, float] = {}
    for part in text.split(","):
        unit = next((unit for unit in ("ms", "MiB", "GiB", "s") if part.strip().endswith(unit)), "")
        try:
            field, scale = UNITS[unit]
            found[field] = float(part.strip().removesuffix(unit)) * scale
            if not 0 < found[field] < float("inf"):
                raise ValueError("neither NaN, nor infinity, nor nothing")
        except (KeyError, ValueError) as err:
            raise MambaPoseError(
                f"a budget such as 33ms,4GiB was wanted, found {part.strip()!r}; "
                "use ms or s, MiB or GiB"
            ) from err
    return Limits(**found)


def say(text: str = "", *, err: bool = False) -> None:
    """Print a line; names of a bundle are in it, which a terminal must not obey."""
    click.echo(printable(text), err=err)


def machine() -> dict[str, str | int]:
    """Versions and device of this run, to be written beside its numbers."""
    from mambapose.runtime.check.machine import processor_model

    found: dict[str, str | int] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": processor_model(),
        "python": platform.python_version(),
        "commit": commit(),
    }
    for package in ("mambapose", "onnxruntime", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def commit() -> str:
    """The commit of the checkout this package lies in, with ``+`` when files differ from it.

    ``unknown`` outside a checkout: the repository of the user's current folder is not ours.
    """
    here = Path(__file__).resolve().parent
    commands = (
        ["git", "rev-parse", "--show-toplevel"],
        ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
    )
    try:
        top, name = (
            subprocess.run(command, cwd=here, capture_output=True, text=True).stdout.strip()
            for command in commands
        )
    except FileNotFoundError:
        return "unknown"
    ours = bool(top) and (Path(top) / "benchmarks" / Path(__file__).name).is_file()
    return name if ours and name else "unknown"


def columns(rows: Sequence[Row]) -> tuple[tuple[str, int], ...]:
    """Heads and greatest widths; the columns about frames only where a row states its frames."""
    stated = any(row.frames is not None for row in rows)
    return COLUMNS + FRAME_COLUMNS if stated else COLUMNS


def cells(row: Row) -> tuple[str, ...]:
    """The texts of one row, in the order of COLUMNS, then of FRAME_COLUMNS."""
    return (
        row.label,
        row.network,
        row.size,
        f"{row.params / 1e6:.2f}",
        f"{row.weights_mib:.1f}",
        f"{row.peak_mib:.1f}",
        f"{row.p50_ms:.1f}",
        f"{row.p90_ms:.1f}",
        f"{row.p99_ms:.1f}",
        "" if row.frames is None else str(row.frames),
        "" if row.frame_ms is None else f"{row.frame_ms:.2f}",
    )


def table(rows: Iterable[Row]) -> list[str]:
    """The rows as aligned text, grouped."""
    every = list(rows)
    shown = columns(every)
    texts = [cells(row)[: len(shown)] for row in every]
    heads = [name for name, _ in shown]
    widths = [
        min(limit, max(len(head), *(len(text[i]) for text in texts)))
        for i, (head, limit) in enumerate(shown)
    ]

    def line(values: Sequence[str]) -> str:
        left = [
            value[:width].ljust(width) for value, width in zip(values[:3], widths, strict=False)
        ]
        right = [value.rjust(width) for value, width in zip(values[3:], widths[3:], strict=True)]
        return "  ".join(left + right)

    lines = [line(heads)]
    group = ""
    for row, text in zip(every, texts, strict=True):
        if row.group != group:
            group = row.group
            lines.append(f"-- {group}")
        lines.append(line(text))
    return lines


def named(rows: Iterable[Row], label: str, group: str | None = None) -> Row | None:
    """The first row with that label (and group), or None."""
    return next((r for r in rows if r.label == label and group in (None, r.group)), None)


def ratios(
    rows: Sequence[Row], tiers: Sequence[tuple[str, str]], baselines: Sequence[str]
) -> list[str]:
    """Sentences that compare the measured rows with the project's goals and the baselines."""
    lines = []
    for ours, theirs in tiers:
        a, b = named(rows, ours, "tier"), named(rows, theirs, "tier")
        if a and b:
            lines.append(f"{ours} / {theirs}: {_costs(a, b, 'below 1')}")
    chain = named(rows, "pipeline")
    stages = [row for row in rows if row.group == "stage"]
    for baseline in baselines:
        base = named(rows, baseline, "baseline")
        own = None if base is None else named(rows, stage_of(baseline), "stage")
        if base and len(stages) == 1:
            lines.append(f"{stages[0].network} / {baseline}: {_costs(stages[0], base)}")
        elif base and chain and stage_of(baseline) == "pose2d":
            lines.append(f"whole pipeline / {baseline}: {_costs(chain, base, 'at most 0.6')}")
        elif base and own:
            lines.append(f"{own.network} / {baseline}: {_costs(own, base)}")
        for row in (*stages, *filter(None, [chain])):
            if (other := named(rows, f"{baseline} {row.label}", "baseline")) is not None:
                lines.append(f"{row.label} / {other.label}: {_costs(row, other)}")
    return lines


def _costs(a: Row, b: Row, goal: str = "") -> str:
    """The costs of a over those of b: ``peak memory 0.50x (goal below 1), latency 0.42x``.

    The time is per frame where the two give different numbers of frames, and is called per call
    where one of them does not state its frames.
    """
    times, what = (a.p50_ms, b.p50_ms), "latency"
    if a.frames != b.frames:
        what = "time per call"
        if a.frame_ms is not None and b.frame_ms is not None:
            times, what = (a.frame_ms, b.frame_ms), "time per frame"
    held = f" (goal {goal})" if goal else ""
    return f"peak memory {a.peak_mib / b.peak_mib:.2f}x{held}, {what} {times[0] / times[1]:.2f}x"


def verdicts(rows: Sequence[Row], limits: Limits) -> list[tuple[str, bool]]:
    """(text, whether the pipeline keeps it) for each limit."""
    chain = named(rows, "pipeline")
    if chain is None:
        return []
    checks = (
        ("p50 latency", chain.p50_ms, limits.latency_ms, "ms"),
        ("peak memory", chain.peak_mib, limits.memory_mib, "MiB"),
    )
    return [
        (f"budget {name} {limit:g} {unit}: {value:.1f} {unit}", value <= limit)
        for name, value, limit, unit in checks
        if limit is not None
    ]


def write_json_lines(rows: Iterable[Row], path: Path, about: Mapping[str, object]) -> None:
    """Append one JSON object per row, each with the machine and the bundle it belongs to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({**asdict(row), **about}) + "\n")


def plot(rows: Sequence[Row], path: Path) -> None:
    """One PNG: memory and latency of the rows, and how both grow in the sweeps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9), layout="constrained")
    axes = figure.subplots(2, 2)
    bars = [row for row in rows if "sweep" not in row.group]
    names = [f"{row.label} ({row.group})" for row in bars]
    for axis, field, unit in ((axes[0][0], "peak_mib", "MiB"), (axes[0][1], "p50_ms", "ms")):
        axis.barh(names, [getattr(row, field) for row in bars], color="#3b6ea5")
        axis.invert_yaxis()
        axis.set_xlabel(f"{'peak memory' if unit == 'MiB' else 'p50 latency'} [{unit}]")
        axis.tick_params(axis="y", labelsize=7)
    for axis, field, unit in ((axes[1][0], "peak_mib", "MiB"), (axes[1][1], "p50_ms", "ms")):
        for label in dict.fromkeys(row.label for row in rows if "sweep" in row.group):
            points = [row for row in rows if "sweep" in row.group and row.label == label]
            axis.plot(range(len(points)), [getattr(r, field) for r in points], "o-", label=label)
            for x, row in enumerate(points):
                axis.annotate(row.size, (x, getattr(row, field)), fontsize=6)
        axis.set_xticks([])
        axis.set_xlabel("input size (crop of the 2D networks, window of the lifter)")
        axis.set_ylabel(f"{'peak memory' if unit == 'MiB' else 'p50 latency'} [{unit}]")
        if axis.lines:
            axis.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
