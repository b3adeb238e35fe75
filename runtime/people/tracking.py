"""Who is who with a detector: boxes for the next frame from the last poses, and ids that stay.

    found    a detection that overlaps no known person starts an id, up to ``max_people``
    kept     between detections the box is that of the last pose; a detection that overlaps a
             person by IOU or more replaces it
    lost     a pose with fewer than MIN_JOINTS joints of MIN_SCORE stops the person; a detection
             over the last box within KEEP_FRAMES gives the same id back; so does missing
             MISSES detections in a row, which catches boxes that drifted onto the background
    doubled  two people whose joints lie on each other: the newer id ends

Weights that were never trained say nothing about where a person is, so then the box stays the
detector's. Without a detector one person is assumed (``one_person.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.stages.detect import Detections, overlaps
from mambapose.runtime.types import Boxes, Subjects

MIN_SCORE = 0.3
MIN_JOINTS = 5
# Of the longer side, on every side: joints end at the eyes and ankles, and people move.
MARGIN = 0.1
MIN_SIDE = 16.0  # px
IOU = 0.3
KEEP_FRAMES = 60
MISSES = 2
SAME_PERSON = 0.05  # mean joint distance by box diagonal
NEW_SCORE = 0.4  # of a detection that may start an id
MAX_PEOPLE = 10  # unless a run asks for another number

# Boxes (N, 4) of one frame -> joints (N, 17, 2) in frame pixels and their scores (N, 17).
PosesIn = Callable[[Boxes], tuple[NDArray[np.floating], NDArray[np.floating]]]


def boxes_from_joints(
    xy: NDArray[np.floating],
    score: NDArray[np.floating],
    frame: tuple[int, int],
    least: float | NDArray[np.floating] = MIN_SCORE,
) -> tuple[Boxes, NDArray[np.bool_]]:
    """(N, 4) boxes around the visible joints, inside the frame, and (N,) whether to trust them.

    xy: (N, J, 2) px, score: (N, J), frame: (H, W). least: the score from which a joint is visible,
    one for all people or (N, 1). People without a visible joint get the full frame as their box.
    """
    high = np.array(frame[::-1], np.float64)
    visible = (score >= least) & np.isfinite(xy).all(axis=-1)
    visible &= ((xy > -0.5 * high) & (xy < 1.5 * high)).all(axis=-1)
    place = xy.astype(np.float64)
    low_xy = np.where(visible[..., None], place, np.inf).min(axis=1, initial=np.inf)
    high_xy = np.where(visible[..., None], place, -np.inf).max(axis=1, initial=-np.inf)
    seen = visible.any(axis=1)
    low_xy[~seen], high_xy[~seen] = 0.0, high
    margin = np.maximum(MARGIN * (high_xy - low_xy).max(axis=1, keepdims=True), MIN_SIDE / 2)
    margin[~seen] = 0.0
    low_xy = np.clip(low_xy - margin, 0, np.maximum(high - MIN_SIDE, 0))
    high_xy = np.clip(high_xy + margin, np.minimum(low_xy + MIN_SIDE, high), high)
    boxes = np.concatenate([low_xy, high_xy], axis=1)
    return boxes, visible.sum(axis=1) >= MIN_JOINTS


def full_frame(frame: tuple[int, int]) -> Boxes:
    """(1, 4) a box that covers a whole frame (H, W)."""
    return np.array([[0.0, 0.0, frame[1], frame[0]]])


class Followed(Protocol):
    """What the pipeline needs from a way of following people, with a detector or without one."""

    def detection_due(self, frame: int) -> bool:
        """Whether a detector should look at this frame."""
        ...

    def detect(self, frame: int, found: Detections) -> None:
        """Take in what a detector saw in this frame."""
        ...

    def search_due(self, frame: int) -> bool:
        """Whether the pose network should look for people in this frame."""
        ...

    def search(self, frame: int, size: tuple[int, int], poses_in: PosesIn) -> None:
        """Find people with the pose network in a frame of size (H, W)."""
        ...

    def subjects(self, size: tuple[int, int]) -> Subjects:
        """The people to look at in a frame of size (H, W)."""
        ...

    def update(
        self,
        frame: int,
        subjects: Subjects,
        xy: NDArray[np.floating],
        score: NDArray[np.floating],
        size: tuple[int, int],
    ) -> NDArray[np.bool_]:
        """(N,) which of the ``subjects`` are reported, after taking in their poses in a frame.

        The frame may be an earlier one than the newest when poses come late.
        """
        ...

    def forget(self) -> None:
        """Drop everybody: a new scene begins."""
        ...


@dataclass
class _Person:
    id: int
    box: Boxes  # (4,)
    last_seen: int = 0
    active: bool = True
    confirmed: bool = False
    misses: int = 0


@dataclass
class Tracker:
    """Follows several people with a detector that looks at every ``every``-th frame."""

    every: int
    max_people: int
    trained: bool = True
    _people: list[_Person] = field(default_factory=list)
    _next_id: int = 1
    _last_detection: int | None = None

    def detection_due(self, frame: int) -> bool:
        """Whether to detect: at the start, after a cut, and ``every`` frames after the last."""
        return self._last_detection is None or frame - self._last_detection >= self.every

    def detect(self, frame: int, found: Detections) -> None:
        """Compare the detections with the people known: renew boxes, end and start people.

        A lost person whose last box is detected again gets the same id back, if there is room for
        one more: people who are followed come first, then those who were lost, then new ones.
        """
        self._last_detection = frame
        self._people = [p for p in self._people if p.active or not self._ended(p, frame)]
        known = np.array([person.box for person in self._people]).reshape(-1, 4)
        pairs = assigned(overlaps(known, found.boxes), IOU)
        matched = dict(pairs)
        for k, person in enumerate(self._people):
            person.misses = 0 if k in matched else person.misses + 1
        kept = [k for k, person in enumerate(self._people) if not self._ended(person, frame)]
        free = self.max_people - sum(self._people[k].active for k in kept)
        for k in sorted(set(kept) & matched.keys(), key=lambda k: -found.scores[matched[k]]):
            person = self._people[k]
            if not person.active and free <= 0:
                continue
            free -= not person.active
            person.box, person.active = found.boxes[matched[k]], True
            person.last_seen = frame
        self._people = [self._people[k] for k in kept]
        taken = set(matched.values())
        starts = [k for k in range(len(found)) if k not in taken and found.scores[k] >= NEW_SCORE]
        for k in starts[: max(0, free)]:
            self._people.append(_Person(self._next_id, found.boxes[k], last_seen=frame))
            self._next_id += 1

    def search_due(self, frame: int) -> bool:
        """Always False: the detector finds people."""
        return False

    def search(self, frame: int, size: tuple[int, int], poses_in: PosesIn) -> None:
        """Does nothing: the detector finds people."""

    @staticmethod
    def _ended(person: _Person, frame: int) -> bool:
        if person.active:
            return person.misses >= MISSES
        return frame - person.last_seen > KEEP_FRAMES

    def subjects(self, size: tuple[int, int]) -> Subjects:
        """Everyone who is not lost, in order of id."""
        active = [person for person in self._people if person.active]
        boxes = np.array([person.box for person in active]).reshape(-1, 4)
        return Subjects(tuple(person.id for person in active), boxes)

    def update(
        self,
        frame: int,
        subjects: Subjects,
        xy: NDArray[np.floating],
        score: NDArray[np.floating],
        size: tuple[int, int],
    ) -> NDArray[np.bool_]:
        """(N,) which people are reported; moves their boxes to the poses.

        People who are lost and people who double an earlier one are not reported.
        """
        if not self.trained:
            return np.ones(len(subjects.ids), bool)
        boxes, trusted = boxes_from_joints(xy, score, size)
        people = {person.id: person for person in self._people}
        reported = trusted & ~doubles(xy.astype(np.float64), boxes, trusted)
        known = [(k, people[id_]) for k, id_ in enumerate(subjects.ids) if id_ in people]
        for k, person in known:
            person.confirmed |= bool(reported[k])
            if frame < person.last_seen:  # a late pose: a detection has been there since
                continue
            person.active = bool(reported[k])
            if person.active:
                person.box, person.last_seen = boxes[k], frame
        ended = {
            person.id
            for k, person in known
            if (trusted[k] and not reported[k]) or not person.confirmed
        }
        self._people = [person for person in self._people if person.id not in ended]
        return reported

    def forget(self) -> None:
        """Drop everybody; the detector looks at the next frame."""
        self._people = []
        self._last_detection = None


def doubles(xy: NDArray[np.float64], boxes: Boxes, trusted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(N,) whether the joints of a trusted person lie on those of an earlier trusted person.

    xy: (N, J, 2) px; boxes: (N, 4) xyxy px; trusted: (N,).
    """
    size = np.linalg.norm(boxes[:, 2:] - boxes[:, :2], axis=1)
    gap = np.linalg.norm(xy[:, None] - xy[None], axis=-1).mean(axis=-1)
    near = gap < SAME_PERSON * np.minimum(size[:, None], size[None])
    double: NDArray[np.bool_] = (np.tril(near, -1) & trusted[None]).any(axis=1) & trusted
    return double


def assigned(similarity: NDArray[np.float64], least: float) -> list[tuple[int, int]]:
    """(row, column) pairs, the most similar first; each row and each column is used at most once.

    Pairs whose similarity is below ``least`` are left out.
    """
    left = similarity.copy()
    pairs = []
    while left.size and left.max() >= least:
        row, column = np.unravel_index(left.argmax(), left.shape)
        pairs.append((int(row), int(column)))
        left[row], left[:, column] = -1.0, -1.0
    return pairs
