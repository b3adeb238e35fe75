"""Accuracy of 2D poses: errors by body height, PCK by torso length, collapsed left-right pairs.

NumPy only, so that training and ``mp-bench accuracy`` share one definition.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.skeleton import COCO17

Array = NDArray[np.float64]

SHOULDERS, HIPS = [5, 6], [11, 12]
APART = 0.1  # body heights between the joints of a pair that can collapse
COLLAPSED = 0.25  # of the true distance
ROW = ("median", "mean", "pck10", "pck20", "pck20_side_ignored", "collapsed")
MIRROR = np.arange(17)
for _left, _right in COCO17.pairs:
    MIRROR[[_left, _right]] = _right, _left


@dataclass(frozen=True)
class PoseMetrics:
    """Accuracy of 2D joints.

    median, mean: error as a share of body height (mean: of the joints that were found);
    pck10, pck20: share of joints within 0.1 and 0.2 torso lengths; pck20_side_ignored: the same
    with the nearer joint of its left-right pair as the truth; collapsed: share of the pairs more
    than 0.1 body heights apart whose predicted distance is under 0.25x the true one; joints,
    pairs: how many were measured; per_joint: (17,) medians. NaN without any joint or pair.
    """

    median: float
    mean: float
    pck10: float
    pck20: float
    pck20_side_ignored: float
    collapsed: float
    joints: int
    pairs: int
    per_joint: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def pose_metrics(
    predicted: NDArray[np.floating],
    truth: NDArray[np.floating],
    valid: NDArray[np.bool_],
    height: NDArray[np.floating],
) -> PoseMetrics:
    """Metrics of joints (F, 17, 2) px in COCO order against the truth in the same pixels.

    valid: (F, 17) joints whose truth is known and which are measured; height: (F,) px that the
    person would have standing at that place. A predicted joint that is not a number is a miss of
    any distance.
    """
    found, known = predicted.astype(np.float64), truth.astype(np.float64)
    valid = valid & np.isfinite(known).all(axis=-1)
    size = height.astype(np.float64)
    error = _distance(found, known)
    other = np.where(valid[:, MIRROR], _distance(found, known[:, MIRROR]), np.inf)
    share = (error / size[:, None])[valid]
    torso = (error / torso_lengths(known, valid, size)[:, None])[valid]
    either = (np.minimum(error, other) / torso_lengths(known, valid, size)[:, None])[valid]
    apart, collapsed = _pairs(found, known, valid, size)
    return PoseMetrics(
        median=_mean(np.median, share),
        mean=_mean(np.mean, share[np.isfinite(share)]),
        pck10=_mean(np.mean, torso <= 0.1),
        pck20=_mean(np.mean, torso <= 0.2),
        pck20_side_ignored=_mean(np.mean, either <= 0.2),
        collapsed=_mean(np.mean, collapsed[apart]),
        joints=int(valid.sum()),
        pairs=int(apart.sum()),
        per_joint=tuple(
            _mean(np.median, (error[:, j] / size)[valid[:, j]]) for j in range(error.shape[1])
        ),
    )


def torso_lengths(truth: Array, valid: NDArray[np.bool_], height: Array) -> Array:
    """(F,) px from the middle of the shoulders to the middle of the hips.

    Where one of the four is not valid: the height times the median ratio of the other frames; where
    there are none, times 0.3 (0.288 from shoulder to hip: Drillis and Contini, 1966).
    """
    trunk = [*SHOULDERS, *HIPS]
    whole = valid[:, trunk].all(axis=1)
    middle = truth[:, SHOULDERS].mean(axis=1) - truth[:, HIPS].mean(axis=1)
    length = np.linalg.norm(middle, axis=-1)
    usual = float(np.median(length[whole] / height[whole])) if whole.any() else 0.3
    return np.where(whole, length, usual * height)


def _distance(found: Array, known: Array) -> Array:
    """(F, 17) px; infinite where a joint was not found."""
    gap = np.linalg.norm(found - known, axis=-1)
    return np.where(np.isfinite(found).all(axis=-1), gap, np.inf)


def _pairs(
    found: Array, known: Array, valid: NDArray[np.bool_], height: Array
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(F, 8) which left-right pairs are clearly apart, and which are predicted on one limb."""
    left, right = (list(side) for side in zip(*COCO17.pairs, strict=True))
    true = np.linalg.norm(known[:, left] - known[:, right], axis=-1)
    seen = np.linalg.norm(found[:, left] - found[:, right], axis=-1)
    both = valid[:, left] & valid[:, right]
    apart = both & (true > APART * height[:, None])
    return apart, seen < COLLAPSED * true


def _mean(function: Any, values: NDArray[Any]) -> float:
    return float(function(values)) if values.size else float("nan")


def as_row(metrics: PoseMetrics) -> dict[str, float]:
    """The fields of the metrics, rounded for a file."""
    return {name: round(getattr(metrics, name), 4) for name in ROW}
