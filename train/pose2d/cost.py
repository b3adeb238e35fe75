"""Time and memory of a training step of 2D pose networks, each in a fresh process.

    python -m mambapose.train.pose2d.cost --networks mambapose-nano,vitpose-s-simple

Float32 on one thread; milliseconds of processor time, memory above that of the idle process.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from mambapose.export.models import NETWORKS, vitpose
from mambapose.export.models.images import IMAGENET_MEAN, IMAGENET_STD, Normalise
from mambapose.train.cost import append_row, in_fresh_process, peak_mib, timed
from mambapose.train.world.sample import CROP


def measured_step(name: str, batch: int, repeats: int) -> dict[str, float | int | str]:
    """One row: the network, its parameters, median ms and MiB of a step on a batch."""
    torch.set_num_threads(1)
    network = NETWORKS[name]
    module = importlib.import_module(f"mambapose.export.models.{network.module}")
    model = module.build(seed=0, **network.config).train()
    optimiser = torch.optim.AdamW(model.parameters())
    rgb = torch.zeros(batch, *CROP, 3, dtype=torch.uint8)
    rest = (torch.zeros(batch, 2, *CROP), torch.zeros(batch, 1, *CROP), torch.ones(batch, 2))
    normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)

    def heatmaps() -> Tensor:
        if network.module != "vitpose":
            found: Tensor = model(rgb, *rest)
        else:  # its module holds the weights; positions are computed from them
            tokens = model.backbone(normalise(rgb), model.backbone.positions(vitpose.GRID))
            found = model.keypoint_head(tokens)
        return found

    def step() -> None:
        optimiser.zero_grad()
        heatmaps().square().mean().backward()
        optimiser.step()

    idle = peak_mib("cpu", forget=True)
    step()
    taken = [timed(step, "cpu") for _ in range(repeats)]
    count = sum(parameter.numel() for parameter in model.parameters())
    return {
        "network": name, "parameters": count, "batch": batch,
        "ms": round(float(np.median(taken)), 1), "mib": round(peak_mib("cpu") - idle, 1),
        "torch": str(torch.__version__),
    }  # fmt: skip


@click.command(context_settings={"show_default": True})
@click.option("--networks", default="mambapose-nano,mambapose-tiny,vitpose-s-simple")
@click.option("--batch", type=click.IntRange(1), default=16)
@click.option("--repeats", type=click.IntRange(1), default=3)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path),
              help="Append rows here.")  # fmt: skip
@click.option("--one", is_flag=True, hidden=True)
def main(networks: str, batch: int, repeats: int, json_file: Path | None, one: bool) -> None:
    """Measure a training step of each network."""
    names = networks.split(",")
    known = [name for name, network in NETWORKS.items() if network.stage == "pose2d"]
    if unknown := [name for name in names if name not in known]:
        raise click.UsageError(f"{', '.join(unknown)}: choose from {', '.join(known)}")
    if one:
        click.echo(json.dumps(measured_step(names[0], batch, repeats)))
        return
    click.echo(f"{'network':<18}{'batch':>6}{'ms':>10}{'MiB':>9}")
    for name in names:
        words = ["--one", "--networks", name, "--batch", str(batch), "--repeats", str(repeats)]
        row = in_fresh_process("mambapose.train.pose2d.cost", words)
        click.echo(f"{name:<18}{batch:>6}{row['ms']:>10.1f}{row['mib']:>9.1f}")
        append_row(json_file, row)


if __name__ == "__main__":
    main()
