"""A transformer lifter of any size, for ``mp-bench`` to measure others against.

    python -m mambapose.benchmarks.yardsticks transformer:5 --clip-frames=81 --out FOLDER

``transformer:PAIRS`` is the baseline beside which lifters are trained (lift_baselines): attention
among the joints of a frame, then among the frames of a joint, PAIRS times, 128 channels wide. It is
not a published network, has no weights and is in no registry; its ONNX graph is made, checked and
measured like that of a network that has.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mambapose.runtime.bundle.bundle import write_bundle
from mambapose.runtime.bundle.entries import Bundle, WeightsEntry
from mambapose.runtime.commands import run_command
from mambapose.runtime.stages.joints import BODY_HEIGHTS
from mambapose.runtime.targets import target_from_name
from mambapose.runtime.types import GraphSpec, TensorSpec
from mambapose.runtime.version import tool_version

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mambapose.export.plan import Plan

TRANSFORMER = "transformer"
PARAMS, PARAMS_OF_A_PAIR = 34_691, 264_960  # without any pair, and of each; checked by a test


def is_transformer(name: str) -> bool:
    """Whether the name is of the form ``transformer:PAIRS``."""
    kind, _, pairs = name.partition(":")
    return kind == TRANSFORMER and pairs.isascii() and pairs.isdigit() and int(pairs) > 0


def transformer_like(params: int) -> str:
    """The ``transformer:PAIRS`` with the number of parameters nearest to ``params``."""
    pairs = round((params - PARAMS) / PARAMS_OF_A_PAIR)
    return f"{TRANSFORMER}:{max(1, pairs)}"


def build(name: str, seed: int = 0) -> nn.Module:
    """The seeded network of ``transformer:PAIRS``.

    Its GELU is written as in every network here, in the order that ONNX Runtime replaces by one
    node, because a slower one would not be a fair yardstick.
    """
    from torch import nn

    from mambapose.benchmarks import lift_baselines
    from mambapose.export.models.gelu import gelu

    class Gelu(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return gelu(x)

    model = lift_baselines.build(TRANSFORMER, seed=seed, pairs=int(name.partition(":")[2]))
    for module in model.modules():
        for key, child in module.named_children():
            if isinstance(child, nn.GELU):
                setattr(module, key, Gelu())
    return model.eval()


def graphs(model: nn.Module, frames: int) -> dict[str, tuple[nn.Module, GraphSpec]]:
    """The graph of a lifter: keypoints (N, T, 17, 2) -> xyz (N, T, 17, 3), joint 0 at 0."""
    from mambapose.export.models.posemamba import LiftGraph

    keypoints = TensorSpec("keypoints", "float32", ("N", frames, 17, 2))
    xyz = TensorSpec("xyz", "float32", ("N", frames, 17, 3))
    return {"main": (LiftGraph(model, flip=False), GraphSpec("main", (keypoints,), (xyz,)))}


def export_transformer(name: str, frames: int | None, out: Path) -> Bundle:
    """A bundle of the yardstick alone, written by the usual export.

    frames: the length of its clips; None for that of the target.
    """
    from mambapose.export.plan import ExportOptions, make_plan

    asked = ExportOptions(only=("lift3d",), clip_frames=frames, untrained=True)
    plan = make_plan(target_from_name("cpu"), asked)
    return write_bundle(out, partial(_fill, name, plan))


def _fill(name: str, plan: Plan, folder: Path) -> Bundle:
    from mambapose.export.build import Loaded, created_now, written_stage

    model = build(name, plan.seed)
    network = Loaded(model, WeightsEntry(None, None, trained=False), BODY_HEIGHTS)
    schedule = plan.schedule
    entry = written_stage(
        "lift3d", name, network, graphs(model, schedule.clip_frames), folder,
        precision=plan.precision, options={"unit": BODY_HEIGHTS}, flow_iters=schedule.flow_iters,
        seed=plan.seed, trt=False,
    )  # fmt: skip
    return Bundle(folder, tool_version(), created_now(), plan.target.name, schedule,
                  {"lift3d": entry})  # fmt: skip


@click.command()
@click.argument("name", metavar="transformer:PAIRS")
@click.option(
    "--clip-frames", type=click.IntRange(1), metavar="T", help="Window  [default: the target's]"
)
@click.option("--out", type=Path, required=True, metavar="DIR", help="Bundle folder.")
def command(name: str, clip_frames: int | None, out: Path) -> None:
    """Export a transformer lifter as a yardstick for mp-bench."""
    if not is_transformer(name):
        raise click.UsageError(f"{TRANSFORMER}:PAIRS was wanted, found {name}")
    export_transformer(name, clip_frames, out)


def main(args: list[str] | None = None) -> None:
    """Entry point."""
    run_command(command, args, "yardsticks")


if __name__ == "__main__":
    main()
