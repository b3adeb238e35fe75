"""Person crops by the official top-down rule (UDP): boxes, matrices, pictures, flow and depth.

A crop is axis-aligned, so its matrix is diag(kx, ky) and a shift, and everything is done for all
people at once. Pixel centres are whole numbers; the rule maps the padded box's corners onto the
centres of the first and last crop pixel (ViTPose: TopDownAffine with use_udp, ``_xywh2cs``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.stages.resize import Letterbox
from mambapose.runtime.types import FloatArray, ImageArray

PADDING = 1.25  # of ViTPose's training and test pipelines


@dataclass(frozen=True)
class Crops:
    """N crops of one frame. scale: (N, 2) crop px per frame px; shift: (N, 2) crop px; size (H, W).

    crop_xy = scale * frame_xy + shift
    """

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.scale)

    @property
    def matrices(self) -> NDArray[np.float64]:
        """(N, 2, 3) frame -> crop matrices."""
        out = np.zeros((len(self), 2, 3))
        out[:, [0, 1], [0, 1]] = self.scale
        out[:, :, 2] = self.shift
        return out

    def frame_xy(self, xy: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, J, 2) frame pixels of points (N, J, 2) in crop pixels."""
        return (xy - self.shift[:, None]) / self.scale[:, None]

    def frame_axes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Frame columns (N, W) and rows (N, H) of the crop pixels."""
        height, width = self.size
        columns = (np.arange(width) - self.shift[:, :1]) / self.scale[:, :1]
        rows = (np.arange(height) - self.shift[:, 1:]) / self.scale[:, 1:]
        return columns, rows


def crops_from_boxes(boxes: NDArray[np.floating], size: tuple[int, int]) -> Crops:
    """The crops of boxes (N, 4) xyxy: grown to the aspect of ``size`` (H, W), then by 1.25."""
    low, high = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64)
    height, width = size
    wide, tall = (high - low).T
    extent = np.stack([np.maximum(wide, tall * width / height),
                       np.maximum(tall, wide * height / width)], axis=1)  # fmt: skip
    extent = extent * PADDING
    scale = np.array([width - 1.0, height - 1.0]) / extent
    return Crops(scale, scale * (extent / 2 - (low + high) / 2), size)


def _axis(
    place: NDArray[np.floating], length: int, *, black: bool
) -> tuple[list[NDArray[np.intp]], list[FloatArray]]:
    """Two neighbours of each place and their weights, along one axis of ``length`` pixels.

    Beyond the edge the values are black, or those of the edge.
    """
    # Far outside both neighbours are black anyway, and the integers cannot overflow.
    low, high = (-2, length + 1) if black else (0, length - 1)
    place = np.minimum(np.maximum(place, low), high)
    floor = np.floor(place)
    share = (place - floor).astype(np.float32)
    first = floor.astype(np.intp)
    indices, weights = [first, first + 1], [1 - share, share]
    for k in (0, 1):
        inside = np.minimum(np.maximum(indices[k], 0), length - 1)
        if black:
            weights[k] *= indices[k] == inside
        indices[k] = inside
    return indices, weights


def crops_from_image(image: ImageArray, crops: Crops) -> ImageArray:
    """(N, H, W, 3) uint8 crops: exact bilinear, rounded, black outside the frame."""
    columns, rows = crops.frame_axes()
    x, weight_x = _axis(columns, image.shape[1], black=True)
    y, weight_y = _axis(rows, image.shape[0], black=True)
    pixels = np.ascontiguousarray(image).reshape(-1, 3)
    count, (height, width) = len(crops), crops.size
    # Colours side by side make the inner loop of every product 3w long.
    left, right = (np.repeat(weight, 3, axis=1)[:, None] for weight in weight_x)
    out = np.zeros((count, height, 3 * width), np.float32)
    for row, weight in zip(y, weight_y, strict=True):
        start = (row * image.shape[1])[:, :, None]
        band = pixels.take(start + x[0][:, None], axis=0).reshape(out.shape) * left
        band += pixels.take(start + x[1][:, None], axis=0).reshape(out.shape) * right
        band *= weight[:, :, None]
        out += band
    out += np.float32(0.5)
    return out.astype(np.uint8).reshape(count, height, width, 3)


def crops_from_maps(maps: FloatArray, box: Letterbox, crops: Crops) -> FloatArray:
    """(N, C, H, W) crops of low-resolution maps (C, h, w), sampled without going through the frame.

    Beyond the frame the edge is repeated: black there would look like a depth.
    """
    columns, rows = crops.frame_axes()
    samples = grid_samples(maps, box.map_x(columns), box.map_y(rows))
    return np.ascontiguousarray(samples.swapaxes(0, 1))


def grid_samples(
    maps: FloatArray, columns: NDArray[np.floating], rows: NDArray[np.floating]
) -> FloatArray:
    """(C, N, H, W) bilinear samples of maps (C, h, w) where columns (N, W) cross rows (N, H)."""
    x, weight_x = _axis(columns, maps.shape[2], black=False)
    y, weight_y = _axis(rows, maps.shape[1], black=False)
    flat = np.ascontiguousarray(maps, dtype=np.float32).reshape(len(maps), -1)
    out = np.zeros((len(maps), len(columns), rows.shape[1], columns.shape[1]), np.float32)
    for row, weight in zip(y, weight_y, strict=True):
        start = (row * maps.shape[2])[:, :, None]
        band = flat.take(start + x[0][:, None], axis=1) * weight_x[0][:, None]
        band += flat.take(start + x[1][:, None], axis=1) * weight_x[1][:, None]
        band *= weight[:, :, None]
        out += band
    return out


def flow_crops(flow: FloatArray, box: Letterbox, crops: Crops) -> FloatArray:
    """(N, 2, H, W) flow in crop pixels from a flow map (2, h, w) in map pixels."""
    out = crops_from_maps(flow, box, crops)
    out *= (crops.scale / np.array(box.scale)).astype(np.float32)[:, :, None, None]
    return out


def values_at(maps: FloatArray, box: Letterbox, xy: NDArray[np.floating]) -> FloatArray:
    """(N, J, C) bilinear samples of maps (C, h, w) at frame pixels xy (N, J, 2), edge repeated."""
    place = np.nan_to_num(xy.astype(np.float64))
    samples = point_samples(maps, box.map_x(place[..., 0]), box.map_y(place[..., 1]))
    return np.moveaxis(samples, 0, -1)


def point_samples(maps: FloatArray, x: NDArray[np.floating], y: NDArray[np.floating]) -> FloatArray:
    """(C, ...) bilinear samples of maps (C, h, w) at map pixels x, y, edge repeated."""
    height, width = maps.shape[1:]
    right, down = int(width > 1), width * int(height > 1)
    left, share_x = _cell(x, width)
    upper, share_y = _cell(y, height)
    upper *= width
    upper += left
    flat = np.ascontiguousarray(maps, dtype=np.float32).reshape(len(maps), -1)
    out = _between(flat, upper, right, share_x)
    upper += down
    lower = _between(flat, upper, right, share_x)
    lower -= out
    lower *= share_y
    out += lower
    return out


def _cell(place: NDArray[np.floating], length: int) -> tuple[NDArray[np.intp], FloatArray]:
    """(first of two neighbours, weight of the second) along one axis; both lie inside it."""
    place = np.clip(place, 0, length - 1)
    first = np.minimum(place, max(0, length - 2)).astype(np.intp)
    return first, (place - first).astype(np.float32, copy=False)


def _between(flat: FloatArray, index: NDArray[np.intp], step: int, share: FloatArray) -> FloatArray:
    """(C, ...) values between index and index + step of flat (C, h*w)."""
    out, second = flat.take(index, axis=1), flat.take(index + step, axis=1)
    second -= out
    second *= share
    out += second
    return out
