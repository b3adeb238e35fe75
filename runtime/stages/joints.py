"""Joints from one skeleton and unit to another: COCO-17 to Human3.6M-17, pixels to body heights.

A lifter's 3D joints are in body heights or, for published PoseMamba, in the unit of its 2D input.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.types import FloatArray, Size

# Human3.6M joint <- COCO joint, where one is the other.
COPIED = ((9, 0), (11, 5), (14, 6), (12, 7), (15, 8), (13, 9), (16, 10),
          (4, 11), (1, 12), (5, 13), (2, 14), (6, 15), (3, 16))  # fmt: skip
H36M_COPIED, COCO_COPIED = (np.array(side) for side in zip(*COPIED, strict=True))

BODY_HEIGHTS, IMAGE_UNITS = "body_height", "image"

# Standing height over the sum of leg (hip-knee-foot) and trunk (pelvis-spine-thorax-neck-head):
# head to ankle is 0.98 times that sum in the clips of cmu-17j (0.97 to 0.99; the median of each
# clip's tallest twentieth), with the pelvis between the hips as Human3.6M has it and not 10 cm
# above as captured. The ankle is 3.9 % of the height above the ground (Drillis, Contini, 1966).
HEIGHT_BY_BONES = 0.98 / (1 - 0.039)


def h36m_from_coco(xy: NDArray[np.floating]) -> NDArray[np.float64]:
    """(..., 17, 2) Human3.6M joints of COCO joints (..., 17, 2), in the same unit, y down.

    The converter of GAST-Net (mpii_coco_h36m): pelvis, spine, thorax and head are made up from
    hips, shoulders and face, and the neck is moved a quarter from the nose to the shoulders.
    """
    c = xy.astype(np.float64)
    h = np.zeros_like(c)
    h[..., H36M_COPIED, :] = c[..., COCO_COPIED, :]
    nose, shoulders = c[..., 0, :], c[..., 5:7, :].mean(axis=-2)
    eyes_y = c[..., 1:3, 1].mean(axis=-1)
    h[..., 10, 0] = c[..., 1:5, 0].mean(axis=-1)
    h[..., 10, 1] = 2 * eyes_y - nose[..., 1]
    h[..., 8, :] = shoulders + (nose - shoulders) / 3
    h[..., 0, :] = c[..., 11:13, :].mean(axis=-2)
    h[..., 7, :] = (shoulders + h[..., 0, :]) / 2
    h[..., 9, :] -= (nose - shoulders) / 4
    h[..., 7, 0] += 2 * (h[..., 7, 0] - (h[..., 0, 0] + h[..., 8, 0]) / 2)
    h[..., 8, 1] -= (eyes_y - nose[..., 1]) * 2 / 3
    return h


def h36m_scores(score: NDArray[np.floating]) -> FloatArray:
    """(..., 17) scores of the Human3.6M joints from those of the COCO joints they are made of.

    A joint that is one COCO joint has its score; one made up from several has their mean.
    """
    out = np.zeros(score.shape, np.float32)
    out[..., H36M_COPIED] = score[..., COCO_COPIED]
    out[..., 10] = score[..., 1:5].mean(axis=-1)
    out[..., 8] = score[..., 5:7].mean(axis=-1)
    out[..., 0] = score[..., 11:13].mean(axis=-1)
    out[..., 7] = (out[..., 0] + out[..., 8]) / 2
    return out


def normalised(xy: NDArray[np.floating], size: Size) -> NDArray[np.float64]:
    """Joints relative to the centre of the frame, both axes in half widths of the frame.

    xy: (..., 2) px; size: of the frame. This is the unit in which lifters take their input.
    """
    height, width = size
    unit: NDArray[np.float64] = xy.astype(np.float64) * (2.0 / width)
    unit -= np.array([1.0, height / width])
    return unit


def body_heights(xyz: FloatArray) -> NDArray[np.float32]:
    """(N,) standing heights in clips (N, T, 17, 3), from the median length of the bones."""
    legs = _bones(xyz, (1, 2, 3)) + _bones(xyz, (4, 5, 6))
    length = legs / 2 + _bones(xyz, (0, 7, 8, 9, 10))
    return (HEIGHT_BY_BONES * np.median(length, axis=1)).astype(np.float32)


def _bones(xyz: FloatArray, chain: tuple[int, ...]) -> NDArray[np.float32]:
    """(N, T) length of a chain of joints."""
    places = xyz[:, :, list(chain)]
    length: NDArray[np.float32] = np.linalg.norm(np.diff(places, axis=2), axis=-1).sum(axis=-1)
    return length
