"""How good a pose2d network in training is: python -m mambapose.train.pose2d.evaluate --help.

What is measured is in train/pose2d/measure.py; here a torch network stands in for an engine.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from torch import nn

from mambapose.benchmarks.truth.pose2sim import FOLDER, pose2sim_views
from mambapose.benchmarks.truth.pose_metrics import PoseMetrics
from mambapose.runtime.errors import ExportError, MambaPoseError
from mambapose.train.pose2d import measure
from mambapose.train.pose2d.state import averaged_model
from mambapose.train.torch_engine import TorchEngine
from mambapose.train.world.sample import CROP

INPUTS = {
    "rgb": ("N", *CROP, 3), "flow": ("N", 2, *CROP), "depth": ("N", 1, *CROP), "present": ("N", 2),
}  # fmt: skip


def engine_from_model(model: nn.Module) -> TorchEngine:
    """A pose2d network with the interface of an engine."""
    return TorchEngine(model, INPUTS, "heatmaps", next(model.parameters()).device)


def line(name: str, m: PoseMetrics) -> str:
    """The metrics as one line of text."""
    return (
        f"{name:16} median {100 * m.median:5.2f} %  mean {100 * m.mean:5.2f} %  PCK@0.1 "
        f"{m.pck10:.3f}  @0.2 {m.pck20:.3f}  side ignored {m.pck20_side_ignored:.3f}  "
        f"collapsed {m.collapsed:.3f}  ({m.joints} joints)"
    )


def report(
    model: nn.Module, assets: Path | None, stores: list[Path], count: int
) -> dict[str, PoseMetrics]:
    """Metrics on real video by camera and on held-out people by combination of inputs and fault."""
    engine = engine_from_model(model)
    found: dict[str, PoseMetrics] = {}
    if assets is not None and (assets / FOLDER).is_dir():
        found |= measure.video_metrics(engine, pose2sim_views(assets / FOLDER))
    if stores:
        mixed = measure.held_out_source(stores, assets, measure.EVERYTHING)
        found |= measure.combination_metrics(engine, mixed, count)
        clean = measure.held_out_source(stores, assets, measure.CLEAN)
        found |= measure.fault_metrics(engine, clean, count)
    return found


@click.command(context_settings={"show_default": True})
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--assets", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Folder with pose2sim-single and the free films.")  # fmt: skip
@click.option("--store", "stores", type=click.Path(exists=True, file_okay=False, path_type=Path),
              multiple=True, help="Shots of held-out clips.")  # fmt: skip
@click.option("--count", type=click.IntRange(1), default=300, help="Held-out crops.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def main(
    run: Path, assets: Path | None, stores: tuple[Path, ...], count: int, json_file: Path | None
) -> None:
    """Measure the mean weights of RUN on held-out rendered people and on real video."""
    try:
        if assets is None and not stores:
            raise ExportError("something to measure on was wanted; give --assets or --store")
        found = report(averaged_model(run), assets, list(stores), count)
        click.echo("\n".join(line(name, metrics) for name, metrics in found.items()))
        if json_file is not None:
            rows = {name: metrics.as_dict() for name, metrics in found.items()}
            json_file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    except MambaPoseError as err:
        click.echo(f"error: {err}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
