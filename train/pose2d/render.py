"""Render people into a store of shots, for training.

    python -m mambapose.train.pose2d.render --assets DIR --out STORE --count N [--seed N] [--pair]

One process renders on one processor; run several with different seeds into different stores.
"""

from __future__ import annotations

from pathlib import Path

import click

from mambapose.runtime.errors import MambaPoseError


@click.command(
    epilog="Example: python -m mambapose.train.pose2d.render --assets DIR --out s --count 1000"
)
@click.option("--assets", type=click.Path(exists=True, file_okay=False, path_type=Path),
              required=True, help="Folder with makehuman-cc0 and cmu-17j.")  # fmt: skip
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--count", type=click.IntRange(1), required=True, help="Shots to render.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--pair", is_flag=True, help="Also the picture before, for flow networks.")
@click.option("--held-out", is_flag=True, help="Only the clips kept out of training.")
@click.option("--unusual", is_flag=True,
              help="Fewer front views, more squats, seats and raised arms.")  # fmt: skip
def main(
    assets: Path, out: Path, count: int, seed: int, pair: bool, held_out: bool, unusual: bool
) -> None:  # fmt: skip
    """Render COUNT shots into the folder OUT."""
    from mambapose.train.real.views import UNUSUAL_POSES, mostly_unusual
    from mambapose.train.world.cache import write_store
    from mambapose.train.world.render import Renderer
    from mambapose.train.world.shot import load_world, shots

    try:
        world = load_world(assets, held_out=held_out)
        with Renderer() as renderer:
            variety = UNUSUAL_POSES if unusual else None
            drawn = shots(world, renderer, seed, pair=pair, variety=variety)
            size = write_store(out, mostly_unusual(drawn, seed) if unusual else drawn, count)
    except MambaPoseError as err:
        raise click.ClickException(str(err)) from err
    click.echo(f"{out}: {count} shots, {size / 1e6:.0f} MB, seed {seed}")


if __name__ == "__main__":
    main()
