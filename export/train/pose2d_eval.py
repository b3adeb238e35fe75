"""How good a pose2d network of torch is: held-out rendered people and the two real videos.

``Predict`` answers heatmaps of full-size inputs as the stage contract has them, so that a bundle's
engine (benchmarks) and a network in training are measured by the same lines.

    python -m mambapose.export.train.pose2d_eval RUN [--video DIR] [--store DIR]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from mambapose.export.train.pose2d_data import Batch, Stores, batch_of, films_in
from mambapose.export.train.pose2d_state import averaged_model
from mambapose.export.train.pose2sim import FOLDER, View, pose2sim_views
from mambapose.export.train.pose_metrics import PoseMetrics, pose_metrics
from mambapose.export.train.world.assets import read_films
from mambapose.export.train.world.sample import CROP, Mixture, SampleSource
from mambapose.runtime.crop import crops_from_boxes, crops_from_image
from mambapose.runtime.decode import joints_from_heatmaps, peaks_from_heatmaps
from mambapose.runtime.errors import ExportError, MambaPoseError

# rgb (N, 256, 192, 3), flow (N, 2, 256, 192), depth (N, 1, 256, 192), present (N, 2) -> heatmaps
Predict = Callable[..., NDArray[np.float32]]
COMBINATIONS = {"rgb": (0, 0), "rgb+flow": (1, 0), "rgb+depth": (0, 1), "rgb+flow+depth": (1, 1)}
CHUNK = 25  # crops at once


def predictor(model: torch.nn.Module) -> Predict:
    """A torch network as ``Predict``."""

    def predict(*inputs: NDArray[Any]) -> NDArray[np.float32]:
        with torch.no_grad():
            heatmaps: torch.Tensor = model(*(torch.from_numpy(values) for values in inputs))
        return heatmaps.float().numpy()

    return predict


def video_metrics(
    predict: Predict, views: tuple[View, ...]
) -> tuple[dict[str, PoseMetrics], dict[str, tuple[NDArray[Any], NDArray[Any]]]]:
    """Metrics per camera and ``together``, RGB alone, and each camera's joints and scores."""
    metrics, joints = {}, {}
    for view in views:
        joints[view.name] = found = _video_joints(predict, view)
        metrics[view.name] = pose_metrics(found[0], view.xy, view.valid, view.height)
    metrics["together"] = pose_metrics(
        np.concatenate([joints[view.name][0] for view in views]),
        *(np.concatenate([getattr(view, name) for view in views])
          for name in ("xy", "valid", "height")),
    )  # fmt: skip
    return metrics, joints


def _video_joints(predict: Predict, view: View) -> tuple[NDArray[Any], NDArray[Any]]:
    """(F, 17, 2) px of the frame and (F, 17) scores."""
    places, scores = [], []
    for images, boxes in _chunks(view):
        crops = [crops_from_boxes(box[None], CROP) for box in boxes]
        rgb = np.concatenate([crops_from_image(i, c) for i, c in zip(images, crops, strict=True)])
        heatmaps = predict(rgb, *_absent(len(rgb)))
        for heatmap, crop in zip(heatmaps, crops, strict=True):
            place, score = joints_from_heatmaps(heatmap[None], crop)
            places.append(place[0])
            scores.append(score[0])
    return np.stack(places), np.stack(scores)


def _chunks(view: View) -> Iterator[tuple[list[NDArray[np.uint8]], NDArray[Any]]]:
    images: list[NDArray[np.uint8]] = []
    first = 0
    for image in view.images():
        images.append(image)
        if len(images) == CHUNK:
            yield images, view.boxes[first : first + CHUNK]
            first, images = first + CHUNK, []
    if images:
        yield images, view.boxes[first : first + len(images)]


def _absent(count: int) -> tuple[NDArray[np.float32], ...]:
    shapes = ((2, *CROP), (1, *CROP), (2,))
    return tuple(np.zeros((count, *shape), np.float32) for shape in shapes)


def held_out_batches(
    stores: list[Path], films: list[NDArray[np.uint8]], count: int, present: tuple[int, int],
    *, strength: float = 1.0, seed: int = 77,
) -> Iterator[Batch]:  # fmt: skip
    """Full-size samples of held-out people, the same for every combination; flow and depth as
    estimators give them."""
    mixture = Mixture(strength=strength, far=0.0, empty=0.0)
    source = SampleSource(Stores(stores), films, seed=seed, mixture=mixture)
    for first in range(0, count, CHUNK):
        samples = [source.sample(first + k) for k in range(min(CHUNK, count - first))]
        flags = np.tile(np.float32(present), (len(samples), 1))
        yield batch_of(samples, flags, np.random.default_rng([seed, first]), scale=1)


def held_out_metrics(predict: Predict, batches: Iterator[Batch]) -> PoseMetrics:
    """Metrics over rendered crops; every joint inside the crop counts, hidden ones too."""
    found, truth, valid, height = [], [], [], []
    for batch in batches:
        rgb = np.ascontiguousarray(batch.rgb.transpose(0, 2, 3, 1))
        peaks, _ = peaks_from_heatmaps(predict(rgb, batch.flow, batch.depth, batch.present))
        found.append(peaks * (np.array([CROP[1], CROP[0]]) - 1) / (47, 63))
        truth.append(batch.xy)
        valid.append(batch.visibility > 0)
        height.append(batch.height)
    return pose_metrics(*(np.concatenate(part) for part in (found, truth, valid, height)))


def line(name: str, m: PoseMetrics) -> str:
    """One line for a person."""
    return (
        f"{name:16} median {100 * m.median:5.2f} %  mean {100 * m.mean:5.2f} %  PCK@0.1 "
        f"{m.pck10:.3f}  @0.2 {m.pck20:.3f}  side ignored {m.pck20_side_ignored:.3f}  "
        f"collapsed {m.collapsed:.3f}  ({m.joints} joints)"
    )


@click.command(context_settings={"show_default": True})
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--assets", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Folder with pose2sim-single and the free films.")  # fmt: skip
@click.option("--store", "stores", type=click.Path(exists=True, file_okay=False, path_type=Path),
              multiple=True, help="Shots of held-out clips.")  # fmt: skip
@click.option("--count", type=click.IntRange(1), default=300, help="Held-out crops.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def main(
    run: Path, assets: Path | None, stores: tuple[Path, ...], count: int, json_file: Path | None
) -> None:
    """Measure the mean weights of RUN on held-out rendered people and on real video."""
    try:
        if assets is None and not stores:
            raise ExportError("something to measure on was wanted; give --assets or --store")
        predict = predictor(averaged_model(run))
        found: dict[str, PoseMetrics] = {}
        if assets is not None and (assets / FOLDER).is_dir():
            found.update(video_metrics(predict, pose2sim_views(assets / FOLDER))[0])
        films = films_in(assets)
        pictures = read_films(Path(films)) if films else []
        for name, present in COMBINATIONS.items() if stores else ():
            batches = held_out_batches(list(stores), pictures, count, present)
            found[name] = held_out_metrics(predict, batches)
        click.echo("\n".join(line(name, metrics) for name, metrics in found.items()))
        if json_file is not None:
            rows = {name: metrics.as_dict() for name, metrics in found.items()}
            json_file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    except MambaPoseError as err:
        click.echo(f"error: {err}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
