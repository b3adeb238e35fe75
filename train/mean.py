"""The mean of the weights of training runs: python -m mambapose.train.mean --help.

Runs that began with the same weights end in different places of the same valley; the mean lies
lower in it than they do (Wortsman et al., "Model soups", ICML 2022), and costs no more to run than
one of them. So several cores can train one network without waiting for each other.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from mambapose.runtime.errors import ExportError, MambaPoseError
from mambapose.train.checkpoint import CHECKPOINT, command_here, write_checkpoint
from mambapose.train.curve import CURVE
from mambapose.train.lift.state import BEFORE_POINTS, WEIGHTS_SUFFIX, as_before, read
from mambapose.train.pose2d import state as pose2d_state

# What a run needs to go on, which a mean has not.
OF_A_RUN = ("model", "optimiser", "random")


def mean_of(averages: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each tensor; counters are those of the last. ExportError when shapes differ."""
    last = averages[-1]
    shapes = [{name: tensor.shape for name, tensor in one.items()} for one in averages]
    if any(one != shapes[-1] for one in shapes):
        raise ExportError("runs of one network were wanted, found tensors of different shapes")
    return {
        name: torch.stack([one[name] for one in averages]).mean(0)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in last.items()
    }


def mean_run(folders: Sequence[Path]) -> dict[str, Any]:
    """The content of the last run's checkpoint, with the mean weights of all runs in it.

    Its history also has the other runs, each once: a run that the last one started from is in it
    already.
    """
    last = read(folders[-1])
    contents = [*(_content(folder, last) for folder in folders[:-1]), last]
    networks = {content["plan"]["network"] for content in contents}
    if len(contents) < 2 or len(networks) > 1:
        given = f"{len(contents)} of {', '.join(sorted(networks)) or 'none'}"
        raise ExportError(f"two or more runs of one network were wanted, found {given}")
    found = {key: value for key, value in contents[-1].items() if key not in OF_A_RUN}
    for folder, content in zip(folders[:-1], contents[:-1], strict=True):
        if not _is_in_history(content, found):
            _add_to_history(folder, content, found)
    found["average"] = mean_of([content["average"] for content in contents])
    return found


def _content(path: Path, last: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint, or weights of a file as a run of no steps; the last run tells which network."""
    if path.suffix != WEIGHTS_SUFFIX or last["plan"]["network"] != pose2d_state.NETWORK:
        return read(path)
    state = pose2d_state.started_from(path, pose2d_state.Settings(), torch.device("cpu"))
    content = pose2d_state.content_of(state)
    if not _is_in_history(content, last):
        raise ExportError(
            f"weights that the last run started from were wanted in {path}, found others; give "
            "the folder of their run"
        )
    return content


def _commands(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The commands of a run and of those before it, the first one first."""
    if "samples" in content:
        return pose2d_state.commands(content)
    return list(content["notes"].get("commands", []))


def _is_in_history(content: Mapping[str, Any], later: Mapping[str, Any]) -> bool:
    known = _commands(later)
    return all(command in known for command in _commands(content))


def _add_to_history(folder: Path, content: Mapping[str, Any], later: dict[str, Any]) -> None:
    """Record ``later`` as if it had come after that run; both started from the same weights."""
    notes = dict(later["notes"])
    known, others = _commands(later), _commands(content)
    own = [command for command in others if command not in known]
    if "samples" in later:
        before = dict(notes.get("before", {}))
        of_run = pose2d_state.curves(folder, BEFORE_POINTS)
        curves = pose2d_state.with_curves(before, of_run, later["offset"])
        for key in ("samples", "seconds"):
            before[key] = before.get(key, 0) + content[key]
        before["commands"] = [*before.get("commands", []), *own]
        before["curves"] = curves
        notes["before"] = before
        later["offset"] += content["step"]
    else:
        notes["before"] = as_before(content, folder, notes.get("before"))
        shared = [command for command in known if command in others]
        notes["commands"] = [*shared, *own, *(one for one in known if one not in shared)]
    later["notes"] = notes


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(runs: tuple[Path, ...], out: Path) -> None:
    """Write the mean weights of RUNS of one network as a run: for its card, for the evaluation, or
    for others to --start-from. It cannot be resumed. The .safetensors file that the last run began
    with counts as a run.

    Example: python -m mambapose.train.mean build/run-1 build/run-2 --out build/mean
    """
    try:
        if (out / CHECKPOINT).exists():
            raise ExportError(f"{out} holds a run; choose another --out")
        content = mean_run(runs)
        made = command_here("mean", content["step"], "cpu")
        commands = [*content["notes"].get("commands", []), made]
        content["notes"] = {**content["notes"], "commands": commands}
        path = write_checkpoint(content, out)
        if (runs[-1] / CURVE).exists():
            shutil.copyfile(runs[-1] / CURVE, out / CURVE)
    except MambaPoseError as err:
        click.echo(f"error: {err}", err=True)
        sys.exit(1)
    click.echo(f"wrote the mean of {len(runs)} runs to {path}")


if __name__ == "__main__":
    main()
