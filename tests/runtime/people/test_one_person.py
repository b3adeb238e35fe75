"""One person without a detector: found anywhere, followed, lost, found again, never invented.

The pose network is a stand-in that reads from the crop's own pixels where in the frame it is
(columns in green, rows in blue) and answers as a trained one would: the joints inside the crop,
the surer the better the crop frames the person, the less exact the less sure.
"""

from __future__ import annotations

import numpy as np
import pytest

from mambapose.runtime.people import one_person
from mambapose.runtime.people.one_person import (
    OnePerson,
    checked,
    followed,
    found_box,
    grid_boxes,
    sights_of,
    wider,
)
from mambapose.runtime.pipeline import SEARCH_BATCH, Pipeline
from mambapose.runtime.run_options import RunOptions
from mambapose.runtime.targets import Schedule
from mambapose.runtime.types import Frame

from ..fakes import fake, gaussians, pose_engine, tensor

LANDSCAPE, PORTRAIT = (240, 426), (320, 180)
BODY = np.array(
    [
        [0.50, 0.05], [0.53, 0.03], [0.47, 0.03], [0.57, 0.04], [0.43, 0.04], [0.70, 0.18],
        [0.30, 0.18], [0.80, 0.35], [0.20, 0.35], [0.85, 0.50], [0.15, 0.50], [0.62, 0.50],
        [0.38, 0.50], [0.64, 0.74], [0.36, 0.74], [0.65, 0.97], [0.35, 0.97],
    ]
)  # fmt: skip


def joints_at(x, y, height):
    """(17, 2) of someone whose box of height by 0.4 * height has its top left at x, y."""
    return BODY * [0.4 * height, height] + [x, y]


class Clip:
    """Frames whose pixels say where they are; ``people[t]``: joints (17, 2) or None."""

    def __init__(self, size, people):
        self.size, self.people, self.now = size, people, 0
        height, width = size
        y, x = np.mgrid[:height, :width]
        self.image = np.stack(
            [np.full(size, 255), x * 255 / width, y * 255 / height], axis=-1
        ).astype(np.uint8)

    def frames(self):
        for t in range(len(self.people)):
            self.now = t
            yield Frame(self.image, t, t / 30)

    def seen(self, inputs):
        """Heatmaps of the crops."""
        return {"heatmaps": np.concatenate([self.heatmaps(crop) for crop in inputs["rgb"]])}

    def heatmaps(self, crop):
        truth = self.people[self.now]
        if truth is None:
            return np.full((1, 17, 64, 48), 0.02, np.float32)
        xy = truth * self.scale(crop)[0] + self.scale(crop)[1]
        inside = ((xy >= 0) & (xy <= [191, 255])).all(axis=1)
        share = np.ptp(xy[:, 1]) / 256
        sure = np.exp(-((np.log(share / 0.7) / 0.45) ** 2)) * (0.5 + 0.5 * inside.mean())
        wrong = (1 - sure) * 0.1 * np.ptp(xy[:, 1]) * np.sin(np.arange(34)).reshape(17, 2)
        peak = np.where(inside, sure, 0.02)
        place = np.clip((xy + wrong) * [47 / 191, 63 / 255], 0, [47, 63])
        return gaussians(place[None]) * peak[None, :, None, None].astype(np.float32)

    def scale(self, crop):
        """Crop px per frame px and the shift, from the colours inside the frame."""
        height, width = self.size
        rows, columns = (8 * side for side in np.nonzero(crop[::8, ::8, 0] == 255))
        at = crop[rows, columns].astype(float)
        kx, tx = np.polyfit(at[:, 1] * width / 255 + 0.2, columns, 1)
        ky, ty = np.polyfit(at[:, 2] * height / 255 + 0.2, rows, 1)
        return np.array([kx, ky]), np.array([tx, ty])


def run(clip, options=None):
    """Per frame the pose of the one person or None, and the engine."""
    engine = pose_engine(clip.seen, dense=False)
    pipeline = Pipeline({"pose2d": engine}, Schedule(), options)
    poses = [next(iter(result.poses), None) for result in pipeline.run(clip.frames())]
    return poses, engine, pipeline.times.summary()


def error(pose, truth):
    """Mean joint error as a share of the person's height."""
    return np.linalg.norm(pose.xy - truth, axis=1).mean() / np.ptp(truth[:, 1])


@pytest.mark.parametrize("size", [LANDSCAPE, PORTRAIT])
@pytest.mark.parametrize("share", [0.3, 0.4, 0.6, 0.95])
@pytest.mark.parametrize("place", [(0.0, 0.0), (1.0, 0.9)])
def test_the_first_frame_already_shows_the_person(size, share, place):
    height = share * size[0]
    room = np.array([size[1] - 0.4 * height, size[0] - height])
    truth = joints_at(*(room * place), height)
    poses, _, _ = run(Clip(size, [truth] * 3))
    assert all(error(pose, truth) < 0.03 for pose in poses)
    box = poses[2].box
    assert box[3] - box[1] < 1.4 * height


def test_someone_who_walks_is_followed_at_one_crop_a_frame():
    people = [joints_at(10 + 3 * t, 60 + t / 2, 100 + t / 2) for t in range(90)]
    poses, engine, times = run(Clip(LANDSCAPE, people))
    assert max(error(pose, truth) for pose, truth in zip(poses, people, strict=True)) < 0.05
    assert {pose.track for pose in poses} == {1}
    assert times["pose2d"]["runs"] == 90
    assert times["search"]["runs"] == 6  # the box is checked every 15 frames, twice a second
    assert engine.calls < 90 + 40


def test_someone_who_turns_up_elsewhere_is_found_in_the_next_frame():
    here, there = joints_at(20, 40, 110), joints_at(330, 120, 90)
    poses, _, _ = run(Clip(LANDSCAPE, [here] * 4 + [there] * 3))
    assert poses[4] is None
    assert error(poses[5], there) < 0.03
    assert error(poses[6], there) < 0.03


def test_nobody_is_nobody_and_is_looked_for_now_and_then():
    someone = joints_at(200, 60, 120)
    empty = [None] * 31  # searched at 0, 10 and 30, next at 70
    poses, engine, times = run(Clip(LANDSCAPE, [*empty, *[someone] * 40]))
    assert poses[:70] == [None] * 70
    assert times["search"]["runs"] == 4
    assert error(poses[70], someone) < 0.03
    crops = sum(len(grid_boxes(share, LANDSCAPE)) for share in one_person.SIZES)
    assert engine.calls < 4 * (crops / SEARCH_BATCH + 10)


def run_late(clip):
    """The poses of a network that answers two frames late, and both its engines.

    Its features are the heatmaps of their own frame.
    """
    heat = (17, 64, 48)
    encode = fake(
        "encode",
        [tensor("rgb", "N", 256, 192, 3, dtype="uint8")],
        [tensor("features", "N", *heat)],
        lambda inputs: {"features": clip.seen(inputs)["heatmaps"]},
    )
    main = fake(
        "main",
        [tensor("features", "N", 5, *heat)],
        [tensor("heatmaps", "N", *heat)],
        lambda inputs: {"heatmaps": inputs["features"][:, 2]},
    )
    pipeline = Pipeline({"pose2d.encode": encode, "pose2d": main}, Schedule())
    results = list(pipeline.run(clip.frames()))
    assert [result.frame.index for result in results] == list(range(len(clip.people)))
    return [next(iter(result.poses), None) for result in results], encode, main


def test_someone_who_walks_is_followed_by_late_poses_too():
    people = [joints_at(10 + 3 * t, 60 + t / 2, 100 + t / 2) for t in range(60)]
    poses, encode, main = run_late(Clip(LANDSCAPE, people))
    assert max(error(pose, truth) for pose, truth in zip(poses, people, strict=True)) < 0.08
    assert {pose.track for pose in poses} == {1}
    assert encode.calls < 60 + 40
    assert main.calls > 60


def test_a_search_is_not_undone_by_the_late_poses_of_the_old_place():
    here, there = joints_at(20, 40, 110), joints_at(330, 120, 90)
    poses, encode, _ = run_late(Clip(LANDSCAPE, [here] * 4 + [there] * 8))
    # Lost in frame 4, which is known with frame 6: the search looks at frame 7.
    assert [pose is None for pose in poses] == [False] * 4 + [True] * 3 + [False] * 5
    assert all(error(pose, there) < 0.03 for pose in poses[7:])
    once = run_late(Clip(LANDSCAPE, [here] * 4))[1].calls
    again = run_late(Clip(LANDSCAPE, [there] * 8))[1].calls
    assert encode.calls <= once + again + 5  # one more search, near the old place first


def test_untrained_weights_look_at_the_whole_frame():
    clip = Clip(LANDSCAPE, [joints_at(20, 40, 110)] * 20)
    poses, engine, _ = run(clip, RunOptions(trained=False))
    assert engine.calls == 20
    assert all(pose.box.tolist() == [0, 0, 426, 240] for pose in poses)


def looking(clip):
    """The look of a clip's current frame, as the pipeline gives it."""
    pipeline = Pipeline({"pose2d": pose_engine(clip.seen, dense=False)}, Schedule())
    frame = next(clip.frames())
    return lambda boxes: pipeline._poses_in(frame, pipeline._dense(frame), boxes)


def test_a_box_that_shrank_onto_a_part_opens_again():
    truth = joints_at(200, 40, 150)
    look = looking(Clip(LANDSCAPE, [truth]))
    wide = np.array([[210.0, 38, 250, 120]])
    for _ in range(3):
        wide = checked(wide, LANDSCAPE, look).box[None]
    assert wide[0, 3] - wide[0, 1] > 0.9 * np.ptp(truth[:, 1])
    right = found_box(None, LANDSCAPE, look)
    assert right is not None
    assert np.array_equal(checked(right, LANDSCAPE, look).box, right[0])


def test_a_box_opens_at_once_and_closes_slowly():
    box = np.array([[100.0, 100, 200, 300]])
    assert followed(box, np.array([50.0, 90, 210, 400]), 1.0).tolist() == [[50, 90, 210, 400]]
    part = np.array([140.0, 110, 160, 140])
    assert np.allclose(followed(box, part, 1.0), [[114, 110, 186, 286]])
    for _ in range(30):
        box = followed(box, part, 1.0)
    assert np.allclose(box, part, atol=0.5)


def test_a_box_hardly_closes_on_a_part_of_the_body():
    """The legs alone are recognised for twenty frames, half of the joints."""
    box = np.array([[100.0, 100, 200, 300]])
    legs = np.array([110.0, 200, 180, 300])
    for _ in range(20):
        box = followed(box, legs, 0.5)
    assert np.allclose(box[0, [0, 2, 3]], [110, 180, 300])
    assert 100 < box[0, 1] < 140
    for _ in range(20):
        box = followed(box, legs, 1.0)
    assert np.allclose(box, legs)


@pytest.mark.parametrize("way", [np.array([12.0, 0]), np.array([-12.0, 0]), np.array([0, -12.0])])
def test_who_walks_half_recognised_takes_the_box_along(way):
    box = np.array([[100.0, 100, 160, 220]])
    for step in range(1, 20):
        around = np.array([100.0, 100, 160, 220]) + step * np.tile(way, 2)
        box = followed(box, around, 0.5)
        assert np.allclose(box, around)


def test_someone_hardly_recognised_is_followed_but_not_begun_with():
    """A mean score of a quarter begins, 0.15 goes on; see FOUND and KEPT."""
    truth = joints_at(200, 40, 150)
    around = np.array([[190.0, 30, 270, 200]])
    clip = Clip(LANDSCAPE, [truth])
    look = looking(clip)

    def faint(boxes, share):
        xy, score = look(boxes)
        return xy, score * share / score.mean(axis=1, keepdims=True)

    assert found_box(None, LANDSCAPE, lambda boxes: faint(boxes, 0.24)) is None
    assert found_box(None, LANDSCAPE, lambda boxes: faint(boxes, 0.26)) is not None
    one = OnePerson()
    one.search(0, LANDSCAPE, look)
    for share, stays in ((0.16, True), (0.14, False)):
        subjects = one.subjects(LANDSCAPE)
        kept = one.update(0, subjects, *faint(around, share), LANDSCAPE)
        assert kept.tolist() == [stays]
    assert one.subjects(LANDSCAPE).ids == ()


def told(*scores):
    """A look that sees the same joints in every box, with one score for each box in turn (the last
    for all that follow), and the heights of the boxes it was shown."""
    heights = []

    def look(boxes):
        rows = [scores[min(len(heights) + k, len(scores) - 1)] for k in range(len(boxes))]
        heights.extend(boxes[:, 3] - boxes[:, 1])
        xy = np.tile(joints_at(200, 40, 150), (len(boxes), 1, 1))
        return xy, np.repeat(np.array(rows)[:, None], 17, 1)

    return look, heights


@pytest.mark.parametrize(("better", "moves"), [(1.09, False), (1.11, True)])
def test_a_wider_box_is_taken_when_it_scores_a_tenth_better(better, moves):
    """Less is noise, and the box would open and close in turn."""
    box = np.array([[210.0, 38, 250, 120]])
    look, _ = told(0.4, 0.4 * better)
    assert (checked(box, LANDSCAPE, look).box.tolist() != box[0].tolist()) is moves


@pytest.mark.parametrize(("score", "looks_on"), [(0.51, False), (0.49, True)])
def test_a_score_of_a_half_is_beyond_doubt(score, looks_on):
    """Then the smallest boxes, which are the most, need no look."""
    look, heights = told(score)
    found_box(None, LANDSCAPE, look)
    assert (min(heights) < 90) == looks_on
    one = OnePerson()
    one.search(0, LANDSCAPE, look)
    before = len(heights)
    one.search(40, LANDSCAPE, look)  # the box is checked; in doubt the whole frame is searched
    assert (len(heights) > before + 2) is looks_on


@pytest.mark.parametrize(("more", "moves"), [(2.4, False), (2.6, True)])
def test_the_person_is_left_for_another_place_worth_two_and_a_half_times_as_much(more, moves):
    look, _ = told(0.3)
    one = OnePerson()
    one.search(0, LANDSCAPE, look)
    box = one.subjects(LANDSCAPE).boxes
    look, _ = told(0.15, 0.15, 0.15 * more)  # the box, a wider one, the rest of the frame
    one.search(40, LANDSCAPE, look)
    assert (one.subjects(LANDSCAPE).boxes.tolist() != box.tolist()) is moves


@pytest.mark.parametrize(("share", "counts"), [(0.79, 0), (0.81, 1)])
def test_a_joint_of_a_faint_person_counts_from_eight_tenths_of_the_mean(share, counts):
    score = np.full((1, 17), 0.2)
    score[0, 0] = share * score[0, 1:].sum() / (17 - share)  # so that it is this share of the mean
    (sight,) = sights_of(np.zeros((1, 4)), joints_at(200, 40, 150)[None], score, LANDSCAPE)
    assert score[0, 0] == pytest.approx(share * score.mean())
    assert sight.seen == (16 + counts) / 17


def test_boxes_of_a_size_cover_the_frame():
    for size in (LANDSCAPE, PORTRAIT):
        for share in one_person.SIZES:
            boxes = grid_boxes(share, size)
            height = share * size[0]
            assert np.allclose(boxes[:, 3] - boxes[:, 1], height)
            if 0.75 * height <= size[1]:
                assert boxes[:, 0].min() == pytest.approx(0)
                assert boxes[:, 2].max() == pytest.approx(size[1])
            assert boxes[:, 1].min() == pytest.approx(0)
            assert boxes[:, 3].max() == pytest.approx(size[0])
    box = np.array([[10.0, 10, 20, 30]])
    assert wider(box, 2, (240, 426)).tolist() == [[5, 0, 25, 40]]


def test_a_cut_starts_a_new_id_and_a_new_search():
    one = OnePerson()
    truth = joints_at(200, 40, 150)
    look = looking(Clip(LANDSCAPE, [truth]))
    assert one.search_due(0)
    one.search(0, LANDSCAPE, look)
    assert one.subjects(LANDSCAPE).ids == (1,)
    assert not one.search_due(1)
    one.forget()
    assert one.search_due(1)
    one.search(1, LANDSCAPE, look)
    assert one.subjects(LANDSCAPE).ids == (2,)
