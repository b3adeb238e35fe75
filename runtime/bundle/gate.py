"""How far an engine's outputs are from the stored FP32 ones, in the unit a user cares about.

    flow_px         largest error of a flow vector, pixels of the flow image
    depth_relative  largest error of the inverse depth, as a share of its largest value
    joint_px        largest error of a joint decoded from its heatmap, pixels of the crop
    joint_mm        largest error of a lifted joint, millimetres of a person of 1.75 m
    relative        largest error of a tensor between graphs, as a share of its largest value

The same code judges the export (against torch) and a device (against the bundle's arrays).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.types import Array

# Limits of an FP32 engine. Measured exports stay a decade or more below them, wrong ones (a
# swapped axis, a missing constant, another GELU) lie decades above, so the exact values are free:
# half or twice as much gives the same verdicts.
FP32_LIMITS = {
    "flow_px": 0.02,
    "depth_relative": 1e-3,
    "joint_px": 0.05,
    "joint_mm": 0.5,
    "relative": 1e-3,
}
PERSON_MM = 1750.0
HEATMAP_CELL = 4.0  # pixels of the crop, where a graph takes features in place of pictures
COARSE = 8  # pixels of the image per cell of RAFT's grid
# Of the softmax: a heatmap's peak outweighs 3072 empty cells by e^20 / 3072. Half of that
# would give them an eighth of the weight; from 14 on they have less than 0.3 %, and it is free.
SHARPNESS = 20.0

Floats = NDArray[np.float64]
Measure = Callable[[Mapping[str, Array], Floats, Floats], float]


def graph_errors(
    stage: str, inputs: Mapping[str, Array], found: Mapping[str, Array], wanted: Mapping[str, Array]
) -> dict[str, float]:
    """Unit -> largest error over the outputs of one graph; infinite when one is not finite."""
    errors: dict[str, float] = {}
    for name, reference in wanted.items():
        unit, measure = _MEASURES.get((stage, name), ("relative", _relative))
        have, want = found[name].astype(np.float64), reference.astype(np.float64)
        fits = have.shape == want.shape and bool(np.isfinite(have).all())
        error = measure(inputs, have, want) if fits else float("inf")
        errors[unit] = max(errors.get(unit, 0.0), error)
    return errors


def exceeded(errors: Mapping[str, float], limits: Mapping[str, float]) -> str | None:
    """``joint_px 0.3 > 0.05`` for the first error above its limit (or not a number), else None."""
    for unit, error in errors.items():
        if not error <= limits[unit]:
            return f"{unit} {error:.3g} > {limits[unit]:g}"
    return None


def _relative(inputs: Mapping[str, Array], found: Floats, wanted: Floats) -> float:
    scale = float(np.abs(wanted).max())
    return float(np.abs(found - wanted).max()) / (scale or 1.0)


def _pixels(inputs: Mapping[str, Array], found: Floats, wanted: Floats) -> float:
    """found, wanted: (1, 2, H, W) vectors."""
    return float(np.linalg.norm(found - wanted, axis=1).max())


def _coarse_pixels(inputs: Mapping[str, Array], found: Floats, wanted: Floats) -> float:
    return COARSE * _pixels(inputs, found, wanted)


def soft_joints(heatmaps: Floats) -> Floats:
    """(N, J, 2) x, y in heatmap cells: the centre of a sharp softmax.

    Unlike the highest cell it moves smoothly, so two equal peaks of an untrained network do not
    turn a rounding difference into a jump.
    """
    flat = heatmaps.reshape(*heatmaps.shape[:2], -1)
    peak = np.abs(flat).max(axis=-1, keepdims=True)
    weights = np.exp(SHARPNESS * (flat / np.where(peak > 0, peak, 1.0) - 1.0))
    weights /= weights.sum(axis=-1, keepdims=True)
    y, x = np.divmod(np.arange(flat.shape[-1]), heatmaps.shape[-1])
    return np.stack([weights @ x, weights @ y], axis=-1)


def _joint_pixels(inputs: Mapping[str, Array], found: Floats, wanted: Floats) -> float:
    cell = float(inputs["rgb"].shape[1] / wanted.shape[2]) if "rgb" in inputs else HEATMAP_CELL
    gap = np.linalg.norm(soft_joints(found) - soft_joints(wanted), axis=-1)
    return cell * float(gap.max())


def _joint_millimetres(inputs: Mapping[str, Array], found: Floats, wanted: Floats) -> float:
    """found, wanted: (N, T, 17, 3) in the unit of the 2D input, whose figure is 1.75 m tall."""
    y = inputs["keypoints"][..., 1].astype(np.float64)
    height = float(np.median(y.max(axis=-1) - y.min(axis=-1)))
    return PERSON_MM / height * float(np.linalg.norm(found - wanted, axis=-1).max())


_MEASURES: dict[tuple[str, str], tuple[str, Measure]] = {
    ("flow", "flow"): ("flow_px", _pixels),
    ("flow", "coords_next"): ("flow_px", _coarse_pixels),
    ("depth", "depth"): ("depth_relative", _relative),
    ("pose2d", "heatmaps"): ("joint_px", _joint_pixels),
    ("lift3d", "xyz"): ("joint_mm", _joint_millimetres),
}
