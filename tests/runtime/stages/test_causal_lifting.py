"""A state per person: carried on, rested, dropped, and always of the same size."""

from __future__ import annotations

import numpy as np
import pytest

from mambapose.runtime.stages.causal_lifting import GAP_FRAMES, CausalLifter
from mambapose.runtime.stages.lifting import Seen

from ..fakes import step_engine


def seen(frame, ids):
    """Joint j of person p in a frame is at (frame + 1000 p, j)."""
    xy = np.zeros((len(ids), 17, 2))
    for k, id_ in enumerate(ids):
        xy[k, :, 0] = frame + 1000 * id_
        xy[k, :, 1] = np.arange(17)
    return Seen(tuple(ids), xy, np.full((len(ids), 17), 0.5, np.float32))


def counted(lifter, frame, *ids):
    """How many frames of each person came before, as the graph was told; answers are checked."""
    ((answered, xyz),) = lifter.add(frame, seen(frame, ids))
    assert answered == frame
    assert list(xyz) == list(ids)
    for id_, joints in xyz.items():
        assert joints.shape == (17, 3)
        assert np.allclose(joints[1:, 0], frame + 1000 * id_)
        assert np.allclose(joints[1:, 1], np.arange(1, 17))
        assert not joints[0].any()
    return [int(joints[1, 2]) for joints in xyz.values()]


def test_every_frame_is_answered_at_once_from_its_persons_own_state():
    lifter = CausalLifter(step_engine())
    assert (lifter.lookahead, lifter.hop, lifter.frames) == (0, 1, 1)
    assert counted(lifter, 0, 1) == [0]
    assert counted(lifter, 1, 1, 2) == [1, 0]
    assert counted(lifter, 2, 2, 1) == [1, 2]  # whatever the order
    assert counted(lifter, 3, 3) == [0]
    assert counted(lifter, 4, 1, 2, 3) == [3, 2, 1]
    assert lifter.finish() == []


@pytest.mark.parametrize(("away", "kept"), [(1, True), (15, True), (16, False)])
def test_a_state_rests_in_a_gap_and_is_dropped_after_a_long_one(away, kept):
    """Long is more than half a second of 30 Hz video."""
    lifter = CausalLifter(step_engine())
    for frame in range(4):
        counted(lifter, frame, 1)
    for frame in range(4, 3 + away):
        assert lifter.add(frame, seen(frame, [])) == [(frame, {})]
    assert counted(lifter, 3 + away, 1) == [4 if kept else 0]


def test_a_long_gap_counts_in_frames_of_the_source():
    lifter = CausalLifter(step_engine())
    counted(lifter, 0, 1)
    assert counted(lifter, 16, 1) == [0]


def test_the_thousandth_frame_is_the_work_of_the_first():
    """One run a frame, of the same shapes; none when nobody is there."""
    shapes = []
    counting = step_engine().function

    def answer(inputs):
        shapes.append({name: array.shape for name, array in inputs.items()})
        return counting(inputs)

    engine = step_engine(answer)
    lifter = CausalLifter(engine)
    for frame in range(1000):
        assert counted(lifter, frame, 1) == [frame]
    assert engine.calls == 1000
    assert shapes[0] == shapes[-1]
    lifter.add(1000, seen(1000, []))
    assert engine.calls == 1000


def test_memory_does_not_grow():
    lifter = CausalLifter(step_engine())
    for frame in range(400):
        counted(lifter, frame, frame, frame + 1)
    assert len(lifter._people) <= GAP_FRAMES + 2
    arrays = [person.state["count_state"] for person in lifter._people.values()]
    held = {id(array if array.base is None else array.base): array for array in arrays}
    assert sum((a if a.base is None else a.base).nbytes for a in held.values()) <= 4 * len(arrays)
    assert lifter.state_bytes == 4


def test_metres():
    lifter = CausalLifter(step_engine(), height=1.5)
    ((_, xyz),) = lifter.add(2, seen(2, [0]))
    assert np.allclose(xyz[0][1:, 0], 3.0)


def test_the_given_arrays_are_not_changed():
    lifter = CausalLifter(step_engine(), height=2.0)
    joints = seen(5, [1])
    before = joints.keypoints.copy()
    lifter.add(5, joints)
    assert np.array_equal(joints.keypoints, before)
