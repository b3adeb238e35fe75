"""Decoding against the official numbers, a plain loop, and shapes that would crash a solver."""

from __future__ import annotations

import numpy as np

from mambapose.runtime.stages.crop import crops_from_boxes
from mambapose.runtime.stages.decode import joints_from_heatmaps, peaks_from_heatmaps


def refined_by_loops(heatmap):
    """x, y of one heatmap by the published rule, blurring the whole map."""
    taps = np.exp(-((np.arange(11) - 5) ** 2) / 8.0)
    taps /= taps.sum()
    padded = np.pad(heatmap.astype(np.float64), 5, mode="reflect")
    blurred = np.stack([np.convolve(row, taps, mode="valid") for row in padded])
    blurred = np.stack([np.convolve(column, taps, mode="valid") for column in blurred.T]).T
    q = np.pad(np.log(np.clip(blurred, 0.001, 50)), 1, mode="edge")
    y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
    p = q[y : y + 3, x : x + 3]
    gradient = np.array([p[1, 2] - p[1, 0], p[2, 1] - p[0, 1]]) / 2
    cross = p[2, 2] - p[1, 2] - p[2, 1] + 2 * p[1, 1] - p[1, 0] - p[0, 1] + p[0, 0]
    hessian = np.array(
        [
            [p[1, 2] - 2 * p[1, 1] + p[1, 0], cross / 2],
            [cross / 2, p[2, 1] - 2 * p[1, 1] + p[0, 1]],
        ]
    )
    hessian += np.finfo(np.float32).eps * np.eye(2)
    return np.array([x, y]) - np.linalg.solve(hessian, gradient)


def test_official_decoding(golden):
    case = golden("vitpose-udp-decode")
    valid = case.arrays["valid"]
    xy, score = peaks_from_heatmaps(case.arrays["heatmaps"])
    assert np.abs(xy - case.arrays["refined_xy"])[valid].max() < 1e-3
    assert np.array_equal(score, case.arrays["scores"][..., 0])
    boxes = np.array(case.meta["boxes_xywh"])
    boxes[:, 2:] += boxes[:, :2]
    joints, _ = joints_from_heatmaps(case.arrays["heatmaps"], crops_from_boxes(boxes, (256, 192)))
    assert np.abs(joints - case.arrays["keypoints"])[valid].max() < 5e-3


def test_official_keypoints_of_a_network(golden):
    case = golden("vitpose-s-simple-256x192")
    boxes = np.array(case.meta["boxes_xywh"])
    boxes[:, 2:] += boxes[:, :2]
    joints, _ = joints_from_heatmaps(case.arrays["heatmaps"], crops_from_boxes(boxes, (256, 192)))
    stable = case.arrays["keypoints_stable"]
    assert np.abs(joints - case.arrays["keypoints"])[stable].max() < 0.05


def test_every_position_equals_the_loop():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :48]
    centres = rng.uniform([0, 0], [47, 63], (40, 2))
    centres[:4] = [[0, 0], [47, 63], [0, 63], [47, 0.2]]
    maps = np.exp(
        -((x - centres[:, 0, None, None]) ** 2 + (y - centres[:, 1, None, None]) ** 2) / 8
    )
    maps = (maps + rng.normal(0, 0.01, maps.shape)).astype(np.float32)
    xy, _ = peaks_from_heatmaps(maps.reshape(2, 20, 64, 48))
    want = np.stack([refined_by_loops(heatmap) for heatmap in maps])
    assert np.abs(xy.reshape(-1, 2) - want).max() < 1e-6


def test_maps_without_a_peak_stay_finite():
    maps = np.zeros((1, 3, 64, 48), np.float32)
    maps[0, 1] = -1.0
    maps[0, 2] = 5.0
    xy, score = peaks_from_heatmaps(maps)
    assert np.isfinite(xy).all()
    assert score.tolist() == [[0.0, -1.0, 5.0]]
    assert xy[0, 1].tolist() == [0.0, 0.0]


def test_nobody_decodes_to_nobody():
    crops = crops_from_boxes(np.zeros((0, 4)), (256, 192))
    joints, score = joints_from_heatmaps(np.zeros((0, 17, 64, 48), np.float32), crops)
    assert joints.shape == (0, 17, 2)
    assert score.shape == (0, 17)
