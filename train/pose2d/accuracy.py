"""Accuracy of a bundle's pose2d on rendered people, see train/pose2d/measure.py."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from mambapose.benchmarks.scores import Score, pose_score
from mambapose.runtime.backends.loader import load_engine
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.errors import EngineError
from mambapose.runtime.loading import opened_flow
from mambapose.runtime.types import Where
from mambapose.train.pose2d import measure
from mambapose.train.world.cache import Stores
from mambapose.train.world.sample import CROP


def world_scores(
    bundle: Bundle, where: Where, stores: Sequence[Path], assets: Path | None, count: int
) -> list[Score]:
    """Every combination of inputs on ``count`` held-out samples, then every fault on clean ones."""
    folders = list(stores)
    if "encode" in bundle.stage("pose2d").graphs:
        raise EngineError(
            f"a pose network of single pictures was wanted for rendered samples, "
            f"{bundle.stage('pose2d').network} looks at several frames; leave --shots out"
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
