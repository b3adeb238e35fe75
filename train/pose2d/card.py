"""The card of mambapose-nano, and its weights: python -m mambapose.train.pose2d.card --help.

The mean weights of a run are written as FP16; everything on the card is measured with them as
written. The card is a JSON file for checks and the same as Markdown for people.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from mambapose.benchmarks.truth.pose_metrics import ROW as METRICS
from mambapose.benchmarks.truth.pose_metrics import PoseMetrics, as_row
from mambapose.export.models import mambapose_nano
from mambapose.runtime.bundle.bundle import file_sha256
from mambapose.runtime.errors import ExportError, MambaPoseError
from mambapose.runtime.skeleton import COCO17
from mambapose.train.card import table
from mambapose.train.curve import thinned
from mambapose.train.lift.card import (
    FORMAT_VERSION,
    LICENCE,
    commit_here,
    half,
    portable,
)
from mambapose.train.lift.state import read
from mambapose.train.pose2d.evaluate import report
from mambapose.train.pose2d.state import so_far

NETWORK = "mambapose-nano"
VIDEO = "together"  # both cameras of pose2sim-single
GOALS = {"pck20": 0.85, "collapsed": 0.05, "median": 0.03}
PERCENT = ("median", "mean")
COSTS = ("network", "parameters", "batch", "ms", "mib")
PEOPLE = (
    "Trained on rendered people only: MakeHuman bodies (CC0) moved by CMU motion capture, in front "
    "of procedural rooms and frames of the open film Sintel (c) Blender Foundation, CC BY 3.0. "
    "No picture of a real person was trained on; pose2sim-single is measured only."
)


REAL_PEOPLE = (
    "Trained on rendered and real people. Rendered: MakeHuman bodies (CC0) moved by CMU motion "
    "capture, in front of procedural rooms and frames of the open film Sintel (c) Blender "
    "Foundation, CC BY 3.0. Real: crops of free photographs and videos whose makers NOTICE names, "
    "with joints by MoveNet Thunder (Google, Apache-2.0); the people in them did not pose for this "
    "project. Pictures that people annotated and pose2sim-single are measured only."
)


def trained_on(commands: Iterable[Mapping[str, Any]]) -> str:
    """A sentence on whom the runs trained, read from their commands."""
    real = any("--real" in command["command"].split() for command in commands)
    return REAL_PEOPLE if real else PEOPLE


def failures(accuracy: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The goals that are missed, in words; while there are any, the network is a demonstration."""
    row = accuracy.get(VIDEO)
    if row is None:
        return ["not measured on real video"]
    missed = []
    if row["pck20"] < GOALS["pck20"]:
        missed.append(f"PCK@0.2 {row['pck20']:.3f} on pose2sim, the goal is {GOALS['pck20']}")
    for name, words in (("collapsed", "left-right pairs on one limb"), ("median", "median error")):
        if row[name] > GOALS[name]:
            found, goal = 100 * row[name], 100 * GOALS[name]
            missed.append(f"{words}: {found:.2f} % on pose2sim, the goal is {goal:.0f} %")
    return missed


def headline(accuracy: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The numbers a user should know."""
    found = {}
    for key, name in ((VIDEO, "pose2sim"), ("rgb", "rendered")):
        if key in accuracy:
            row = accuracy[key]
            found[f"{name} PCK@0.2"] = round(row["pck20"], 3)
            found[f"{name} median error % of height"] = round(100 * row["median"], 2)
            found[f"{name} collapsed pairs %"] = round(100 * row["collapsed"], 1)
    return found


def as_rows(metrics: Mapping[str, PoseMetrics]) -> dict[str, dict[str, Any]]:
    """The metrics, rounded for a file."""
    rows = {}
    for name, one in metrics.items():
        row: dict[str, Any] = {**as_row(one), "joints": one.joints}
        joints = zip(COCO17.joints, one.per_joint, strict=True)
        row["per_joint_median"] = {
            joint: round(value, 4) for joint, value in joints if math.isfinite(value)
        }
        rows[name] = row
    return rows


def ship(
    run: Path, out: Path, assets: Path | None, stores: Sequence[Path], *, count: int = 300,
    known: Sequence[str] = (), costs: Iterable[Mapping[str, Any]] = (), commit: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The card of a run, after mambapose-nano.safetensors, .json and .md were written into ``out``.

    assets: folder with pose2sim-single; stores: shots of held-out clips; known: failures, in
    sentences; costs: rows of train.pose2d.cost.
    """
    from safetensors.torch import save_file

    content = read(run)
    weights = half(
        {k: v for k, v in content["average"].items() if not k.endswith("num_batches_tracked")}
    )
    model = mambapose_nano.build()
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    accuracy = as_rows(report(model.eval(), assets, list(stores), count))
    missed = failures(accuracy)
    label = "demonstration" if missed else "trained"
    past = so_far(content, run)
    past["commands"] = portable(past["commands"])
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{NETWORK}.safetensors"
    said = {"trained_by": "mambapose", "label": label, "licence": LICENCE}
    save_file(weights, file, metadata={**said, "training": json.dumps(past)})
    file.chmod(0o644)  # the library writes for its owner alone
    values = {
        "format_version": FORMAT_VERSION,
        "name": NETWORK,
        "network": NETWORK,
        "label": label,
        "headline": headline(accuracy),
        "file": {"name": file.name, "sha256": file_sha256(file), "bytes": file.stat().st_size},
        "precision": "fp16",
        "licence": LICENCE,
        "people": trained_on(past["commands"]),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "plan": dict(content["plan"]),
        "commit": commit or commit_here(),
        "steps": content["offset"] + content["step"],
        "hours": round(past["seconds"] / 3600, 3),
        "samples": past["samples"],
        "commands": past["commands"],
        "accuracy": accuracy,
        "held_out_crops": count if stores else 0,
        "curves": past["curves"],
        "costs": [dict(row) for row in costs],
        "known_failures": [*missed, *known],
    }
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    (out / f"{NETWORK}.json").write_text(text, encoding="utf-8")
    (out / f"{NETWORK}.md").write_text(markdown(values), encoding="utf-8")
    return values


def markdown(values: Mapping[str, Any]) -> str:
    """The card as text, from its JSON alone."""
    accuracy = values["accuracy"].items()
    rows = [(name, *(_cell(key, row[key]) for key in METRICS)) for name, row in accuracy]
    video = values["accuracy"].get(VIDEO, {}).get("per_joint_median", {})
    curve = values["curves"]
    costs = (tuple(row[key] for key in COSTS) for row in values["costs"])
    lines = [
        f"# {values['name']}", "",
        f"{values['parameters']} parameters, crops of 256x192, FP16. "
        f"Label: **{values['label']}**. Licence: {values['licence']}.", "",
        values["people"], "",
        *table(("headline", ""), values["headline"].items()),
        "## Known failures", "",
        *([f"- {line}" for line in values["known_failures"]] or ["- none known"]), "",
        "## Accuracy", "",
        "cam01, cam02, together: the two cameras of pose2sim-single, RGB alone, boxes known, "
        "against OpenPose's joints of score above 0.5. rgb to rgb+flow+depth: "
        f"{values['held_out_crops']} rendered crops of held-out motions with everything in the "
        "picture, flow and depth as estimators give them, hidden joints counted. clean to "
        "occlusion: as many clean crops, RGB alone, one fault at a time. Errors in % of body "
        "height; PCK in torso lengths; collapsed: left-right pairs put on one limb.", "",
        *table(("", *(key.replace("_", " ") for key in METRICS)), rows),
        *table(("joint", "median % of height, pose2sim"),
               ((joint, f"{100 * value:.1f}") for joint, value in video.items())),
        "## How it was made", "",
        f"Commit {values['commit']}, {values['samples']} samples in {values['steps']} steps, "
        f"{values['hours']:.2f} hours. Shots: `python -m mambapose.train.pose2d.render`.", "",
        "```", *(item["command"] for item in values["commands"]), "```", "",
        "A training step, CPU, one thread, float32; memory above that of the idle process:", "",
        *table(COSTS, costs),
        "## Curves", "",
        *table(("step", "hours", "total", "place", "side"),
               (tuple(row[key] for key in ("step", "hours", "total", "place", "side"))
                for row in thinned(curve["training"], 20))),
        *table(("step", "held-out", *METRICS),
               ((row["step"], row["inputs"], *(_cell(key, row[key]) for key in METRICS))
                for row in curve["held_out"])),
    ]  # fmt: skip
    return "\n".join(lines).rstrip() + "\n"


def _cell(key: str, value: float) -> str:
    return f"{100 * value:.2f} %" if key in PERCENT else f"{value:.3f}"


@click.command(context_settings={"show_default": True})
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--assets", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Folder with pose2sim-single and the free films.")  # fmt: skip
@click.option("--store", "stores", type=click.Path(exists=True, file_okay=False, path_type=Path),
              multiple=True, help="Shots of held-out clips.")  # fmt: skip
@click.option("--count", type=click.IntRange(1), default=300, help="Held-out crops.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--known", multiple=True, help="A known failure, in a sentence.")
@click.option("--costs", type=click.Path(path_type=Path), help="Rows of train.pose2d.cost --json.")
@click.option("--commit", help="The commit trained at; that of the checkout otherwise.")
def main(
    run: Path, assets: Path | None, stores: tuple[Path, ...], count: int, out: Path,
    known: tuple[str, ...], costs: Path | None, commit: str | None,
) -> None:  # fmt: skip
    """Write the mean weights of RUN as FP16 into OUT, with their card."""
    try:
        rows = [] if costs is None else costs.read_text(encoding="utf-8").splitlines()
        if assets is None and not stores:
            raise ExportError("something to measure on was wanted; give --assets or --store")
        values = ship(
            run, out, assets, stores, count=count, known=known,
            costs=[json.loads(row) for row in rows], commit=commit,
        )  # fmt: skip
    except (MambaPoseError, OSError, ValueError) as err:
        click.echo(f"error: {err}", err=True)
        sys.exit(1)
    for name, value in values["headline"].items():
        click.echo(f"{name}: {value}")
    click.echo(f"{values['label']}: wrote {out / NETWORK}.safetensors, .json and .md")


if __name__ == "__main__":
    main()
