"""Accuracy of a bundle on video with known joints, through the runtime's own pipeline.

``pose2d`` is given the known box of every frame; ``chain`` has to find the person itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mambapose.benchmarks.scores import Score, lift_score, pose_score
from mambapose.benchmarks.truth.lift_metrics import measured_h36m, summary
from mambapose.benchmarks.truth.pose2sim import View
from mambapose.benchmarks.truth.pose_metrics import pose_metrics
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.loading import open_pipeline
from mambapose.runtime.people.tracking import PosesIn
from mambapose.runtime.run_options import RunOptions
from mambapose.runtime.stages.detect import Detections, overlaps
from mambapose.runtime.types import Frame, Pose, Size, Subjects, Where
from mambapose.runtime.video.sample import SAMPLE, Truth
from mambapose.runtime.video.sources import open_source

Array = NDArray[np.float64]
SAME_PERSON = 0.3  # overlap of a reported box with the true one


@dataclass(frozen=True)
class Clip:
    """A video with known joints of one person. F frames.

    xy: (F, 17, 2) px; valid: (F, 17) joints that are measured; boxes: (F, 4) xyxy px;
    height: (F,) px; xyz: (F, 13, 3) joints of lift_metrics in body heights.
    """

    name: str
    video: Path
    xy: Array
    valid: NDArray[np.bool_]
    boxes: Array
    height: Array
    xyz: Array

    def frames(self) -> Iterator[Frame]:
        """The decoded frames whose joints are known."""
        with open_source(str(self.video)) as source:
            yield from islice(source, len(self.xy))


def clip_from_view(view: View) -> Clip:
    """The clip of one camera of pose2sim."""
    name = f"pose2sim {view.name}"
    return Clip(name, view.video, view.xy, view.valid, view.boxes, view.height, view.xyz)


def clip_from_truth(truth: Truth, video: Path = SAMPLE) -> Clip:
    """The clip of a rendered video; joints outside the picture are not measured."""
    return Clip(
        "sample", video, truth.coco_xy.astype(np.float64), truth.visibility > 0,
        truth.box.astype(np.float64), truth.height_px, measured_h36m(truth.h36m_xyz),
    )  # fmt: skip


class KnownBoxes:
    """Stands in for a tracker: the person's known boxes (F, 4), one per frame from the first."""

    def __init__(self, boxes: Array) -> None:
        self._boxes = iter(boxes)

    def detection_due(self, frame: int) -> bool:
        return False

    def detect(self, frame: int, found: Detections) -> None:
        raise AssertionError("no detection is ever due")

    def search_due(self, frame: int) -> bool:
        return False

    def search(self, frame: int, size: tuple[int, int], poses_in: PosesIn) -> None:
        raise AssertionError("no search is ever due")

    def subjects(self, size: tuple[int, int]) -> Subjects:
        return Subjects((1,), next(self._boxes)[None])

    def update(
        self,
        frame: int,
        subjects: Subjects,
        xy: NDArray[np.floating],
        score: NDArray[np.floating],
        size: tuple[int, int],
    ) -> NDArray[np.bool_]:
        return np.ones(1, bool)

    def forget(self) -> None:
        """Does nothing: the boxes are known on both sides of a cut."""


@dataclass(frozen=True)
class Answer:
    """What the pipeline found of the person of a clip.

    xy: (F, 17, 2) px; xyz: (F, 17, 3) body heights. NaN in frames where the person was not found,
    and everywhere in xyz without a lifter.
    """

    xy: Array
    xyz: Array

    @property
    def found(self) -> float:
        """The share of the frames in which the person was found."""
        return float(np.isfinite(self.xy).all(axis=(1, 2)).mean())


def modalities(bundle: Bundle) -> Iterator[tuple[str, RunOptions]]:
    """Name and options of each combination of flow and depth that the bundle can run.

    The plain picture (``rgb``) comes first.
    """
    inputs = {item.name for item in bundle.graph("pose2d", "main").spec.inputs}
    flows = (False, True) if "flow" in bundle.stages and "flow" in inputs else (False,)
    depths = (False, True) if "depth" in bundle.stages and "depth" in inputs else (False,)
    for depth in depths:
        for flow in flows:
            name = "rgb" + "+flow" * flow + "+depth" * depth
            yield name, RunOptions(flow=flow, depth=depth)


def watched(
    bundle: Bundle, where: Where, clip: Clip, options: RunOptions, *, known: bool
) -> Answer:
    """What the pipeline found in a clip; known: it is given the person's boxes."""
    frames = clip.frames()
    first = next(frames)
    size = Size(*first.image.shape[:2])
    count = len(clip.xy)
    xy, xyz = np.full((count, 17, 2), np.nan), np.full((count, 17, 3), np.nan)
    with open_pipeline(bundle, size, options, where) as pipeline:
        if known:
            pipeline.people = KnownBoxes(clip.boxes)
        for result in pipeline.run(chain([first], frames)):
            t = result.frame.index
            pose = same_person(result.poses, clip.boxes[t], known=known)
            if pose is not None:
                xy[t] = pose.xy
                xyz[t] = np.nan if pose.xyz is None else pose.xyz
    return Answer(xy, xyz)


def same_person(poses: list[Pose], box: Array, *, known: bool) -> Pose | None:
    """The pose whose box overlaps the true one most, or None when none overlaps it enough.

    known: the pipeline was given the true box, so its first pose is taken.
    """
    if not poses or known:
        return poses[0] if poses else None
    boxes = np.stack([pose.box for pose in poses]).astype(np.float64)
    share = overlaps(boxes, box[None])[:, 0]
    return poses[int(share.argmax())] if share.max() >= SAME_PERSON else None


def video_scores(
    bundle: Bundle,
    where: Where,
    clips: list[Clip],
    options: RunOptions,
    inputs: str,
    *,
    known: bool,
) -> list[Score]:
    """2D scores of each clip and of all together; 3D scores too where the person was found."""
    answers = [watched(bundle, where, clip, options, known=known) for clip in clips]
    groups = {clip.name: [(clip, answer)] for clip, answer in zip(clips, answers, strict=True)}
    if len(clips) > 1:
        groups[clips[0].name.split()[0]] = list(zip(clips, answers, strict=True))
    scores = []
    for name, group in groups.items():
        columns = zip(*((a.xy, c.xy, c.valid, c.height) for c, a in group), strict=True)
        metrics = pose_metrics(*(np.concatenate(column) for column in columns))
        more = {} if known else {"found": float(np.mean([answer.found for _, answer in group]))}
        scores.append(pose_score("pose2d" if known else "chain", name, inputs, metrics, **more))
    if not known and "lift3d" in bundle.stages:
        for clip, answer in zip(clips, answers, strict=True):
            scores.append(lift_score("chain 3D", clip.name, inputs, lifted_values(answer, clip)))
    return scores


def lifted_values(answer: Answer, clip: Clip) -> dict[str, float]:
    """The metrics of lift_metrics on the frames that have 3D joints; NaN without three in a row."""
    answered: NDArray[np.bool_] = np.asarray(np.isfinite(answer.xyz).all(axis=(1, 2)))
    if not (answered[:-2] & answered[1:-1] & answered[2:]).any():
        return dict.fromkeys(("pa_mpjpe_mm", "mpjpe_mm", "acceleration_mm"), float("nan"))
    truth = np.where(answered[:, None, None], clip.xyz, np.nan)
    return summary(measured_h36m(answer.xyz), truth)
