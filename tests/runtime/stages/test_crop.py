"""Crops against loops over pixels, the official matrices and crops, and closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from mambapose.runtime.stages.crop import (
    crops_from_boxes,
    crops_from_image,
    crops_from_maps,
    flow_crops,
    point_samples,
    values_at,
)
from mambapose.runtime.stages.resize import letterbox_from_sizes, letterboxed, resized


def xyxy(boxes):
    out = np.array(boxes, np.float64)
    out[:, 2:] += out[:, :2]
    return out


def bilinear_pixel(image, x, y):
    """One bilinear sample with black beyond the image."""
    x0, y0 = int(np.floor(x)), int(np.floor(y))
    total = np.zeros(image.shape[2])
    for row, weight_y in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
        for column, weight_x in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                total += weight_y * weight_x * image[row, column].astype(np.float64)
    return total


def test_official_matrices_and_crops(golden):
    case = golden("vitpose-udp-decode")
    crops = crops_from_boxes(xyxy(case.meta["crop_boxes_xywh"]), (256, 192))
    assert np.abs(crops.matrices - case.arrays["warp_matrices"]).max() < 1e-3
    found = crops_from_image(case.arrays["source"], crops)
    gap = np.abs(found[:, ::2, ::2].astype(int) - case.arrays["crops_sub2"].astype(int))
    assert gap.max() <= 1


@pytest.mark.parametrize("size", [(16, 12), (9, 31)])
def test_crops_equal_pixel_loops(size):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (23, 37, 3), dtype=np.uint8)
    boxes = np.array(
        [[3, 4, 20, 21], [-30.5, -9, 4, 50], [0, 0, 37, 23], [30, 15, 31, 90], [200, 200, 240, 260]]
    )
    crops = crops_from_boxes(boxes, size)
    found = crops_from_image(image, crops)
    for n, matrix in enumerate(crops.matrices):
        for row in range(size[0]):
            for column in range(size[1]):
                x = (column - matrix[0, 2]) / matrix[0, 0]
                y = (row - matrix[1, 2]) / matrix[1, 1]
                want = bilinear_pixel(image, x, y)
                assert np.abs(found[n, row, column] - want).max() <= 0.51
    assert not found[4].any()


def test_a_crop_of_a_view_equals_that_of_its_copy():
    image = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)[::2, 5:]
    crops = crops_from_boxes(np.array([[2.0, 3, 15, 18]]), (16, 12))
    assert np.array_equal(crops_from_image(image, crops), crops_from_image(image.copy(), crops))


@pytest.mark.parametrize(("frame", "size"), [((48, 64), (24, 32)), ((90, 31), (20, 28))])
def test_maps_of_frame_coordinates_crop_to_frame_coordinates(frame, size):
    """A map whose values are frame x and y must give each crop pixel its own frame position."""
    box = letterbox_from_sizes(frame, size)
    rows, columns = np.mgrid[: size[0], : size[1]]
    x = (columns - box.offset[1] + 0.5) / box.scale[0] - 0.5
    y = (rows - box.offset[0] + 0.5) / box.scale[1] - 0.5
    maps = np.stack([x, y]).astype(np.float32)
    inside = np.array([frame[1], frame[0], frame[1], frame[0]]) * [0.4, 0.4, 0.6, 0.6]
    beyond = [-20.0, -20, frame[1] + 9, frame[0] + 9]
    crops = crops_from_boxes(np.stack([inside, beyond]), (16, 12))
    found = crops_from_maps(maps, box, crops)
    columns_px, rows_px = crops.frame_axes()
    want_x = np.clip(columns_px, 0, frame[1] - 1)[:, None, :]
    want_y = np.clip(rows_px, 0, frame[0] - 1)[:, :, None]
    # Where the frame's edge pixels lie beyond the last map pixel of a side that fills the map,
    # the edge is repeated: half a map pixel of freedom there.
    edge_x, edge_y = 0.5 / box.scale[0], 0.5 / box.scale[1]
    inner = (want_x > edge_x) & (want_x < frame[1] - 1 - edge_x)
    inner = inner & (want_y > edge_y) & (want_y < frame[0] - 1 - edge_y)
    assert inner[0].all()
    assert np.abs(found[:, 0] - want_x)[inner].max() < 1e-3
    assert np.abs(found[:, 1] - want_y)[inner].max() < 1e-3
    assert np.abs(found[:, 0] - want_x).max() <= edge_x + 1e-3


def test_flow_is_scaled_into_crop_pixels():
    box = letterbox_from_sizes((100, 200), (50, 80))
    flow = np.zeros((2, 50, 80), np.float32)
    flow[0], flow[1] = 2.0, -3.0  # map px: 5 and -7.5 frame px
    crops = crops_from_boxes(np.array([[20.0, 10, 80, 90]]), (256, 192))
    found = flow_crops(flow, box, crops)[0]
    assert np.allclose(found[0], 5.0 * 191 / (80 * 0.75 * 1.25), rtol=1e-5)
    assert np.allclose(found[1], -7.5 * 255 / (80 * 1.25), rtol=1e-5)


def test_samples_at_joints_equal_pixel_loops():
    rng = np.random.default_rng(2)
    maps = rng.normal(size=(2, 7, 9)).astype(np.float32)
    x, y = rng.uniform(-1, 10, (3, 5)), rng.uniform(-1, 8, (3, 5))
    found = point_samples(maps, x, y)
    image = maps.transpose(1, 2, 0)
    for k in np.ndindex(3, 5):
        want = bilinear_pixel(image, np.clip(x[k], 0, 8), np.clip(y[k], 0, 6))
        assert np.allclose(found[:, k[0], k[1]], want, atol=1e-5)
    single = point_samples(maps[:, :1, :1], x, y)
    assert np.allclose(single, maps[:, :1, :1])


def test_values_at_survive_joints_that_are_not_numbers():
    box = letterbox_from_sizes((10, 10), (5, 5))
    xy = np.array([[[np.nan, np.inf], [1e30, -1e30]]])
    assert np.isfinite(values_at(np.ones((1, 5, 5), np.float32), box, xy)).all()


def shrink_loop(image, size):
    """The resizer's rule, pixel by pixel: box means, then linear between half-pixel centres."""
    ky, kx = max(1, image.shape[0] // size[0]), max(1, image.shape[1] // size[1])
    height, width = image.shape[0] // ky, image.shape[1] // kx
    out = np.zeros((*size, 3))
    for row in range(size[0]):
        for column in range(size[1]):
            y = np.clip((row + 0.5) * image.shape[0] / size[0] / ky - 0.5, 0, height - 1)
            x = np.clip((column + 0.5) * image.shape[1] / size[1] / kx - 0.5, 0, width - 1)
            y0, x0 = int(y), int(x)
            for j, wy in ((y0, 1 - (y - y0)), (min(y0 + 1, height - 1), y - y0)):
                for i, wx in ((x0, 1 - (x - x0)), (min(x0 + 1, width - 1), x - x0)):
                    cell = image[j * ky : (j + 1) * ky, i * kx : (i + 1) * kx]
                    out[row, column] += wy * wx * cell.reshape(-1, 3).mean(axis=0)
    return out


@pytest.mark.parametrize("shape", [(31, 47), (8, 90), (12, 16), (5, 7), (300, 17)])
def test_resizing_equals_pixel_loops(shape):
    image = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = resized(image, (12, 16))
    assert np.abs(found - shrink_loop(image, (12, 16))).max() <= 0.51


def test_letterbox_keeps_aspect_and_repeats_the_edge():
    image = np.full((100, 50, 3), 200, np.uint8)
    box = letterbox_from_sizes((100, 50), (40, 60))
    assert box.content == (40, 20)
    assert box.offset == (0, 20)
    assert (letterboxed(image, box) == 200).all()
    padded = letterboxed(image, letterbox_from_sizes((100, 50), (40, 60), centred=False), pad=114)
    assert (padded[:, :20] == 200).all()
    assert (padded[:, 20:] == 114).all()
