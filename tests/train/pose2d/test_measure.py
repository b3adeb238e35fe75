"""Measuring a pose network that is only an engine: one that knows the truth, and what faults do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mambapose.benchmarks.truth.pose2sim import FOLDER, pose2sim_views
from mambapose.runtime.stages.crop import crops_from_boxes
from mambapose.runtime.stages.flow import GRAPHS, FlowStage
from mambapose.train.pose2d import measure
from mambapose.train.world.sample import Sample, SampleSource

from ...runtime.fakes import flow_engines, gaussians, pose_engine
from ..pose2d_shots import drawn_shot

COUNT = 3
RATIO = np.array([47 / 191, 63 / 255])  # heatmap pixels per crop pixel


def source(mixture: Any, *, pair: bool = False) -> SampleSource:
    shots = [drawn_shot(seed) for seed in range(2)]
    if pair:
        shots = [replace(shot, rgba_before=shot.rgba) for shot in shots]
    return SampleSource(shots, seed=measure.SEED, mixture=mixture)


class Knowing:
    """Answers the true joints of pictures it knows, nothing for others; remembers its inputs."""

    def __init__(self, samples: list[Sample]) -> None:
        self.truth = {sample.rgb.tobytes(): sample.coco_xy for sample in samples}
        self.seen: list[dict[str, np.ndarray]] = []

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        self.seen.append(dict(inputs))
        nothing = np.zeros((17, 2))
        found = [self.truth.get(rgb.tobytes(), nothing) for rgb in inputs["rgb"]]
        return {"heatmaps": gaussians(np.stack(found) * RATIO)}


def test_every_combination_is_fed_and_measured() -> None:
    drawn = source(measure.EVERYTHING)
    samples = [drawn.sample(k) for k in range(COUNT)]
    known = Knowing(samples)
    found = measure.combination_metrics(pose_engine(known), drawn, COUNT)
    assert list(found) == list(measure.COMBINATIONS)
    for metrics in found.values():
        assert metrics.joints == sum((sample.visibility > 0).sum() for sample in samples)
        # Only the crop's edge, beyond the last heatmap pixel, costs anything.
        assert metrics.median < 1e-3
        assert metrics.pck20 > 0.95
    for inputs, present in zip(known.seen, measure.COMBINATIONS.values(), strict=True):
        assert inputs["present"].tolist() == [list(present)] * COUNT
        assert bool(np.abs(inputs["flow"]).max()) == bool(present[0])
        assert bool(np.abs(inputs["depth"]).max()) == bool(present[1])


def test_a_person_is_as_tall_as_its_stature() -> None:
    """1.75 m; eyes and ankles of the drawn figure are about 1.6 m apart."""
    sample = source(measure.CLEAN).sample(0)
    ankles, eyes = sample.coco_xy[15:17, 1].mean(), sample.coco_xy[1:3, 1].mean()
    assert measure.height_px(sample) == pytest.approx((ankles - eyes) * 1.75 / 1.61, rel=0.12)


def test_the_flow_stage_adds_a_row() -> None:
    size = (256, 192)
    moving = np.full((1, 2, *size), 3.0, np.float32)
    engines = flow_engines(size, lambda _: moving)
    flow = FlowStage({name: engines[f"flow.{name}"] for name in GRAPHS}, 1)
    known = Knowing([])
    drawn = source(measure.CLEAN, pair=True)
    found = measure.combination_metrics(pose_engine(known), drawn, 2, flow)
    assert list(found) == [*measure.COMBINATIONS, measure.FLOW_STAGE]
    np.testing.assert_allclose(known.seen[-1]["flow"], 3.0)
    assert known.seen[-1]["present"].tolist() == [[1, 0]] * 2
    with pytest.raises(ValueError, match="picture before were wanted"):
        measure.combination_metrics(pose_engine(known), source(measure.CLEAN), 2, flow)


def test_a_network_of_pictures_alone_under_faults() -> None:
    drawn = source(measure.CLEAN)
    engine = pose_engine(Knowing([drawn.sample(k) for k in range(COUNT)]), dense=False)
    assert list(measure.combination_metrics(engine, drawn, COUNT)) == ["rgb"]
    found = measure.fault_metrics(engine, drawn, COUNT)
    assert list(found) == list(measure.FAULTS)
    # It knows no harmed picture.
    assert [name for name, metrics in found.items() if metrics.pck20 > 0.95] == ["clean"]


@pytest.mark.parametrize("name", [name for name in measure.FAULTS if name != "clean"])
def test_a_fault_does_what_it_says(name: str) -> None:
    columns = np.linspace(40, 200, 192).astype(np.uint8)
    image = np.ascontiguousarray(np.broadcast_to(columns[None, :, None], (256, 192, 3)))
    image[128:] = 255 - image[128:]
    before = image.copy()
    found = measure.FAULTS[name](image, np.random.default_rng(0))
    np.testing.assert_array_equal(image, before)
    assert (found.shape, found.dtype) == (image.shape, np.uint8)
    change = found.astype(float) - image
    if name == "darkness":
        np.testing.assert_array_equal(found, image // 4)
    elif name == "noise":
        assert change.std() == pytest.approx(25, rel=0.1)
    elif name == "occlusion":
        assert ((found == 128).all(axis=2)).mean() == pytest.approx(1 / 6, rel=0.1)
    else:
        assert np.abs(change[120:136]).mean() > 5 * np.abs(change[:100]).mean()


def test_real_video_with_known_boxes(assets: Path) -> None:
    """An engine that knows OpenPose's joints, frame by frame in order."""
    views = pose2sim_views(assets / FOLDER)
    joints = np.concatenate([view.xy for view in views])
    boxes = np.concatenate([view.boxes for view in views])
    first = iter(range(len(joints)))

    def answer(inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        places = [next(first) for _ in inputs["rgb"]]
        crops = crops_from_boxes(boxes[places], (256, 192))
        inside = joints[places] * crops.scale[:, None] + crops.shift[:, None]
        return {"heatmaps": gaussians(inside * RATIO)}

    found = measure.video_metrics(pose_engine(answer), views)
    assert list(found) == ["cam01", "cam02", "together"]
    for metrics in found.values():
        assert metrics.median < 1e-3
        assert metrics.pck10 == 1
        assert metrics.collapsed == 0
    assert found["together"].joints == found["cam01"].joints + found["cam02"].joints


def test_a_torch_network_answers_as_an_engine() -> None:
    import torch

    from mambapose.train.torch_engine import TorchEngine

    engine = TorchEngine(lambda a, b: (a + b).double(), {"x": ("N", 2), "y": ("N", 2)}, "sum",
                         torch.device("cpu"))  # fmt: skip
    assert [item.name for item in engine.spec.inputs] == ["x", "y"]
    found = engine.run({"y": np.ones((1, 2), np.float32), "x": np.zeros((1, 2), np.float32)})
    np.testing.assert_array_equal(found["sum"], np.ones((1, 2), np.float32))
    assert found["sum"].dtype == np.float32


def test_the_module_needs_no_torch() -> None:
    code = "import sys, mambapose.train.pose2d.measure; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
