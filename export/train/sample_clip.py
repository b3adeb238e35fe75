"""Render a full-frame clip of the world and its truth: the sample clip of ``make run``.

    python -m mambapose.export.train.sample_clip --assets DIR --out clip.mp4 [--seed N]

writes clip.mp4 and clip.truth.npz with the arrays that runtime/sample.py writes.
"""

from __future__ import annotations

from pathlib import Path

import click

from mambapose.runtime.errors import MambaPoseError


@click.command(
    epilog="Example: python -m mambapose.export.train.sample_clip --assets DIR --out clip.mp4"
)
@click.option("--assets", type=click.Path(exists=True, file_okay=False, path_type=Path),
              required=True, help="Folder with makehuman-cc0 and cmu-17j.")  # fmt: skip
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--frames", type=click.IntRange(2), default=90, show_default=True)
@click.option("--size", type=(click.IntRange(64), click.IntRange(64)), default=(640, 360),
              show_default=True, metavar="W H")  # fmt: skip
@click.option("--people", type=click.IntRange(1, 3), default=1, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@click.option("--crf", type=click.IntRange(0, 51), default=20, show_default=True)
def main(
    assets: Path, out: Path, frames: int, size: tuple[int, int], people: int, seed: int, crf: int
) -> None:
    """Render a clip to OUT and its truth beside it."""
    from mambapose.export.train.world.clip import WorldClip
    from mambapose.export.train.world.render import Renderer
    from mambapose.export.train.world.shot import load_world
    from mambapose.runtime.sample import write_sample

    try:
        world = load_world(assets)
        with Renderer() as renderer:
            clip = WorldClip(world, renderer, frames=frames, size=size, people=people, seed=seed)
            beside = write_sample(out, clip, crf=crf)
    except MambaPoseError as err:
        raise click.ClickException(str(err)) from err
    click.echo(f"{out}: {frames} frames of {size[0]}x{size[1]}")
    click.echo(f"{beside}: joints, boxes and 3D joints of every frame")


if __name__ == "__main__":
    main()
