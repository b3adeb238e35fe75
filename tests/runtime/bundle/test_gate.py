"""The gate measures in the user's unit: known differences give known numbers."""

from __future__ import annotations

import numpy as np
import pytest

from mambapose.runtime.bundle.gate import FP32_LIMITS, exceeded, graph_errors
from mambapose.runtime.stages.gate_limits import soft_joints
from mambapose.runtime.types import FloatArray


def gaussians(centres: list[tuple[float, float]]) -> FloatArray:
    """(1, J, 64, 48) heatmaps of sigma 2 around x, y."""
    y, x = np.mgrid[:64, :48]
    maps = [np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 8) for cx, cy in centres]
    return np.stack(maps)[None].astype(np.float32)


def test_flow_is_measured_in_pixels() -> None:
    flow = np.zeros((1, 2, 8, 8), np.float32)
    off = flow.copy()
    off[0, :, 3, 4] = (0.3, -0.4)
    assert graph_errors("flow", {}, {"flow": off}, {"flow": flow})["flow_px"] == pytest.approx(0.5)
    found = graph_errors("flow", {}, {"coords_next": off}, {"coords_next": flow})
    assert found["flow_px"] == pytest.approx(4.0)  # a cell of the coarse grid is 8 pixels


def test_depth_and_inner_tensors_are_relative_to_the_largest_value() -> None:
    depth = np.full((1, 1, 2, 2), 4.0, np.float32)
    off = depth + np.float32(0.5)
    assert graph_errors("depth", {}, {"depth": off}, {"depth": depth}) == {"depth_relative": 0.125}
    assert graph_errors("flow", {}, {"fmap": -off}, {"fmap": -depth}) == {"relative": 0.125}
    zeros = np.zeros((2, 2), np.float32)
    assert graph_errors("flow", {}, {"fmap": zeros}, {"fmap": zeros}) == {"relative": 0.0}


def test_joints_are_measured_in_pixels_of_the_crop() -> None:
    inputs = {"rgb": np.zeros((1, 256, 192, 3), np.uint8)}
    wanted = {"heatmaps": gaussians([(10, 20), (30.5, 40.25)])}
    found = {"heatmaps": gaussians([(10, 20), (31.5, 40.25)])}
    error = graph_errors("pose2d", inputs, found, wanted)["joint_px"]
    assert error == pytest.approx(4.0, abs=0.02)  # one cell is 4 pixels
    np.testing.assert_allclose(
        soft_joints(wanted["heatmaps"].astype(float)), [[(10, 20), (30.5, 40.25)]], atol=0.06
    )


def test_a_cell_is_four_pixels_where_features_enter_in_place_of_pictures() -> None:
    inputs = {"features": np.zeros((1, 5, 3072, 8), np.float32)}
    wanted, found = ({"heatmaps": gaussians([(x, 20)])} for x in (10, 12))
    error = graph_errors("pose2d", inputs, found, wanted)["joint_px"]
    assert error == pytest.approx(8.0, abs=0.04)


def test_two_equal_peaks_do_not_jump() -> None:
    heatmaps = np.maximum(gaussians([(10, 20)]), gaussians([(30, 40)]))
    nudged = heatmaps + gaussians([(30, 40)]) * np.float32(1e-5)
    inputs = {"rgb": np.zeros((1, 256, 192, 3), np.uint8)}
    error = graph_errors("pose2d", inputs, {"heatmaps": nudged}, {"heatmaps": heatmaps})
    assert 0 < error["joint_px"] < FP32_LIMITS["joint_px"]


def test_lifted_joints_are_measured_in_millimetres_of_a_person() -> None:
    keypoints = np.zeros((1, 3, 17, 2), np.float32)
    keypoints[..., 0, 1] = 0.5  # the figure is half a unit tall
    xyz = np.zeros((1, 3, 17, 3), np.float32)
    off = xyz.copy()
    off[0, 1, 5] = (0.0, 0.003, 0.004)
    errors = graph_errors("lift3d", {"keypoints": keypoints}, {"xyz": off}, {"xyz": xyz})
    assert errors["joint_mm"] == pytest.approx(0.005 / 0.5 * 1750, rel=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_a_number_or_has_another_shape_fails(value: float) -> None:
    good = np.ones((1, 1, 2, 2), np.float32)
    bad = good.copy()
    bad[0, 0, 0, 0] = value
    for found in (bad, good[..., :1]):
        errors = graph_errors("depth", {}, {"depth": found}, {"depth": good})
        assert errors["depth_relative"] == np.inf
        assert exceeded(errors, FP32_LIMITS) == "depth_relative inf > 0.001"


def test_the_first_error_above_its_limit_is_named() -> None:
    assert exceeded({"joint_px": 0.05, "relative": 1e-3}, FP32_LIMITS) is None
    assert exceeded({"relative": 0.0, "joint_px": 0.3}, FP32_LIMITS) == "joint_px 0.3 > 0.05"
    assert exceeded({"relative": float("nan")}, FP32_LIMITS) == "relative nan > 0.001"
