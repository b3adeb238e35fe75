"""Render the clip that ships as the sample of ``mp-run``, together with its truth.

    python -m mambapose.train.world.sample_clip --assets DIR --out runtime/data/sample.mp4

writes sample.mp4 and sample.truth.npz, which runtime/video/sample.py reads. The motion is of an
activity that no network of ours is trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from mambapose.runtime.errors import MambaPoseError
from mambapose.runtime.options import FiniteRange
from mambapose.runtime.results.overlay import Overlay
from mambapose.runtime.types import Array, Size
from mambapose.runtime.video.sample import FORMAT_VERSION, truth_file

if TYPE_CHECKING:
    from mambapose.train.world.clip import WorldClip

MOTION, START = "exp_soccer__soccer_1", 212  # three seconds: a run-up and a kick
SEED, ZOOM = 9, 1.1
MAPS, STEP = 6, 8  # flow and depth are kept of six frames, at every eighth pixel


@click.command(
    epilog="Example: python -m mambapose.train.world.sample_clip --assets DIR --out clip.mp4"
)
@click.option("--assets", type=click.Path(exists=True, file_okay=False, path_type=Path),
              required=True, help="Folder with makehuman-cc0 and cmu-17j.")  # fmt: skip
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--frames", type=click.IntRange(MAPS + 1), default=90, show_default=True)
@click.option("--size", type=(click.IntRange(64), click.IntRange(64)), default=(640, 360),
              show_default=True, metavar="W H")  # fmt: skip
@click.option("--motion", default=MOTION, show_default=True, help="A held-out motion clip.")
@click.option("--start", type=click.IntRange(0), default=START, show_default=True)
@click.option("--zoom", type=FiniteRange(min=0, min_open=True), default=ZOOM, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=SEED, show_default=True)
@click.option("--crf", type=click.IntRange(0, 51), default=22, show_default=True)
def main(
    assets: Path, out: Path, frames: int, size: tuple[int, int], motion: str, start: int,
    zoom: float, seed: int, crf: int,
) -> None:  # fmt: skip
    """Render a clip to OUT and its truth beside it."""
    from mambapose.train.world.clip import WorldClip
    from mambapose.train.world.render import Renderer
    from mambapose.train.world.shot import load_world

    try:
        world = load_world(assets, held_out=True)
        with Renderer() as renderer:
            clip = WorldClip(
                world, renderer, frames=frames, size=size, seed=seed, motions=(motion,),
                start=start, zoom=zoom,
            )  # fmt: skip
            beside = write_clip(out, clip, crf=crf)
    except MambaPoseError as err:
        raise click.ClickException(str(err)) from err
    click.echo(f"{out}: {frames} frames of {size[0]}x{size[1]}")
    click.echo(f"{beside}: joints and boxes of every frame, flow and depth of {MAPS}")


def write_clip(path: Path, clip: WorldClip, *, crf: int = 22) -> Path:
    """Write the clip to ``path`` (MP4) and its truth beside it; returns the path of the truth.

    The truth has the arrays of runtime/video/sample.py's Truth. Raises OutputError.
    """
    rows, maps = [], []
    mapped = frames_of_maps(clip.frames)
    with Overlay(path, Size(clip.size[1], clip.size[0]), clip.fps, crf=crf) as video:
        for t in range(clip.frames):
            video.write(clip.image(t), t / clip.fps)
            rows.append(joints_truth(clip, t))
            if t in mapped:
                maps.append(dense_truth(clip, t))
    width, height = clip.size
    arrays: dict[str, Any] = dict(_stacked(rows)) | dict(_stacked(maps))
    arrays |= {
        "format_version": np.array(FORMAT_VERSION),
        "size": np.array(clip.size),
        "camera": np.array(clip.lens),
        "stature": np.array(clip.stature),
        "map_frames": mapped,
        "columns": np.arange(STEP // 2, width, STEP),
        "rows": np.arange(STEP // 2, height, STEP),
    }
    beside = truth_file(path)
    np.savez_compressed(beside, **arrays)
    return beside


def frames_of_maps(frames: int) -> Array:
    """(M,) at most MAPS frames, evenly spread; not the first, which has no frame before it."""
    return np.unique(np.linspace(max(1, frames / (2 * MAPS)), frames - 1, MAPS).astype(int))


def joints_truth(clip: WorldClip, t: int) -> dict[str, Array]:
    """What is known about the person in frame t."""
    return {
        "coco_xy": clip.coco_xy(t),
        "visibility": clip.visibility(t),
        "h36m_xyz": clip.h36m_xyz(t),
        "box": clip.box(t),
        "root": clip.root(t),
    }


def dense_truth(clip: WorldClip, t: int) -> dict[str, Array]:
    """What is known about every STEP-th pixel of frame t; flow is good to 0.01 px in float16."""
    kept = (slice(STEP // 2, None, STEP),) * 2
    return {
        "flow": clip.flow(t)[kept].astype(np.float16),
        "inverse_depth": clip.depth(t)[kept].astype(np.float16),
        "person": clip.mask(t)[kept],
    }


def _stacked(rows: list[dict[str, Array]]) -> Iterator[tuple[str, Array]]:
    for name in rows[0]:
        yield name, np.stack([row[name] for row in rows])


if __name__ == "__main__":
    main()
