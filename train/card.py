"""The text of a lifter's card as Markdown, made from the card's JSON alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mambapose.train.curve import thinned

METRICS = ("mpjpe_mm", "pa_mpjpe_mm", "acceleration_mm", "jitter_mm")
COSTS = ("network", "parameters", "frames", "batch", "case", "ms", "mib")


def markdown(values: Mapping[str, Any]) -> str:
    """The card as text."""
    parts = (_head, _accuracy, _beside, _costs, _made, _curve)
    return "\n".join(line for part in parts for line in part(values)) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A table of Markdown, with an empty line after it."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return [*lines, ""]


def _head(values: Mapping[str, Any]) -> list[str]:
    accuracy = values["accuracy"]
    pairs = values["pairs"]
    depth = f"{pairs} pairs of blocks, " if pairs is not None else ""
    return [
        f"# {values['name']}", "",
        f"{values['network']}, {depth}{accuracy['parameters']} parameters, windows of "
        f"{accuracy['frames']} frames, FP16, answers in body heights. "
        f"Label: **{values['label']}**. Licence: {values['licence']}.", "",
        values["people"], "",
        *table(("headline", ""), values["headline"].items()),
        "## Known failures", "",
        *([f"- {line}" for line in values["known_failures"]] or ["- none known"]), "",
    ]  # fmt: skip


def _accuracy(values: Mapping[str, Any]) -> list[str]:
    rows = []
    for part, found in values["accuracy"].items():
        if isinstance(found, Mapping):
            for name, row in found.items():
                cells = (f"{row[key]:.1f}" for key in METRICS)
                rows.append((f"{part.replace('_', ' ')}: {name}", *cells))
    return [
        "## Accuracy", "",
        "Millimetres for a person of 1.75 m; twelve limb joints and the hip centre. Acceleration "
        "error and jitter are per frame squared. held out: activities that were never trained on, "
        "through a simulated detector; pose2sim: OpenPose's joints of a real video, against "
        "joints triangulated from four cameras.", "",
        *table(("", "MPJPE", "PA-MPJPE", "acceleration error", "jitter"), rows),
    ]  # fmt: skip


def _beside(values: Mapping[str, Any]) -> list[str]:
    if not values["beside"]:
        return []
    rows = []
    for row in values["beside"]:
        held, video = row["held_out"], row["pose2sim"]
        rows.append(
            (row["network"], row["parameters"], row["frames"], row["split"],
             f"{row['hours']:.2f}", row["windows"], held.get("mean", "-"),
             video.get("cam01", "-"), video.get("cam02", "-"))
        )  # fmt: skip
    head = ("network", "parameters", "T", "split", "hours", "windows", "held out", "cam01", "cam02")
    return [
        "## Other runs", "",
        "Short runs on a shared machine, PA-MPJPE in mm. Splits asf and exp are trained on one "
        "of the capture's two skeletons and measured on the other.", "",
        *table(head, rows),
    ]  # fmt: skip


def _costs(values: Mapping[str, Any]) -> list[str]:
    if not values["costs"]:
        return []
    rows = [tuple(row[key] for key in COSTS) for row in values["costs"]]
    first = values["costs"][0]
    return [
        "## Cost over the length of the window", "",
        f"{first['device']}, {first['threads']} thread(s), torch {first['torch']}; ms on a CPU are "
        "of processor time; memory above the idle process at its peak. NAME:PAIRS has so many "
        "pairs of blocks.", "",
        *table(("network", "parameters", "T", "batch", "case", "ms", "MiB"), rows),
    ]  # fmt: skip


def _made(values: Mapping[str, Any]) -> list[str]:
    lines = [
        "## How it was made", "",
        f"Commit {values['commit']}, seed {values['seed']}, {values['steps']} steps, "
        f"{values['hours']:.2f} hours, {values['windows']} windows.",
    ]  # fmt: skip
    for item in values["data"]:
        lines.append(f"Data: `{item['file']}`, sha256 {item['sha256']}. {item['credit']}")
    return [*lines, "", "```", *(item["command"] for item in values["commands"]), "```", ""]


def _curve(values: Mapping[str, Any]) -> list[str]:
    runs = [*(old["curves"] for old in values["before"]), values["curves"]]
    rows, looks = [], []
    for number, curve in enumerate(runs, 1):
        for row in thinned(curve["training"], 20):
            cells = (f"{row[key]:.4f}" for key in ("total", "position"))
            rows.append((number, row["step"], f"{row['hours']:.2f}", *cells))
        for row in thinned(curve["held_out"], 20):
            looks.append((number, row["step"], *(f"{row[key]:.1f}" for key in METRICS[:2])))
    return [
        "## Curves", "",
        *table(("run", "step", "hours", "loss", "position"), rows),
        *table(("run", "step", "held-out MPJPE mm", "PA-MPJPE mm"), looks),
    ]  # fmt: skip
