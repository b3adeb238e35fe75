"""How good 2D networks are on real people and by the side a person is seen from:
python -m mambapose.train.real.measure --help.

Real people are those of held-out sources, against the teacher's joints and against those that
people marked; boxes are known, or too large on purpose. Rendered people are measured in eight views
of 45 degrees each, of which the worst counts: a mean hides that a network has unlearned the sides.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from mambapose.benchmarks.truth.pose2sim import FOLDER as VIDEO_FOLDER
from mambapose.benchmarks.truth.pose2sim import pose2sim_views
from mambapose.benchmarks.truth.pose_metrics import PoseMetrics, pose_metrics
from mambapose.runtime.errors import ExportError, MambaPoseError
from mambapose.runtime.stages.crop import Crops, crops_from_boxes, crops_from_image
from mambapose.runtime.types import FloatArray
from mambapose.train.pose2d import measure
from mambapose.train.pose2d.measure import Network
from mambapose.train.real.people import FOLDER, FREE, SHARE_ALIKE, People, read_people
from mambapose.train.real.views import azimuths
from mambapose.train.world.sample import CROP, SampleSource

VIEWS = 8
GROWN = 1.2  # a box as much too large as a detector or a tracker may give it
LEAST = 20  # crops of a source that has a row of its own

Numbers = NDArray[np.intp]


def grown_boxes(boxes: NDArray[np.floating], factor: float) -> NDArray[np.float64]:
    """Boxes (N, 4) xyxy that are ``factor`` times as large about the same middle."""
    low, high = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64)
    middle, half = (low + high) / 2, factor * (high - low) / 2
    return np.concatenate([middle - half, middle + half], axis=1)


def real_joints(network: Network, people: People, chosen: Numbers, grown: float) -> FloatArray:
    """(n, 17, 2) px of the pictures, with the chosen people's boxes ``grown`` times as large."""
    boxes = grown_boxes(people.box[chosen], grown)
    found = []
    for first in range(0, len(chosen), measure.BATCH):
        part = chosen[first : first + measure.BATCH]
        crops = crops_from_boxes(boxes[first : first + measure.BATCH], CROP)
        rgb = [
            crops_from_image(people.image(int(person)), _one(crops, number))
            for number, person in enumerate(part)
        ]
        found.append(measure.joints(network, np.concatenate(rgb), None, None, (0, 0), crops))
    return np.concatenate(found)


def _one(crops: Crops, number: int) -> Crops:
    here = slice(number, number + 1)
    return Crops(crops.scale[here], crops.shift[here], crops.size)


def scored(
    found: FloatArray, people: People, chosen: Numbers, *, annotators: bool = False
) -> PoseMetrics:
    """Metrics of the joints found of the chosen people, against the teacher's or the annotators'.

    The height is the longer side of the box. That is less than the person's height where the
    picture ends at the hips: errors count for more there, and PCK is stricter where the trunk is
    not whole.
    """
    boxes = people.box[chosen]
    height = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    truth, valid = (
        (people.human_xy, people.human_marked) if annotators else (people.xy, people.ok)
    )  # fmt: skip
    return pose_metrics(found, truth[chosen], valid[chosen], height)


def real_metrics(network: Network, folder: Path) -> dict[str, PoseMetrics]:
    """Metrics on held-out sources, on share-alike crops and on annotated people of the folder.

    None of them were trained on.
    """
    free, alike = read_people(folder, FREE), read_people(folder, SHARE_ALIKE)
    held_out = np.flatnonzero(free.split == "val")
    found = real_joints(network, free, held_out, 1.0)
    rows = {"real held out": scored(found, free, held_out)}
    large = real_joints(network, free, held_out, GROWN)
    rows[f"real box x{GROWN}"] = scored(large, free, held_out)
    groups = [("part", free.part), ("source", free.source)]
    for kind, labels in groups:
        for label in np.unique(labels[held_out]):
            here = labels[held_out] == label
            if kind == "part" or here.sum() >= LEAST:
                rows[f"real {label}"] = scored(found[here], free, held_out[here])
    everyone = np.arange(len(alike))
    other = real_joints(network, alike, everyone, 1.0)
    rows["people-sa"] = scored(other, alike, everyone)
    for name, people in (("annotated free", free), ("annotated sa", alike)):
        marked = np.flatnonzero(people.human_marked.any(axis=1))
        found = real_joints(network, people, marked, 1.0)
        rows[name] = scored(found, people, marked, annotators=True)
        rows[f"{name}, teacher"] = scored(found, people, marked)
    return rows


def view_metrics(network: Network, source: SampleSource, count: int) -> dict[str, PoseMetrics]:
    """Metrics of ``count`` rendered samples from pictures alone: of all, and by viewing side.

    There are VIEWS parts of the azimuth: ``view 0`` faces the camera, ``view 180`` is seen from
    behind.
    """
    answers, truths, valid, heights, angles = [], [], [], [], []
    for samples in measure.batches(source, count):
        rgb = np.stack([sample.rgb for sample in samples])
        answers.append(measure.joints(network, rgb, None, None, (0, 0)))
        truths.append(np.stack([sample.coco_xy for sample in samples]))
        valid.append(np.stack([sample.visibility > 0 for sample in samples]))
        heights += [measure.height_px(sample) for sample in samples]
        angles.append(azimuths(np.stack([sample.coco_xyz for sample in samples])))
    found, truth = np.concatenate(answers), np.concatenate(truths)
    known, height = np.concatenate(valid), np.array(heights)
    rows = {"rendered": pose_metrics(found, truth, known, height)}
    for part, here in view_parts(np.concatenate(angles)):
        rows[f"view {part}"] = pose_metrics(found[here], truth[here], known[here], height[here])
    return rows


def view_parts(angles: NDArray[np.floating]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """For each part its middle in degrees, and which of the azimuths (N,) in radians lie in it."""
    parts = np.round(angles / (2 * np.pi / VIEWS)).astype(int) % VIEWS
    for part in range(VIEWS):
        yield part * 360 // VIEWS, parts == part


def worst_view(rows: dict[str, PoseMetrics]) -> float:
    """PCK@0.2 of the worst view; NaN without any."""
    found = [row.pck20 for name, row in rows.items() if name.startswith("view ") and row.joints]
    return min(found, default=float("nan"))


def report(
    network: Network, assets: Path, stores: Sequence[Path], count: int
) -> dict[str, PoseMetrics]:
    """All of these metrics, as far as there is material for them."""
    rows: dict[str, PoseMetrics] = {}
    if (assets / FOLDER).is_dir():
        rows |= real_metrics(network, assets / FOLDER)
    if stores:
        source = measure.held_out_source(list(stores), assets, measure.EVERYTHING)
        rows |= view_metrics(network, source, count)
    if (assets / VIDEO_FOLDER).is_dir():
        rows |= measure.video_metrics(network, pose2sim_views(assets / VIDEO_FOLDER))
    return rows


@click.command(context_settings={"show_default": True})
@click.argument("weights", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--assets", type=click.Path(exists=True, file_okay=False, path_type=Path),
              required=True, help="Folder with real-people and pose2sim-single.")  # fmt: skip
@click.option("--store", "stores", type=click.Path(exists=True, file_okay=False, path_type=Path),
              multiple=True, help="Shots of held-out clips.")  # fmt: skip
@click.option("--count", type=click.IntRange(1), default=400, help="Held-out rendered crops.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--threads", type=click.IntRange(1), help="Threads of torch.")
def main(
    weights: tuple[Path, ...], assets: Path, stores: tuple[Path, ...], count: int,
    json_file: Path | None, threads: int | None,
) -> None:  # fmt: skip
    """Measure WEIGHTS, .safetensors files or folders of runs (their mean weights).

    Example: python -m mambapose.train.real.measure build/pose2d --assets DIR --store HELD
    """
    import torch

    from mambapose.train.pose2d.evaluate import engine_from_model, line
    from mambapose.train.pose2d.state import Settings, started_from

    if threads is not None:
        torch.set_num_threads(threads)
    written: dict[str, dict[str, Any]] = {}
    try:
        if not (assets / FOLDER).is_dir() and not stores:
            raise ExportError("people to measure on were wanted; give --assets that has some")
        for path in weights:
            model = started_from(path, Settings(), torch.device("cpu")).model.eval()
            rows = report(engine_from_model(model), assets, stores, count)
            click.echo(f"{path}: worst view {worst_view(rows):.3f}")
            click.echo("\n".join(line(name, row) for name, row in rows.items()))
            written[str(path)] = {name: row.as_dict() for name, row in rows.items()}
        if json_file is not None:
            json_file.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    except MambaPoseError as err:
        click.echo(f"error: {err}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
