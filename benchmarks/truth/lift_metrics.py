"""Accuracy of 3D poses: MPJPE, PA-MPJPE and acceleration error, on twelve limb joints and the hip
centre, in millimetres for a person of 1.75 m. Arrays (..., 13, 3); NumPy, float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

HEIGHT_MM = 1750.0
# Human3.6M joints that are measured, and the COCO joints they are.
MEASURED = (0, 1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16)
COCO_LIMBS = (12, 14, 16, 11, 13, 15, 5, 7, 9, 6, 8, 10)


def measured_h36m(xyz: NDArray[np.floating]) -> Array:
    """(..., 13, 3) the measured joints of Human3.6M poses, relative to the hip centre."""
    joints = xyz.astype(np.float64)[..., MEASURED, :]
    return joints - joints[..., :1, :]


def measured_coco(xyz: NDArray[np.floating]) -> Array:
    """(..., 13, 3) the same joints of COCO poses; the hip centre is the middle of the hips."""
    limbs = xyz.astype(np.float64)[..., COCO_LIMBS, :]
    centre = limbs[..., [0, 3], :].mean(axis=-2, keepdims=True)
    return np.concatenate([np.zeros_like(centre), limbs - centre], axis=-2)


def distances(found: Array, truth: Array) -> Array:
    """(...,) mean distance of the joints of each pose."""
    return np.asarray(np.linalg.norm(found - truth, axis=-1).mean(axis=-1))


def aligned(found: Array, truth: Array) -> Array:
    """``found`` after the rotation, scale and shift that bring each pose nearest to the truth
    (Umeyama, 1991): least squares, mirror images excluded."""
    centre_f, centre_t = found.mean(axis=-2, keepdims=True), truth.mean(axis=-2, keepdims=True)
    f, t = found - centre_f, truth - centre_t
    u, s, vt = np.linalg.svd(np.swapaxes(t, -1, -2) @ f)
    sign = np.ones_like(s)
    sign[..., -1] = np.sign(np.linalg.det(u @ vt))
    turn = (u * sign[..., None, :]) @ vt
    scale = (s * sign).sum(axis=-1) / np.maximum((f**2).sum(axis=(-2, -1)), 1e-12)
    return np.asarray(scale[..., None, None] * f @ np.swapaxes(turn, -1, -2) + centre_t)


def acceleration(found: Array, truth: Array) -> Array:
    """(..., T-2) mean distance of the second differences over time of (..., T, 13, 3)."""
    bend_f, bend_t = (np.diff(x, n=2, axis=-3) for x in (found, truth))
    return distances(bend_f, bend_t)


def summary(found: Array, truth: Array) -> dict[str, float]:
    """All metrics in mm of poses (..., T, 13, 3) in body heights.

    Poses whose truth is not finite are left out. Per frame squared, acceleration_mm is that of the
    error and jitter_mm that of ``found`` alone.
    """
    good = np.isfinite(truth).all(axis=(-2, -1))
    bend = acceleration(found, truth)
    return {
        "mpjpe_mm": HEIGHT_MM * float(distances(found[good], truth[good]).mean()),
        "pa_mpjpe_mm": HEIGHT_MM
        * float(distances(aligned(found[good], truth[good]), truth[good]).mean()),
        "acceleration_mm": HEIGHT_MM * float(bend[np.isfinite(bend)].mean()),
        "jitter_mm": HEIGHT_MM
        * float(np.linalg.norm(np.diff(found, n=2, axis=-3), axis=-1).mean()),
        "poses": float(good.sum()),
    }
