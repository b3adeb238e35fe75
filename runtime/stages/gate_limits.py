"""How far an engine's outputs are from the stored FP32 ones, in the unit a user cares about.

    flow_px         largest error of a flow vector, pixels of the flow image
    depth_relative  largest error of the inverse depth, as a share of its largest value
    joint_px        largest error of a joint decoded from its heatmap, pixels of the crop
    joint_mm        largest error of a lifted joint, millimetres of a person of 1.75 m
    relative        largest error of a tensor between graphs, as a share of its largest value

The rows of ``table.py`` say which output is measured how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.types import Array

PERSON_MM = 1750.0
HEATMAP_CELL = 4.0  # pixels of the crop, where a graph takes features in place of pictures
COARSE = 8  # pixels of the image per cell of RAFT's grid
# Of the softmax: a heatmap's peak outweighs 3072 empty cells by e^20 / 3072. Half of that
# would give them an eighth of the weight; from 14 on they have less than 0.3 %, and it is free.
SHARPNESS = 20.0

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """One way of measuring an error.

    unit: name of the unit; error: (inputs of the graph, found, wanted) -> largest error in that
    unit; limits: precision -> the largest error that is allowed.
    """

    unit: str
    error: Callable[[Mapping[str, Array], Floats, Floats], float]
    limits: Mapping[str, float]


def relative_error(inputs: Mapping[str, Array], found: Floats, wanted: Floats) -> float:
    """The largest error as a share of the largest wanted value."""
    scale = float(np.abs(wanted).max())
    return float(np.abs(found - wanted).max()) / (scale or 1.0)


def vector_error(inputs: Mapping[str, Array], found: Floats, wanted: Floats) -> float:
    """The length of the largest difference between vectors (1, 2, H, W)."""
    return float(np.linalg.norm(found - wanted, axis=1).max())


def coarse_vector_error(inputs: Mapping[str, Array], found: Floats, wanted: Floats) -> float:
    """The same in pixels, for vectors that are given in cells of RAFT's grid."""
    return COARSE * vector_error(inputs, found, wanted)


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


def joint_pixel_error(inputs: Mapping[str, Array], found: Floats, wanted: Floats) -> float:
    """The largest distance, in crop px, between the joints of two sets of heatmaps (N, J, h, w)."""
    cell = float(inputs["rgb"].shape[1] / wanted.shape[2]) if "rgb" in inputs else HEATMAP_CELL
    gap = np.linalg.norm(soft_joints(found) - soft_joints(wanted), axis=-1)
    return cell * float(gap.max())


def joint_millimetre_error(inputs: Mapping[str, Array], found: Floats, wanted: Floats) -> float:
    """The largest distance of a joint in mm, if the person in the 2D input is 1.75 m tall.

    found, wanted: (N, T, 17, 3) in the unit of the 2D input.
    """
    y = inputs["keypoints"][..., 1].astype(np.float64)
    height = float(np.median(y.max(axis=-1) - y.min(axis=-1)))
    return PERSON_MM / height * float(np.linalg.norm(found - wanted, axis=-1).max())


# Limits of an FP32 engine. Measured exports stay a decade or more below them, wrong ones (a
# swapped axis, a missing constant, another GELU) lie decades above, so the exact values are free:
# half or twice as much gives the same verdicts.
RELATIVE = Measure("relative", relative_error, {"fp32": 1e-3})
FLOW_PX = Measure("flow_px", vector_error, {"fp32": 0.02})
FLOW_PX_OF_CELLS = Measure("flow_px", coarse_vector_error, {"fp32": 0.02})
DEPTH_RELATIVE = Measure("depth_relative", relative_error, {"fp32": 1e-3})
JOINT_PX = Measure("joint_px", joint_pixel_error, {"fp32": 0.05})
JOINT_MM = Measure("joint_mm", joint_millimetre_error, {"fp32": 0.5})
