"""Key frames of depth, and how the flow carries the map in between."""

from __future__ import annotations

import numpy as np

from mambapose.runtime.stages.crop import values_at
from mambapose.runtime.stages.depth import DepthStage, warped
from mambapose.runtime.stages.flow import DenseMap
from mambapose.runtime.stages.resize import letterbox_from_sizes
from mambapose.runtime.types import Frame

from ..fakes import depth_engine

SIZE = (28, 42)


def frame(index, shape=(60, 90)):
    return Frame(np.full((*shape, 3), index, np.uint8), index, index / 30)


def counting_stage(every):
    engine = depth_engine(
        SIZE, lambda inputs: {"depth": np.full((1, 1, *SIZE), inputs["image"].mean(), np.float32)}
    )
    return DepthStage(engine, every), engine


def test_the_network_runs_on_key_frames_only():
    stage, engine = counting_stage(3)
    found = [float(stage.run(frame(k), None).values.mean()) for k in range(8)]
    assert found == [0, 0, 0, 3, 3, 3, 6, 6]
    assert engine.calls == 3


def test_forgetting_and_gaps_bring_a_new_key_frame():
    stage, _ = counting_stage(5)
    stage.run(frame(0), None)
    stage.forget()
    assert stage.run(frame(1), None).values.mean() == 1
    assert stage.run(frame(4), None).values.mean() == 1
    assert stage.run(frame(9), None).values.mean() == 9


def test_the_map_follows_a_shift():
    """The frame moved by (6, -4) px: flow to the frame before is (-6, 4) everywhere."""
    shape = (120, 180)
    box, flow_box = letterbox_from_sizes(shape, SIZE), letterbox_from_sizes(shape, (64, 64))
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    depth = (np.sin(columns / 5) + np.cos(rows / 4)).astype(np.float32)
    flow = np.zeros((2, 64, 64), np.float32)
    flow[0], flow[1] = -6 * flow_box.scale[0], 4 * flow_box.scale[1]
    before = DenseMap(depth[None], box)
    after = warped(before, DenseMap(flow, flow_box))
    xy = np.stack(np.meshgrid(np.arange(30, 150, 7), np.arange(30, 90, 7)), -1).astype(float)
    found = values_at(after.values, box, xy)[..., 0]
    want = values_at(depth[None], box, xy + np.array([-6, 4]))[..., 0]
    assert np.abs(found - want).max() < 0.03
    assert np.abs(found - values_at(depth[None], box, xy)[..., 0]).max() > 0.2


def test_warping_equals_a_loop_over_pixels():
    rng = np.random.default_rng(1)
    shape = (50, 41)
    box, flow_box = letterbox_from_sizes(shape, SIZE), letterbox_from_sizes(shape, (24, 32))
    depth = rng.uniform(0, 5, (1, *SIZE)).astype(np.float32)
    flow = rng.normal(0, 3, (2, 24, 32)).astype(np.float32)
    found = warped(DenseMap(depth, box), DenseMap(flow, flow_box)).values[0]
    (top, left), (height, width) = box.offset, box.content
    for row in range(top, top + height):
        for column in range(left, left + width):
            x = (column - left + 0.5) / box.scale[0] - 0.5
            y = (row - top + 0.5) / box.scale[1] - 0.5
            place = np.clip([[[x, y]]], 0, [shape[1] - 1, shape[0] - 1])
            move = values_at(flow, flow_box, place)[0, 0] / flow_box.scale * box.scale
            sx = np.clip(column + move[0], left, left + width - 1)
            sy = np.clip(row + move[1], top, top + height - 1)
            x0, y0 = min(int(sx), SIZE[1] - 2), min(int(sy), SIZE[0] - 2)
            cell = depth[0, y0 : y0 + 2, x0 : x0 + 2]
            fx, fy = sx - x0, sy - y0
            want = np.array([1 - fy, fy]) @ cell @ np.array([1 - fx, fx])
            assert abs(found[row, column] - want) < 1e-4


def test_the_flow_moves_the_kept_map_and_a_key_frame_replaces_it():
    shape = (56, 84)
    ramp = np.tile(np.arange(42, dtype=np.float32), (28, 1))
    engine = depth_engine(SIZE, lambda inputs: {"depth": ramp[None, None].copy()})
    stage = DepthStage(engine, 3)
    box = letterbox_from_sizes(shape, (28, 42))
    flow = np.zeros((2, 28, 42), np.float32)
    flow[0] = 1.0
    stage.run(frame(0, shape), None)
    middles = [
        float(stage.run(frame(k, shape), DenseMap(flow, box)).values[0, 14, 20]) for k in (1, 2, 3)
    ]
    assert np.allclose(middles, [21, 22, 20], atol=1e-4)
