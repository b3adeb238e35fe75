"""Train mambapose-nano on rendered and real people: python -m mambapose.train.pose2d.train --help.

Rendered people come from stores that ``train.pose2d.render`` writes, real ones from a folder of
crops with a teacher's joints (real/crops.py). The same command runs on a CPU and on a GPU, for
minutes or for days: it stops at --minutes, on Ctrl-C or at the end of --decay-steps, saves, and
continues with --resume as if it had not stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from mambapose.benchmarks.truth.pose_metrics import as_row
from mambapose.export.models import mambapose_nano
from mambapose.export.models.mambapose_nano import Answer, MambaPoseNano
from mambapose.runtime.errors import ExportError, MambaPoseError
from mambapose.runtime.options import FiniteRange
from mambapose.train.checkpoint import CHECKPOINT, command_here, mean_weights
from mambapose.train.curve import append_curve, cut_curve
from mambapose.train.pose2d import state as pose2d_state
from mambapose.train.pose2d.data import REAL_SHARE, Batch, Recipe, films_in, opened
from mambapose.train.pose2d.loss import losses
from mambapose.train.pose2d.state import Settings, State
from mambapose.train.run_loop import (
    Limits,
    Minute,
    Work,
    descend,
    loop,
    made_ahead,
    scan_in_float32,
)
from mambapose.train.world.truth import UNKNOWN

LOOK_CROPS, LOOK_AT = 75, ("rgb", "rgb+flow+depth")
Look = Callable[[MambaPoseNano], dict[str, Any]]
Forward = Callable[[Tensor, Tensor], Answer]


def train_step(state: State, batch: Batch, answer: Forward | None = None) -> dict[str, float]:
    """The losses of one step of the optimiser and the norm of the gradient.

    answer: the network's method ``answer`` in compiled form.
    """
    plan, model = state.plan, state.model
    answer = answer or model.answer
    device = next(model.parameters()).device
    rgb, flow, depth, present, xy, seen = (
        torch.from_numpy(values).to(device, non_blocking=True)
        for values in (batch.rgb, batch.flow, batch.depth, batch.present, batch.xy,
                       batch.visibility)
    )  # fmt: skip
    planes = model.planes(rgb.float(), flow, depth, present)
    planes = planes.contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=plan.bf16):
        found = answer(planes, present)
    known = seen != UNKNOWN
    parts = losses(found, xy, (seen > 0) & known, model.grid, known)
    norm = descend(state, parts["total"], len(xy))
    return {**{name: float(value.detach()) for name, value in parts.items()}, "norm": norm}


def train(
    state: State, recipe: Recipe, folder: Path, limits: Limits,
    workers: int = 0, look: Look | None = None, answer: Forward | None = None,
) -> int:  # fmt: skip
    """The number of the signal that ended the training, or 0; trains until a limit, then saves.

    look: measures the mean weights every ``limits.measure_s`` seconds; answer: the network's method
    ``answer`` in compiled form.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cut_curve(folder, state.step)
    source = made_ahead(partial(opened, recipe), state.offset + state.step, workers)

    def step() -> tuple[dict[str, float], int, int]:
        return train_step(state, next(source), answer), state.plan.batch, 0

    work = Work(
        step, partial(_report, state, folder), partial(pose2d_state.save, state, folder),
        None if look is None else partial(_look, state, folder, look),
    )  # fmt: skip
    return loop(state, limits, work)


def _report(state: State, folder: Path, minute: Minute) -> None:
    row = minute.row(state, digits=4)
    row["samples_per_s"] = round(minute.per_second(minute.samples), 1)
    append_curve(folder, row)
    click.echo(
        f"step {row['step']}  {row['hours']:.2f} h  total {row['total']:.3f}  "
        f"place {row['place']:.3f}  side {row['side']:.3f}  norm {row['norm']:.2f}  "
        f"{row['samples_per_s']:.0f} samples/s  {row['peak_mib']:.0f} MiB"
    )


def _look(state: State, folder: Path, look: Look) -> None:
    append_curve(folder, {"step": state.step, "held_out": look(averaged(state))})


def look_at(store: Path, assets: Path | None) -> Look:
    """A function that measures a network on crops of held-out people, the same ones each time."""
    from mambapose.train.pose2d import measure
    from mambapose.train.pose2d.evaluate import engine_from_model

    def look(model: MambaPoseNano) -> dict[str, Any]:
        source = measure.held_out_source([store], assets, measure.EVERYTHING)
        found = measure.combination_metrics(engine_from_model(model), source, LOOK_CROPS)
        rows = {name: as_row(found[name]) for name in LOOK_AT}
        for name, row in rows.items():
            percent = 100 * row["median"]
            click.echo(f"held out {name}: PCK@0.2 {row['pck20']:.3f}, median {percent:.2f} %")
        return rows

    return look


def averaged(state: State) -> MambaPoseNano:
    """A copy of the network with its mean weights, in eval mode."""
    with mean_weights(state) as model:
        copied = mambapose_nano.build(seed=state.plan.seed)
        copied.load_state_dict(model.state_dict())
    return copied


@click.command(context_settings={"show_default": True})
@click.option("--store", "stores", type=click.Path(exists=True, file_okay=False), multiple=True,
              required=True, help="Folder of train.pose2d.render; may be repeated.")  # fmt: skip
@click.option("--estimates", type=click.Path(exists=True, dir_okay=False),
              help="File of train.pose2d.estimates, for samples with real flow.")  # fmt: skip
@click.option("--real", type=click.Path(exists=True, file_okay=False),
              help="Folder of crops of real people (people-free), to mix in.")  # fmt: skip
@click.option("--real-share", type=FiniteRange(0, 1), default=REAL_SHARE,
              help="Of the samples of a batch, with --real.")  # fmt: skip
@click.option("--box-scale", "box", type=FiniteRange(min=0, min_open=True), nargs=2,
              help="Least and most size of boxes, in shares of the right one.")  # fmt: skip
@click.option("--assets", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Folder with frames of free films for backgrounds.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True,
              help="Folder of checkpoint and curve.")  # fmt: skip
@click.option("--held-out", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Store of held-out people, to look at while training.")  # fmt: skip
@click.option(
    "--measure-minutes", type=FiniteRange(0), default=15.0, help="Between two such looks."
)
@click.option("--minutes", type=FiniteRange(0), help="Stop after so many.")
@click.option("--steps", type=click.IntRange(1), help="Stop after so many.")
@click.option("--decay-steps", type=click.IntRange(1),
              help="Let the rate fall to zero over so many steps from here, then end.")  # fmt: skip
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu")
@click.option("--resume", is_flag=True, help="Go on with the run in --out; its plan is kept.")
@click.option("--start-from", type=click.Path(path_type=Path),
              help="Begin with the weights of a .safetensors file or of a run.")  # fmt: skip
@click.option("--batch", type=click.IntRange(1), default=32)
@click.option("--rate", type=FiniteRange(min=0, min_open=True), default=2e-3, help="Learning rate.")
@click.option("--bf16", is_flag=True, help="Products in bfloat16; the scan stays float32.")
@click.option("--muon/--adamw", default=False, help="What trains the inner layers.")
@click.option("--compile", "compiled", is_flag=True,
              help="Compile the network first: needs a C++ compiler and a minute.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option("--threads", type=click.IntRange(1), help="Threads of torch.")
@click.option(
    "--workers", type=click.IntRange(0), default=0, help="Processes that make batches ahead."
)
def main(
    stores: tuple[str, ...], estimates: str | None, real: str | None, real_share: float,
    box: tuple[float, float] | None, assets: Path | None, out: Path,
    held_out: Path | None, measure_minutes: float, minutes: float | None,
    steps: int | None, decay_steps: int | None, device: str, resume: bool,
    start_from: Path | None, batch: int, rate: float, bf16: bool, muon: bool, compiled: bool,
    seed: int, threads: int | None, workers: int,
) -> None:  # fmt: skip
    """Train mambapose-nano; checkpoints resume exactly.

    Example: python -m mambapose.train.pose2d.train --store S1 --store S2 --out build/pose2d --bf16
    """
    try:
        if device == "cuda" and not torch.cuda.is_available():
            raise ExportError("a CUDA device was wanted, torch finds none; use --device cpu")
        if threads is not None:
            torch.set_num_threads(threads)
        plan = Settings(seed=seed, batch=batch, rate=rate, bf16=bf16, muon=muon)
        state = _state(plan, torch.device(device), out, resume, start_from)
        if decay_steps is not None:
            state.decay = (state.step, decay_steps)
        if state.plan.bf16:
            scan_in_float32(device)
        recipe = replace(
            state.recipe(stores, films_in(assets), estimates),
            real=real, real_share=real_share, box=box,
        )  # fmt: skip
        made = command_here("pose2d", state.step, device)
        state.notes.setdefault("commands", []).append(made)
        click.echo(
            f"mambapose-nano: step {state.step}, {torch.get_num_threads()} threads, {state.plan}"
        )
        limits = Limits(minutes, steps, measure_s=60 * measure_minutes)
        look = None if held_out is None else look_at(held_out, assets)
        answer = torch.compile(state.model.answer, dynamic=False) if compiled else None
        number = train(state, recipe, out, limits, workers, look, answer)
    except MambaPoseError as err:
        click.echo(f"error: {err}", err=True)
        sys.exit(1)
    sys.exit(128 + number if number else 0)


def _state(
    plan: Settings, device: torch.device, out: Path, resume: bool, start_from: Path | None
) -> State:
    if resume:
        return pose2d_state.resumed(out, device)
    if (out / CHECKPOINT).exists():
        raise ExportError(f"{out} holds a run; go on with --resume or choose another --out")
    if start_from is None:
        return pose2d_state.fresh(plan, device)
    return pose2d_state.started_from(start_from, plan, device)


if __name__ == "__main__":
    main()
