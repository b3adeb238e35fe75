"""The curve of a training run: a JSON line every minute and for every held-out measurement."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CURVE = "curve.jsonl"
POINTS = 60
KEPT = ("step", "hours", "total", "position", "scaled", "velocity", "windows_per_s")


def append_curve(folder: Path, row: dict[str, Any]) -> None:
    """Append one JSON line to the curve."""
    with (folder / CURVE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def cut_curve(folder: Path, step: int) -> None:
    """Remove what an interrupted run wrote to its curve after the last checkpoint."""
    path = folder / CURVE
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        path.write_text("".join(kept), encoding="utf-8")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's curve, an empty list when it has none.

    folder: that of the run, or the file of its checkpoint.
    """
    path = (folder if folder.is_dir() else folder.parent) / CURVE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def after(rows: Sequence[Mapping[str, Any]], steps: int, seconds: float) -> list[dict[str, Any]]:
    """The rows of a curve, continued from earlier runs that took so many steps and seconds."""
    hours = seconds / 3600
    return [
        {**row, "step": row["step"] + steps}
        | ({"hours": round(row["hours"] + hours, 4)} if "hours" in row else {})
        for row in rows
    ]


def thinned(rows: Sequence[Mapping[str, Any]], points: int = POINTS) -> list[dict[str, Any]]:
    """About ``points`` rows at most, evenly chosen, the last one among them."""
    if not rows:
        return []
    every = max(1, -(-len(rows) // points))
    return [dict(row) for row in rows[::-1][::every][::-1]]


def curves(folder: Path, points: int = POINTS) -> dict[str, list[dict[str, Any]]]:
    """The training curve of a run and its measurements on held-out activities, thinned.

    Both are empty when ``folder`` has no curve.
    """
    rows = rows_of(folder)
    training = [{key: row[key] for key in KEPT if key in row} for row in rows if "total" in row]
    held_out = [
        {"step": row["step"], **row["held_out"]["mean"]} for row in rows if "held_out" in row
    ]
    return {"training": thinned(training, points), "held_out": thinned(held_out, points)}
