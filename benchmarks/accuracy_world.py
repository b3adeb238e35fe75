"""Accuracy of a bundle's pose2d on rendered people, see export/train/pose2d_measure.py."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from mambapose.benchmarks.accuracy_video import Where
from mambapose.benchmarks.scores import Score, pose_score
from mambapose.export.train import pose2d_measure as measure
from mambapose.export.train.world.cache import Stores
from mambapose.export.train.world.sample import CROP
from mambapose.runtime.bundle import Bundle
from mambapose.runtime.engine import Engine, load_engine
from mambapose.runtime.errors import EngineError
from mambapose.runtime.flow import GRAPHS, FlowStage
from mambapose.runtime.loading import oriented_graph


def world_scores(
    bundle: Bundle, where: Where, stores: Sequence[Path], assets: Path | None, count: int
) -> list[Score]:
    """Every combination of inputs on ``count`` held-out samples, then every fault on clean ones."""
    folders = list(stores)
    with ExitStack() as stack:
        engine = stack.enter_context(_load(bundle, where, "pose2d", "main"))
        size = tuple(engine.spec.inputs[0].shape[1:3])
        if size != CROP:
            raise EngineError(
                f"crops of {CROP[0]}x{CROP[1]} were wanted for rendered samples, pose2d of "
                f"{bundle.path} takes {size[0]}x{size[1]}; export it without --size"
            )
        flow = None
        if "flow" in bundle.stages and Stores(folders).pair:
            parts = {name: _load(bundle, where, "flow", name) for name in GRAPHS}
            flow = FlowStage(
                {name: stack.enter_context(part) for name, part in parts.items()},
                bundle.schedule.flow_iters,
            )
        mixed = measure.held_out_source(folders, assets, measure.EVERYTHING)
        clean = measure.held_out_source(folders, assets, measure.CLEAN)
        found = measure.combination_metrics(engine, mixed, count, flow)
        faulty = measure.fault_metrics(engine, clean, count)
    scores = [pose_score("pose2d", f"{count} rendered", name, m) for name, m in found.items()]
    return scores + [
        pose_score("pose2d", f"{count} rendered, {name}", "rgb", m) for name, m in faulty.items()
    ]


def _load(bundle: Bundle, where: Where, stage: str, base: str) -> Engine:
    graph = base
    if stage == "flow":  # crops stand upright
        graph = oriented_graph(bundle.stages[stage], stage, base, portrait=True)
    return load_engine(
        bundle, stage, graph, backend=where.backend, device=where.device, threads=where.threads
    )
