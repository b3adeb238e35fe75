"""Ids and boxes with a detector: found, kept, lost, given back, doubled."""

from __future__ import annotations

import numpy as np
import pytest

from mambapose.runtime.people.tracking import (
    KEEP_FRAMES,
    Tracker,
    assigned,
    boxes_from_joints,
    doubles,
)
from mambapose.runtime.stages.detect import Detections

SIZE = (480, 640)


def person(x, y, height=200.0, score=0.9):
    """17 joints filling a box of 0.4 * height by height with its top left at x, y."""
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 1, (17, 2))
    xy[:2] = [[0, 0], [1, 1]]
    return xy * [0.4 * height, height] + [x, y], np.full(17, score)


def poses(*people):
    xy, score = zip(*people, strict=True)
    return np.stack(xy).astype(np.float32), np.stack(score).astype(np.float32)


def seen(*boxes, scores=None):
    scores = [0.9] * len(boxes) if scores is None else scores
    return Detections(np.array(boxes, np.float64).reshape(-1, 4), np.array(scores, np.float64))


def box_of(x, y, height=200.0):
    return [x, y, x + 0.4 * height, y + height]


def test_boxes_have_a_margin_and_stay_inside():
    xy, score = poses(person(100, 150), person(-30, 400))
    boxes, trusted = boxes_from_joints(xy, score, SIZE)
    assert trusted.all()
    assert np.allclose(boxes[0], [80, 130, 200, 370])
    assert np.allclose(boxes[1], [0, 380, 70, 480])


def test_invisible_joints_do_not_count():
    xy, score = poses(person(100, 150))
    xy[0, 0], score[0, 0] = [5000, 5000], 0.9
    xy[0, 5], score[0, 5] = [0, 0], 0.1
    xy[0, 6] = np.nan
    boxes, trusted = boxes_from_joints(xy, score, SIZE)
    assert trusted.all()
    assert boxes[0, 2] < 220
    assert boxes[0, 0] >= 80
    score[:] = 0.1
    boxes, trusted = boxes_from_joints(xy, score, SIZE)
    assert not trusted.any()
    assert boxes[0].tolist() == [0, 0, 640, 480]


@pytest.mark.parametrize(("visible", "trust"), [(4, False), (5, True)])
def test_five_joints_are_somebody_and_four_are_not(visible, trust):
    xy, score = poses(person(100, 150))
    score[0, visible:] = 0.1
    assert boxes_from_joints(xy, score, SIZE)[1].tolist() == [trust]


@pytest.mark.parametrize(("score", "counts"), [(0.29, False), (0.31, True)])
def test_a_joint_is_visible_from_three_tenths(score, counts):
    xy, scores = poses(person(100, 150))
    assert boxes_from_joints(xy, 0 * scores + score, SIZE)[1].tolist() == [counts]


def test_a_speck_gets_a_box_that_can_be_cropped():
    xy, score = poses((np.tile([639.4, 479.4], (17, 1)), np.ones(17)))
    boxes, _ = boxes_from_joints(xy, score, SIZE)
    assert np.allclose(boxes[0, 2:] - boxes[0, :2], 16)
    assert (boxes[0] <= [640, 480, 640, 480]).all()


def test_an_untrained_network_never_moves_the_box():
    xy, score = poses(person(100, 150))
    many = Tracker(every=10, max_people=3, trained=False)
    many.detect(0, seen(box_of(10, 10)))
    assert many.update(0, many.subjects(SIZE), xy, score * 0, SIZE).all()
    assert many.subjects(SIZE).boxes.tolist() == [box_of(10, 10)]


def walk(tracker, frames, detect, move=4.0, start=((50, 100), (400, 150))):
    """Two people walking right; the ids of each frame."""
    ids = []
    for frame in range(frames):
        places = [(x + move * frame, y) for x, y in start]
        if tracker.detection_due(frame):
            tracker.detect(frame, detect(frame, places))
        subjects = tracker.subjects(SIZE)
        order = [int(np.argmin([abs(box[0] - x) for x, _ in places])) for box in subjects.boxes]
        xy, score = poses(*[person(*places[k]) for k in order])
        kept = tracker.update(frame, subjects, xy, score, SIZE)
        ids.append([(id_, k) for id_, k, ok in zip(subjects.ids, order, kept, strict=True) if ok])
    return ids


def test_ids_stay_while_detections_change_order():
    def detect(frame, places):
        boxes = [box_of(*place) for place in places]
        return seen(*(boxes if frame % 20 else boxes[::-1]))

    ids = walk(Tracker(every=10, max_people=5), 41, detect)
    assert all(frame == ids[0] for frame in ids)
    assert len(ids[0]) == 2


def test_one_missed_detection_is_forgiven_two_end_the_id():
    def misses(*frames):
        def detect(frame, places):
            left = places[1:] if frame in frames else places
            return seen(*[box_of(*place) for place in left])

        return detect

    once = walk(Tracker(every=10, max_people=5), 31, misses(10))
    assert once[30] == once[0]
    twice = walk(Tracker(every=10, max_people=5), 21, misses(10, 20))
    assert len(twice[19]) == 2
    assert len(twice[20]) == 1


def test_a_lost_person_is_given_its_id_back():
    tracker = Tracker(every=5, max_people=5)
    xy, score = poses(person(100, 100))
    for frame in range(20):
        if tracker.detection_due(frame):
            tracker.detect(frame, seen(box_of(100, 100)) if frame != 5 else seen())
        subjects = tracker.subjects(SIZE)
        if 3 <= frame < 10:
            assert len(subjects.ids) == (frame == 3)
            if subjects.ids:
                assert not tracker.update(frame, subjects, xy, score * 0.1, SIZE).any()
        else:
            assert subjects.ids == (1,)
            assert tracker.update(frame, subjects, xy, score, SIZE).all()


def test_a_late_pose_does_not_move_the_box_of_a_later_detection():
    tracker = Tracker(every=2, max_people=5)
    tracker.detect(0, seen(box_of(100, 100)))
    first = tracker.subjects(SIZE)
    tracker.detect(2, seen(box_of(120, 100)))
    xy, score = poses(person(100, 100))
    assert tracker.update(0, first, xy, score, SIZE).all()
    assert tracker.subjects(SIZE).boxes.tolist() == [box_of(120, 100)]
    assert not tracker.update(1, first, xy, score * 0.1, SIZE).any()
    assert tracker.subjects(SIZE).ids == (1,)
    assert tracker.update(2, first, xy, score, SIZE).all()
    assert tracker.subjects(SIZE).boxes.tolist() != [box_of(120, 100)]


def test_a_late_pose_of_somebody_whose_id_has_ended_is_reported_and_starts_nobody():
    tracker = Tracker(every=1, max_people=5)
    tracker.detect(0, seen(box_of(100, 100)))
    first = tracker.subjects(SIZE)
    tracker.detect(1, seen())
    tracker.detect(2, seen())
    xy, score = poses(person(100, 100))
    assert tracker.subjects(SIZE).ids == ()
    assert tracker.update(0, first, xy, score, SIZE).all()
    assert tracker.subjects(SIZE).ids == ()


def test_someone_lost_for_long_is_a_new_person():
    tracker = Tracker(every=5, max_people=5)
    tracker.detect(0, seen(box_of(100, 100)))
    xy, score = poses(person(100, 100))
    tracker.update(0, tracker.subjects(SIZE), xy, score, SIZE)
    tracker.update(1, tracker.subjects(SIZE), xy, score * 0, SIZE)
    tracker.detect(100, seen())
    tracker.detect(105, seen(box_of(100, 100)))
    assert tracker.subjects(SIZE).ids == (2,)


@pytest.mark.parametrize(("again", "id_"), [(60, 1), (70, 2)])
def test_an_id_waits_two_seconds_for_its_person(again, id_):
    """The detector looks every 5 frames; the person of frame 0 shows again in frame ``again``: an
    id unseen for 60 frames, two seconds of a usual video, is still given back, for 65 no more.
    """
    tracker = Tracker(every=5, max_people=5)
    tracker.detect(0, seen(box_of(100, 100)))
    xy, score = poses(person(100, 100))
    tracker.update(0, tracker.subjects(SIZE), xy, score, SIZE)
    tracker.update(1, tracker.subjects(SIZE), xy, score * 0, SIZE)
    for frame in range(5, again, 5):
        tracker.detect(frame, seen())
    tracker.detect(again, seen(box_of(100, 100)))
    assert tracker.subjects(SIZE).ids == (id_,)


def moved_to_overlap(box, overlap):
    """The box moved sideways until intersection over union is ``overlap``."""
    by = (box[2] - box[0]) * (1 - overlap) / (1 + overlap)
    return [box[0] + by, box[1], box[2] + by, box[3]]


@pytest.mark.parametrize(("overlap", "ids"), [(0.31, (1,)), (0.29, (1, 2))])
def test_a_detection_is_the_person_it_overlaps_by_three_tenths(overlap, ids):
    tracker = Tracker(every=5, max_people=5)
    tracker.detect(0, seen(box_of(100, 100)))
    there = moved_to_overlap(box_of(100, 100), overlap)
    tracker.detect(5, seen(there))
    subjects = tracker.subjects(SIZE)
    assert subjects.ids == ids
    assert subjects.boxes[-1].tolist() == there


def test_a_detection_whose_first_pose_is_nothing_leaves_no_trace():
    tracker = Tracker(every=5, max_people=5)
    tracker.detect(0, seen(box_of(100, 100)))
    xy, score = poses(person(100, 100, score=0.05))
    assert not tracker.update(0, tracker.subjects(SIZE), xy, score, SIZE).any()
    tracker.detect(5, seen(box_of(100, 100)))
    assert tracker.subjects(SIZE).ids == (2,)


def test_two_ids_on_one_body_become_the_older():
    tracker = Tracker(every=50, max_people=5)
    tracker.detect(0, seen(box_of(100, 100), box_of(300, 100)))
    both = poses(person(100, 100), person(300, 100))
    assert tracker.update(0, tracker.subjects(SIZE), *both, SIZE).all()
    same = poses(person(100, 100), person(101, 100))
    assert tracker.update(1, tracker.subjects(SIZE), *same, SIZE).tolist() == [True, False]
    assert tracker.subjects(SIZE).ids == (1,)


def test_at_most_so_many_people_the_surest_first():
    tracker = Tracker(every=5, max_people=2)
    boxes = [box_of(x, 50) for x in (10, 200, 400)]
    tracker.detect(0, seen(*boxes, scores=[0.9, 0.8, 0.7]))
    assert tracker.subjects(SIZE).boxes.tolist() == boxes[:2]


def test_a_lost_person_takes_no_more_than_a_free_place():
    tracker = Tracker(every=1, max_people=2)
    first, second, third = (box_of(x, 100) for x in (50, 250, 450))
    tracker.detect(0, seen(first, second))
    nothing = poses(person(50, 100), person(250, 100, score=0.0))
    both = poses(person(50, 100), person(250, 100))
    tracker.update(0, tracker.subjects(SIZE), *both, SIZE)
    tracker.update(1, tracker.subjects(SIZE), *nothing, SIZE)  # the second is lost
    tracker.detect(2, seen(first, third))
    assert tracker.subjects(SIZE).ids == (1, 3)
    tracker.detect(3, seen(first, second, third))  # the second again, but there are two already
    assert tracker.subjects(SIZE).ids == (1, 3)
    tracker.update(
        3, tracker.subjects(SIZE), *poses(person(50, 100), person(450, 100, score=0)), SIZE
    )
    tracker.detect(4, seen(first, second, third, scores=[0.9, 0.8, 0.7]))  # the surer of two
    assert tracker.subjects(SIZE).ids == (1, 2)


def test_an_id_never_outlives_its_two_seconds_whenever_detections_come():
    tracker = Tracker(every=50, max_people=2)
    tracker.detect(0, seen(box_of(100, 100)))
    tracker.update(0, tracker.subjects(SIZE), *poses(person(100, 100)), SIZE)
    tracker.update(1, tracker.subjects(SIZE), *poses(person(100, 100, score=0.0)), SIZE)
    tracker.detect(KEEP_FRAMES + 1, seen(box_of(100, 100)))
    assert tracker.subjects(SIZE).ids == (2,)


def test_a_weak_detection_keeps_but_does_not_start():
    """Weak is below 0.4: a detector's boxes from 0.3 on are people already known, or nobody."""
    tracker = Tracker(every=5, max_people=5)
    tracker.detect(0, seen(box_of(10, 10), scores=[0.39]))
    assert tracker.subjects(SIZE).ids == ()
    tracker.detect(5, seen(box_of(10, 10), scores=[0.41]))
    assert tracker.subjects(SIZE).ids == (1,)
    tracker.detect(10, seen(box_of(12, 10), scores=[0.35]))
    assert tracker.subjects(SIZE).boxes.tolist() == [box_of(12, 10)]


def test_a_cut_ends_everyone():
    tracker = Tracker(every=5, max_people=5)
    tracker.detect(0, seen(box_of(10, 10)))
    tracker.forget()
    assert tracker.detection_due(1)
    tracker.detect(1, seen(box_of(10, 10)))
    assert tracker.subjects(SIZE).ids == (2,)


def test_assignment_takes_the_best_pairs_first():
    similarity = np.array([[0.5, 0.9, 0.0], [0.4, 0.8, 0.31]])
    assert assigned(similarity, 0.3) == [(0, 1), (1, 0)]
    assert assigned(np.zeros((0, 3)), 0.3) == []


def test_doubles_name_the_later_one_only():
    xy, score = poses(person(100, 100), person(101, 100), person(300, 100))
    boxes, trusted = boxes_from_joints(xy, score, SIZE)
    assert doubles(xy.astype(float), boxes, trusted).tolist() == [False, True, False]
    assert not doubles(xy.astype(float), boxes, np.array([False, True, True])).any()


@pytest.mark.parametrize(("share", "same"), [(0.049, True), (0.051, False)])
def test_joints_nearer_than_a_twentieth_of_the_box_are_one_body(share, same):
    """The distance counts by the diagonal of the smaller box."""
    xy, score = poses(person(100, 100), person(100, 100))
    boxes, trusted = boxes_from_joints(xy, score, SIZE)
    diagonal = np.linalg.norm(boxes[0, 2:] - boxes[0, :2])
    xy[1, :, 0] += share * diagonal
    boxes[1, 2:] += 100
    assert doubles(xy.astype(float), boxes, trusted).tolist() == [False, same]
