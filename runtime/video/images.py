"""A folder of images as a source of frames."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mambapose.runtime.errors import VideoError
from mambapose.runtime.types import Frame, Size
from mambapose.runtime.video.edges import video_errors
from mambapose.runtime.video.files import read_regular
from mambapose.runtime.video.headers import PictureFacts, picture_facts
from mambapose.runtime.video.part import Part
from mambapose.runtime.video.pictures import (
    MAX_PIXELS,
    check_pixels,
    picture_from_bytes,
    rgb_converter,
    square_size,
    squared,
)

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
IMAGE_FPS = 30.0
# A file may be as large as its pixels with 16 bits of red, green, blue and alpha, and what
# cameras put beside them: a thumbnail, a colour profile, a short film.
BYTES_PER_PIXEL, BYTES_BESIDE = 8, 64 << 20


class ImageFolder:
    """The images of a folder in natural order (or one image file) at 30 frames per second."""

    def __init__(self, path: Path, part: Part, max_pixels: int = MAX_PIXELS) -> None:
        self.problem: str | None = None
        self.notes: list[str] = []
        self.corrupt_frames = 0
        self.fps = IMAGE_FPS
        self._max_pixels = max_pixels
        self._convert = rgb_converter()
        self._paths = list_images(path) if path.is_dir() else [path]
        if not self._paths:
            raise VideoError(
                f"folder {path} was wanted as a series of images, found none in it; "
                "put .png or .jpg files there or pass a video"
            )
        self._range = part.indices(len(self._paths), self.fps)
        if not self._range:
            raise VideoError(
                f"{part} were wanted, {path} has {len(self._paths)} image(s); "
                "start the range earlier"
            )
        first, facts = self._read(self._paths[0], 0)
        self.size = Size(*first.image.shape[:2])
        wide, high = first.stretch[:2]
        self.stored_size = Size(round(self.size.height / high), round(self.size.width / wide))
        self.frame_count: int | None = len(self._range)
        if self.size != self.stored_size:
            self.notes.append(stretch_note(self.stored_size, self.size))
        if facts.several and len(self._paths) == 1:
            self.notes.append(f"{path.name} holds several pictures: the first one is taken")

    def __iter__(self) -> Iterator[Frame]:
        for index in self._range:
            frame, _ = self._read(self._paths[index], index)
            size = Size(*frame.image.shape[:2])
            if size != self.size:
                raise VideoError(
                    f"images of one size were wanted, {self._paths[0].name} has "
                    f"{self.size.width}x{self.size.height} and {self._paths[index].name} "
                    f"{size.width}x{size.height}; keep one folder per size"
                )
            self.corrupt_frames += frame.corrupt
            yield frame

    def _read(self, path: Path, index: int) -> tuple[Frame, PictureFacts]:
        most = BYTES_PER_PIXEL * self._max_pixels + BYTES_BESIDE
        with video_errors(f"image {path} was wanted, it cannot be decoded", "replace or remove it"):
            data = read_regular(path, most)
            facts = picture_facts(data)
            if facts is None:
                raise ValueError("not a PNG, JPEG, BMP, WebP or TIFF file")
            if facts.size is not None:
                shown = square_size(facts.size, facts.pixel_aspect)
                check_pixels(f"image {path}", shown, self._max_pixels)
            picture = picture_from_bytes(data, facts, self._max_pixels)
            image, stretch = squared(self._convert, picture, facts.pixel_aspect, facts.matrix)
        corrupt = bool(picture.is_corrupt) or not facts.whole
        return Frame(image, index, index / self.fps, corrupt, stretch), facts

    def close(self) -> None:
        """Nothing stays open between images."""

    def __enter__(self) -> ImageFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def stretch_note(stored: Size, shown: Size) -> str:
    """What is said of pictures whose pixels are not square."""
    return (
        f"pixels are not square: pictures of {stored.width}x{stored.height} are looked at as "
        f"{shown.width}x{shown.height}; joints are given in pixels of the stored picture"
    )


def list_images(folder: Path) -> list[Path]:
    """Image files of a folder, numbers in the names counted as numbers (2 before 10).

    VideoError when the folder cannot be read.
    """

    def natural(path: Path) -> list[tuple[int, int, str]]:
        # Digits of every script count, as int() reads them; superscripts and circled numbers are
        # no decimals and stay text.
        pieces = re.split(r"(\d+)", path.name)
        return [(0, int(text), "") if text.isdecimal() else (1, 0, text) for text in pieces]

    with video_errors(f"folder {folder} was wanted, it cannot be read", "check its permissions"):
        names = os.listdir(folder)
    paths = (folder / name for name in names if not name.startswith("."))
    return sorted((path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES), key=natural)
