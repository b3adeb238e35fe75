"""The card of a network that ships: what it is, how it was made, how good it is, where it fails.

A card is a JSON file for checks and the same as Markdown for people. ``python -m
mambapose.export.train.card RUN ...`` writes the mean weights of a lifter as FP16 beside its card;
everything on the card is measured with the weights as written.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from mambapose.export.train import lift_eval, lift_state
from mambapose.export.train.motion import FILE
from mambapose.runtime.errors import ExportError, MambaPoseError

FORMAT_VERSION = 1
GOALS_MM = {"pose2sim": 60.0, "held_out": 45.0}  # PA-MPJPE at 1.75 m
CURVE_POINTS = 60
METRICS = ("mpjpe_mm", "pa_mpjpe_mm", "acceleration_mm", "jitter_mm")
MEMORY = ("network", "frames", "batch", "mib", "ms")
CREDIT = (
    "The data used in this project was obtained from mocap.cs.cmu.edu. The database was created "
    "with funding from NSF EIA-0196217."
)


def sha256(path: Path) -> str:
    """Of the file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def commit_here() -> str:
    """The commit of the checkout, with a + when files differ from it; ``unknown`` outside one."""
    folder = Path(__file__).resolve().parent
    try:
        words = ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
        return subprocess.run(
            words, cwd=folder, check=True, capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def thinned(rows: Sequence[Mapping[str, Any]], points: int = CURVE_POINTS) -> list[dict[str, Any]]:
    """At most about ``points`` rows, evenly, the last one among them."""
    if not rows:
        return []
    every = max(1, -(-len(rows) // points))
    return [dict(row) for row in rows[::-1][::every][::-1]]


def curves(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The training curve and the looks at held-out activities of a run, thinned."""
    path = folder / lift_state.CURVE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    kept = ("step", "hours", "total", "position", "scaled", "velocity", "windows_per_s")
    training = [{key: row[key] for key in kept if key in row} for row in rows if "total" in row]
    held_out = [
        {"step": row["step"], **row["held_out"]["mean"]} for row in rows if "held_out" in row
    ]
    return {"training": thinned(training), "held_out": thinned(held_out)}


def failures(accuracy: Mapping[str, Any]) -> list[str]:
    """Goals that are missed, in words; the network is a demonstration while there are any."""
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


def card(
    *,
    weights: Path,
    network: str,
    content: Mapping[str, Any],
    data: Path,
    accuracy: Mapping[str, Any],
    curve: Mapping[str, Any],
    known: Sequence[str],
    memory: Sequence[Mapping[str, Any]],
    commit: str,
) -> dict[str, Any]:
    """Everything the card holds; ``content`` is the checkpoint's."""
    missed = failures(accuracy)
    return {
        "format_version": FORMAT_VERSION,
        "name": weights.stem,
        "network": network,
        "label": "demonstration" if missed else "trained",
        "file": {"name": weights.name, "sha256": sha256(weights), "bytes": weights.stat().st_size},
        "precision": "fp16",
        "unit": "body_height",
        "data": [{"file": data.name, "sha256": sha256(data), "credit": CREDIT}],
        "people": "No picture of a person, and no frame of pose2sim-single, was trained on.",
        "seed": content["plan"]["seed"],
        "plan": dict(content["plan"]),
        "commands": content["notes"].get("commands", []),
        "started_from": content["notes"].get("before"),
        "commit": commit,
        "steps": content["step"],
        "hours": round(content["seconds"] / 3600, 3),
        "windows": content["windows"],
        "accuracy": dict(accuracy),
        "curves": dict(curve),
        "training_memory": [dict(row) for row in memory],
        "known_failures": [*missed, *known],
    }


def markdown(values: Mapping[str, Any]) -> str:
    """The card as text."""
    lines = [f"# {values['name']}", ""]
    lines.append(
        f"{values['network']}, {values['accuracy']['parameters']} parameters, windows of "
        f"{values['accuracy']['frames']} frames, FP16, answers in body heights. "
        f"Label: **{values['label']}**."
    )
    lines += ["", values["people"], "", "## Accuracy", "",
              "Millimetres for a person of 1.75 m; twelve limb joints and the hip centre.", "",
              "| | MPJPE | PA-MPJPE | acceleration error | jitter |",
              "|---|---|---|---|---|"]  # fmt: skip
    for part, rows in values["accuracy"].items():
        if not isinstance(rows, Mapping):
            continue
        for name, row in rows.items():
            cells = (
                row[key] for key in ("mpjpe_mm", "pa_mpjpe_mm", "acceleration_mm", "jitter_mm")
            )
            figures = " | ".join(f"{cell:.1f}" for cell in cells)
            lines.append(f"| {part.replace('_', ' ')}: {name} | {figures} |")
    lines += ["", "## Known failures", ""]
    lines += [f"- {line}" for line in values["known_failures"]] or ["- none known"]
    lines += ["", "## How it was made", ""]
    lines.append(f"Commit {values['commit']}, seed {values['seed']}, {values['steps']} steps, "
                 f"{values['hours']:.2f} hours, {values['windows']} windows.")  # fmt: skip
    for item in values["data"]:
        lines.append(f"Data: `{item['file']}`, sha256 {item['sha256']}. {item['credit']}")
    lines += ["", "```", *(item["command"] for item in values["commands"]), "```", ""]
    if values["training_memory"]:
        lines += ["Memory of a training step:", "", "| network | T | batch | MiB | ms |",
                  "|---|---|---|---|---|"]  # fmt: skip
        for row in values["training_memory"]:
            lines.append("| " + " | ".join(str(row[key]) for key in MEMORY) + " |")
        lines.append("")
    lines += ["## Curve", "", "| step | hours | loss | position |", "|---|---|---|---|"]
    lines += [f"| {row['step']} | {row['hours']:.2f} | {row['total']:.4f} | {row['position']:.4f} |"
              for row in thinned(values["curves"]["training"], 20)]  # fmt: skip
    return "\n".join(lines) + "\n"


def write_half(weights: Mapping[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Write the weights as FP16 safetensors; what was written, as float32."""
    from safetensors.torch import save_file

    half = {name: tensor.detach().cpu().half().contiguous() for name, tensor in weights.items()}
    bad = [name for name, tensor in half.items() if not bool(torch.isfinite(tensor).all())]
    if bad:
        raise ExportError(f"weights that fit FP16 were wanted, {', '.join(bad)} do not; train on")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(half, path)
    return {name: tensor.float() for name, tensor in half.items()}


def ship(
    run: Path,
    out: Path,
    data: Path,
    video: Path | None,
    known: Sequence[str] = (),
    memory: Sequence[Mapping[str, Any]] = (),
    commit: str | None = None,
) -> dict[str, Any]:
    """Write OUT.safetensors, OUT.json and OUT.md of a run; the card."""
    content = lift_state.read(run)
    weights = out.with_suffix(".safetensors")
    rounded = {**content, "average": write_half(content["average"], weights)}
    data = data / FILE if data.is_dir() else data
    accuracy = lift_eval.report(rounded, data, video)
    values = card(
        weights=weights, network=content["plan"]["network"], content=content, data=data,
        accuracy=accuracy, curve=curves(run if run.is_dir() else run.parent), known=known,
        memory=memory, commit=commit or commit_here(),
    )  # fmt: skip
    out.with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(markdown(values), encoding="utf-8")
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
@click.option("--memory", type=click.Path(path_type=Path), help="Rows of lift_sweep --json.")
@click.option("--commit", help="The commit trained at; that of the checkout otherwise.")
def main(
    run: Path, data: Path, video: Path | None, out: Path, known: tuple[str, ...],
    memory: Path | None, commit: str | None,
) -> None:  # fmt: skip
    """Write the weights of a lifter's training RUN as FP16, with their card."""
    try:
        rows = [] if memory is None else memory.read_text(encoding="utf-8").splitlines()
        steps = [row for row in map(json.loads, rows) if row["case"] == "training"]
        values = ship(run, out, data, video, known, steps, commit)
    except MambaPoseError as err:
        click.echo(f"error: {err}", err=True)
        sys.exit(1)
    click.echo(lift_eval.table(values["accuracy"]))
    click.echo(f"{values['label']}: wrote {out}.safetensors, .json and .md")


if __name__ == "__main__":
    main()
