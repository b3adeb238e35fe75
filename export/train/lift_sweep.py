"""Time and memory of lifters over the length of the window, each case in a fresh process.

python -m mambapose.export.train.lift_sweep --frames 27,81,243. The claim it checks: the cost of a
scan grows with T, that of attention with its square.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch

from mambapose.export.train.lift_loss import losses
from mambapose.export.train.lift_networks import INPUTS, NETWORKS, build, lifted, takes_cues

CASES = ("forward", "training")


def measured_case(
    network: str, frames: int, batch: int, case: str, device: str, repeats: int
) -> dict[str, float | int | str]:
    """Median milliseconds of a call and the most memory above that of the idle process, in MiB."""
    model = build(network, 0).to(device)
    cues = takes_cues(network, False)
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
        losses(lifted(model, inputs, cues), truth)["total"].backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    call = {"forward": forward, "training": training}[case]
    idle = _peak_mib(device)
    call()
    taken = [_timed(call, device) for _ in range(repeats)]
    return {
        "network": network, "frames": frames, "batch": batch, "case": case, "device": device,
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "ms": round(float(np.median(taken)), 2), "mib": round(_peak_mib(device) - idle, 1),
    }  # fmt: skip


def _timed(call: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def _peak_mib(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@click.command(context_settings={"show_default": True})
@click.option("--networks", default="posemamba-s,mambapose3d,transformer,tcn")
@click.option("--frames", default="27,81,243")
@click.option("--batch", type=int, default=1)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu")
@click.option("--repeats", type=int, default=5)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Append rows here.")
@click.option("--case", hidden=True)
def main(
    networks: str, frames: str, batch: int, device: str, repeats: int,
    json_file: Path | None, case: str | None,
) -> None:  # fmt: skip
    """Measure a forward pass and a training step of each network at each length."""
    names = networks.split(",")
    if not set(names) <= set(NETWORKS):
        raise click.UsageError(f"networks of {', '.join(NETWORKS)} were wanted, found {networks}")
    lengths = [int(length) for length in frames.split(",")]
    if case is not None:
        click.echo(json.dumps(measured_case(names[0], lengths[0], batch, case, device, repeats)))
        return
    click.echo(f"{'network':<14}{'T':>5}{'case':>10}{'ms':>10}{'MiB':>9}")
    for name in names:
        for length in lengths:
            for wanted in CASES:
                words = [
                    sys.executable, "-m", "mambapose.export.train.lift_sweep", "--case", wanted,
                    "--networks", name, "--frames", str(length), "--batch", str(batch),
                    "--device", device, "--repeats", str(repeats),
                ]  # fmt: skip
                line = subprocess.run(words, check=True, capture_output=True, text=True).stdout
                row = json.loads(line.splitlines()[-1])
                click.echo(f"{name:<14}{length:>5}{wanted:>10}{row['ms']:>10.1f}{row['mib']:>9.1f}")
                if json_file is not None:
                    with json_file.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
