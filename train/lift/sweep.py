"""Time and memory of lifters over the length of the window, each case in a fresh process.

python -m mambapose.train.lift.sweep --frames 27,81,243. The claim it checks: the cost of a
scan grows with T, that of attention with its square. NAME:PAIRS is a network of so many pairs of
blocks. Whatever can see score, depth and flow beside the joints does.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import torch

from mambapose.runtime.errors import ExportError
from mambapose.train.cost import append_row, in_fresh_process, peak_mib, timed
from mambapose.train.lift.loss import losses
from mambapose.train.lift.networks import (
    INPUTS,
    NETWORKS,
    build,
    lifted,
    parameters,
    takes_cues,
)

CASES = ("forward", "training")


def measured_case(
    network: str, frames: int, batch: int, case: str, device: str, repeats: int
) -> dict[str, float | int | str]:
    """Median ms of a call (CPU: summed over threads) and the most MiB above the idle process."""
    name, pairs = named(network)
    cues = takes_cues(name, True)
    model = build(name, 0, cues=cues, pairs=pairs).to(device)
    random = np.random.default_rng(0)
    shapes = ((17, 2), (17,), (17,), (17, 2))
    inputs = {
        name: torch.from_numpy(random.standard_normal((batch, frames, *shape), np.float32)).to(
            device
        )
        for name, shape in zip(INPUTS, shapes, strict=False)
    }
    inputs["present"] = torch.ones(batch, 3, device=device)
    truth = torch.zeros(batch, frames, 17, 3, device=device)
    optimiser = torch.optim.AdamW(model.parameters())

    def forward() -> None:
        with torch.inference_mode():
            lifted(model, inputs, cues)

    def training() -> None:
        optimiser.zero_grad()
        losses(lifted(model, inputs, cues), truth)["total"].backward()
        optimiser.step()

    call = {"forward": forward, "training": training}[case]
    idle = peak_mib(device, forget=True)
    call()
    taken = [timed(call, device) for _ in range(repeats)]
    return {
        "network": network, "parameters": parameters(model), "frames": frames, "batch": batch,
        "case": case, "device": device,
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "ms": round(float(np.median(taken)), 2), "mib": round(peak_mib(device) - idle, 1),
    }  # fmt: skip


def named(network: str) -> tuple[str, int | None]:
    """(name, pairs of blocks) of NAME or NAME:PAIRS; ExportError for anything else."""
    name, colon, pairs = network.partition(":")
    if name not in NETWORKS or (colon and not (pairs.isdecimal() and int(pairs) > 0)):
        raise ExportError(
            f"networks of {', '.join(NETWORKS)}, with :PAIRS or without, were wanted, found "
            f"{network}"
        )
    return name, int(pairs) if colon else None


@click.command(context_settings={"show_default": True})
@click.option("--networks", default="posemamba-s,mambapose3d,transformer,tcn")
@click.option("--frames", default="27,81,243")
@click.option("--batch", type=click.IntRange(1), default=1)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu")
@click.option("--repeats", type=click.IntRange(1), default=5)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Append rows here.")
@click.option("--case", hidden=True)
def main(
    networks: str, frames: str, batch: int, device: str, repeats: int,
    json_file: Path | None, case: str | None,
) -> None:  # fmt: skip
    """Measure a forward pass and a training step of each network at each length."""
    names = networks.split(",")
    try:
        for name in names:
            named(name)
    except ExportError as err:
        raise click.UsageError(str(err)) from err
    lengths = [int(length) for length in frames.split(",")]
    if case is not None:
        click.echo(json.dumps(measured_case(names[0], lengths[0], batch, case, device, repeats)))
        return
    click.echo(f"{'network':<14}{'T':>5}{'case':>10}{'ms':>10}{'MiB':>9}")
    for name in names:
        for length in lengths:
            for wanted in CASES:
                words = [
                    "--case", wanted, "--networks", name, "--frames", str(length), "--batch",
                    str(batch), "--device", device, "--repeats", str(repeats),
                ]  # fmt: skip
                row = in_fresh_process("mambapose.train.lift.sweep", words)
                click.echo(f"{name:<14}{length:>5}{wanted:>10}{row['ms']:>10.1f}{row['mib']:>9.1f}")
                append_row(json_file, row)


if __name__ == "__main__":
    main()
