"""A folder of images as a source of frames."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mambapose.runtime.errors import VideoError
from mambapose.runtime.types import Frame, ImageArray, Size
from mambapose.runtime.video.pictures import (
    matrix_from_picture,
    picture_from_bytes,
    rgb_converter,
    upright,
)

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
IMAGE_FPS = 30.0


class ImageFolder:
    """The images of a folder in natural order (or one image file) at 30 frames per second."""

    def __init__(self, path: Path, part: tuple[int, int | None]) -> None:
        self.problem: str | None = None
        self.fps = IMAGE_FPS
        self._convert = rgb_converter()
        self._paths = list_images(path) if path.is_dir() else [path]
        if not self._paths:
            raise VideoError(
                f"folder {path} was wanted as a series of images, found none in it; "
                "put .png or .jpg files there or pass a video"
            )
        self._range = range(len(self._paths))[part[0] : part[1]]
        if not self._range:
            raise VideoError(
                f"frames from {part[0]} were wanted, {path} has {len(self._paths)} image(s); "
                "start the range earlier"
            )
        first = self._read(self._paths[0])
        self.size = Size(*first.shape[:2])
        self.frame_count: int | None = len(self._range)

    def __iter__(self) -> Iterator[Frame]:
        for index in self._range:
            path = self._paths[index]
            image = self._read(path)
            size = Size(*image.shape[:2])
            if size != self.size:
                raise VideoError(
                    f"images of one size were wanted, {self._paths[0].name} has "
                    f"{self.size.width}x{self.size.height} and {path.name} "
                    f"{size.width}x{size.height}; keep one folder per size"
                )
            yield Frame(image, index, index / self.fps)

    def _read(self, path: Path) -> ImageArray:
        try:
            picture = picture_from_bytes(path.read_bytes())
        except (OSError, ValueError) as err:
            reason = getattr(err, "strerror", None) or err
            raise VideoError(
                f"image {path} was wanted, it cannot be decoded ({reason}); replace or remove it"
            ) from err
        return upright(self._convert(picture), matrix_from_picture(picture))

    def close(self) -> None:
        """Nothing stays open between images."""

    def __enter__(self) -> ImageFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def list_images(folder: Path) -> list[Path]:
    """Image files of a folder, numbers in the names counted as numbers (2 before 10)."""

    def natural(path: Path) -> list[tuple[int, int, str]]:
        pieces = re.split(r"(\d+)", path.name)
        return [(0, int(text), "") if text.isdigit() else (1, 0, text) for text in pieces]

    paths = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted((path for path in paths if path.name[0] != "."), key=natural)
