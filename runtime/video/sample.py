"""The sample clip that ships with the package, and the truth about it: joints, camera, flow, depth.

A person of the project's own rendered world runs up and kicks; train/world/sample_clip.py renders
it. Body and clothes: MakeHuman, CC0. Motion: obtained from mocap.cs.cmu.edu, whose database was
created with funding from NSF EIA-0196217.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.errors import VideoError
from mambapose.runtime.types import FloatArray, Size

SAMPLE = Path(__file__).parent.parent / "data" / "sample.mp4"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Truth:
    """What is true about T frames of a rendered clip. Pixels count from 0 at their centres.

    size: of the pictures; camera: focal length, centre x, y, px; stature: metres, standing;
    coco_xy: (T, 17, 2) px, hidden joints included; visibility: (T, 17) 0 outside, 1 hidden,
    2 seen; h36m_xyz: (T, 17, 3) camera axes (y down), relative to the pelvis, body heights;
    box: (T, 4) xyxy px around what is seen of the person; root: (T, 3) pelvis in camera axes, m.
    Of the M frames ``map_frames``, where ``rows`` (h,) cross ``columns`` (w,): flow (M, h, w, 2),
    px to where each point was one frame before; inverse_depth (M, h, w) 1/m; person (M, h, w).
    """

    size: Size
    camera: NDArray[np.floating]
    stature: NDArray[np.floating]
    coco_xy: FloatArray
    visibility: NDArray[np.uint8]
    h36m_xyz: FloatArray
    box: FloatArray
    root: FloatArray
    map_frames: NDArray[np.integer]
    columns: NDArray[np.integer]
    rows: NDArray[np.integer]
    flow: NDArray[np.floating]
    inverse_depth: NDArray[np.floating]
    person: NDArray[np.bool_]

    @property
    def height_px(self) -> NDArray[np.float64]:
        """(T,) the height in pixels that the person would have standing where its pelvis is."""
        height: NDArray[np.float64] = self.camera[0] * self.stature / self.root[:, 2]
        return height


def truth_file(video: Path) -> Path:
    """The path of the truth that lies beside a rendered clip."""
    return video.with_name(f"{video.stem}.truth.npz")


def read_truth(video: Path = SAMPLE) -> Truth:
    """The truth of a rendered clip; VideoError when it is missing or of another version."""
    path = truth_file(video)
    try:
        with np.load(path, allow_pickle=False) as file:
            if int(file["format_version"]) != FORMAT_VERSION:
                raise ValueError(f"version {file['format_version']} instead of {FORMAT_VERSION}")
            values = {field.name: file[field.name] for field in fields(Truth)}
            width, height = (int(side) for side in values["size"])
            return Truth(**{**values, "size": Size(height, width)})
    except (OSError, ValueError, KeyError, EOFError) as err:
        raise VideoError(
            f"the truth of {video.name} was wanted in {path}, it cannot be read ({err}); "
            "install the package again, or render the clip with train/world/sample_clip.py"
        ) from err
