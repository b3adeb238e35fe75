"""The real video on which networks are judged: one person balancing, seen by two cameras.

From perfanalytics/pose2sim (BSD-3-Clause): 100 frames each of cam01.mp4 and cam02.mp4, OpenPose's
joints in both, joints triangulated from four cameras, and their calibration. Nothing is trained on
it. NumPy and the runtime only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mambapose.benchmarks.truth import body
from mambapose.benchmarks.truth.lift_metrics import measured_coco
from mambapose.runtime.errors import ExportError
from mambapose.runtime.stages.joints import COCO_COPIED, H36M_COPIED
from mambapose.runtime.types import ImageArray, Size
from mambapose.runtime.video.sources import open_source

FOLDER = "pose2sim-single"
CAMERAS = ("cam01", "cam02")
MEASURED_SCORE = 0.5  # OpenPose's joints above it are the truth of 2D
BOX_MARGIN = 0.06  # of the box's longer side: joints end at the eyes and ankles

Array = NDArray[np.float64]


@dataclass(frozen=True)
class View:
    """What one camera saw. F frames.

    size: of the pictures; rows: (F, 17, 3) OpenPose's x, y, score in COCO order, gaps not filled;
    valid: (F, 17) joints that are measured; boxes: (F, 4) xyxy px around those; height: (F,) px
    that the person would have standing where its hips are; xyz: (F, 13, 3) the joints of
    lift_metrics, hip centre at 0, camera axes, body heights, NaN where unknown.
    """

    name: str
    video: Path
    size: Size
    rows: Array
    valid: NDArray[np.bool_]
    boxes: Array
    height: Array
    xyz: Array

    @property
    def xy(self) -> Array:
        """(F, 17, 2) px."""
        return self.rows[..., :2]

    def images(self) -> Iterator[ImageArray]:
        """The frames, RGB (H, W, 3)."""
        with open_source(str(self.video)) as source:
            for frame in source:
                yield frame.image


def pose2sim_views(folder: Path) -> tuple[View, ...]:
    """Both cameras of the folder; ExportError when it cannot be read."""
    try:
        with np.load(folder / "reference.npz", allow_pickle=False) as file:
            reference = {name: file[name].astype(np.float64) for name in file.files}
        return tuple(_view(folder, camera, reference) for camera in CAMERAS)
    except (OSError, KeyError, ValueError) as err:
        raise ExportError(
            f"video, reference.npz and calibration.toml of pose2sim were wanted in {folder}, they "
            f"cannot be read ({err}); get the folder again"
        ) from err


def _view(folder: Path, camera: str, reference: dict[str, Array]) -> View:
    calibration = camera_from_toml(folder / "calibration.toml", camera)
    turn = body.rotations_from_vectors(calibration["rotation"]).astype(np.float64)
    world, rows = reference["xyz_world_m"], reference[f"openpose_{camera}"]
    stature = coco_height(world)
    seen = world @ turn.T
    hips = interpolated((seen[:, 11] + seen[:, 12]) / 2 + calibration["translation"])
    width, height = (int(side) for side in calibration["size"])
    valid = rows[..., 2] > MEASURED_SCORE
    return View(
        camera,
        folder / f"{camera}.mp4",
        Size(height, width),
        rows,
        valid,
        joint_boxes(rows[..., :2], valid),
        calibration["matrix"][0, 0] * stature / hips[:, 2],
        measured_coco(seen / stature),
    )


def joint_boxes(xy: Array, valid: NDArray[np.bool_]) -> Array:
    """(F, 4) xyxy px around the valid joints of xy (F, 17, 2), with BOX_MARGIN on every side."""
    low = np.where(valid[..., None], xy, np.inf).min(axis=1)
    high = np.where(valid[..., None], xy, -np.inf).max(axis=1)
    margin = BOX_MARGIN * (high - low).max(axis=1, keepdims=True)
    return np.concatenate([low - margin, high + margin], axis=1)


def without_gaps(rows: Array) -> Array:
    """Rows (F, 17, 3) with the places of joints of score 0 interpolated over time."""
    out: Array = rows.copy()
    for joint in range(rows.shape[1]):
        known = rows[:, joint, 2] > 0
        if known.any():
            out[:, joint, :2] = interpolated(np.where(known[:, None], rows[:, joint, :2], np.nan))
    return out


def interpolated(values: Array) -> Array:
    """Values (F, C) over time, with NaN replaced by straight lines between the known ones."""
    out: Array = values.copy()
    at = np.arange(len(values))
    for column in out.T:
        known = np.isfinite(column)
        column[~known] = np.interp(at[~known], at[known], column[known])
    return out


def coco_height(world: Array) -> float:
    """The person's height in metres, from leg and trunk of a COCO clip (F, 17, 3).

    The rule is that of training.
    """
    h36m = np.full_like(world, np.nan)
    h36m[:, H36M_COPIED] = world[:, COCO_COPIED]
    return float(body.leg_and_trunk(h36m.astype(np.float32))) / body.TRUNK_AND_LEG


def camera_from_toml(path: Path, camera: str) -> dict[str, Array]:
    """Size, rotation vector, translation and matrix of a camera.

    The few lines of TOML in the calibration are read here, because Python has no reader before
    3.11.
    """
    wanted = f"[{camera[:3]}_{camera[3:]}]"
    values: dict[str, Array] = {}
    section = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, value = (part.strip() for part in line.partition("="))
        section = key if key.startswith("[") else section
        if section == wanted and value.startswith("["):
            values[key] = np.array(json.loads(value), np.float64)
    missing = {"size", "rotation", "translation", "matrix"} - values.keys()
    if missing:
        raise ExportError(f"{', '.join(sorted(missing))} of {wanted} were wanted in {path}")
    return values
