"""Training windows of a lifter: determinism, what the graph takes, what is absent how often."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mambapose.benchmarks.truth.motion import clips_from_file
from mambapose.benchmarks.truth.windows import Motions
from mambapose.train.lift import data as lift_data
from mambapose.train.lift.data import mean_pose, training_batch


@pytest.fixture(scope="module")
def motions(motion_folder: Path) -> Motions:
    return Motions(clips_from_file(motion_folder))


def test_a_batch_is_a_function_of_seed_and_number(motions: Motions) -> None:
    one, same = (training_batch(motions, 5, 7, 4, 9) for _ in range(2))
    other = training_batch(motions, 5, 8, 4, 9)
    for name, value in one.inputs.items():
        np.testing.assert_array_equal(value, same.inputs[name])
    np.testing.assert_array_equal(one.xyz, same.xyz)
    assert np.abs(one.inputs["keypoints"] - other.inputs["keypoints"]).max() > 0.01
    assert np.abs(one.xyz - training_batch(motions, 6, 7, 4, 9).xyz).max() > 0.01


def test_a_batch_is_what_the_graph_takes(motions: Motions) -> None:
    batch = training_batch(motions, 0, 0, 6, 5)
    shapes = {name: value.shape for name, value in batch.inputs.items()}
    assert shapes == {
        "keypoints": (6, 5, 17, 2), "score": (6, 5, 17), "depth": (6, 5, 17),
        "flow": (6, 5, 17, 2), "present": (6, 3),
    }  # fmt: skip
    for value in (*batch.inputs.values(), batch.xyz):
        assert value.dtype == np.float32
        assert np.isfinite(value).all()
    np.testing.assert_array_equal(batch.xyz[:, :, 0], 0)
    assert batch.inputs["score"].min() >= 0
    assert batch.inputs["score"].max() <= 1


def test_absent_cues_are_zeros_and_every_combination_occurs(motions: Motions) -> None:
    batch = training_batch(motions, 0, 1, 96, 3)
    present = batch.inputs["present"]
    assert set(map(tuple, present[:, 1:])) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert not batch.inputs["depth"][present[:, 1] == 0].any()
    assert not batch.inputs["flow"][present[:, 2] == 0].any()
    assert np.abs(batch.inputs["depth"][present[:, 1] == 1]).min() > 0
    none = training_batch(motions, 0, 1, 8, 3, cues=False)
    assert not none.inputs["present"][:, 1:].any()


def test_half_of_the_windows_move_as_captured(
    motions: Motions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poses(share: float) -> np.ndarray:
        monkeypatch.setattr(lift_data, "VARIED_SHARE", share)
        return training_batch(motions, 0, 3, 200, 3).xyz

    wanted = lift_data.VARIED_SHARE
    some, captured, mixed = (poses(share) for share in (wanted, 0.0, 1.0))
    as_captured = (some == captured).all((1, 2, 3))
    np.testing.assert_array_equal(some[~as_captured], mixed[~as_captured])
    assert as_captured.mean() == pytest.approx(1 - wanted, abs=0.1)


def test_people_are_about_one_body_height(motions: Motions) -> None:
    batch = training_batch(motions, 0, 2, 64, 3)
    bones = np.linalg.norm(batch.xyz[:, 1, [2, 3, 5, 6]] - batch.xyz[:, 1, [1, 2, 4, 5]], axis=-1)
    assert bones.mean() == pytest.approx(0.2455, abs=0.004)


def test_mean_pose_faces_the_camera(motions: Motions) -> None:
    pose = mean_pose(motions)
    assert pose[4, 0] > 0 > pose[1, 0]  # the left hip on the right of the picture
    assert pose[10, 1] < -0.3 < 0.3 < pose[3, 1]  # y down
    np.testing.assert_array_equal(pose[0], 0)
