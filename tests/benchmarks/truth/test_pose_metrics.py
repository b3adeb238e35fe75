"""Each 2D metric where it can be computed by hand."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from mambapose.benchmarks.truth.pose_metrics import pose_metrics, torso_lengths

# A standing person of 100 px: torso 30, pairs of limbs 20 apart, eyes and ears nearly together.
PERSON = np.array([
    (50, 8), (52, 6), (48, 6), (54, 8), (46, 8), (60, 20), (40, 20), (60, 35), (40, 35),
    (60, 50), (40, 50), (60, 50), (40, 50), (60, 75), (40, 75), (60, 96), (40, 96),
], float)  # fmt: skip
NOSE, L_WRIST, R_WRIST, L_KNEE, R_KNEE = 0, 9, 10, 13, 14


def clip(frames=1):
    """(predicted, truth, valid, height) of a perfect answer."""
    truth = np.repeat(PERSON[None], frames, axis=0)
    return truth.copy(), truth, np.ones((frames, 17), bool), np.full(frames, 100.0)


def test_a_perfect_answer():
    found = pose_metrics(*clip(3))
    assert (found.median, found.mean, found.collapsed) == (0, 0, 0)
    assert (found.pck10, found.pck20, found.pck20_side_ignored) == (1, 1, 1)
    assert (found.joints, found.pairs) == (51, 18)  # six pairs are more than 10 px apart
    assert found.per_joint == (0,) * 17


def test_median_mean_and_pck_of_known_errors():
    predicted, truth, valid, height = clip()
    valid[:] = False
    valid[0, [NOSE, L_WRIST, R_WRIST, L_KNEE, R_KNEE]] = True
    # The torso is 30 px in the truth; it is not valid here, so it is 0.3 of the height: 30 px.
    predicted[0, [NOSE, L_WRIST, R_WRIST, L_KNEE, R_KNEE], 1] += [2, 4, 5, 7, 12]
    found = pose_metrics(predicted, truth, valid, height)
    assert found.median == pytest.approx(0.05)
    assert found.mean == pytest.approx(0.06)
    assert (found.pck10, found.pck20) == (0.2, 0.6)  # 3 and 6 px
    assert found.per_joint[L_KNEE] == pytest.approx(0.07)
    assert np.isnan(found.per_joint[1])


def test_the_height_is_that_of_each_frame():
    predicted, truth, valid, height = clip(2)
    predicted[:, :, 0] += 10
    height[1] = 200
    found = pose_metrics(predicted, truth, valid, height)
    assert found.mean == pytest.approx((0.1 + 0.05) / 2)


def test_swapped_sides_miss_unless_sides_are_ignored():
    predicted, truth, valid, height = clip()
    predicted[0, [L_WRIST, R_WRIST]] = truth[0, [R_WRIST, L_WRIST]]
    found = pose_metrics(predicted, truth, valid, height)
    assert found.pck20 == pytest.approx(15 / 17)
    assert found.pck20_side_ignored == 1
    assert found.collapsed == 0
    # The other side counts only where its truth is known.
    valid[0, R_WRIST] = False
    found = pose_metrics(predicted, truth, valid, height)
    assert found.pck20_side_ignored == pytest.approx(15 / 16)


def test_collapsed_pairs():
    predicted, truth, valid, height = clip()
    predicted[0, L_KNEE] = truth[0, R_KNEE] + [4.9, 0]  # of 20 px: under a quarter
    predicted[0, L_WRIST] = truth[0, R_WRIST] + [5.1, 0]
    predicted[0, [3, 4]] = truth[0, 3]  # ears are 8 px apart: not counted
    found = pose_metrics(predicted, truth, valid, height)
    assert found.pairs == 6
    assert found.collapsed == pytest.approx(1 / 6)
    valid[0, R_KNEE] = False
    found = pose_metrics(predicted, truth, valid, height)
    assert (found.pairs, found.collapsed) == (5, 0)


@pytest.mark.parametrize(("apart", "pairs"), [(9.9, 6), (10.1, 7)])
def test_only_pairs_a_tenth_of_the_height_apart_can_collapse(apart, pairs):
    """Nearer ones are within the error of a joint; the height is 100 px."""
    predicted, truth, valid, height = clip()
    truth[0, 4] = truth[0, 3] + [apart, 0]
    assert pose_metrics(predicted, truth, valid, height).pairs == pairs


def test_joints_that_are_not_answered_miss_and_unknown_truth_is_left_out():
    predicted, truth, valid, height = clip()
    predicted[0, NOSE] = np.nan
    truth[0, L_KNEE] = np.nan
    found = pose_metrics(predicted, truth, valid, height)
    assert found.joints == 16
    assert found.pck20 == found.pck20_side_ignored == pytest.approx(15 / 16)
    assert found.mean == 0
    assert found.per_joint[NOSE] == np.inf
    assert np.isnan(found.per_joint[L_KNEE])


def test_nothing_to_measure_is_no_number():
    predicted, truth, valid, height = clip()
    found = pose_metrics(predicted, truth, valid & False, height)
    assert np.isnan([found.median, found.mean, found.pck20, found.collapsed]).all()
    assert (found.joints, found.pairs) == (0, 0)


def test_torso_of_the_frame_or_the_usual_share_of_the_height():
    _, truth, valid, height = clip(3)
    truth[1] *= 2
    height[1:] = 200, 300
    valid[2, 5] = False
    assert torso_lengths(truth, valid, height).tolist() == [30, 60, 90]


def test_the_module_needs_no_torch():
    code = "import sys, mambapose.benchmarks.truth.pose_metrics; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
