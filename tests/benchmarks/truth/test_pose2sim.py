"""The real video's reference: boxes, heights, gaps and cameras."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mambapose.benchmarks.truth.pose2sim import (
    CAMERAS,
    FOLDER,
    camera_from_toml,
    interpolated,
    joint_boxes,
    pose2sim_views,
    without_gaps,
)
from mambapose.benchmarks.truth.pose_metrics import pose_metrics, torso_lengths
from mambapose.runtime.errors import ExportError


def test_boxes_hold_the_valid_joints_and_a_margin() -> None:
    xy = np.zeros((1, 17, 2))
    xy[0, :3] = [(10, 20), (40, 120), (900, 900)]
    valid = np.zeros((1, 17), bool)
    valid[0, :2] = True
    assert joint_boxes(xy, valid).tolist() == [[4, 14, 46, 126]]  # 6 % of 100 px on every side


def test_gaps_become_straight_lines() -> None:
    rows = np.ones((4, 17, 3))
    rows[:, 3, 0] = [1, 0, 0, 4]
    rows[1:3, 3, 2] = 0
    filled = without_gaps(rows)
    np.testing.assert_allclose(filled[:, 3, 0], [1, 2, 3, 4])
    np.testing.assert_array_equal(filled[..., 2], rows[..., 2])
    assert rows[1, 3, 0] == 0
    values = np.array([[np.nan], [2.0], [np.nan], [4.0], [np.nan]])
    assert interpolated(values)[:, 0].tolist() == [2, 2, 3, 4, 4]


def test_calibration_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "calibration.toml"
    path.write_text(
        '[cam_01]\nname = "a"\nsize = [ 10.0, 20.0]\nmatrix = [ [ 1.0, 0.0], [ 0.0, 1.0]]\n'
        "rotation = [ 0.1, 0.2, 0.3]\ntranslation = [ 1.0, 2.0, 3.0]\n[cam_02]\n"
    )
    found = camera_from_toml(path, "cam01")
    np.testing.assert_array_equal(found["rotation"], [0.1, 0.2, 0.3])
    assert found["matrix"].shape == (2, 2)
    with pytest.raises(ExportError, match=r"of \[cam_02\] were wanted"):
        camera_from_toml(path, "cam02")
    with pytest.raises(ExportError, match="get the folder again"):
        pose2sim_views(tmp_path)


def test_the_views_of_the_real_video(assets: Path) -> None:
    views = pose2sim_views(assets / FOLDER)
    assert [view.name for view in views] == list(CAMERAS)
    # Of 1700 joints those that OpenPose was more sure of than not: published figures count these.
    assert [view.valid.sum() for view in views] == [1508, 1350]
    for view in views:
        assert view.rows.shape == (100, 17, 3)
        low, high = view.boxes[:, None, :2], view.boxes[:, None, 2:]
        inside = ((view.xy > low) & (view.xy < high)).all(axis=-1)
        assert inside[view.valid].all()
        # The trunk from shoulders to hips is 0.288 of the height (Drillis and Contini, 1966).
        share = np.median(torso_lengths(view.xy, view.valid, view.height) / view.height)
        assert share == pytest.approx(0.288, abs=0.03)
        assert np.isfinite(view.xyz).all()
        # The reference itself has no error; moved by a twentieth of the height it has that one.
        shift = np.stack([view.height / 20, np.zeros(100)], axis=-1)[:, None]
        found = pose_metrics(view.xy + shift, view.xy, view.valid, view.height)
        assert found.median == pytest.approx(0.05)
        frame = next(iter(view.images()))
        assert abs(frame.shape[1] - view.size.width) <= 8  # the calibration is of padded pictures
        assert frame.shape[0] == view.size.height
