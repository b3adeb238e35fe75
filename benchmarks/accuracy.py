"""``mp-bench accuracy``: how accurate a bundle is, measured through the graphs that will run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mambapose.benchmarks import report, scores
from mambapose.benchmarks.accuracy_video import (
    Clip,
    clip_from_truth,
    clip_from_view,
    modalities,
    video_scores,
)
from mambapose.benchmarks.report import say
from mambapose.benchmarks.scores import Score
from mambapose.runtime.backends.loader import backend_from_name
from mambapose.runtime.bundle.bundle import read_bundle
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.types import Where
from mambapose.runtime.video.sample import read_truth

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Material:
    """What there is to measure on.

    assets: the folder of real video and motion capture; quick: only a few windows of each activity.
    """

    assets: Path | None = None
    quick: bool = False


@dataclass(frozen=True)
class Report:
    """What is done with the scores.

    json_file: the scores are added to it as JSON lines; baseline: such a file of an earlier run; no
    score may be worse than there by more than the tolerance (scores.worse).
    """

    json_file: Path | None = None
    baseline: Path | None = None
    tolerance: float = 0.02


def measure(
    engine: Path, where: Where, material: Material, parts: tuple[str, ...], wanted: Report
) -> bool:
    """Whether the scores are not worse than the baseline; measures the parts and reports them."""
    bundle = read_bundle(engine)
    scores = measured(bundle, where, material, parts, partial(say, err=True))
    return reported(bundle, where, scores, wanted)


def reported(bundle: Bundle, where: Where, parts: Iterable[list[Score]], wanted: Report) -> bool:
    """Whether the scores are not worse than the baseline.

    Prints a table of each part as it comes and writes what was asked for.
    """
    baseline, json_file, tolerance = wanted.baseline, wanted.json_file, wanted.tolerance
    stored = None if baseline is None else scores.read_scores(baseline)
    about = facts(bundle, where)
    say(
        f"{about['cpu']}, {about['backend']} on {about['device']}, {about['threads']} threads, "
        f"commit {about['commit']}, bundle {bundle.hash[:12]}"
    )
    for stage, entry in bundle.stages.items():
        trained = "trained" if entry.weights.trained else "untrained: its numbers mean nothing"
        say(f"{stage}: {entry.network}, {entry.precision}, {trained}")
    found: list[Score] = []
    for part in parts:
        say()
        for line in scores.table(part):
            say(line)
        found += part
    shown = [score for score in found if score.stage == "pose2d" and "," not in score.data]
    if shown:
        say()
        say("median error of each joint, % of body height, left/right")
    for line in scores.joint_table(shown):
        say(line)
    if json_file is not None:
        scores.write_scores(found, json_file, about)
        say(f"wrote {len(found)} scores to {json_file}")
    if stored is None:
        return True
    lines = scores.worse(found, stored, tolerance)
    for line in lines:
        say(f"WORSE {line}")
    if not lines:
        say(f"not worse than {baseline}, tolerance {tolerance:g}")
    return not lines


def facts(bundle: Bundle, where: Where) -> dict[str, object]:
    """The circumstances of a measurement: machine, bundle, networks, backend and device."""
    return {
        **report.machine(),
        "backend": backend_from_name(where.backend),
        "device": where.device,
        "threads": where.thread_count,
        "bundle": bundle.hash,
        "networks": {
            name: {
                "network": stage.network,
                "precision": stage.precision,
                "trained": stage.weights.trained,
                "weights": stage.weights.sha256,
            }
            for name, stage in bundle.stages.items()
        },
    }


def measured(
    bundle: Bundle, where: Where, material: Material, parts: tuple[str, ...], tell: Tell
) -> Iterator[list[Score]]:
    """The scores of each part whose material is there; ``tell`` receives the names of the rest."""
    assets = material.assets
    if assets is None and (missing := [p for p in ("pose2d", "video", "lift3d") if p in parts]):
        tell(f"not measured without --assets: {', '.join(missing)}")
    if "sample" in parts:
        yield from sample_scores(bundle, where, tell)
    if assets is not None and {"pose2d", "video"} & set(parts):
        from mambapose.benchmarks.truth.pose2sim import FOLDER, pose2sim_views

        clips = [clip_from_view(view) for view in pose2sim_views(assets / FOLDER)]
        for part, known in (("pose2d", True), ("video", False)):
            if part in parts:
                yield combined_scores(bundle, where, clips, tell, known=known)
    if assets is not None and "lift3d" in parts and "lift3d" in bundle.stages:
        from mambapose.benchmarks.accuracy_lift import lift_scores

        tell("measuring the lifter")
        yield lift_scores(bundle, where, assets, quick=material.quick)


def sample_scores(bundle: Bundle, where: Where, tell: Tell) -> Iterator[list[Score]]:
    """Every stage and the whole chain on the packaged clip, whose truth is exact."""
    from mambapose.benchmarks.accuracy_dense import dense_scores

    truth = read_truth()
    clip = clip_from_truth(truth)
    if dense := dense_scores(bundle, where, clip, truth):
        yield dense
    yield combined_scores(bundle, where, [clip], tell, known=True)
    yield combined_scores(bundle, where, [clip], tell, known=False)


def combined_scores(
    bundle: Bundle, where: Where, clips: list[Clip], tell: Tell, *, known: bool
) -> list[Score]:
    """Scores of the clips with every combination of flow and depth that the bundle can run."""
    scores: list[Score] = []
    for name, options in modalities(bundle):
        box = "box given" if known else "the person to be found"
        tell(f"measuring {', '.join(clip.name for clip in clips)}: {name}, {box}")
        scores += video_scores(bundle, where, clips, options, name, known=known)
    return scores
