"""How accurate a bundle's 2D network is on rendered people that nothing was trained on.

    python -m mambapose.train.pose2d.accuracy --store HELD --json scores.jsonl

It completes ``mp-bench accuracy``, with the same tables, JSON lines and baseline, and needs the
rendered world, which only a checkout has. What is measured: train/pose2d/measure.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from mambapose.benchmarks.accuracy import Report, reported
from mambapose.benchmarks.scores import Score, pose_score
from mambapose.runtime.backends.loader import load_engine
from mambapose.runtime.bundle.bundle import read_bundle
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.commands import run_command
from mambapose.runtime.errors import EngineError
from mambapose.runtime.loading import opened_flow, shipped_bundle
from mambapose.runtime.options import FilePath, FiniteRange
from mambapose.runtime.types import Where
from mambapose.train.pose2d import measure
from mambapose.train.world.cache import Stores
from mambapose.train.world.sample import CROP


def world_scores(
    bundle: Bundle, where: Where, stores: Sequence[Path], assets: Path | None, count: int
) -> list[Score]:
    """Scores for every combination of inputs on ``count`` held-out samples, and for every fault.

    Faults are put on clean samples.
    """
    folders = list(stores)
    if "encode" in bundle.stage("pose2d").graphs:
        raise EngineError(
            f"a pose network of single pictures was wanted for rendered samples, "
            f"{bundle.stage('pose2d').network} looks at several frames; name another --engine"
        )
    with ExitStack() as stack:
        engine = stack.enter_context(load_engine(bundle, "pose2d", "main", where))
        size = tuple(engine.spec.inputs[0].shape[1:3])
        if size != CROP:
            raise EngineError(
                f"crops of {CROP[0]}x{CROP[1]} were wanted for rendered samples, pose2d of "
                f"{bundle.path} takes {size[0]}x{size[1]}; export it without --size"
            )
        flow = None
        if "flow" in bundle.stages and Stores(folders).pair:
            flow = stack.enter_context(opened_flow(bundle, portrait=True, where=where))
        mixed = measure.held_out_source(folders, assets, measure.EVERYTHING)
        clean = measure.held_out_source(folders, assets, measure.CLEAN)
        found = measure.combination_metrics(engine, mixed, count, flow)
        faulty = measure.fault_metrics(engine, clean, count)
    scores = [pose_score("pose2d", f"{count} rendered", name, m) for name, m in found.items()]
    return scores + [
        pose_score("pose2d", f"{count} rendered, {name}", "rgb", m) for name, m in faulty.items()
    ]


@click.command(epilog="Example: python -m mambapose.train.pose2d.accuracy --store HELD")
@click.option("--engine", metavar="BUNDLE", type=Path, help="Bundle  [default: the one that ships]")
@click.option("--store", "stores", multiple=True, required=True,
              type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Shots of train.pose2d.render --held-out; may be repeated.")  # fmt: skip
@click.option("--assets", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Folder with frames of free films for backgrounds.")  # fmt: skip
@click.option(
    "--samples", type=click.IntRange(1), default=300, show_default=True, help="Samples to look at."
)
@click.option("--threads", type=click.IntRange(1), help="Threads inside one graph  [default: all]")
@click.option(
    "--json", "json_file", metavar="FILE", type=FilePath(), help="Append JSON lines here."
)
@click.option("--baseline", metavar="FILE", type=click.Path(exists=True, path_type=Path),
              help="Stored JSON lines: exit 1 when anything is worse.")  # fmt: skip
@click.option("--tolerance", type=FiniteRange(0, 1), default=Report.tolerance, show_default=True,
              help="PCK may be lower by this; errors higher by this share.")  # fmt: skip
def command(
    engine: Path | None, stores: tuple[Path, ...], assets: Path | None, samples: int,
    threads: int | None, json_file: Path | None, baseline: Path | None, tolerance: float,
) -> None:  # fmt: skip
    """Measure the 2D network of a bundle on rendered people."""
    bundle, where = read_bundle(engine or shipped_bundle()), Where(threads=threads)
    scores = world_scores(bundle, where, stores, assets, samples)
    if not reported(bundle, where, [scores], Report(json_file, baseline, tolerance)):
        raise SystemExit(1)


def main(args: list[str] | None = None) -> None:
    """Entry point."""
    run_command(command, args, "accuracy")


if __name__ == "__main__":
    main()
