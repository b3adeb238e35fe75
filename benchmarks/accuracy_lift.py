"""Accuracy of a bundle's lifter on known 2D joints: real video, and held-out activities."""

from __future__ import annotations

from pathlib import Path

from mambapose.benchmarks.scores import Score, lift_score
from mambapose.benchmarks.truth.lift_measure import held_out_metrics, pose2sim_metrics
from mambapose.benchmarks.truth.motion import clips_from_file, split_from_clips
from mambapose.benchmarks.truth.pose2sim import FOLDER
from mambapose.runtime.backends.loader import load_engine
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.errors import EngineError
from mambapose.runtime.loading import lift_unit
from mambapose.runtime.stages.causal_lifting import STEP
from mambapose.runtime.stages.joints import BODY_HEIGHTS
from mambapose.runtime.types import Where

MOTION = "cmu-17j"
# Which cues a lifter that takes any is told of, by name: score, depth at the joint, flow there.
CUES = {
    "joints+score": (1, 0, 0), "joints+score+flow": (1, 0, 1), "joints+score+depth": (1, 1, 0),
    "joints+score+flow+depth": (1, 1, 1),
}  # fmt: skip


def lift_scores(bundle: Bundle, where: Where, assets: Path, *, quick: bool) -> list[Score]:
    """Scores of the lifter on pose2sim's OpenPose joints and on each held-out activity.

    The activities are seen through a simulated detector. quick: a few windows of each activity.
    What the assets folder lacks is left out; activities are measured in body heights, so they are
    left out for weights whose 3D joints are in another unit.
    """
    unit = lift_unit(bundle)
    graph = STEP if STEP in bundle.stage("lift3d").graphs else "main"
    scores = []
    with load_engine(bundle, "lift3d", graph, where) as engine:
        takes_cues = any(item.name == "present" for item in engine.spec.inputs)
        combinations = CUES if takes_cues else {"joints": (0, 0, 0)}
        plain = next(iter(combinations))
        if (assets / FOLDER).is_dir():
            found = pose2sim_metrics(engine, assets / FOLDER, unit, bundle.schedule.hop)
            for camera, values in found.items():
                scores.append(lift_score("lift3d", f"pose2sim {camera}", plain, values))
        if (assets / MOTION).is_dir() and unit == BODY_HEIGHTS:
            clips = split_from_clips(clips_from_file(assets / MOTION)).test
            for cues, present in combinations.items():
                every = held_out_metrics(engine, clips, present=present, views=1, quick=quick)
                for activity in every if cues == plain else ("mean",):
                    data = f"held out{', quick' * quick}, {activity}"
                    scores.append(lift_score("lift3d", data, cues, every[activity]))
    if not scores:
        raise EngineError(f"{FOLDER} or {MOTION} were wanted in {assets}, found neither")
    return scores
