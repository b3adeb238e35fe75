"""How good a 2D pose network is, whatever runs it: rendered people and real video, without torch.

Rendered people are of motions nothing was trained on, with every combination of inputs, then the
picture alone under one fault at a time. On real video the boxes are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mambapose.benchmarks.truth.pose2sim import View
from mambapose.benchmarks.truth.pose_metrics import PoseMetrics, pose_metrics
from mambapose.runtime.stages.crop import Crops, crops_from_boxes, crops_from_image, flow_crops
from mambapose.runtime.stages.decode import joints_from_heatmaps
from mambapose.runtime.stages.flow import FlowStage
from mambapose.runtime.types import Array, FloatArray, GraphSpec, ImageArray
from mambapose.train.world.assets import FILM_FOLDER, read_films
from mambapose.train.world.cache import Stores
from mambapose.train.world.effects import estimated_depth, estimated_flow
from mambapose.train.world.sample import CROP, Mixture, Sample, SampleSource

BATCH, SEED = 25, 77
EVERYTHING = Mixture(far=0.0, empty=0.0)
CLEAN = Mixture(strength=0.0, others=0.0, occluders=0.0, edges=0.0, far=0.0, empty=0.0)
COMBINATIONS = {"rgb": (0, 0), "rgb+flow": (1, 0), "rgb+depth": (0, 1), "rgb+flow+depth": (1, 1)}
FLOW_STAGE = "rgb+flow stage"
Fault = Callable[[ImageArray, np.random.Generator], ImageArray]


class Network(Protocol):
    """What is measured: an engine of the runtime, or anything with the same interface."""

    spec: GraphSpec

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """``heatmaps`` (N, 17, h, w) for the inputs that the spec names."""
        ...


def unharmed(image: ImageArray, rng: np.random.Generator) -> ImageArray:
    """The image as it is."""
    return image


def darker(image: ImageArray, rng: np.random.Generator) -> ImageArray:
    """The image with a quarter of the light."""
    return (image // 4).astype(np.uint8)


def blurred(image: ImageArray, rng: np.random.Generator) -> ImageArray:
    """The image out of focus: sigma 4 px in a crop of 256."""
    import cv2

    return np.asarray(cv2.GaussianBlur(image, (0, 0), 4.0), np.uint8)


def noisy(image: ImageArray, rng: np.random.Generator) -> ImageArray:
    """The image with white noise of 25 of 255 grey levels."""
    noise = 25 * rng.standard_normal(image.shape, np.float32)
    return (image + noise).clip(0, 255).astype(np.uint8)


def occluded(image: ImageArray, rng: np.random.Generator) -> ImageArray:
    """The image with a grey square of a sixth of the crop, centred in the crop's middle half."""
    out: ImageArray = image.copy()
    side = int(np.sqrt(CROP[0] * CROP[1] / 6))
    row, column = (int(rng.uniform(0.25, 0.75) * length - side / 2) for length in CROP)
    out[max(row, 0) : row + side, max(column, 0) : column + side] = 128
    return out


FAULTS: dict[str, Fault] = {
    "clean": unharmed, "darkness": darker, "blur": blurred, "noise": noisy, "occlusion": occluded,
}  # fmt: skip


@dataclass
class _Seen:
    """What was found with one kind of input: joints (n, 17, 2), valid (n, 17) and heights (n,)."""

    found: list[FloatArray] = field(default_factory=list)
    samples: list[NDArray[np.floating]] = field(default_factory=list)
    valid: list[NDArray[np.bool_]] = field(default_factory=list)
    height: list[float] = field(default_factory=list)

    def add(self, xy: FloatArray, samples: Iterable[Sample]) -> None:
        for joints_found, sample in zip(xy, samples, strict=True):
            self.found.append(joints_found)
            self.samples.append(sample.coco_xy)
            self.valid.append(sample.visibility > 0)
            self.height.append(height_px(sample))

    def metrics(self) -> PoseMetrics:
        """Metrics over every joint inside the crop, hidden ones too."""
        return pose_metrics(
            np.stack(self.found),
            np.stack(self.samples),
            np.stack(self.valid),
            np.array(self.height),
        )


def height_px(sample: Sample) -> float:
    """The height in pixels of the crop that the person would have standing where its hips are."""
    focal = np.sqrt(abs(np.linalg.det(sample.matrix[:2, :2])))
    return float(focal * sample.stature / sample.coco_xyz[11:13, 2].mean())


def held_out_source(
    stores: list[Path], assets: Path | None, mixture: Mixture, *, seed: int = SEED
) -> SampleSource:
    """Samples of stores of held-out shots, the same for every network.

    assets: the folder with the films, None for no films.
    """
    films = [] if assets is None else read_films(assets / FILM_FOLDER)
    return SampleSource(Stores(stores), films, seed=seed, mixture=mixture)


def combination_metrics(
    network: Network, source: SampleSource, count: int, flow: FlowStage | None = None
) -> dict[str, PoseMetrics]:
    """Metrics of ``count`` samples for each combination of inputs that the network takes.

    Flow and depth are like those that networks estimate. flow: a flow network, whose flow is then
    measured too as FLOW_STAGE; the source's shots need the picture before.
    """
    takes = any(item.name == "present" for item in network.spec.inputs)
    seen = {name: _Seen() for name in (COMBINATIONS if takes else ("rgb",))}
    if takes and flow is not None:
        seen[FLOW_STAGE] = _Seen()
    for number, samples in enumerate(batches(source, count)):
        rgb = np.stack([sample.rgb for sample in samples])
        for name, kept in seen.items():
            rng = np.random.default_rng([SEED, number * BATCH])
            if name == FLOW_STAGE and flow is not None:
                maps = [(stage_flow(flow, sample), sample.depth) for sample in samples]
            else:
                maps = [estimated(sample, COMBINATIONS[name], rng) for sample in samples]
            flows, depths = (np.stack(side) for side in zip(*maps, strict=True))
            present = COMBINATIONS.get(name, (1, 0))
            kept.add(joints(network, rgb, flows, depths, present), samples)
    return {name: kept.metrics() for name, kept in seen.items()}


def fault_metrics(network: Network, source: SampleSource, count: int) -> dict[str, PoseMetrics]:
    """Metrics of ``count`` samples of a clean source under each of FAULTS, from pictures alone."""
    seen = {name: _Seen() for name in FAULTS}
    rng = np.random.default_rng(SEED)
    for samples in batches(source, count):
        for name, kept in seen.items():
            rgb = np.stack([FAULTS[name](sample.rgb, rng) for sample in samples])
            kept.add(joints(network, rgb, None, None, (0, 0)), samples)
    return {name: kept.metrics() for name, kept in seen.items()}


def video_metrics(network: Network, views: Iterable[View]) -> dict[str, PoseMetrics]:
    """Metrics by camera and, as ``together``, of all cameras; boxes are known, pictures alone."""
    answers = {view.name: (view, video_joints(network, view)) for view in views}
    groups = {name: [pair] for name, pair in answers.items()}
    groups["together"] = list(answers.values())
    result = {}
    for name, pairs in groups.items():
        columns = zip(*((xy, v.xy, v.valid, v.height) for v, xy in pairs), strict=True)
        result[name] = pose_metrics(*(np.concatenate(column) for column in columns))
    return result


def video_joints(network: Network, view: View) -> FloatArray:
    """(F, 17, 2) the joints that the network finds in a view, px of the frame."""
    pairs = zip(view.images(), view.boxes, strict=False)
    found = []
    while chunk := list(islice(pairs, BATCH)):
        parts = [crops_from_boxes(box[None], CROP) for _, box in chunk]
        crops = Crops(
            np.concatenate([part.scale for part in parts]),
            np.concatenate([part.shift for part in parts]),
            CROP,
        )
        rgb = [crops_from_image(image, part) for (image, _), part in zip(chunk, parts, strict=True)]
        found.append(joints(network, np.concatenate(rgb), None, None, (0, 0), crops))
    return np.concatenate(found)


def batches(source: SampleSource, count: int) -> Iterator[list[Sample]]:
    """``count`` samples of the source in lists of BATCH."""
    drawn = (source.sample(number) for number in range(count))
    while batch := list(islice(drawn, BATCH)):
        yield batch


def joints(
    network: Network,
    rgb: ImageArray,
    flow: FloatArray | None,
    depth: FloatArray | None,
    present: tuple[int, int],
    crops: Crops | None = None,
) -> FloatArray:
    """(N, 17, 2) the joints that the network finds in crops rgb (N, 256, 192, 3).

    They are in px of the frame when ``crops`` says where the crops are, else in px of the crop.
    What is not present is zeros.
    """
    people = len(rgb)
    whole: dict[str, Array] = {
        "rgb": rgb,
        "flow": np.zeros((people, 2, *CROP), np.float32),
        "depth": np.zeros((people, 1, *CROP), np.float32),
        "present": np.tile(np.array(present, np.float32), (people, 1)),
    }
    if present[0] and flow is not None:
        whole["flow"] = np.ascontiguousarray(flow, np.float32)
    if present[1] and depth is not None:
        whole["depth"] = np.ascontiguousarray(depth, np.float32)
    names = [item.name for item in network.spec.inputs]
    heatmaps = network.run({name: whole[name] for name in names})["heatmaps"]
    return joints_from_heatmaps(heatmaps, crops or whole_crops(people))[0]


def whole_crops(count: int) -> Crops:
    """Crops that each cover a frame of the crop's size."""
    return Crops(np.ones((count, 2)), np.zeros((count, 2)), CROP)


def estimated(
    sample: Sample, present: tuple[float, float], rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Flow (2, H, W) and depth (1, H, W) as networks estimate them, each where it is present."""
    flow, depth = sample.flow, sample.depth
    if present[0]:
        flow = estimated_flow(np.ascontiguousarray(flow.transpose(1, 2, 0)), rng).transpose(2, 0, 1)
    if present[1]:
        depth = estimated_depth(depth[0], rng)[None]
    return flow, depth


def stage_flow(flow: FlowStage, sample: Sample) -> FloatArray:
    """(2, 256, 192) the flow that a flow network finds from a sample to the picture before it."""
    if sample.rgb_before is None:
        raise ValueError("samples of shots with the picture before were wanted (--pair)")
    flow.forget()
    flow.run(sample.rgb_before)
    found = flow.run(sample.rgb)
    if found is None:
        raise AssertionError("a picture before was just given")
    out: FloatArray = flow_crops(found.values, found.box, whole_crops(1))[0]
    return out
