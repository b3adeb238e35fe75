"""The depth stage: the network runs every few frames, and flow moves the last map in between."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.backends.engine import Engine
from mambapose.runtime.stages.crop import grid_samples, point_samples
from mambapose.runtime.stages.flow import DenseMap, fixed_size
from mambapose.runtime.stages.resize import Letterbox, letterbox_from_sizes, letterboxed
from mambapose.runtime.types import Frame


class DepthStage:
    """Inverse depth of each frame: larger is nearer. every: frames from one run to the next."""

    def __init__(self, engine: Engine, every: int) -> None:
        self._engine = engine
        self._every = every
        self._size = fixed_size(engine.spec.inputs[0].shape[1:3], engine.spec.name)
        self._last: DenseMap | None = None
        self._key = 0

    def forget(self) -> None:
        """Drop the kept map: the next frame runs the network."""
        self._last = None

    def run(self, frame: Frame, flow: DenseMap | None) -> DenseMap:
        """Depth (1, H, W): a new map every ``every`` frames, else the last map moved by the flow.

        flow: the flow of this frame. Without it (flow off, or a frame was dropped) the last map
        stays where it was until the network runs again.
        """
        if self._last is None or frame.index - self._key >= self._every:
            box = letterbox_from_sizes(frame.image.shape[:2], self._size)
            found = self._engine.run({"image": letterboxed(frame.image, box)[None]})["depth"][0]
            self._last, self._key = DenseMap(found.astype(np.float32, copy=False), box), frame.index
        elif flow is not None:
            self._last = warped(self._last, flow)
        return self._last


def warped(depth: DenseMap, flow: DenseMap) -> DenseMap:
    """The map of the frame before, moved to this frame: out(p) = depth(p + flow(p))."""
    columns, rows = _flow_axes(depth.box, flow.box)
    move_x, move_y = grid_samples(flow.values, columns, rows)[:, 0]  # (H, W), flow map px
    (top, left), (height, width) = depth.box.offset, depth.box.content
    move_x *= np.float32(depth.box.scale[0] / flow.box.scale[0])
    move_y *= np.float32(depth.box.scale[1] / flow.box.scale[1])
    move_x += np.arange(depth.box.size[1], dtype=np.float32)
    move_y += np.arange(depth.box.size[0], dtype=np.float32)[:, None]
    np.clip(move_x, left, left + width - 1, out=move_x)
    np.clip(move_y, top, top + height - 1, out=move_y)
    return DenseMap(point_samples(depth.values, move_x, move_y), depth.box)


@lru_cache(maxsize=4)
def _flow_axes(
    depth: Letterbox, flow: Letterbox
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Where the depth map's columns and rows lie in the flow map: (1, W) columns, (1, H) rows."""
    x = (np.arange(depth.size[1]) - depth.offset[1] + 0.5) / depth.scale[0] - 0.5
    y = (np.arange(depth.size[0]) - depth.offset[0] + 0.5) / depth.scale[1] - 0.5
    return flow.map_x(x)[None], flow.map_y(y)[None]
