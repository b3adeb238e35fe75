"""Single pictures: turned as Pillow turns them, judged by their header, refused in one line."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from mambapose.runtime.errors import VideoError
from mambapose.runtime.types import Frame, Size
from mambapose.runtime.video.headers import picture_facts
from mambapose.runtime.video.images import list_images
from mambapose.runtime.video.sources import open_source

XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="7"/></x:xmpmeta>'


def photo(width: int = 48, height: int = 32) -> Image.Image:
    """A picture that looks different in each of the eight turns."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 255 / width, y * 255 / height, np.full(x.shape, 90)], -1)
    image[: height // 3, : width // 3] = (230, 30, 20)
    return Image.fromarray(image.astype(np.uint8))


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = orientation
    return exif


def read(path: Path, **options: int) -> list[Frame]:
    with open_source(str(path), **options) as source:
        return list(source)


def refusal(path: Path, **options: int) -> str:
    with pytest.raises(VideoError) as caught:
        read(path, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def as_pillow_shows_it(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        shown = ImageOps.exif_transpose(picture)
        return np.asarray(shown.convert("RGB")).astype(int)


FORMATS = {
    "jpg": {"quality": 95, "subsampling": 0},
    "png": {},
    "webp": {"lossless": True},
    "tif": {},
}


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_turn_of_every_format_is_that_of_pillow(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    path = folder / f"a.{suffix}"
    tags = {"tiffinfo": {274: orientation}} if suffix == "tif" else {"exif": turned(orientation)}
    photo().save(path, **FORMATS[suffix], **tags)
    want = as_pillow_shows_it(path)
    for place in (path, folder):
        (frame,) = read(place)
        assert frame.image.shape == want.shape
        assert np.abs(frame.image - want).max() < 12, (suffix, orientation)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_turn_in_xmp_counts_where_exif_says_none(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "png":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        photo().save(path, pnginfo=info)
    else:
        photo().save(path, **FORMATS[suffix], xmp=XMP)
    (frame,) = read(path)
    want = np.asarray(photo().transpose(Image.Transpose.TRANSVERSE)).astype(int)
    assert frame.image.shape == want.shape
    assert np.abs(frame.image - want).max() < 12


@pytest.mark.parametrize("packed", [True, False])
def test_a_turn_in_a_text_of_a_png(tmp_path: Path, packed: bool) -> None:
    info = PngImagePlugin.PngInfo()
    block = turned(4).tobytes()
    text = f"\nexif\n{len(block):8}\n{block.hex()}\n"
    info.add_text("Raw profile type exif", text, zip=packed)
    photo().save(tmp_path / "a.png", pnginfo=info)
    (frame,) = read(tmp_path / "a.png")
    np.testing.assert_array_equal(frame.image, np.asarray(photo())[::-1])


def test_a_sideways_photograph_in_a_motion_jpeg(tmp_path: Path) -> None:
    """Raw motion JPEG: the turn stands in each picture."""
    for orientation in (2, 5, 7):
        data = io.BytesIO()
        photo().save(data, "JPEG", exif=turned(orientation), **FORMATS["jpg"])
        (tmp_path / "one.jpg").write_bytes(data.getvalue())
        (tmp_path / "film.mjpeg").write_bytes(3 * data.getvalue())
        want = as_pillow_shows_it(tmp_path / "one.jpg")
        frames = read(tmp_path / "film.mjpeg")
        assert len(frames) == 3
        for frame in frames:
            assert frame.image.shape == want.shape
            assert np.abs(frame.image - want).max() < 12


def test_jpeg_inside_tiff_is_refused_not_black(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.tif", compression="jpeg")
    assert "JPEG inside TIFF" in refusal(tmp_path / "a.tif")
    for packing in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        photo().save(tmp_path / "a.tif", compression=packing)
        (frame,) = read(tmp_path / "a.tif")
        np.testing.assert_array_equal(frame.image, np.asarray(photo()))


def test_an_animation_says_that_its_first_picture_is_taken(tmp_path: Path) -> None:
    both = {"save_all": True, "append_images": [photo().rotate(180)]}
    photo().save(tmp_path / "a.webp", lossless=True, **both)
    assert "animation" in refusal(tmp_path / "a.webp")
    for name in ("a.png", "a.tif"):
        photo().save(tmp_path / name, **both)
        with open_source(str(tmp_path / name)) as source:
            assert "several pictures" in source.notes[0]
            (frame,) = source
        np.testing.assert_array_equal(frame.image, np.asarray(photo()))


def png_of(width: int, height: int, rows: int) -> bytes:
    """A grey PNG that promises width x height and holds ``rows`` rows."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = zlib.compress(bytes((width + 1) * rows))
    data = chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def test_the_pixel_limit_is_that_of_the_header(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png_of(16000, 16000, 1))
    message = refusal(path)
    assert "100 million pixels" in message
    assert "16000x16000" in message
    assert "--max-pixels" in message
    photo().save(path)
    assert "48x32" in refusal(path, max_pixels=48 * 32 - 1)
    assert len(read(path, max_pixels=48 * 32)) == 1


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp"])
def test_the_size_in_the_header_of_every_format(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    photo().save(path, **FORMATS.get(suffix, {}))
    facts = picture_facts(path.read_bytes())
    assert facts is not None
    assert facts.size == Size(32, 48)
    assert facts.whole
    assert "48x32" in refusal(path, max_pixels=1000)


def test_a_file_larger_than_a_picture_of_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "padded.png"
    photo().save(path)
    with path.open("r+b") as file:
        file.truncate(4 << 30)
    assert "4096 MiB are too many" in refusal(path)


@pytest.mark.parametrize("place", ["alone", "in a folder"])
def test_only_regular_files_are_pictures(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    path = folder / "a.png"

    def message() -> str:
        found = refusal(path if place == "alone" else folder)
        path.unlink()
        return found

    os.mkfifo(path)
    assert "a named pipe" in message()
    path.symlink_to("/dev/zero")
    assert "a device" in message()
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
        found = message()
        assert "socket" in found or "No such device" in found
    path.symlink_to(folder / "nothing")
    assert "no such file" in message().lower()
    path.write_text("a diary\n")
    assert "cannot be" in message()


def test_a_folder_named_as_a_picture(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    (tmp_path / "b.png").mkdir()
    assert "it is a folder" in refusal(tmp_path)


def test_names_sort_by_the_numbers_of_every_script(tmp_path: Path) -> None:
    names = ["②1.png", "a²3.png", "a10.png", "a9.png", "٣.png", "४.png", "½.png", "1.png"]
    for name in names:
        photo().save(tmp_path / name)
    found = [path.name for path in list_images(tmp_path)]
    assert sorted(found) == sorted(names)
    assert found[:3] == ["1.png", "٣.png", "४.png"]
    assert found.index("a9.png") < found.index("a10.png")
    assert len(read(tmp_path)) == len(names)


def test_a_name_that_is_not_utf8_is_read(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff\xfe.png"))
    path.write_bytes(png_of(4, 4, 4))
    assert len(read(path)) == len(read(tmp_path)) == 1


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "a\0b.mp4", "\0"])
def test_a_name_that_no_file_can_have_is_one_line(tmp_path: Path, name: str) -> None:
    assert "check the path" in refusal(tmp_path / name)


def test_a_picture_that_is_cut_short_is_marked_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(noise).save(path)
    (whole,) = read(path)
    assert not whole.corrupt
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with open_source(str(path)) as source:
        (cut,) = source
        assert source.corrupt_frames == 1
    assert cut.corrupt
    data = png_of(64, 64, 64)
    (tmp_path / "a.png").write_bytes(data[:-12])  # without its end mark
    assert read(tmp_path / "a.png")[0].corrupt
    (tmp_path / "a.png").write_bytes(data[:-20])
    assert "cannot be decoded" in refusal(tmp_path / "a.png")


def test_content_decides_between_picture_and_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    photo().save(path, "JPEG", exif=turned(6))
    (frame,) = read(path)
    assert frame.image.shape == (48, 32, 3)
    path.write_text("BMW is no picture\n" * 9)
    assert "cannot be read" in refusal(path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_pixels_that_are_not_square_in_a_picture(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    photo().save(path)
    data = path.read_bytes()
    if suffix == "jpg":
        # JFIF: unit 0, then the shape as two numbers, 2:1.
        at = data.index(b"JFIF\0") + 7
        data = data[:at] + struct.pack(">BHH", 0, 1, 2) + data[at + 5 :]
    else:
        body = b"pHYs" + struct.pack(">IIB", 1, 2, 0)
        data = (
            data[:33]
            + struct.pack(">I", 9)
            + body
            + struct.pack(">I", zlib.crc32(body))
            + data[33:]
        )
    path.write_bytes(data)
    with open_source(str(path)) as source:
        assert (source.size, source.stored_size) == ((32, 96), (32, 48))
        assert "not square" in source.notes[0]
        (frame,) = source
    assert frame.image.shape == (32, 96, 3)
    assert frame.stretch == (2, 1, 0, 0)
