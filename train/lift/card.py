"""The card of a lifter that ships: what it is, how it was made, how good it is, where it fails.

A card is a JSON file for checks and the same as Markdown for people. ``python -m
mambapose.train.lift.card RUN ...`` writes the mean weights of a lifter as FP16 beside its card;
everything on the card is measured with the weights as written.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from mambapose.benchmarks.truth.motion import FILE
from mambapose.export.weights import PERSON
from mambapose.runtime.bundle.bundle import file_sha256
from mambapose.runtime.errors import ExportError, MambaPoseError
from mambapose.runtime.stages.joints import BODY_HEIGHTS
from mambapose.train import curve as lift_curve
from mambapose.train.card import markdown
from mambapose.train.lift import evaluate as lift_eval
from mambapose.train.lift import state as lift_state

FORMAT_VERSION = 1
GOALS_MM = {"pose2sim": 60.0, "held_out": 45.0}  # PA-MPJPE at 1.75 m
LICENCE = "Apache-2.0"
CREDIT = (
    "The data used in this project was obtained from mocap.cs.cmu.edu. The database was created "
    "with funding from NSF EIA-0196217."
)
BESIDE = ("network", "parameters", "frames", "split", "step", "hours", "windows")


def commit_here() -> str:
    """The commit of the checkout, with a + when files differ from it; ``unknown`` without one."""
    folder = Path(__file__).resolve().parent
    try:
        words = ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
        return subprocess.run(
            words, cwd=folder, check=True, capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def failures(accuracy: Mapping[str, Any]) -> list[str]:
    """The goals that are missed, in words; while there are any, the network is a demonstration."""
    found = []
    for part, goal in GOALS_MM.items():
        rows = accuracy.get(part)
        if not rows:
            found.append(f"not measured on {part}")
            continue
        for name, row in rows.items():
            if row["pa_mpjpe_mm"] > goal:
                found.append(
                    f"PA-MPJPE {row['pa_mpjpe_mm']:.0f} mm on {part} {name}, the goal is {goal:.0f}"
                )
    return found


def headline(accuracy: Mapping[str, Any]) -> dict[str, float]:
    """The numbers a user should know, in mm for a person of 1.75 m."""
    found = {}
    for name, row in accuracy.get("pose2sim", {}).items():
        found[f"pose2sim {name} PA-MPJPE mm"] = round(row["pa_mpjpe_mm"], 1)
        found[f"pose2sim {name} MPJPE mm"] = round(row["mpjpe_mm"], 1)
    if "held_out" in accuracy:
        mean = accuracy["held_out"]["mean"]
        found["held-out activities PA-MPJPE mm"] = round(mean["pa_mpjpe_mm"], 1)
        found["held-out activities MPJPE mm"] = round(mean["mpjpe_mm"], 1)
    return found


def beside(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the card shows of another run for comparison: what it is, and its PA-MPJPE in mm."""
    row = {key: report[key] for key in BESIDE}
    for part in ("held_out", "pose2sim"):
        found = {name: round(one["pa_mpjpe_mm"], 1) for name, one in report.get(part, {}).items()}
        row[part] = found
    return row


def portable(commands: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The commands, with absolute paths cut to their last part."""
    return [
        {**one, "command": " ".join(_last_part(word) for word in one["command"].split(" "))}
        for one in commands
    ]


def _last_part(word: str) -> str:
    return Path(word).name if word.startswith("/") else word


def before(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs that this one started from, the first one first."""
    found, old = [], content["notes"].get("before")
    while old is not None:
        found.append({key: value for key, value in old.items() if key != "before"})
        old = old["before"]
    return found[::-1]


def half(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights in FP16; ExportError when some do not fit."""
    found = {name: tensor.detach().cpu().half().contiguous() for name, tensor in weights.items()}
    bad = [name for name, tensor in found.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise ExportError(f"weights that fit FP16 were wanted, {', '.join(bad)} do not; train on")
    return found


def ship(
    run: Path,
    out: Path,
    data: Path,
    video: Path | None,
    *,
    known: Sequence[str] = (),
    costs: Sequence[Mapping[str, Any]] = (),
    others: Sequence[Mapping[str, Any]] = (),
    commit: str | None = None,
) -> dict[str, Any]:
    """The card of a run, after OUT.safetensors, OUT.json and OUT.md were written.

    known: failures, in sentences; costs: rows of train.lift.sweep; others: reports of
    train.lift.evaluate.
    """
    from safetensors.torch import save_file

    content = lift_state.read(run)
    notes = content["notes"]
    content["notes"] = {**notes, "commands": portable(notes.get("commands", []))}
    weights = half(content["average"])
    rounded = {name: tensor.float() for name, tensor in weights.items()}
    accuracy = lift_eval.report({**content, "average": rounded}, data, video)
    missed = failures(accuracy)
    label = "demonstration" if missed else "trained"
    file = out.with_name(out.name + lift_state.WEIGHTS_SUFFIX)
    file.parent.mkdir(parents=True, exist_ok=True)
    said = {"unit": BODY_HEIGHTS, "trained_by": "mambapose", "label": label, "licence": LICENCE,
            "credit": CREDIT}  # fmt: skip
    if content["plan"]["network"] == "posemamba-s":
        said["joints"] = PERSON
    save_file(weights, file, metadata={**said, **lift_state.metadata(content, run)})
    file.chmod(0o644)  # save_file leaves it to its owner alone
    data = data / FILE if data.is_dir() else data
    values = {
        "format_version": FORMAT_VERSION,
        "name": out.name,
        "network": content["plan"]["network"],
        "parameters": accuracy["parameters"],
        "pairs": content["plan"]["pairs"],
        "label": label,
        "headline": headline(accuracy),
        "file": {"name": file.name, "sha256": file_sha256(file), "bytes": file.stat().st_size},
        "precision": "fp16",
        "unit": BODY_HEIGHTS,
        "licence": LICENCE,
        "data": [{"file": data.name, "sha256": file_sha256(data), "credit": CREDIT}],
        "people": "No picture of a person, and no frame of pose2sim-single, was trained on.",
        "seed": content["plan"]["seed"],
        "plan": dict(content["plan"]),
        "commands": content["notes"]["commands"],
        "before": before(content),
        "commit": commit or commit_here(),
        "steps": int(lift_state.whole(content, "step")),
        "hours": round(lift_state.whole(content, "seconds") / 3600, 3),
        "windows": int(lift_state.whole(content, "windows")),
        "accuracy": accuracy,
        "beside": [beside(report) for report in others],
        "curves": lift_curve.curves(run),
        "costs": [dict(row) for row in costs],
        "known_failures": [*missed, *known],
    }
    json_file = out.with_name(out.name + ".json")
    json_file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    out.with_name(out.name + ".md").write_text(markdown(values), encoding="utf-8")
    return values


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the motion capture file.",
)
@click.option("--video", type=click.Path(path_type=Path), help="Folder of pose2sim-single.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Where, without the ending: .safetensors, .json and .md are written.",
)
@click.option("--known", multiple=True, help="A known failure, in a sentence.")
@click.option("--costs", type=click.Path(path_type=Path), help="Rows of train.lift.sweep --json.")
@click.option(
    "--beside",
    "others",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Report of train.lift.evaluate --json of another run.",
)
@click.option("--commit", help="The commit trained at; that of the checkout otherwise.")
def main(
    run: Path, data: Path, video: Path | None, out: Path, known: tuple[str, ...],
    costs: Path | None, others: tuple[Path, ...], commit: str | None,
) -> None:  # fmt: skip
    """Write the weights of a lifter's training RUN as FP16, with their card."""
    try:
        rows = [] if costs is None else costs.read_text(encoding="utf-8").splitlines()
        reports = [json.loads(path.read_text(encoding="utf-8")) for path in others]
        values = ship(
            run, out, data, video, known=known, costs=[json.loads(row) for row in rows],
            others=reports, commit=commit,
        )  # fmt: skip
    except (MambaPoseError, OSError, ValueError) as err:
        click.echo(f"error: {err}", err=True)
        sys.exit(1)
    click.echo(lift_eval.table(values["accuracy"]))
    click.echo(f"{values['label']}: wrote {out}.safetensors, .json and .md")


if __name__ == "__main__":
    main()
