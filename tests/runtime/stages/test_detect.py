"""YOLOX decoding against a loop, refusals, and a real detector on real people."""

from __future__ import annotations

import numpy as np
import pytest

from mambapose.runtime.backends.loader import load_file
from mambapose.runtime.errors import EngineError
from mambapose.runtime.stages.detect import (
    Detector,
    kept_boxes,
    overlaps,
    people_from_yolox,
    yolox_size,
)
from mambapose.runtime.stages.resize import letterbox_from_sizes
from mambapose.runtime.types import GraphSpec, Where
from mambapose.runtime.video.sources import open_source

from ..fakes import fake, tensor

SIZE = (64, 96)
CELLS = 8 * 12 + 4 * 6 + 2 * 3


def spec(size=SIZE, cells=CELLS, dtype="float32"):
    return GraphSpec(
        "yolox",
        (tensor("images", 1, 3, *size, dtype=dtype),),
        (tensor("output", 1, cells, 85),),
    )


def raw_output(people):
    """Raw YOLOX output that says: cell (level, row, column) holds box cx, cy, w, h in input px."""
    raw = np.zeros((1, CELLS, 85), np.float32)
    starts = {8: 0, 16: 96, 32: 120}
    for (stride, row, column), (x, y, w, h), objectness, share in people:
        cell = raw[0, starts[stride] + row * (SIZE[1] // stride) + column]
        cell[:4] = [x / stride - column, y / stride - row, np.log(w / stride), np.log(h / stride)]
        cell[4], cell[5] = objectness, share
    return raw


def test_boxes_come_back_in_frame_pixels():
    raw = raw_output(
        [((8, 2, 3), (30, 20, 16, 30), 0.9, 0.8), ((32, 1, 2), (70, 40, 30, 40), 1.0, 0.9)]
    )
    engine = fake("yolox", spec().inputs, spec().outputs, lambda inputs: {"output": raw})
    found = Detector(engine).run(np.zeros((128, 160, 3), np.uint8))
    # 128x160 fits 64x80: half the size, from the top left.
    assert np.allclose(found.scores, [0.9, 0.72])
    assert np.allclose(found.boxes, [[110, 40, 160, 120], [44, 10, 76, 70]], atol=1e-3)


def test_the_picture_is_bgr_planes_from_the_top_left_on_grey():
    pictures = []
    raw = raw_output([])

    def answer(inputs):
        pictures.append(inputs["images"])
        return {"output": raw}

    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 0], image[..., 2] = 200, 50
    assert len(Detector(fake("yolox", spec().inputs, spec().outputs, answer)).run(image)) == 0
    assert pictures[0][0, :, 10, 10].tolist() == [50, 0, 200]
    assert (pictures[0][0, :, :, 64:] == 114).all()
    assert (pictures[0][0, 0, :, :64] == 50).all()


def test_other_classes_and_low_scores_are_no_people():
    raw = raw_output([((8, 0, 0), (5, 5, 8, 8), 0.9, 0.2)])
    raw[0, 0, 6] = 1.0
    box = letterbox_from_sizes((64, 96), SIZE, centred=False)
    cells = np.concatenate([np.ones((CELLS, 2)), np.full((CELLS, 1), 8.0)], axis=1)
    assert len(people_from_yolox(raw[0].astype(float), cells, box)) == 0


def test_overlap_and_suppression_equal_loops():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 50, (40, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 40, (40, 2))], axis=1)

    def iou(a, b):
        w = min(a[2], b[2]) - max(a[0], b[0])
        h = min(a[3], b[3]) - max(a[1], b[1])
        shared = max(w, 0) * max(h, 0)
        area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
        return shared / (area - shared)

    want = np.array([[iou(a, b) for b in boxes] for a in boxes])
    assert np.allclose(overlaps(boxes, boxes), want)
    kept = []
    for k in range(len(boxes)):
        if all(want[k, j] <= 0.45 for j in kept):
            kept.append(k)
    assert kept_boxes(boxes, 0.45).tolist() == kept
    assert 1 < len(kept) < 40
    assert overlaps(np.zeros((1, 4)), np.zeros((1, 4))).tolist() == [[0.0]]


@pytest.mark.parametrize(("overlap", "count"), [(0.44, 2), (0.46, 1)])
def test_boxes_that_overlap_by_more_than_yolox_allows_are_one_person(overlap, count):
    """YOLOX's own demo keeps the better of two boxes above an overlap of 0.45."""
    by = 32 * (1 - overlap) / (1 + overlap)  # moves a box 32 wide to that overlap
    raw = raw_output(
        [((8, 2, 3), (30, 32, 32, 40), 0.9, 0.9), ((8, 2, 6), (30 + by, 32, 32, 40), 0.8, 0.9)]
    )
    engine = fake("yolox", spec().inputs, spec().outputs, lambda inputs: {"output": raw})
    found = Detector(engine).run(np.zeros((*SIZE, 3), np.uint8))
    assert np.allclose(found.scores, [0.81, 0.72][:count])


@pytest.mark.parametrize(("score", "count"), [(0.29, 0), (0.31, 1)])
def test_a_person_scores_three_tenths(score, count):
    raw = raw_output([((8, 2, 3), (30, 32, 16, 30), 1.0, score)])
    engine = fake("yolox", spec().inputs, spec().outputs, lambda inputs: {"output": raw})
    assert len(Detector(engine).run(np.zeros((*SIZE, 3), np.uint8))) == count


@pytest.mark.parametrize(
    "wrong",
    [
        spec(cells=CELLS + 1),
        spec(size=(60, 96)),
        spec(dtype="uint8"),
        GraphSpec("d", spec().inputs, (*spec().outputs, tensor("labels", 1, 10))),
        GraphSpec("d", (tensor("images", 1, 3, "H", "W"),), spec().outputs),
        GraphSpec("d", (), ()),
    ],
)
def test_other_layouts_are_refused_with_what_is_supported(wrong):
    with pytest.raises(EngineError, match="supported is YOLOX"):
        yolox_size(wrong)


def test_a_real_detector_finds_both_people(assets):
    clip = assets / "pose2sim-two-people" / "cam01.mp4"
    model = assets / "detector-yolox-nano" / "yolox_nano.onnx"
    with (
        open_source(str(clip), frame_range=":1") as video,
        load_file(model, Where(threads=1)) as engine,
    ):
        found = Detector(engine).run(next(iter(video)).image)
    people = found.boxes[found.scores > 0.7]
    assert len(people) == 2
    want = np.array([[512, 799, 976, 1738], [271, 357, 576, 1156]])
    assert (overlaps(people, want).max(axis=1) > 0.9).all()


def test_a_missing_detector_is_named(tmp_path):
    with pytest.raises(EngineError, match="found none"):
        load_file(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(EngineError, match="cannot be loaded"):
        load_file(tmp_path / "text.onnx")
