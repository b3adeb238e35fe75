"""Joints from heatmaps by the official UDP/DARK rule of ViTPose.

The peak is refined by one Newton step on the logarithm of the blurred heatmap (kernel 11, sigma 2,
mirrored border; values clipped to 0.001..50). Source: ViTPose ``post_dark_udp``.
Only the 3x3 neighbourhood of each peak is blurred, through rows of one constant band matrix.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.stages.crop import Crops
from mambapose.runtime.types import Array, FloatArray

KERNEL, SIGMA = 11, 2.0


@lru_cache(maxsize=8)
def _blur_matrix(length: int) -> NDArray[np.float64]:
    """(length, length): row i holds the Gaussian taps of pixel i, folded back at the border."""
    half = KERNEL // 2
    offsets = np.arange(-half, half + 1)
    taps = np.exp(-(offsets**2) / (2 * SIGMA**2))
    taps /= taps.sum()
    period = max(1, 2 * (length - 1))  # mirrored border: ...2 1 | 0 1 2 ... n-1 | n-2...
    place = np.abs(np.arange(length)[:, None] + offsets) % period
    place = np.where(place >= length, period - place, place)
    matrix = np.zeros((length, length))
    np.add.at(matrix, (np.arange(length)[:, None], place), taps)
    return matrix


def peaks_from_heatmaps(
    heatmaps: NDArray[np.floating],
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """(N, J, 2) refined x, y in heatmap pixels and (N, J) peak values.

    Where a heatmap has no positive value the plain position of its maximum is returned, because
    the official rule reads unrelated memory there; the score says that it means nothing.
    """
    people, joints, height, width = heatmaps.shape
    maps = heatmaps.reshape(people * joints, height, width)
    flat = maps.reshape(len(maps), height * width)
    peak = flat.argmax(axis=1)
    score = np.take_along_axis(flat, peak[:, None], axis=1)[:, 0].astype(np.float32)
    x, y = peak % width, peak // width
    step = _newton_steps(maps, x, y)
    step[~(score > 0)] = 0
    xy = np.stack([x, y], axis=1) - step
    return xy.reshape(people, joints, 2), score.reshape(people, joints)


def _newton_steps(
    maps: NDArray[np.floating], x: NDArray[np.intp], y: NDArray[np.intp]
) -> NDArray[np.float64]:
    """(M, 2) steps from the peaks x, y (M,) of maps (M, H, W)."""
    around = np.arange(-1, 2)
    rows = np.clip(y[:, None] + around, 0, maps.shape[1] - 1)  # (M, 3); the edge is repeated
    columns = np.clip(x[:, None] + around, 0, maps.shape[2] - 1)
    blurred = _blur_matrix(maps.shape[1])[rows] @ maps  # (M, 3, W)
    blurred = blurred @ _blur_matrix(maps.shape[2])[columns].transpose(0, 2, 1)  # (M, 3, 3)
    q = np.log(np.clip(blurred, 0.001, 50))
    dx, dy = (q[:, 1, 2] - q[:, 1, 0]) / 2, (q[:, 2, 1] - q[:, 0, 1]) / 2
    tiny = np.finfo(np.float32).eps  # on the diagonal, as the official code regularises
    dxx = q[:, 1, 2] - 2 * q[:, 1, 1] + q[:, 1, 0] + tiny
    dyy = q[:, 2, 1] - 2 * q[:, 1, 1] + q[:, 0, 1] + tiny
    # Not the textbook cross derivative: the official one uses six of the eight neighbours.
    dxy = (
        q[:, 2, 2] - q[:, 1, 2] - q[:, 2, 1] + 2 * q[:, 1, 1] - q[:, 1, 0] - q[:, 0, 1] + q[:, 0, 0]
    ) / 2
    det = dxx * dyy - dxy * dxy
    solvable = np.abs(det) > 1e-20
    det = np.where(solvable, det, 1.0)
    step = np.stack([dyy * dx - dxy * dy, dxx * dy - dxy * dx], axis=1) / det[:, None]
    return np.where(solvable[:, None], step, 0.0)


def joints_from_heatmaps(heatmaps: Array, crops: Crops) -> tuple[FloatArray, FloatArray]:
    """(N, J, 2) joints in frame pixels and (N, J) scores of heatmaps (N, J, h, w) of the crops."""
    xy, score = peaks_from_heatmaps(heatmaps.astype(np.float32, copy=False))
    height, width = heatmaps.shape[2:]
    # UDP: first and last heatmap pixels sit on the first and last crop pixels.
    ratio = np.array([crops.size[1] - 1, crops.size[0] - 1]) / [width - 1, height - 1]
    return crops.frame_xy(xy * ratio).astype(np.float32), score
