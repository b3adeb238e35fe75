"""One mutated picture per number, decoded and turned upright."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from mambapose.runtime.errors import VideoError
from mambapose.runtime.video.sources import open_source

from .mutations import mutated
from .worker import check_line, serve

SIDES = (40, 30)
# Larger than the seeds, small enough for a hundred thousand cases.
MAX_PIXELS = 1_000_000


def make_seeds(folder: Path) -> None:
    """Write the whole pictures: every format, with EXIF, with several pictures, packed."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 255, (SIDES[1], SIDES[0], 3), np.uint8))
    exif = Image.Exif()
    exif[0x112] = 7
    kinds: dict[str, tuple[Image.Image, dict[str, object]]] = {
        "a.png": (photo, {}),
        "b.png": (photo.quantize(16), {"exif": exif}),
        "c.jpg": (photo, {"quality": 90, "exif": exif}),
        "d.jpg": (photo, {"progressive": True}),
        "e.jpg": (photo.convert("CMYK"), {}),
        "f.bmp": (photo, {}),
        "g.bmp": (photo.convert("L"), {}),
        "h.webp": (photo, {"exif": exif}),
        "i.webp": (photo, {"lossless": True}),
        "j.tif": (photo, {"tiffinfo": {274: 5}}),
        "k.tif": (photo, {"compression": "tiff_lzw"}),
        "l.tif": (photo.convert("1"), {"compression": "group4"}),
        "m.png": (photo.convert("LA"), {}),
        "n.png": (photo, {"save_all": True, "append_images": [photo]}),
    }
    for name, (picture, options) in kinds.items():
        file = io.BytesIO()
        form = {"jpg": "JPEG", "tif": "TIFF"}.get(name[2:], name[2:].upper())
        picture.save(file, form, **options)
        (folder / name).write_bytes(file.getvalue())


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the right checksums again, so that damage comes further in."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        (length,) = struct.unpack_from(">I", out, at)
        end = at + 8 + length
        if end + 4 > len(out):
            break
        out[end : end + 4] = struct.pack(">I", zlib.crc32(bytes(out[at + 4 : end])))
        at = end + 4
    return bytes(out)


def case(number: int, folder: Path) -> bool:
    """Read the mutated picture of a number; whether it was decoded."""
    rng = Random(number)
    seeds = sorted((folder / "seeds").iterdir())
    seed = seeds[number % len(seeds)]
    data = seed.read_bytes()
    if number >= len(seeds):
        data = mutated(data, rng)
        if seed.suffix == ".png" and rng.random() < 0.5:
            data = with_checksums(data)
    path = folder / seed.name
    path.write_bytes(data)
    try:
        with open_source(str(path), max_pixels=MAX_PIXELS) as source:
            for frame in source:
                assert frame.image.shape == (*source.size, 3)
                assert frame.image.dtype == np.uint8
    except VideoError as err:
        check_line(err)
        return False
    return True


if __name__ == "__main__":
    serve(sys.argv[1:], case)
