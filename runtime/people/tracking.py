"""Who is who with a detector: boxes for the next frame from the last poses, and ids that stay.

    found    a detection that is nobody known starts an id, up to ``max_people``
    kept     between detections the box grows to the last pose at once and shrinks onto it slowly,
             the slower the fewer joints were recognised; a detection that overlaps a person by IOU
             or more replaces it
    hidden   two people whose joints lie on each other: one of them hides the other. The pose is
             that of the person who was on his way there; the other's box goes on at his speed and
             is looked at for HIDDEN_FRAMES, but not reported until it shows somebody else
    lost     a pose with fewer than MIN_JOINTS joints of MIN_SCORE, or detections missed in a row,
             which catches boxes that drifted onto the background: MISSES, or SURE_MISSES while the
             pose is beyond doubt. A detection near where the person would be by now gives the same
             id back within KEEP_FRAMES
    doubled  a new id whose first pose lies on somebody known was a second box of the same person

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
INWARD = 0.07  # of its longer side, how far an edge of the box moves inwards per frame
PARTIAL = 3  # INWARD times the share of joints seen to this power; chosen on pose2sim
IOU = 0.3
KEEP_FRAMES = 60
MISSES, SURE_MISSES = 2, 6
SURE = 0.5  # mean score of the joints of a pose beyond doubt, as in one_person.py
HIDDEN_FRAMES = 20
# How far from where a lost person would be by now his detection may lie, by his box's diagonal:
# at once, and more for each frame that he has been away.
REACH, REACH_PER_FRAME = 0.5, 0.01
SIZES = 1.6  # the diagonals of the two boxes may differ by this factor
MEMORY = 0.7  # of the old speed and score in the new ones; how much exactly is free
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


def followed(box: Boxes, around: Boxes, seen: float) -> Boxes:
    """(1, 4) the box (1, 4) moved towards the box ``around`` the joints (4,).

    Edges move outwards at once and inwards slowly, the more slowly the smaller the share ``seen``
    of the joints. An edge may also move inwards as far as the opposite edge moves outwards, so the
    box keeps up with a person who walks.
    """
    (now,) = box
    step = INWARD * seen**PARTIAL * float((now[2:] - now[:2]).max())
    low_by, high_by = np.maximum(now[:2] - around[:2], 0), np.maximum(around[2:] - now[2:], 0)
    low = np.minimum(around[:2], now[:2] + step + high_by)
    high = np.maximum(around[2:], now[2:] - step - low_by)
    return np.concatenate([low, high])[None]


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
    """box: (4,) of the last pose or detection, moved on at ``speed`` (px a frame) while hidden.

    pose_box and pose_frame: the last pose alone, by which the speed is measured.
    """

    id: int
    box: Boxes
    last_seen: int = 0
    active: bool = True
    confirmed: bool = False
    misses: int = 0
    score: float = 0.0
    hidden: bool = False
    speed: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))
    pose_box: Boxes = field(default_factory=lambda: np.zeros(4))
    pose_frame: int = 0

    def see(self, frame: int, around: Boxes, score: float, share: float) -> None:
        """Take in a pose: the box (4,) around it, the mean score of its joints, the share seen."""
        if self.confirmed:
            moved = (_centre(around) - _centre(self.pose_box)) / max(1, frame - self.pose_frame)
            self.speed = MEMORY * self.speed + (1 - MEMORY) * moved
            self.score = MEMORY * self.score + (1 - MEMORY) * score
        else:
            self.score = score
        (self.box,) = around[None] if self.hidden else followed(self.box[None], around, share)
        self.confirmed, self.active, self.hidden = True, True, False
        self.last_seen = frame
        self.pose_box, self.pose_frame = around, frame

    def hide(self, frame: int) -> None:
        """Go on unseen, for a while."""
        self.hidden = True
        self.box = self.box + np.tile(self.speed, 2)
        self.active = frame - self.pose_frame <= HIDDEN_FRAMES

    def expected(self, frame: int) -> Boxes:
        """(4,) where the box would be by now. A hidden person's box is there already."""
        if self.hidden and self.active:
            return self.box
        return self.box + np.tile(self.speed, 2) * min(frame - self.last_seen, HIDDEN_FRAMES)


def _centre(box: NDArray[np.float64]) -> NDArray[np.float64]:
    return (box[..., :2] + box[..., 2:]) / 2


def _diagonal(box: NDArray[np.float64]) -> NDArray[np.float64]:
    length: NDArray[np.float64] = np.linalg.norm(box[..., 2:] - box[..., :2], axis=-1)
    return length


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
        self._people = [person for person in self._people if not self._forgotten(person, frame)]
        matched = self._matched(frame, found)
        for k, person in enumerate(self._people):
            person.misses = 0 if k in matched else person.misses + 1
            sure = person.score >= SURE and not person.hidden
            if person.misses >= (SURE_MISSES if sure else MISSES):
                person.active = False
        free = self.max_people - sum(person.active for person in self._people)
        for k in sorted(matched, key=lambda k: -found.scores[matched[k]]):
            person = self._people[k]
            if not person.active and free <= 0:
                continue
            free -= not person.active
            person.box, person.active = found.boxes[matched[k]], True
            if not person.hidden:
                person.last_seen = frame
        taken = set(matched.values())
        starts = [k for k in range(len(found)) if k not in taken and found.scores[k] >= NEW_SCORE]
        for k in starts[: max(0, free)]:
            self._people.append(_Person(self._next_id, found.boxes[k], last_seen=frame))
            self._next_id += 1

    def _matched(self, frame: int, found: Detections) -> dict[int, int]:
        """Index of a person -> index of the detection of this person.

        Boxes that overlap come first. A person who was lost may be further away, the further the
        longer it is ago.
        """
        known = np.array([person.expected(frame) for person in self._people]).reshape(-1, 4)
        similar = overlaps(known, found.boxes)
        matched = dict(assigned(similar, IOU))
        lost = np.array([not person.active for person in self._people], bool)
        lost[list(matched)] = False
        free = np.ones(len(found), bool)
        free[list(matched.values())] = False
        age = np.array([frame - person.last_seen for person in self._people])
        near = nearness(known, found.boxes, REACH + REACH_PER_FRAME * age)
        near[~lost], near[:, ~free] = 0.0, 0.0
        return matched | dict(assigned(near, np.finfo(float).tiny))

    def search_due(self, frame: int) -> bool:
        """Always False: the detector finds people."""
        return False

    def search(self, frame: int, size: tuple[int, int], poses_in: PosesIn) -> None:
        """Does nothing: the detector finds people."""

    @staticmethod
    def _forgotten(person: _Person, frame: int) -> bool:
        return not person.active and frame - person.last_seen > KEEP_FRAMES

    def subjects(self, size: tuple[int, int]) -> Subjects:
        """Everyone who is not lost, in order of id; also those who are hidden."""
        active = [person for person in self._people if person.active and _inside(person.box, size)]
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

        People who are lost, hidden, or second boxes of somebody else are not reported.
        """
        if not self.trained:
            return np.ones(len(subjects.ids), bool)
        boxes, trusted = boxes_from_joints(xy, score, size)
        people = {person.id: person for person in self._people}
        known = [people.get(id_) for id_ in subjects.ids]
        behind = np.zeros(len(known), bool)
        for one, other in doubles(xy.astype(np.float64), boxes, trusted):
            if not (behind[one] or behind[other]):
                behind[self._behind(one, other, known, boxes, frame)] = True
        reported: NDArray[np.bool_] = trusted & ~behind
        for k, person in enumerate(known):
            if person is None:
                continue
            if not reported[k] and not person.confirmed:
                self._people.remove(person)
            elif frame < person.last_seen:  # a late pose: a detection has been there since
                person.confirmed |= bool(reported[k])
            elif reported[k]:
                share = float((score[k] >= MIN_SCORE).mean())
                person.see(frame, boxes[k], float(np.clip(score[k], 0, 1).mean()), share)
            elif behind[k] or (person.hidden and person.active):
                person.hide(frame)
            else:
                person.active = False
        return reported

    @staticmethod
    def _behind(one: int, other: int, known: list[_Person | None], boxes: Boxes, frame: int) -> int:
        """Which of two people whose poses are the same is not the one who is seen.

        It is the one who was not yet reported or is hidden already, else the one who was not on his
        way there.
        """
        first, second = known[one], known[other]
        if first is None or second is None:
            return one if first is None else other
        if first.confirmed != second.confirmed:
            return other if first.confirmed else one
        if first.hidden != second.hidden:
            return one if first.hidden else other
        gaps = [
            float(np.linalg.norm(_centre(boxes[k]) - _centre(person.expected(frame))))
            for k, person in ((one, first), (other, second))
        ]
        return other if gaps[0] <= gaps[1] else one

    def forget(self) -> None:
        """Drop everybody; the detector looks at the next frame."""
        self._people = []
        self._last_detection = None


def _inside(box: Boxes, size: tuple[int, int]) -> bool:
    """Whether the middle of a box (4,) lies in a frame of size (H, W)."""
    x, y = _centre(box)
    return bool(0 <= x <= size[1] and 0 <= y <= size[0])


def nearness(known: Boxes, found: Boxes, reach: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, M) how near boxes found (M, 4) are to boxes known (N, 4): 1 in the same place, 0 beyond.

    reach: (N,) by the diagonal of the known box. Boxes of too different a size are not near.
    """
    large = _diagonal(known)[:, None]
    gap = np.linalg.norm(_centre(known)[:, None] - _centre(found)[None], axis=-1)
    ratio = _diagonal(found)[None] / np.maximum(large, 1e-9)
    near: NDArray[np.float64] = np.clip(1 - gap / np.maximum(reach[:, None] * large, 1e-9), 0, 1)
    near[(ratio > SIZES) | (ratio < 1 / SIZES)] = 0.0
    return near


def doubles(
    xy: NDArray[np.float64], boxes: Boxes, trusted: NDArray[np.bool_]
) -> list[tuple[int, int]]:
    """Pairs (earlier, later) of trusted people whose joints lie on each other.

    xy: (N, J, 2) px; boxes: (N, 4) xyxy px; trusted: (N,).
    """
    size = _diagonal(boxes)
    gap = np.linalg.norm(xy[:, None] - xy[None], axis=-1).mean(axis=-1)
    near = gap < SAME_PERSON * np.minimum(size[:, None], size[None])
    near &= trusted[:, None] & trusted[None]
    return [(int(k), int(later)) for k, later in np.argwhere(np.triu(near, 1))]


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
