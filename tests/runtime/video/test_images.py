"""Image folders: natural order, one size, photographs turned upright."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from mambapose.runtime.errors import VideoError
from mambapose.runtime.types import Frame
from mambapose.runtime.video.images import list_images
from mambapose.runtime.video.sources import open_source


def numbered(index: int, size: tuple[int, int]) -> np.ndarray:
    """A picture that carries its number in the grey level and has a red top-left corner."""
    width, height = size
    image = np.full((height, width, 3), 40 + 4 * index, np.uint8)
    image[: height // 3, : width // 3] = (230, 30, 20)
    return image


def number_of(image: np.ndarray) -> int:
    return round((float(image[image.shape[0] // 2, image.shape[1] // 2].mean()) - 40) / 4)


def read(path: Path, **options: str) -> list[Frame]:
    with open_source(str(path), **options) as source:
        return list(source)


def test_image_folder_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        Image.fromarray(numbered(number, (33, 21))).save(tmp_path / f"shot{number}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    assert [path.name for path in list_images(tmp_path)] == ["shot1.png", "shot2.png", "shot10.png"]
    with open_source(str(tmp_path)) as source:
        assert (source.size, source.frame_count) == ((21, 33), 3)
        frames = list(source)
    assert [number_of(frame.image) for frame in frames] == [1, 2, 10]
    np.testing.assert_array_equal(frames[0].image, numbered(1, (33, 21)))
    assert frames[2].timestamp == pytest.approx(2 / 30)


def test_image_folder_of_several_sizes_is_refused(tmp_path: Path) -> None:
    Image.fromarray(numbered(1, (33, 21))).save(tmp_path / "1.png")
    Image.fromarray(numbered(1, (32, 21))).save(tmp_path / "2.png")
    with pytest.raises(VideoError, match=r"one size .* 33x21 and 2.png 32x21"):
        read(tmp_path)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photographs_are_turned_by_their_exif(tmp_path: Path, orientation: int) -> None:
    photo = Image.fromarray(numbered(3, (48, 32)))
    exif = Image.Exif()
    exif[0x112] = orientation
    path = tmp_path / "photo.jpg"
    photo.save(path, exif=exif, quality=95)
    want = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB")).astype(int)
    (frame,) = read(path)
    assert frame.image.shape == want.shape
    assert np.abs(frame.image - want).mean() < 3


def test_grey_and_palette_images(tmp_path: Path) -> None:
    grey = numbered(5, (20, 10))[..., 0]
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(numbered(5, (20, 10))).convert("P").save(tmp_path / "b.png")
    first, second = read(tmp_path)
    np.testing.assert_array_equal(first.image, np.repeat(grey[..., None], 3, axis=2))
    assert np.abs(second.image.astype(int) - numbered(5, (20, 10))).max() < 60


def test_range_of_a_folder(tmp_path: Path) -> None:
    for number in range(5):
        Image.fromarray(numbered(number, (20, 10))).save(tmp_path / f"{number}.png")
    frames = read(tmp_path, frame_range="1:3")
    assert [(frame.index, number_of(frame.image)) for frame in frames] == [(1, 1), (2, 2)]
    with pytest.raises(VideoError, match=r"frames from 7 were wanted, .* has 5 image"):
        read(tmp_path, frame_range="7:")


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    Image.fromarray(numbered(4, (20, 10))).save(tmp_path / "real.png")
    (tmp_path / "real.png").rename(tmp_path / "called.jpg")
    (frame,) = read(tmp_path / "called.jpg")
    np.testing.assert_array_equal(frame.image, numbered(4, (20, 10)))
