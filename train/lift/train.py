"""Train a 2D-to-3D lifter on motion capture: python -m mambapose.train.lift.train --help.

The same command runs on a CPU and on a GPU, for minutes or for days: it stops at --minutes, on
Ctrl-C or at the end of --decay-steps, saves, and continues with --resume as if it had not stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast

import click
import numpy as np
import torch
from torch import Tensor, nn

from mambapose.benchmarks.truth.lift_measure import held_out_metrics
from mambapose.benchmarks.truth.motion import (
    SPLITS,
    MotionClip,
    clips_from_file,
    split_from_clips,
)
from mambapose.benchmarks.truth.windows import Batch, Motions
from mambapose.export.models.posemamba import PoseMamba
from mambapose.runtime.errors import ExportError, MambaPoseError
from mambapose.runtime.options import FiniteRange
from mambapose.train import curve as lift_curve
from mambapose.train.checkpoint import CHECKPOINT, command_here, mean_weights
from mambapose.train.lift import growth as lift_growth
from mambapose.train.lift import state as lift_state
from mambapose.train.lift.data import mean_pose, training_batch
from mambapose.train.lift.evaluate import TorchEngine
from mambapose.train.lift.loss import VELOCITY, losses
from mambapose.train.lift.networks import NETWORKS, lifted, parameters
from mambapose.train.lift.state import Settings, State
from mambapose.train.run_loop import (
    Limits,
    Minute,
    Work,
    descend,
    loop,
    made_ahead,
    scan_in_float32,
)

SETTLED_WINDOWS, SETTLED_FRAMES = 16, 27  # 7344 tokens for a matrix of 64 by 64


def batch_shape(plan: Settings, step: int) -> tuple[int, int]:
    """(windows, frames) of a step; lengths are drawn evenly, their product stays about the same."""
    lengths = plan.frames
    drawn = np.random.default_rng([plan.seed, step, 1]).integers(len(lengths))
    frames = lengths[int(drawn)]
    return max(1, plan.batch * max(lengths) // frames), frames


def batch_of_step(plan: Settings, motions: Motions, step: int) -> Batch:
    """The batch of a step, which depends on plan and step alone."""
    count, frames = batch_shape(plan, step)
    return training_batch(motions, plan.seed, step, count, frames, cues=plan.takes_cues)


def batches(plan: Settings, motions: Motions, first: int, workers: int) -> Iterator[Batch]:
    """Batches from step ``first`` on, made ahead in ``workers`` processes when there are any."""
    return made_ahead(lambda: partial(batch_of_step, plan, motions), first, workers)


def train_step(state: State, batch: Batch, model: nn.Module | None = None) -> dict[str, float]:
    """The losses of one step of the optimiser in body heights, and the norm of the gradient.

    model: the run's own network in compiled form.
    """
    plan, device = state.plan, next(state.model.parameters()).device
    inputs = {name: _on(device, value) for name, value in batch.inputs.items()}
    with torch.autocast(device.type, torch.bfloat16, enabled=plan.bf16):
        found = lifted(state.model if model is None else model, inputs, plan.takes_cues)
    parts = losses(found, _on(device, batch.xyz), plan.velocity)
    norm = descend(state, parts["total"], len(batch.xyz))
    return {**{name: float(value.detach()) for name, value in parts.items()}, "norm": norm}


def _on(device: torch.device, value: np.ndarray) -> Tensor:
    return torch.from_numpy(value).to(device, non_blocking=True)


def train(
    state: State,
    clips: tuple[MotionClip, ...],
    folder: Path,
    limits: Limits,
    workers: int = 0,
    model: nn.Module | None = None,
) -> int:
    """The number of the signal that ended the training, or 0; trains until a limit, then saves.

    model: the run's own network in compiled form.
    """
    split = split_from_clips(clips, state.plan.split)
    motions = Motions(split.train)
    folder.mkdir(parents=True, exist_ok=True)
    lift_curve.cut_curve(folder, state.step)
    source = batches(state.plan, motions, state.step, workers)

    def step() -> tuple[dict[str, float], int, int]:
        batch = next(source)
        windows, frames = batch.xyz.shape[:2]
        return train_step(state, batch, model), windows, windows * frames

    work = Work(
        step, partial(_report, state, folder), partial(lift_state.save, state, folder),
        partial(_measure, state, split.test, folder) if split.test else None,
    )  # fmt: skip
    return loop(state, limits, work)


def _report(state: State, folder: Path, minute: Minute) -> None:
    row = minute.row(state, digits=5)
    row["windows_per_s"] = round(minute.per_second(minute.samples), 2)
    row["frames_per_s"] = round(minute.per_second(minute.frames), 1)
    lift_curve.append_curve(folder, row)
    click.echo(
        f"step {row['step']}  {row['hours']:.2f} h  total {row['total']:.4f}  "
        f"position {row['position']:.4f}  velocity {row['velocity']:.5f}  "
        f"norm {row['norm']:.2f}  {row['windows_per_s']:.1f} windows/s  "
        f"{row['frames_per_s']:.0f} frames/s  {row['peak_mib']:.0f} MiB"
    )


def _measure(state: State, test: tuple[MotionClip, ...], folder: Path) -> None:
    """Measure the mean weights quickly on the held-out activities."""
    with mean_weights(state) as model:
        engine = TorchEngine(model, max(state.plan.frames), state.plan.takes_cues)
        found = held_out_metrics(engine, test, quick=True)
    mean = found["mean"]
    lift_curve.append_curve(folder, {"step": state.step, "held_out": found})
    click.echo(
        f"held out: MPJPE {mean['mpjpe_mm']:.1f} mm, PA-MPJPE {mean['pa_mpjpe_mm']:.1f} mm, "
        f"acceleration error {mean['acceleration_mm']:.1f} mm per frame squared"
    )


@click.command(context_settings={"show_default": True})
@click.option("--network", type=click.Choice(NETWORKS), default="mambapose3d")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the motion capture file, or the file.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of checkpoint and curve."
)
@click.option("--minutes", type=FiniteRange(0), help="Stop after so many.")
@click.option("--steps", type=click.IntRange(1), help="Stop after so many.")
@click.option(
    "--decay-steps",
    type=click.IntRange(1),
    help="Let the rate fall to zero over so many steps from here, then end.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu")
@click.option("--resume", is_flag=True, help="Go on with the run in --out; its plan is kept.")
@click.option(
    "--start-from",
    type=click.Path(path_type=Path),
    help="Begin with the weights of another run, shallower or of shorter windows, or with weights "
    "that ship (.safetensors).",
)
@click.option(
    "--split",
    type=click.Choice(SPLITS),
    default="activities",
    help="What is trained on; asf and exp are the two skeletons.",
)
@click.option("--frames", default="81", help="Lengths of windows, drawn evenly: 9,27,81.")
@click.option(
    "--batch", type=click.IntRange(1), default=8, help="Windows of the longest length per step."
)
@click.option("--rate", type=FiniteRange(min=0, min_open=True), default=1e-3, help="Learning rate.")
@click.option(
    "--pairs", type=click.IntRange(1), help="Pairs of blocks, where not the published number."
)
@click.option("--cues", is_flag=True, help="Give a baseline score, depth and flow too.")
@click.option("--bf16", is_flag=True, help="Matrix products in bfloat16; the scan stays float32.")
@click.option("--muon/--adamw", default=False, help="What trains the inner layers.")
@click.option(
    "--velocity",
    type=FiniteRange(min=0),
    default=VELOCITY,
    help="Weight of the error between consecutive frames, beside 1 for the position.",
)
@click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="Compile the network first: needs a C++ compiler and a minute.",
)
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option(
    "--workers", type=click.IntRange(0), default=0, help="Processes that make batches ahead."
)
@click.option(
    "--measure-minutes",
    type=FiniteRange(0),
    default=30.0,
    help="Minutes between two looks at the held-out activities.",
)
def main(
    network: str, data: Path, out: Path, minutes: float | None, steps: int | None,
    decay_steps: int | None, device: str, resume: bool, start_from: Path | None,
    split: str, frames: str, batch: int, rate: float, pairs: int | None, cues: bool,
    bf16: bool, muon: bool, velocity: float, compiled: bool, seed: int, workers: int,
    measure_minutes: float,
) -> None:  # fmt: skip
    """Train a 2D-to-3D lifter; checkpoints resume exactly.

    Example: python -m mambapose.train.lift.train --data DIR --out build/lift3d --minutes 60
    """
    try:
        wanted = torch.device(device)
        if device == "cuda" and not torch.cuda.is_available():
            raise ExportError("a CUDA device was wanted, torch finds none; use --device cpu")
        if resume:
            state = lift_state.resumed(out, wanted)
        else:
            if (out / CHECKPOINT).exists():
                raise ExportError(f"{out} holds a run; go on with --resume or choose another --out")
            plan = Settings(
                network, split, seed, _lengths(frames), batch, rate,
                cues=cues, pairs=pairs, bf16=bf16, muon=muon, velocity=velocity,
            )  # fmt: skip
            state = (
                lift_state.fresh(plan, wanted)
                if start_from is None
                else lift_state.started_from(start_from, plan, wanted)
            )
        if decay_steps is not None:
            state.decay = (state.step, decay_steps)
        if state.plan.bf16:
            scan_in_float32(device)
        clips = clips_from_file(data)
        if start_from is not None and not resume:
            _settle(state, clips)
        if state.plan.network == "mean":
            steps = _set_mean_pose(state, clips)
        made = command_here("lift", state.step, device)
        state.notes.setdefault("commands", []).append(made)
        click.echo(
            f"{state.plan.network}: {parameters(state.model)} parameters, step {state.step}, "
            f"{torch.get_num_threads()} threads; {state.plan}"
        )
        limits = Limits(minutes, steps, measure_s=measure_minutes * 60)
        # Of a module it makes a module; it is declared for functions.
        model = cast(nn.Module, torch.compile(state.model, dynamic=False)) if compiled else None
        number = train(state, clips, out, limits, workers, model)
    except MambaPoseError as err:
        click.echo(f"error: {err}", err=True)
        sys.exit(1)
    sys.exit(128 + number if number else 0)


def _settle(state: State, clips: tuple[MotionClip, ...]) -> None:
    """Give a network with more blocks than the one it starts from the output of that one."""
    if not isinstance(state.model, PoseMamba):
        return
    motions = Motions(split_from_clips(clips, state.plan.split).train)
    cues = state.plan.takes_cues
    batch = training_batch(
        motions, state.plan.seed, 0, SETTLED_WINDOWS, min(SETTLED_FRAMES, max(state.plan.frames)),
        cues=cues,
    )  # fmt: skip
    if count := lift_growth.settle(state.model, batch, cues):
        state.average = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
        click.echo(f"{count} new pairs of blocks pass on what they are given")


def _set_mean_pose(state: State, clips: tuple[MotionClip, ...]) -> int:
    """Set the constant pose to the mean; returns 0, because no training steps are needed."""
    pose = mean_pose(Motions(split_from_clips(clips, state.plan.split).train))
    state.average["pose"] = torch.from_numpy(pose)
    state.model.load_state_dict(state.average)
    return 0


def _lengths(text: str) -> tuple[int, ...]:
    try:
        lengths = tuple(int(part) for part in text.split(","))
    except ValueError:
        lengths = ()
    if not lengths or not all(1 <= length <= 243 for length in lengths):
        raise ExportError(f"--frames wants lengths from 1 to 243 such as 9,27,81, found {text}")
    return lengths


if __name__ == "__main__":
    main()
