"""Person boxes from a detector that the user gives as an ONNX file.

Known layouts, recognised from the shapes of the graph:

    yolox    images (1, 3, H, W) float32: BGR, 0..255, letterboxed from the top left with grey 114;
             one output (1, cells, 5 + classes) of raw offsets for strides 8, 16, 32: x, y, log w,
             log h, objectness, class scores (both already squashed to 0..1); class 0 is a person
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.backends.engine import Engine
from mambapose.runtime.errors import MismatchError
from mambapose.runtime.stages.resize import Letterbox, letterbox_from_sizes, letterboxed
from mambapose.runtime.stages.table import MAX_SIDE
from mambapose.runtime.types import GraphSpec, ImageArray

STRIDES = (8, 16, 32)
PERSON = 0
GREY = 114
MIN_SCORE = 0.3
MAX_OVERLAP = 0.45  # of two boxes that are kept, as in YOLOX's own demo
# Bounds the table of overlaps. The best come first, so the value is free as long as it is far above
# the number of people who are followed: beyond it the faintest boxes of a crowd are lost.
MAX_CANDIDATES = 300


@dataclass(frozen=True)
class Detections:
    """People in one frame, best first. boxes: (N, 4) xyxy px of the frame; scores: (N,)."""

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.boxes)


class Detector:
    """A detector in one of the known layouts; EngineError when the layout is another."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._input = engine.spec.inputs[0].name if engine.spec.inputs else ""
        self._size = yolox_size(engine.spec)
        self._cells = _grid_cells(self._size)

    def run(self, image: ImageArray) -> Detections:
        """The people in an RGB image."""
        box = letterbox_from_sizes(image.shape[:2], self._size, centred=False)
        picture = letterboxed(image, box, pad=GREY)[:, :, ::-1].transpose(2, 0, 1)  # BGR, planes
        tensor = np.ascontiguousarray(picture[None], dtype=np.float32)
        found = self._engine.run({self._input: tensor})
        (raw,) = found.values()
        return people_from_yolox(raw[0].astype(np.float64), self._cells, box)


def yolox_size(spec: GraphSpec) -> tuple[int, int]:
    """(H, W) of the input of a YOLOX graph.

    For any other graph EngineError, which names what is supported.
    """
    if len(spec.inputs) == 1 and len(spec.outputs) == 1:
        shape, out = spec.inputs[0].shape, spec.outputs[0].shape
        sides = [side for side in shape[1:] if isinstance(side, int)]
        if len(shape) == 4 and len(sides) == 3 and sides[0] == 3 and len(out) == 3:
            size = (sides[1], sides[2])
            whole = all(side <= MAX_SIDE and side % STRIDES[-1] == 0 for side in size)
            cells, channels = out[1], out[2]
            if (
                whole
                and spec.inputs[0].dtype == "float32"
                and cells == len(_grid_cells(size))
                and isinstance(channels, int)
                and channels > 5
            ):
                return size
    tensors = ", ".join(str(tensor) for tensor in (*spec.inputs, *spec.outputs))
    raise MismatchError(
        f"detector {spec.name}: its layout is not known (found {tensors}); supported is YOLOX "
        "exported without decoding: images float32 (1, 3, H, W) -> (1, cells, 5 + classes) with "
        "H and W multiples of 32"
    )


def _grid_cells(size: tuple[int, int]) -> NDArray[np.float64]:
    """(cells, 3): column, row and stride of every cell, row by row, fine to coarse."""
    parts = []
    for stride in STRIDES:
        rows, columns = np.mgrid[: size[0] // stride, : size[1] // stride]
        stack = np.stack([columns, rows, np.full_like(rows, stride)], axis=-1)
        parts.append(stack.reshape(-1, 3))
    return np.concatenate(parts).astype(np.float64)


def people_from_yolox(
    raw: NDArray[np.float64], cells: NDArray[np.float64], box: Letterbox
) -> Detections:
    """Frame boxes of the people in raw output (cells, 5 + classes)."""
    score = raw[:, 4] * raw[:, 5 + PERSON]
    best = np.argsort(-score, kind="stable")[:MAX_CANDIDATES]
    best = best[score[best] >= MIN_SCORE]
    stride = cells[best, 2:]
    centre = (raw[best, :2] + cells[best, :2]) * stride
    half = np.exp(np.clip(raw[best, 2:4], -10, 10)) * stride / 2
    # Box edges lie between pixels, so they scale without the half-pixel shift of centres.
    scale = np.tile(box.scale, 2)
    corners = np.concatenate([centre - half, centre + half], axis=1) / scale
    limits = np.tile(np.array(box.frame[::-1], np.float64), 2)
    corners = np.clip(corners, 0, limits)
    keep = kept_boxes(corners, MAX_OVERLAP)
    return Detections(corners[keep], score[best][keep])


def overlaps(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, M) intersection over union of boxes a (N, 4) and b (M, 4); 0 for empty boxes."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    area_a = np.clip(a[:, 2:] - a[:, :2], 0, None).prod(axis=-1)
    area_b = np.clip(b[:, 2:] - b[:, :2], 0, None).prod(axis=-1)
    union = area_a[:, None] + area_b[None] - shared
    ratio: NDArray[np.float64] = shared / np.where(union > 0, union, 1.0)
    return ratio


def kept_boxes(boxes: NDArray[np.float64], limit: float) -> NDArray[np.intp]:
    """Indices of the boxes to keep; the boxes come best first.

    A box goes when it overlaps a better one that was kept by more than ``limit``.
    """
    clash = overlaps(boxes, boxes) > limit
    alive = np.ones(len(boxes), bool)
    for k in range(len(boxes)):  # over the few candidates of a detection frame
        if alive[k]:
            alive[k + 1 :] &= ~clash[k, k + 1 :]
    return np.flatnonzero(alive)
