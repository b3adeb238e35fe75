"""Samples with the flow of a flow network: python -m mambapose.train.pose2d.estimates --help.

Running a flow network for every batch is too slow, so samples are finished once: for stores of
pairs, the picture before and the picture go through the flow stage of a bundle, as the runtime runs
it on a video. pose2d takes a share of its samples with flow from the file.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from mambapose.benchmarks.truth.pose_metrics import MIRROR
from mambapose.export.models.mambapose_nano import POOL
from mambapose.runtime import durable
from mambapose.runtime.bundle.bundle import read_bundle
from mambapose.runtime.errors import ExportError, MambaPoseError
from mambapose.runtime.loading import opened_flow
from mambapose.runtime.stages.flow import FlowStage
from mambapose.runtime.types import Where
from mambapose.train.pose2d.measure import stage_flow
from mambapose.train.world.assets import FILM_FOLDER, read_films
from mambapose.train.world.cache import Stores
from mambapose.train.world.sample import CROP, Mixture, Sample, SampleSource

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Estimates:
    """N finished samples of half the size.

    rgb: (N, 128, 96, 3) uint8; flow: (N, 2, 128, 96) float16 px of the whole crop, estimated;
    depth: (N, 128, 96) float16 inverse depth, exact; xy: (N, 17, 2) float32 px of the whole crop;
    visibility: (N, 17).
    """

    rgb: NDArray[np.uint8]
    flow: NDArray[np.float16]
    depth: NDArray[np.float16]
    xy: NDArray[np.float32]
    visibility: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.rgb)

    def mirrored(self, number: int) -> Estimates:
        """Sample ``number`` alone, with left and right exchanged in picture, flow and joints."""
        flip = self[number]
        sign = np.array([-1, 1], np.float16)[:, None, None]
        width = CROP[1] - 1
        return Estimates(
            flip.rgb[:, :, ::-1], flip.flow[..., ::-1] * sign, flip.depth[..., ::-1],
            flip.xy[:, MIRROR] * np.array([-1, 1], np.float32) + np.array([width, 0], np.float32),
            flip.visibility[:, MIRROR],
        )  # fmt: skip

    def __getitem__(self, number: int) -> Estimates:
        """Sample ``number`` alone."""
        one = slice(number, number + 1)
        return Estimates(
            self.rgb[one], self.flow[one], self.depth[one], self.xy[one], self.visibility[one]
        )


def finished(sample: Sample, flow: FlowStage) -> Estimates:
    """The estimates of one sample of the whole size (256x192) from a store of pairs."""
    import cv2

    size = (CROP[1] // POOL, CROP[0] // POOL)
    found = np.ascontiguousarray(stage_flow(flow, sample).transpose(1, 2, 0))
    rgb, moved, depth = (
        cv2.resize(plane, size, interpolation=cv2.INTER_AREA)
        for plane in (sample.rgb, found, sample.depth[0])
    )
    return Estimates(
        np.asarray(rgb, np.uint8)[None],
        np.asarray(moved, np.float16).transpose(2, 0, 1)[None],
        np.asarray(depth, np.float16)[None],
        sample.coco_xy.astype(np.float32)[None],
        sample.visibility[None],
    )


def estimated_samples(
    source: SampleSource, flow: FlowStage, count: int, seed: int
) -> Iterator[Estimates]:
    """``count`` samples, each with effects of a strength of its own."""
    for number in range(count):
        strength = float(np.random.default_rng([seed, 4, number]).uniform(0.3, 1.0))
        source.mixture = Mixture(strength=strength)
        yield finished(source.sample(number), flow)


def write_estimates(path: Path, samples: Iterator[Estimates]) -> int:
    """How many samples were written; the file is written beside its name and renamed."""
    rows = list(samples)
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(row, name) for row in rows]) for name in _FIELDS
    }
    beside = path.with_suffix(".part")
    with beside.open("wb") as file:
        np.savez(file, format_version=np.array(FORMAT_VERSION), **arrays)
    durable.replace(beside, path)
    return len(rows)


def read_estimates(path: Path) -> Estimates:
    """The samples of a file; ExportError when this command did not write it."""
    try:
        with np.load(path, allow_pickle=False) as file:
            version = int(file["format_version"])
            arrays = {name: file[name] for name in _FIELDS}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as err:
        raise ExportError(
            f"{path}: estimated samples were wanted, it cannot be read ({err}); make it again with "
            "train.pose2d.estimates"
        ) from err
    if version != FORMAT_VERSION:
        raise ExportError(
            f"{path}: estimated samples of format {FORMAT_VERSION} were wanted, found {version}; "
            "make them again"
        )
    return Estimates(**arrays)


_FIELDS = tuple(Estimates.__dataclass_fields__)


@click.command(context_settings={"show_default": True})
@click.option("--store", "stores", type=click.Path(exists=True, file_okay=False, path_type=Path),
              multiple=True, required=True,
              help="Folder of train.pose2d.render --pair; may be repeated.")  # fmt: skip
@click.option("--assets", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Folder with frames of free films for backgrounds.")  # fmt: skip
@click.option(
    "--engine",
    type=click.Path(path_type=Path),
    required=True,
    help="Bundle with a flow stage: mp-export --target cpu --weights flow=FILE.",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True,
              help="File to write, .npz.")  # fmt: skip
@click.option("--count", type=click.IntRange(1), default=2000)
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option("--threads", type=click.IntRange(1), default=1)
def main(
    stores: tuple[Path, ...], assets: Path | None, engine: Path, out: Path, count: int, seed: int,
    threads: int,
) -> None:  # fmt: skip
    """Finish COUNT samples of stores of pairs with the flow that a bundle's flow stage gives."""
    try:
        shots = Stores(stores)
        if not shots.pair:
            raise ExportError("stores with the picture before were wanted; render them with --pair")
        films = [] if assets is None else read_films(assets / FILM_FOLDER)
        source = SampleSource(shots, films, seed=seed)
        with opened_flow(read_bundle(engine), portrait=True, where=Where(threads=threads)) as flow:
            number = write_estimates(out, estimated_samples(source, flow, count, seed))
    except MambaPoseError as err:
        click.echo(f"error: {err}", err=True)
        sys.exit(1)
    click.echo(f"{out}: {number} samples, {out.stat().st_size / 1e6:.0f} MB, seed {seed}")


if __name__ == "__main__":
    main()
