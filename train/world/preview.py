"""A contact sheet of the rendered world, to look at.

    python -m mambapose.train.world.preview --assets DIR --out sheet.png [--seed N --count N]

Per sample five pictures: the crop; joints over it (left red, right green, trunk yellow; hidden ones
hollow); flow by the colour wheel; inverse depth; mask.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.errors import MambaPoseError
from mambapose.runtime.skeleton import COCO17
from mambapose.train.world.sample import Mixture, Sample, SampleSource

Image = NDArray[np.uint8]
LEFT, RIGHT, MIDDLE = (255, 60, 60), (40, 230, 60), (255, 220, 40)


def side_colour(name: str) -> tuple[int, int, int]:
    """The colour of a joint by its side."""
    return LEFT if name.startswith("left") else RIGHT if name.startswith("right") else MIDDLE


def overlay(sample: Sample) -> Image:
    """The crop, dimmed, with the joints and edges of COCO-17."""
    import cv2

    image = (sample.rgb * 0.65).astype(np.uint8)
    points = [tuple(int(v) for v in np.round(xy * 8)) for xy in sample.coco_xy]
    for a, b in COCO17.edges:
        names = COCO17.joints[a], COCO17.joints[b]
        sides = {side_colour(name) for name in names}
        colour = sides.pop() if len(sides) == 1 else MIDDLE
        cv2.line(image, points[a], points[b], colour, 2, cv2.LINE_AA, 3)
    for point, name, seen in zip(points, COCO17.joints, sample.visibility, strict=True):
        if seen:
            cv2.circle(image, point, 24, side_colour(name), -1 if seen == 2 else 1, cv2.LINE_AA, 3)
    return image


def flow_picture(flow: NDArray[np.float32]) -> Image:
    """(H, W, 3) of flow (2, H, W): hue is direction, saturation length (98th percentile full)."""
    import cv2

    x, y = flow
    length = np.hypot(x, y)
    full = max(1.0, float(np.percentile(length, 98)))
    hue = ((np.arctan2(y, x) / (2 * np.pi)) % 1.0) * 179
    bright = np.full_like(hue, 255)
    hsv = np.stack([hue, (length / full).clip(0, 1) * 255, bright], axis=-1)
    return np.asarray(cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB), np.uint8)


def depth_picture(inverse: NDArray[np.float32]) -> Image:
    """(H, W, 3) grey, near is bright."""
    low, high = np.percentile(inverse, [1, 99])
    grey = ((inverse - low) / max(float(high - low), 1e-6)).clip(0, 1) * 255
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def mask_picture(person: NDArray[np.uint8]) -> Image:
    """(H, W, 3): the person white, others blue, things brown."""
    table = np.zeros((256, 3), np.uint8)
    table[1], table[2:100], table[100:] = (255, 255, 255), (60, 90, 220), (120, 80, 40)
    return table[person]


def row_of(sample: Sample) -> Image:
    """(256, 5 * 192, 3) the five pictures of a sample."""
    return np.concatenate(
        [
            sample.rgb,
            overlay(sample),
            flow_picture(sample.flow),
            depth_picture(sample.depth[0]),
            mask_picture(sample.person),
        ],
        axis=1,
    )


def sheet(samples: list[Sample], columns: int) -> Image:
    """All samples, ``columns`` side by side, with a thin line between."""
    rows = [row_of(sample) for sample in samples]
    blank = np.zeros_like(rows[0])
    rows += [blank] * (-len(rows) % columns)
    tall = [
        np.concatenate([np.pad(r, ((0, 4), (0, 8), (0, 0))) for r in rows[k : k + columns]], axis=1)
        for k in range(0, len(rows), columns)
    ]
    return np.concatenate(tall, axis=0)


def draw_samples(assets: Path, count: int, seed: int, *, clean: bool) -> list[Sample]:
    """``count`` samples of freshly rendered shots."""
    from mambapose.train.world.assets import FILM_FOLDER, read_films
    from mambapose.train.world.render import Renderer
    from mambapose.train.world.shot import load_world, shots

    world = load_world(assets)
    with Renderer() as renderer:
        stream = shots(world, renderer, seed, poses=1)
        made = [next(stream) for _ in range(max(2, count))]
    clear = Mixture(strength=0.0, mirror=0.0, others=0.0, occluders=0.0, edges=0.0)
    source = SampleSource(
        made, read_films(assets / FILM_FOLDER), seed=seed, mixture=clear if clean else None
    )
    return [source.sample(k) for k in range(count)]


@click.command(epilog="Example: python -m mambapose.train.world.preview --assets DIR --out s.png")
@click.option("--assets", type=click.Path(exists=True, file_okay=False, path_type=Path),
              required=True, help="Folder with makehuman-cc0 and cmu-17j.")  # fmt: skip
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--count", type=click.IntRange(1), default=12, show_default=True)
@click.option("--columns", type=click.IntRange(1), default=2, show_default=True)
@click.option("--clean", is_flag=True, help="No effects, occluders or other people.")
def main(assets: Path, out: Path, seed: int, count: int, columns: int, clean: bool) -> None:
    """Write a contact sheet of COUNT samples to OUT."""
    from PIL import Image as Picture

    try:
        samples = draw_samples(assets, count, seed, clean=clean)
    except MambaPoseError as err:
        raise click.ClickException(str(err)) from err
    Picture.fromarray(sheet(samples, columns)).save(out)
    click.echo(f"{out}: {count} samples, seed {seed}")


if __name__ == "__main__":
    main()
