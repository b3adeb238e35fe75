"""COCO to Human3.6M by the published steps, and windows that do not depend on chunking."""

from __future__ import annotations

import numpy as np
import pytest

from mambapose.runtime.errors import EngineError
from mambapose.runtime.skeleton import COCO17, H36M17
from mambapose.runtime.stages.joints import (
    IMAGE_UNITS,
    body_heights,
    h36m_from_coco,
    h36m_scores,
    normalised,
)
from mambapose.runtime.stages.lifting import Lifter, Seen
from mambapose.runtime.types import Size

from ..fakes import lift_engine


def converted_by_the_book(c):
    """The six published steps, one after the other, for one person."""

    def m(*joints):
        return np.mean([c[j] for j in joints], axis=0)

    h = np.zeros((17, 2))
    h[10] = [m(1, 2, 3, 4)[0], c[1][1] + c[2][1] - c[0][1]]
    h[8] = m(5, 6)
    h[8] += (c[0] - h[8]) / 3
    h[0] = m(11, 12)
    h[7] = m(5, 6, 11, 12)
    table = {0: 9, 5: 11, 6: 14, 7: 12, 8: 15, 9: 13, 10: 16, 11: 4, 12: 1, 13: 5, 14: 2, 15: 6,
             16: 3}  # fmt: skip
    for coco, h36m in table.items():
        h[h36m] = c[coco]
    h[9] -= (h[9] - m(5, 6)) / 4
    h[7][0] += 2 * (h[7][0] - np.mean([h[0][0], h[8][0]]))
    h[8][1] -= (m(1, 2)[1] - c[0][1]) * 2 / 3
    return h


def test_joints_are_converted_by_the_published_steps():
    c = np.random.default_rng(0).uniform(0, 500, (3, 4, 17, 2))
    found = h36m_from_coco(c)
    for k in np.ndindex(3, 4):
        assert np.allclose(found[k], converted_by_the_book(c[k]), atol=1e-9)


def test_left_stays_left():
    c = np.zeros((17, 2))
    c[:, 0] = [1.0 if name.startswith("left") else -1.0 for name in COCO17.joints]
    x = h36m_from_coco(c)[:, 0]
    for name, value in zip(H36M17.joints, x, strict=True):
        if name.startswith(("left", "right")):
            assert value == (1.0 if name.startswith("left") else -1.0), name


def test_scores_are_copied_or_averaged():
    s = np.random.default_rng(1).uniform(size=(2, 17))
    h = h36m_scores(s)
    assert np.allclose(h[:, 9], s[:, 0])
    assert np.allclose(h[:, 13], s[:, 9])
    assert np.allclose(h[:, 3], s[:, 16])
    assert np.allclose(h[:, 0], s[:, 11:13].mean(1))
    assert np.allclose(h[:, 8], s[:, 5:7].mean(1))
    assert np.allclose(h[:, 7], (s[:, 11:13].mean(1) + s[:, 5:7].mean(1)) / 2)
    assert np.allclose(h[:, 10], s[:, 1:5].mean(1))


def test_both_axes_are_divided_by_the_width():
    found = normalised(np.array([[0.0, 0.0], [640, 360], [1280, 720]]), Size(720, 1280))
    assert np.allclose(found, [[-1, -0.5625], [0, 0], [1, 0.5625]])


def echo(inputs):
    """xyz that tells what the window held: x, y of each joint, and the score."""
    return {"xyz": np.concatenate([inputs["keypoints"], inputs["score"][..., None]], -1)}


def seen(frame, people, depth=None, flow=None):
    """Joint j of person p in a frame is at (frame + p, j)."""
    ids = tuple(people)
    xy = np.zeros((len(ids), 17, 2))
    for k, id_ in enumerate(ids):
        xy[k, :, 0] = frame + 1000 * id_
        xy[k, :, 1] = np.arange(17)
    return Seen(ids, xy, np.full((len(ids), 17), 0.5, np.float32), depth, flow)


def answers(lifter, frames):
    done = []
    for frame, people in frames:
        for item in lifter.add(frame, seen(frame, people)):
            done.append((item, frame))
    done += [(item, None) for item in lifter.finish()]
    return done


@pytest.mark.parametrize(("window", "hop"), [(9, 3), (9, 9), (8, 3), (5, 1), (1, 1)])
@pytest.mark.parametrize("count", [1, 4, 9, 40])
def test_every_frame_is_answered_in_order_by_its_own_joints(window, hop, count):
    lifter = Lifter(lift_engine(echo, window), hop)
    done = answers(lifter, [(k, [1, 2]) for k in range(count)])
    assert [frame for (frame, _), _ in done] == list(range(count))
    for (frame, xyz), when in done:
        assert sorted(xyz) == [1, 2]
        for id_, joints in xyz.items():
            assert np.allclose(joints[1:, 0], frame + 1000 * id_)
            assert np.allclose(joints[1:, 1], np.arange(1, 17))
            assert not joints[0].any()
        if when is not None:
            assert when - frame <= lifter.lookahead


def test_the_schedules_lookahead_is_the_lifters():
    from mambapose.runtime.targets import Schedule

    schedule = Schedule()
    assert Lifter(lift_engine(echo, 81), 27).lookahead == schedule.lookahead == 53


def windows(frames, window=9, hop=3):
    """The keypoint windows an engine is shown, as {first column: window of x}."""
    shown = []

    def answer(inputs):
        shown.append(inputs["keypoints"][:, :, 1, 0].copy())
        return echo(inputs)

    answers(Lifter(lift_engine(answer, window), hop), frames)
    return shown


def test_the_ends_of_a_video_are_repeated():
    shown = windows([(k, [0]) for k in range(5)])
    assert shown[0].tolist() == [[0, 0, 0, 0, 1, 2, 3, 4, 4]]
    assert shown[1].tolist() == [[0, 1, 2, 3, 4, 4, 4, 4, 4]]


def test_an_odd_frame_beside_the_answered_ones_lies_after_them():
    """Of 8 - 3 frames around those that are answered 2 come before, 3 after: what is still to come
    is worth more than what is long past, and ``lookahead`` counts it.
    """
    shown = windows([(k, [0]) for k in range(9)], window=8)
    assert [batch[0].tolist() for batch in shown] == [
        [0, 0, 0, 1, 2, 3, 4, 5],
        [1, 2, 3, 4, 5, 6, 7, 8],
        [4, 5, 6, 7, 8, 8, 8, 8],
    ]
    assert Lifter(lift_engine(echo, 8), 3).lookahead == 5


def test_a_gap_is_filled_in_a_straight_line_and_not_answered():
    frames = [(k, [0] if k not in (4, 5, 6) else []) for k in range(12)]
    shown = windows(frames)
    assert shown[0].tolist() == [[0, 0, 0, 0, 1, 2, 3, 3, 3]]
    assert shown[1].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 8]]
    done = answers(Lifter(lift_engine(echo, 9), 3), frames)
    assert [frame for (frame, xyz), _ in done if not xyz] == [4, 5, 6]


def test_people_who_come_and_go_share_a_batch():
    frames = [(k, [p for p, there in ((1, k >= 4), (2, k <= 5)) if there]) for k in range(9)]
    shown = windows(frames)
    assert [len(batch) for batch in shown] == [1, 2, 1]
    assert shown[1][0].tolist() == [2000, 2001, 2002, 2003, 2004, 2005, 2005, 2005, 2005]
    assert shown[1][1].tolist() == [1004, 1004, 1004, 1004, 1004, 1005, 1006, 1007, 1008]


def test_a_video_that_starts_late_or_jumps_is_answered_all_the_same():
    frames = [(k, [0]) for k in (100, 101, 102, 500, 501)]
    done = answers(Lifter(lift_engine(echo, 9), 3), frames)
    assert [frame for (frame, _), _ in done] == [100, 101, 102, 500, 501]
    assert [when for _, when in done[:3]] == [500, 500, 500]
    assert np.allclose(done[0][0][1][0][1:, 0], 100)


def test_memory_does_not_grow():
    lifter = Lifter(lift_engine(echo, 9), 3)
    for frame in range(400):
        lifter.add(frame, seen(frame, [frame // 20]))
    kept = sum(len(track.frames) for track in lifter._tracks.values())
    assert kept <= 9 + 3
    assert len(lifter._tracks) <= 2
    assert len(lifter._pending) <= 9


def test_cues_reach_the_graph_and_absent_ones_are_marked():
    shown = []

    def answer(inputs):
        shown.append({name: array.copy() for name, array in inputs.items()})
        return echo(inputs)

    lifter = Lifter(lift_engine(answer, 3), 3)
    depth = np.full((1, 17), 2.5, np.float32)
    flow = np.full((1, 17, 2), [0.25, -0.5], np.float32)
    lifter.add(0, seen(0, [1], depth=depth))
    lifter.add(1, seen(1, [1], depth=depth, flow=flow))
    lifter.add(2, seen(2, [1], depth=depth, flow=flow))
    for frame in (3, 4, 5):
        lifter.add(frame, seen(frame, [1]))
    assert shown[0]["present"].tolist() == [[1, 1, 1]]
    assert (shown[0]["depth"] == 2.5).all()
    assert (shown[0]["flow"][0, 0] == 0).all()
    assert (shown[0]["flow"][0, 1:] == [0.25, -0.5]).all()
    assert shown[1]["present"].tolist() == [[1, 0, 0]]


def test_a_lifter_of_keypoints_alone_gets_keypoints_alone():
    engine = lift_engine(lambda inputs: {"xyz": np.zeros((1, 3, 17, 3), np.float32)}, 3, cues=False)
    lifter = Lifter(engine, 3)
    assert len([item for k in range(3) for item in lifter.add(k, seen(k, [1]))]) == 3


def standing(scale):
    """A figure of `scale` units height in Human3.6M joints, (17, 3), pelvis at the origin."""
    y = np.zeros((17, 3))
    y[[2, 5], 1], y[[3, 6], 1] = 0.245, 0.49
    y[7, 1], y[8, 1], y[9, 1], y[10, 1] = -0.13, -0.26, -0.32, -0.42
    return y * scale


def test_image_units_become_body_heights_and_metres():
    clip = np.tile(standing(0.5).astype(np.float32), (1, 3, 1, 1))
    engine = lift_engine(lambda inputs: {"xyz": clip.copy()}, 3)
    assert np.allclose(body_heights(clip), 0.5 * 0.98 / 0.961 * (0.49 + 0.42), rtol=1e-4)

    def lifted(**options):
        lifter = Lifter(engine, 3, **options)
        done = [item for k in range(3) for item in lifter.add(k, seen(k, [1]))]
        return done[1][1][1]

    assert np.allclose(lifted(), standing(0.5), atol=1e-6)
    assert np.allclose(lifted(height=1.8), standing(0.9), atol=1e-6)
    in_heights = lifted(unit=IMAGE_UNITS)
    assert np.allclose(body_heights(in_heights[None, None]), 1.0, rtol=1e-5)
    assert np.allclose(lifted(unit=IMAGE_UNITS, height=1.8), in_heights * 1.8, atol=1e-5)


# --- less look-ahead ----------------------------------------------------------------------------


@pytest.mark.parametrize("lookahead", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 7, 30])
def test_no_answer_waits_for_more_frames_than_asked(lookahead, count):
    lifter = Lifter(lift_engine(echo, 9), 3, lookahead=lookahead)
    assert lifter.lookahead == lookahead
    assert lifter.hop == min(3, lookahead + 1)
    done = answers(lifter, [(k, [1, 2]) for k in range(count)])
    assert [frame for (frame, _), _ in done] == list(range(count))
    for (frame, xyz), when in done:
        assert sorted(xyz) == [1, 2]
        assert np.allclose(xyz[2][1:, 0], frame + 2000)
        assert (count - 1 if when is None else when) - frame <= lookahead


def test_live_windows_end_with_the_frame_they_answer():
    shown = []

    def answer(inputs):
        shown.append(inputs["keypoints"][0, :, 1, 0].tolist())
        return echo(inputs)

    done = answers(Lifter(lift_engine(answer, 4), 3, lookahead=0), [(k, [0]) for k in range(6)])
    assert shown == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4],
                     [2, 3, 4, 5]]  # fmt: skip
    assert [when for (_, _), when in done] == list(range(6))


def test_the_usual_lookahead_is_the_most():
    usual = Lifter(lift_engine(echo, 9), 3)
    assert usual.lookahead == 5
    asked = Lifter(lift_engine(echo, 9), 3, lookahead=5)
    assert (asked.hop, asked._before) == (usual.hop, usual._before)
    for wrong in (6, -1):
        with pytest.raises(EngineError, match=rf"0 to 5 frames was wanted .* found {wrong}"):
            Lifter(lift_engine(echo, 9), 3, lookahead=wrong)
