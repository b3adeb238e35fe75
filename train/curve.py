"""The curve of a training run: one JSON line a minute, and one for every look at held-out clips."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CURVE = "curve.jsonl"
POINTS = 60
KEPT = ("step", "hours", "total", "position", "scaled", "velocity", "windows_per_s")


def append_curve(folder: Path, row: dict[str, Any]) -> None:
    """One JSON line, flushed."""
    with (folder / CURVE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def cut_curve(folder: Path, step: int) -> None:
    """Drop what an interrupted run wrote after its last checkpoint."""
    path = folder / CURVE
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        path.write_text("".join(kept), encoding="utf-8")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's curve; folder: the run's, or its checkpoint. None where none is."""
    path = (folder if folder.is_dir() else folder.parent) / CURVE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def after(rows: Sequence[Mapping[str, Any]], steps: int, seconds: float) -> list[dict[str, Any]]:
    """A curve as that of a run which others of so many steps and seconds came before."""
    hours = seconds / 3600
    return [
        {**row, "step": row["step"] + steps}
        | ({"hours": round(row["hours"] + hours, 4)} if "hours" in row else {})
        for row in rows
    ]


def thinned(rows: Sequence[Mapping[str, Any]], points: int = POINTS) -> list[dict[str, Any]]:
    """At most about ``points`` rows, evenly, the last one among them."""
    if not rows:
        return []
    every = max(1, -(-len(rows) // points))
    return [dict(row) for row in rows[::-1][::every][::-1]]


def curves(folder: Path, points: int = POINTS) -> dict[str, list[dict[str, Any]]]:
    """The training curve and the looks at held-out activities of a run, thinned; empty where
    ``folder`` has none."""
    rows = rows_of(folder)
    training = [{key: row[key] for key in KEPT if key in row} for row in rows if "total" in row]
    held_out = [
        {"step": row["step"], **row["held_out"]["mean"]} for row in rows if "held_out" in row
    ]
    return {"training": thinned(training, points), "held_out": thinned(held_out, points)}
