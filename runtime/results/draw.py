"""The overlay: skeletons, boxes, labels and a small 3D view drawn into a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from mambapose.runtime.skeleton import COCO17, H36M17, Skeleton
from mambapose.runtime.types import FloatArray, Pose

Colour = tuple[int, int, int]

LEFT: Colour = (70, 170, 255)
RIGHT: Colour = (255, 140, 40)
CENTRE: Colour = (235, 235, 235)
FAINT: Colour = (120, 120, 120)
OUTLINE: Colour = (20, 20, 20)
WARNING: Colour = (255, 30, 30)
TRACKS: tuple[Colour, ...] = (
    (255, 220, 60), (120, 230, 120), (230, 120, 230), (110, 220, 230),
    (250, 150, 150), (170, 170, 255), (200, 230, 80), (255, 180, 220),
)  # fmt: skip
# The 3D view is turned by this about the vertical, so that depth shows; any angle between that of
# the front and of the side does.
VIEW_TURN = math.radians(35)
INSETS = 3
MIN_SCORE = 0.3


def draw_poses(
    picture: Any, poses: Sequence[Pose], *, untrained: bool = False, label: str | None = None
) -> None:
    """Draw the poses into a PIL picture (RGB).

    Joints below MIN_SCORE are hollow and their limbs grey. The first three people that have
    ``xyz`` are shown from an angle in the top right corner. untrained writes so in red; label is
    written small in the bottom left corner.
    """
    from PIL import ImageDraw

    width, height = picture.size
    line = max(1, round(min(height, width) / 150))
    solid = [pose for pose in poses if pose.xyz is not None][:INSETS]
    side = max(24, round(0.28 * min(height, width)))
    panels = [(width - (index + 1) * side, 0, side) for index in range(len(solid))]
    for left, top, size in panels:
        window = (left, top, left + size, top + size)
        picture.paste(picture.crop(window).point(lambda value: value // 4), window)
    pen = ImageDraw.Draw(picture)
    for pose in poses:
        _draw_person(pen, pose, line, (width, height))
    for pose, (left, top, size) in zip(solid, panels, strict=True):
        _draw_solid(pen, pose, left, top, size, max(1, line // 2))
    if label is not None and not untrained:
        size = max(9, height // 36)
        at = (size // 2, height - size * 3 // 2)
        pen.text(at, label, fill=CENTRE, font=_font(size), stroke_width=1, stroke_fill=OUTLINE)
    if untrained:
        text = "UNTRAINED: these poses mean nothing"
        size = max(9, min(height // 14, width // 20))
        at = (size // 2, height - size * 3 // 2)
        pen.text(at, text, fill=WARNING, font=_font(size), stroke_width=line, stroke_fill=OUTLINE)


def _draw_person(pen: Any, pose: Pose, line: int, frame: tuple[int, int]) -> None:
    colour = TRACKS[pose.track % len(TRACKS)]
    _draw_box(pen, pose, colour, line, frame)
    seen = _drawable(pose.xy, frame)
    points = [
        (float(x), float(y)) if ok else None for (x, y), ok in zip(pose.xy, seen, strict=True)
    ]
    sure = np.asarray(pose.score) >= MIN_SCORE
    _draw_limbs(pen, COCO17, points, line, sure)
    radius = 1.3 * line
    for point, score, good in zip(points, pose.score, sure, strict=True):
        if point is None:
            continue
        x, y = point
        corners = (x - radius, y - radius, x + radius, y + radius)
        if good:
            pen.ellipse(corners, fill=_score_colour(float(score)), outline=OUTLINE)
        else:
            pen.ellipse(corners, outline=FAINT)


def _draw_limbs(
    pen: Any,
    skeleton: Skeleton,
    points: Sequence[tuple[float, float] | None],
    line: int,
    sure: Sequence[bool] | np.ndarray[Any, Any],
) -> None:
    """Coloured lines over a dark, wider one, so they show on any background."""
    for width, dark in ((line + 2, True), (line, False)):
        for first, second in skeleton.edges:
            start, end = points[first], points[second]
            if start is None or end is None:
                continue
            good = bool(sure[first] and sure[second])
            side = _edge_colour(skeleton, first, second) if good else FAINT
            colour = OUTLINE if dark else side
            pen.line([start, end], fill=colour, width=width if good else max(1, width // 2))


def _draw_box(pen: Any, pose: Pose, colour: Colour, line: int, frame: tuple[int, int]) -> None:
    if not np.isfinite(pose.box).all():
        return
    width, height = frame
    x0, x1 = sorted(float(min(max(x, 0), width - 1)) for x in pose.box[0::2])
    y0, y1 = sorted(float(min(max(y, 0), height - 1)) for y in pose.box[1::2])
    pen.rectangle((x0, y0, x1, y1), outline=colour, width=max(1, line // 2))
    size = max(9, 4 * line)
    font = _font(size)
    text = f" #{pose.track}  {float(np.mean(pose.score)):.2f} "
    # Above the box where there is room, else inside it.
    top = y0 - 1.3 * size if y0 >= 1.3 * size else y0
    x0 = max(0.0, min(x0, width - font.getlength(text)))
    pen.rectangle((x0, top, x0 + font.getlength(text), top + 1.3 * size), fill=colour)
    pen.text((x0, top), text, fill=OUTLINE, font=font)


def _draw_solid(pen: Any, pose: Pose, left: int, top: int, size: int, line: int) -> None:
    """One person's 3D joints in a square panel, orthographic, pelvis in the middle."""
    assert pose.xyz is not None
    x, y, z = np.asarray(pose.xyz, np.float64).T
    across = x * math.cos(VIEW_TURN) + z * math.sin(VIEW_TURN)
    shown = np.stack([across, y], axis=1)
    # Raised hands reach 0.75 body heights; what is larger (metres, untrained) shrinks to fit.
    reach = max(0.75, float(np.abs(shown[np.isfinite(shown)]).max(initial=0.0)))
    shown = shown * (0.46 * size / reach) + (left + size / 2, top + size / 2)
    points = [(float(u), float(v)) if np.isfinite(u + v) else None for u, v in shown]
    pen.rectangle(
        (left, top, left + size - 1, top + size - 1), outline=TRACKS[pose.track % len(TRACKS)]
    )
    _draw_limbs(pen, H36M17, points, line, [True] * len(points))
    pen.text((left + 4, top + 2), f"3D #{pose.track}", fill=CENTRE, font=_font(max(9, size // 12)))


def _drawable(xy: FloatArray, frame: tuple[int, int]) -> np.ndarray[Any, Any]:
    """(J,) bool: finite and at most one frame outside; what is further away shows nothing."""
    size = np.array(frame, np.float64)
    with np.errstate(invalid="ignore"):
        inside = (xy > -size) & (xy < 2 * size)
    return np.asarray(inside.all(axis=1))


@lru_cache(maxsize=256)
def _edge_colour(skeleton: Skeleton, first: int, second: int) -> Colour:
    names = (skeleton.joints[first], skeleton.joints[second])
    # From one side to the middle of the body counts as that side, across it as neither.
    sides = {name.split("_")[0] for name in names} & {"left", "right"}
    if sides == {"left"}:
        return LEFT
    return RIGHT if sides == {"right"} else CENTRE


def _score_colour(score: float) -> Colour:
    """Red at 0 over yellow to green at 1."""
    part = min(max(score, 0.0), 1.0)
    return (round(255 * min(1.0, 2 - 2 * part)), round(230 * min(1.0, 2 * part)), 50)


@lru_cache(maxsize=16)
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)
