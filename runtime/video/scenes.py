"""Where a video cuts: from there nothing of the last frame may be used for the next."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.types import Frame

# A cut changes both the colours and the picture; motion and pans change mostly the picture, noise
# neither. Largest colour distance of successive frames in ten frames of Sintel and 160 of pose2sim:
# 0.04 (five apart 0.065); between two of those clips, some of one place: at least 0.24.
COLOUR_DISTANCE = 0.15
PICTURE_DIFFERENCE = 8.0
# Of the thumbnail that is compared, about: every k-th is taken. A cut changes the whole picture, so
# the exact number is free; this one leaves about 4000 pixels.
ROWS = 48


class SceneCuts:
    """Compares each frame with the one before it."""

    def __init__(self) -> None:
        self._last: tuple[NDArray[np.int16], NDArray[np.float64]] | None = None
        self._index: int | None = None

    def starts(self, frame: Frame) -> tuple[bool, bool]:
        """(cut, follows): a new scene starts here; this frame comes directly after the last one.

        The first frame neither follows nor is a cut; after a dropped frame ``follows`` is False.
        """
        thumbnail = _thumbnail(frame)
        colours = _colours(thumbnail)
        cut = False
        if self._last is not None:
            picture, last_colours = self._last
            cut = picture.shape != thumbnail.shape or is_cut(
                float(np.abs(colours - last_colours).sum()) / 2,
                float(np.abs(thumbnail - picture).mean()),
            )
        follows = self._index is not None and frame.index == self._index + 1
        self._last, self._index = (thumbnail, colours), frame.index
        return cut, follows


def is_cut(colour_distance: float, picture_difference: float) -> bool:
    """Whether two successive frames belong to different scenes.

    colour_distance: 0 (equal histograms) to 1 (disjoint); picture_difference: mean, in grey levels.
    """
    return colour_distance > COLOUR_DISTANCE and picture_difference > PICTURE_DIFFERENCE


def _thumbnail(frame: Frame) -> NDArray[np.int16]:
    """About 48 rows of the image, every k-th pixel: (h, w, 3)."""
    step = max(1, frame.image.shape[0] // ROWS)
    return frame.image[::step, ::step].astype(np.int16)


def _colours(thumbnail: NDArray[np.int16]) -> NDArray[np.float64]:
    """(512,) the share of the pixels in each of 8 x 8 x 8 colour cells."""
    cells = thumbnail >> 5
    cell = (cells[..., 0] << 6) + (cells[..., 1] << 3) + cells[..., 2]
    counts: NDArray[np.float64] = np.bincount(cell.ravel(), minlength=512) / cell.size
    return counts
