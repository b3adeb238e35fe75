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

from mambapose.benchmarks.jobs import Row
from mambapose.runtime.errors import MambaPoseError

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


@dataclass(frozen=True)
class Limits:
    """The budget a pipeline is held to; None is no limit."""

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
        except (KeyError, ValueError) as err:
            raise MambaPoseError(
                f"a budget such as 33ms,4GiB was wanted, found {part.strip()!r}; "
                "use ms or s, MiB or GiB"
            ) from err
    return Limits(**found)


def machine() -> dict[str, str | int]:
    """Versions and device of this run, to be written beside its numbers."""
    from mambapose.runtime.check import processor_model

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

    ``unknown`` outside of one: the repository a user happens to stand in says nothing about us.
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


def cells(row: Row) -> tuple[str, ...]:
    """The texts of one row, in the order of COLUMNS."""
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
    )


def table(rows: Iterable[Row]) -> list[str]:
    """The rows as aligned text, grouped."""
    every = list(rows)
    texts = [cells(row) for row in every]
    heads = [name for name, _ in COLUMNS]
    widths = [
        min(limit, max(len(head), *(len(text[i]) for text in texts)))
        for i, (head, limit) in enumerate(COLUMNS)
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


def ratios(rows: Sequence[Row], tiers: Sequence[tuple[str, str]], vs: str | None) -> list[str]:
    """Sentences that hold the measured rows against the project's goals."""
    lines = []
    for ours, theirs in tiers:
        a, b = named(rows, ours, "tier"), named(rows, theirs, "tier")
        if a and b:
            lines.append(
                f"{ours} / {theirs}: peak memory {a.peak_mib / b.peak_mib:.2f}x (goal below 1), "
                f"latency {a.p50_ms / b.p50_ms:.2f}x"
            )
    chain, base = named(rows, "pipeline"), named(rows, vs or "", "baseline")
    if chain and base:
        lines.append(
            f"whole pipeline / {vs}: peak memory {chain.peak_mib / base.peak_mib:.2f}x "
            f"(goal at most 0.6), latency {chain.p50_ms / base.p50_ms:.2f}x"
        )
    return lines


def verdicts(rows: Sequence[Row], limits: Limits) -> list[tuple[str, bool]]:
    """Each limit with whether the pipeline keeps it."""
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
