"""How good a trained lifter is: python -m mambapose.train.lift.evaluate --help.

What is measured is in benchmarks/truth/lift_measure.py; here a torch network stands in for an
engine.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import torch
from torch import nn

from mambapose.benchmarks.truth.lift_measure import (
    corruption_metrics,
    held_out_metrics,
    pose2sim_metrics,
)
from mambapose.benchmarks.truth.motion import clips_from_file, split_from_clips
from mambapose.runtime.errors import MambaPoseError
from mambapose.runtime.types import Array
from mambapose.train.lift import state as lift_state
from mambapose.train.lift.networks import input_names, lifted, parameters

COMBINATIONS = {
    "nothing": (0, 0, 0), "score": (1, 0, 0), "score+flow": (1, 0, 1), "score+depth": (1, 1, 0),
    "all": (1, 1, 1),
}  # fmt: skip


class TorchEngine:
    """A torch network with the interface of an engine, for windows of ``frames``."""

    def __init__(self, model: nn.Module, frames: int, cues: bool) -> None:
        self._model, self._cues = model, cues
        names = input_names(model, cues)
        inputs = [SimpleNamespace(name=name, shape=("N", frames)) for name in names]
        self.spec: Any = SimpleNamespace(inputs=inputs)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        device = next(self._model.parameters()).device
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(value).to(device) for name, value in inputs.items()}
            return {"xyz": lifted(self._model, tensors, self._cues).cpu().numpy()}


def report(
    content: dict[str, Any],
    data: Path,
    video: Path | None,
    frames: int | None = None,
    *,
    brief: bool = False,
) -> dict[str, Any]:
    """Everything that is measured of a checkpoint's content, in the form the card needs.

    brief: without faults, exact joints and cues.
    """
    plan, model = lift_state.averaged_model(content)
    length = frames or max(plan.frames)
    engine = TorchEngine(model, length, plan.takes_cues)
    test = split_from_clips(clips_from_file(data), plan.split).test
    result: dict[str, Any] = {
        "network": plan.network,
        "parameters": parameters(model),
        "frames": length,
        "step": int(lift_state.whole(content, "step")),
        "hours": lift_state.whole(content, "seconds") / 3600,
        "windows": int(lift_state.whole(content, "windows")),
        "split": plan.split,
    }
    if test:
        result["held_out"] = held_out_metrics(engine, test)
    if test and not brief:
        result["held_out_exact_2d"] = held_out_metrics(engine, test, noisy=False)
        result["corruption"] = corruption_metrics(engine, test)
        if plan.takes_cues:
            result["cues"] = {
                name: held_out_metrics(engine, test, present=present, views=1)["mean"]
                for name, present in COMBINATIONS.items()
            }
    if video is not None:
        result["pose2sim"] = pose2sim_metrics(engine, video)
    return result


def table(result: Mapping[str, Any]) -> str:
    """The report as lines of text."""
    lines = [f"{result['network']}, {result['parameters']} parameters, T {result['frames']}, "
             f"{result['hours']:.2f} h, {result['windows']} windows"]  # fmt: skip
    lines.append(f"{'':<28}{'MPJPE':>8}{'PA-MPJPE':>10}{'acc.err':>9}{'jitter':>8}  mm at 1.75 m")
    for part in ("held_out", "held_out_exact_2d", "corruption", "cues", "pose2sim"):
        for name, row in result.get(part, {}).items():
            lines.append(
                f"{part + ' ' + name:<28}{row['mpjpe_mm']:>8.1f}{row['pa_mpjpe_mm']:>10.1f}"
                f"{row['acceleration_mm']:>9.2f}{row['jitter_mm']:>8.2f}"
            )
    return "\n".join(lines)


@click.command(context_settings={"show_default": True})
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the motion capture file.",
)
@click.option("--video", type=click.Path(path_type=Path), help="Folder of pose2sim-single.")
@click.option(
    "--frames", type=click.IntRange(1), help="Length of windows; the longest trained on otherwise."
)
@click.option("--brief", is_flag=True, help="Without faults, exact joints and cues.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the report here.")
def main(
    run: Path, data: Path, video: Path | None, frames: int | None, brief: bool,
    json_file: Path | None,
) -> None:  # fmt: skip
    """Measure the mean weights of RUN, a folder of a training run or its checkpoint."""
    try:
        result = report(lift_state.read(run), data, video, frames, brief=brief)
    except MambaPoseError as err:
        click.echo(f"error: {err}", err=True)
        sys.exit(1)
    click.echo(table(result))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
