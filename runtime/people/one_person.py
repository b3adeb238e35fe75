"""One person, followed without a detector: the pose network itself says where somebody is.

    searched  at the start, after a cut and when the pose is lost: boxes of four sizes all over the
              frame, the best by mean joint score and size (of several people the nearest one is
              meant), each of the best few moved onto its own joints
    followed  the box grows to the last pose at once and shrinks onto it slowly, the slower the
              fewer joints were recognised, so that it does not close on a part of the body
    checked   every CHECK_EVERY frames a wider box is tried too, because a box that has shrunk onto
              a part of the body would otherwise never see the rest again; while the scores are
              low, now and then the whole frame
    lost      a pose whose mean score is below KEPT is not reported; the next frame looks around
              the last place, then everywhere; in vain, so does one SEARCH_EVERY frames later, and
              so on at twice the distance up to SEARCH_AT_LEAST_EVERY

A search costs 50 to 180 crops, however wide the frame is: beyond WIDEST its boxes lie further
apart, and beyond twice that somebody may stand between them; ``times`` of run.json says how long
they took. The scores of weights that were never trained say nothing about where a person is: then
the box stays the full frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.people.tracking import (
    MIN_SCORE,
    PosesIn,
    boxes_from_joints,
    followed,
    full_frame,
)
from mambapose.runtime.stages.detect import Detections
from mambapose.runtime.types import Boxes, Subjects

# Heights of the boxes by that of the frame. A crop sees 1.25 times its box, and the box of the
# joints of what it saw comes next, so people between the sizes are met as well.
SIZES = (1.0, 0.7, 0.5, 0.35)
# What a search looks at is time against people missed, and mp-bench accuracy measures it; that
# people from 0.3 of the height on are found is tested, the exact sizes, steps and numbers are free.
FEW = 3  # of the sizes are enough for most people; the smallest boxes are the most and come last
ASPECT = 0.75  # width by height of a crop
STEP_X, STEP_Y = 0.5, 0.4  # between neighbours, by the height of a box
# Width by height of a frame from which on there are no more boxes. Films have 2.4, and at 2.5 a
# search costs 1.6 times that at 16:9.
WIDEST = 2.5
BEST, REFINEMENTS = 3, 2
# Mean scores over the joints: of a person to begin with, to go on with, and beyond doubt. A network
# in training gave 0.66 and more on the sample clip, up to 0.26 on the same scene without anybody.
FOUND, KEPT, SURE = 0.25, 0.15, 0.5
VISIBLE = 0.8  # a joint counts from this share of the mean score, at most from MIN_SCORE
WIDER = 1.5  # enough to see the other half of a body; the exact factor is free
GAIN = 1.1  # a wider box must score this much better than the present one
ELSEWHERE = 2.5  # and another place be worth this much more
SEARCH_EVERY, SEARCH_AT_LEAST_EVERY = 10, 40
CHECK_EVERY = 15


@dataclass(frozen=True)
class Sight:
    """What the pose network found in one box.

    score: mean over the joints; around: (4,) the box around the joints; worth: the score, reduced
    for a small person; seen: the share of the joints whose score is high enough to count.
    """

    box: Boxes
    score: float
    around: Boxes
    worth: float
    seen: float


class OnePerson:
    """Follows one person without a detector. trained: whether the pose scores mean anything."""

    def __init__(self, *, trained: bool = True) -> None:
        self._trained = trained
        self._id = 1
        self._box: Boxes | None = None
        self._last: Boxes | None = None
        self._looked: int | None = None  # the frame of the last search or check
        self._everywhere = 0  # the frame of the last search
        self._wait = 0  # frames from a search in vain to the next

    def detection_due(self, frame: int) -> bool:
        """Always False: there is no detector."""
        return False

    def detect(self, frame: int, found: Detections) -> None:
        """Does nothing: there is no detector."""

    def search_due(self, frame: int) -> bool:
        """Whether ``search`` should look at this frame."""
        if not self._trained:
            return False
        if self._looked is None:
            return True
        wait = self._wait if self._box is None else CHECK_EVERY
        return frame - self._looked >= wait

    def search(self, frame: int, size: tuple[int, int], poses_in: PosesIn) -> None:
        """Find the person in a frame of ``size`` (H, W), or check that the box is right."""
        self._looked = frame
        if self._box is None:
            self._everywhere = frame
            self._box = found_box(self._last, size, poses_in)
            longer = min(max(2 * self._wait, SEARCH_EVERY), SEARCH_AT_LEAST_EVERY)
            self._wait = longer if self._box is None else 0
            return
        best = checked(self._box, size, poses_in)
        if best.score < SURE and frame - self._everywhere >= SEARCH_AT_LEAST_EVERY:
            self._everywhere = frame
            other = best_sight(grid(SIZES, size), size, poses_in)
            best = other if other.worth > ELSEWHERE * best.worth else best
        self._box = best.box[None]

    def subjects(self, size: tuple[int, int]) -> Subjects:
        """The person in the box of the last pose, or nobody; when untrained, the full frame."""
        if not self._trained:
            return Subjects((self._id,), full_frame(size))
        if self._box is None:
            return Subjects((), np.zeros((0, 4)))
        return Subjects((self._id,), self._box)

    def update(
        self,
        frame: int,
        subjects: Subjects,
        xy: NDArray[np.floating],
        score: NDArray[np.floating],
        size: tuple[int, int],
    ) -> NDArray[np.bool_]:
        """(1,) whether the person is reported; moves the box to the pose, or drops it when lost."""
        if not self._trained:
            return np.ones(1, bool)
        (sight,) = sights_of(subjects.boxes, xy, score, size)
        kept = sight.score >= KEPT
        # A late pose says nothing about the box of a search that came after it.
        if self._looked is None or frame >= self._looked:
            self._last = subjects.boxes
            self._box = followed(subjects.boxes, sight.around, sight.seen) if kept else None
        return np.array([kept])

    def forget(self) -> None:
        """Drop the box: the next frame is searched, and the person found there gets a new id."""
        self._id += 1
        self._box = self._last = None
        self._wait = 0


def found_box(last: Boxes | None, size: tuple[int, int], poses_in: PosesIn) -> Boxes | None:
    """(1, 4) the box of the person in a frame of ``size`` (H, W), or None when nobody is found.

    last: the box in which the person was last seen; it is tried first.
    """
    best: Sight | None = None
    if last is not None:
        best = best_sight(np.concatenate([last, *_around(last, size)]), size, poses_in)
        if best.score >= KEPT:  # an odd pose of the same person rather than somebody else
            return best.box[None]
    for boxes in (grid(SIZES[:FEW], size), grid(SIZES[FEW:], size)):
        found = best_sight(boxes, size, poses_in)
        if best is None or found.worth > best.worth:
            best = found
        if best.score >= SURE:
            break
    return best.box[None] if best is not None and best.score >= FOUND else None


def checked(box: Boxes, size: tuple[int, int], poses_in: PosesIn) -> Sight:
    """What the box (1, 4) shows, or what a wider box shows when its score is clearly higher.

    In the second case the box of the result is the one around the joints that the wider box shows.
    """
    near, far = sights(np.concatenate([box, wider(box, WIDER, size)]), size, poses_in)
    return replace(far, box=far.around) if far.score > GAIN * near.score else near


def best_sight(boxes: Boxes, size: tuple[int, int], poses_in: PosesIn) -> Sight:
    """The sight of the most worth, found by moving the best of the boxes (N, 4) onto their joints.

    The BEST boxes are moved REFINEMENTS times; a move that lowers the worth is not made.
    """
    seen = sorted(sights(boxes, size, poses_in), key=_worth)[-BEST:]
    for _ in range(REFINEMENTS):
        moved = np.stack([sight.around for sight in seen])
        # A step that makes it worse is not taken, so the rest of the steps change nothing.
        seen = [
            max(pair, key=_worth) for pair in zip(seen, sights(moved, size, poses_in), strict=True)
        ]
    return max(seen, key=_worth)


def _worth(sight: Sight) -> float:
    return sight.worth


def sights(boxes: Boxes, size: tuple[int, int], poses_in: PosesIn) -> list[Sight]:
    """What the pose network finds in each of the boxes (N, 4)."""
    return sights_of(boxes, *poses_in(boxes), size)


def sights_of(
    boxes: Boxes,
    xy: NDArray[np.floating],
    score: NDArray[np.floating],
    size: tuple[int, int],
) -> list[Sight]:
    """One Sight per box (N, 4), from its joints (N, J, 2) and scores (N, J) in a frame (H, W)."""
    means = score.mean(axis=1)
    least = np.minimum(VISIBLE * means, MIN_SCORE)[:, None]
    around, _ = boxes_from_joints(xy, score, size, least)
    share = np.maximum(around[:, 3] - around[:, 1], 0) / size[0]
    worth = means * np.sqrt(share)
    seen = (score >= least).mean(axis=1)
    return [
        Sight(boxes[k], float(means[k]), around[k], float(worth[k]), float(seen[k]))
        for k in range(len(boxes))
    ]


def _around(box: Boxes, size: tuple[int, int]) -> list[Boxes]:
    return [wider(box, WIDER, size), wider(box, WIDER**2, size)]


def grid(sizes: tuple[float, ...], size: tuple[int, int]) -> Boxes:
    """(N, 4) boxes of all the sizes (shares of the frame's height), after the frame (H, W)."""
    return np.concatenate([full_frame(size), *(grid_boxes(share, size) for share in sizes)])


def grid_boxes(share: float, size: tuple[int, int]) -> Boxes:
    """(N, 4) boxes as tall as ``share`` of the height of a frame (H, W), spread evenly over it.

    N does not grow with the width beyond WIDEST times the height.
    """
    tall = share * size[0]
    wide = ASPECT * tall
    x = _places(size[1], wide, STEP_X * tall * max(1.0, size[1] / (WIDEST * size[0])))
    y = _places(size[0], tall, STEP_Y * tall)
    low = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    return np.concatenate([low, low + np.array([wide, tall])], axis=1)


def _places(length: float, side: float, step: float) -> NDArray[np.float64]:
    """Starts of intervals of ``side`` that cover ``length``, at most ``step`` apart."""
    room = length - side
    if room <= 0:
        return np.array([room / 2])
    return np.linspace(0, room, int(np.ceil(room / step)) + 1)


def search_note(size: tuple[int, int]) -> str | None:
    """What is to be said of the search in frames (H, W) so wide that places are left out."""
    times = size[1] / size[0]
    if times <= 2 * WIDEST:
        return None
    return (
        f"frames are {times:.0f} times as wide as high: the search for a person leaves gaps; "
        "give a detector with --detect"
    )


def wider(box: Boxes, factor: float, size: tuple[int, int]) -> Boxes:
    """(1, 4) the box (1, 4) enlarged about its middle and cut to the frame (H, W)."""
    middle, half = (box[:, :2] + box[:, 2:]) / 2, (box[:, 2:] - box[:, :2]) / 2
    high = np.array(size[::-1], np.float64)
    return np.concatenate(
        [np.clip(middle - factor * half, 0, high), np.clip(middle + factor * half, 0, high)], axis=1
    )
