"""What the header of an encoded picture says, without decoding it.

Kind, size, the turn that its EXIF or XMP asks for, the shape of its pixels, and whether it is
whole. The content decides, not the suffix: photographs renamed from .jpg to .png are common.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from mambapose.runtime.types import Size

Matrix = tuple[int, int, int, int]

# EXIF orientation 1 to 8: a pixel (x, y) is shown at (a x + c y, b x + d y), moved into the frame.
ORIENTATIONS: Mapping[int, Matrix] = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}
XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*([1-8])")
ORIENTATION, WIDTH, HEIGHT, COMPRESSION, XMP_TAG = 274, 256, 257, 259, 700
# TIFF compressions that hold JPEG: FFmpeg decodes them to black.
JPEG_IN_TIFF = (6, 7, 34892)
PROFILE_BYTES = 1 << 20  # of an unpacked text chunk: EXIF takes at most 64 KiB


@dataclass(frozen=True)
class PictureFacts:
    """codec: FFmpeg's name of the decoder; size: as stored, None when the header does not say.

    matrix: how it is turned to be upright; pixel_aspect: width by height of a pixel; whole: False
    when the end of the file is missing; several: it holds more pictures than the first; refused:
    why it cannot be decoded, or None.
    """

    codec: str
    size: Size | None = None
    matrix: Matrix = ORIENTATIONS[1]
    pixel_aspect: float = 1.0
    whole: bool = True
    several: bool = False
    refused: str | None = None


def picture_facts(data: bytes) -> PictureFacts | None:
    """The facts of one encoded picture, None when it is none of PNG, JPEG, BMP, WebP and TIFF."""
    for is_kind, facts in _KINDS:
        if is_kind(data):
            try:
                return facts(data)
            except (struct.error, IndexError, zlib.error) as err:
                return PictureFacts(facts.__name__.strip("_"), refused=f"its header is cut: {err}")
    return None


def is_picture(head: bytes) -> bool:
    """Whether a file that begins with ``head`` (64 bytes or more) is a picture."""
    return any(is_kind(head) for is_kind, _ in _KINDS)


def _is_png(data: bytes) -> bool:
    return data.startswith(b"\x89PNG\r\n\x1a\n")


def _is_jpeg(data: bytes) -> bool:
    return data.startswith(b"\xff\xd8\xff")


def _is_webp(data: bytes) -> bool:
    return data.startswith(b"RIFF") and data[8:12] == b"WEBP"


def _is_tiff(data: bytes) -> bool:
    return data.startswith((b"II*\x00", b"MM\x00*"))


def _is_bmp(data: bytes) -> bool:
    # Two letters alone would make a diary that begins with "BM" a picture.
    header = int.from_bytes(data[14:18], "little")
    return data.startswith(b"BM") and header in (12, 16, 40, 52, 56, 64, 108, 124)


def _png(data: bytes) -> PictureFacts:
    size, exif, xmp, aspect, several, whole = None, b"", b"", 1.0, False, False
    for kind, at, length in _png_chunks(data):
        body = data[at : at + length]
        if kind == b"IHDR":
            width, height = struct.unpack(">II", body[:8])
            size = Size(height, width)
        elif kind == b"eXIf":
            exif = body.removeprefix(b"Exif\0\0")
        elif kind in (b"zTXt", b"tEXt", b"iTXt"):
            key, _, text = body.partition(b"\0")
            if key.startswith(b"Raw profile type exif"):
                exif = exif or _raw_profile(text, packed=kind == b"zTXt")
            elif key == b"XML:com.adobe.xmp":
                xmp = text
        elif kind == b"pHYs" and len(body) == 9:
            # Unit 0 says that the numbers are a ratio, not dots per metre of paper.
            x, y, unit = struct.unpack(">IIB", body)
            aspect = y / x if unit == 0 and x and y else 1.0
        elif kind == b"acTL":
            several = True
        whole = kind == b"IEND"
    return PictureFacts("png", size, turn_of(exif, xmp), aspect, whole, several)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, length) of every whole chunk."""
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + length > len(data):
            if kind == b"IHDR":
                yield kind, at + 8, length
            return
        yield kind, at + 8, length
        at += 12 + length
        if kind == b"IEND":
            return


def _raw_profile(text: bytes, *, packed: bool) -> bytes:
    """EXIF as ImageMagick writes it into a text chunk: a name, a length, hexadecimal digits."""
    if packed:
        text = zlib.decompressobj().decompress(text[1:], PROFILE_BYTES)
    digits = b"".join(text.split()[2:])
    try:
        return bytes.fromhex(digits.decode("ascii")).removeprefix(b"Exif\0\0")
    except ValueError:
        return b""


def _mjpeg(data: bytes) -> PictureFacts:
    size, exif, xmp, aspect, at = None, b"", b"", 1.0, 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            at += 1
            continue
        marker = data[at + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in (0xD9, 0xDA):
            break
        (length,) = struct.unpack_from(">H", data, at + 2)
        body = data[at + 4 : at + 2 + length]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and size is None:
            height, width = struct.unpack_from(">HH", body, 1)
            size = Size(height, width)
        elif marker == 0xE1 and body.startswith(b"Exif\0"):
            exif = exif or body[6:]
        elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = xmp or body
        elif marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 12:
            unit, x, y = struct.unpack_from(">BHH", body, 7)
            # Unit 0: a ratio of sides, not dots per inch of paper.
            aspect = y / x if unit == 0 and x and y else 1.0
        at += 2 + max(length, 2)
    whole = data.find(b"\xff\xd9", at) >= 0
    return PictureFacts("mjpeg", size, turn_of(exif, xmp), aspect, whole)


def _webp(data: bytes) -> PictureFacts:
    size, exif, xmp, several, at = None, b"", b"", False, 12
    (length,) = struct.unpack_from("<I", data, 4)
    while at + 8 <= len(data):
        kind, count = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 8 + count]
        if kind == b"VP8X":
            several = bool(body[0] & 2)
            size = Size(*(1 + int.from_bytes(body[k : k + 3], "little") for k in (7, 4)))
        elif kind == b"VP8 " and size is None:
            width, height = struct.unpack_from("<HH", body, 6)
            size = Size(height & 0x3FFF, width & 0x3FFF)
        elif kind == b"VP8L" and size is None:
            bits = int.from_bytes(body[1:5], "little")
            size = Size(1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF))
        elif kind == b"EXIF":
            exif = body.removeprefix(b"Exif\0\0")
        elif kind == b"XMP ":
            xmp = body
        at += 8 + count + count % 2
    animated = "it is an animation, which is not read; save its pictures as .png" if several else ""
    whole = len(data) >= length + 8
    return PictureFacts("webp", size, turn_of(exif, xmp), 1.0, whole, several, animated or None)


def _bmp(data: bytes) -> PictureFacts:
    header, offset = struct.unpack_from("<I", data, 14)[0], struct.unpack_from("<I", data, 10)[0]
    width, height = struct.unpack_from("<hh" if header in (12, 16) else "<ii", data, 18)
    return PictureFacts("bmp", Size(abs(height), abs(width)), whole=len(data) > offset)


def _tiff(data: bytes) -> PictureFacts:
    tags, following = tiff_tags(data)
    width, height = (_number(tags.get(tag)) for tag in (WIDTH, HEIGHT))
    xmp = tags.get(XMP_TAG)
    turn = _number(tags.get(ORIENTATION)) or 0
    matrix = ORIENTATIONS.get(turn) or turn_of(b"", xmp if isinstance(xmp, bytes) else b"")
    packed = _number(tags.get(COMPRESSION))
    refused = None
    if packed in JPEG_IN_TIFF:
        refused = "JPEG inside TIFF is not read; save it as .jpg or .png"
    size = Size(height, width) if height and width else None
    return PictureFacts("tiff", size, matrix, several=following, refused=refused)


_KINDS: tuple[tuple[Callable[[bytes], bool], Callable[[bytes], PictureFacts]], ...] = (
    (_is_png, _png),
    (_is_jpeg, _mjpeg),
    (_is_webp, _webp),
    (_is_tiff, _tiff),
    (_is_bmp, _bmp),
)


def turn_of(exif: bytes, xmp: bytes = b"") -> Matrix:
    """The matrix of the orientation in an EXIF block, else of that in XMP, else no turn."""
    try:
        turn = _number(tiff_tags(exif)[0].get(ORIENTATION)) if _is_tiff(exif) else None
    except (struct.error, IndexError):
        turn = None
    if turn is None and (found := XMP_ORIENTATION.search(xmp)):
        turn = int(found[1])
    return ORIENTATIONS.get(turn or 1, ORIENTATIONS[1])


def tiff_tags(data: bytes) -> tuple[dict[int, int | bytes], bool]:
    """The tags of the first picture of a TIFF file (or EXIF block), and whether another follows.

    Only those with one number or with bytes. struct.error when they lie outside the data.
    """
    order = "<" if data.startswith(b"II") else ">"
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, at)
    tags: dict[int, int | bytes] = {}
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(f"{order}HHI", data, entry)
        if kind in (3, 4) and number == 1:
            tags[tag] = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", data, entry + 8)[
                0
            ]
        elif kind in (1, 7) and number > 4:
            (start,) = struct.unpack_from(f"{order}I", data, entry + 8)
            tags[tag] = data[start : start + number]
    end = at + 2 + 12 * count
    following = len(data) >= end + 4 and struct.unpack_from(f"{order}I", data, end)[0] != 0
    return tags, following


def _number(value: int | bytes | None) -> int | None:
    return value if isinstance(value, int) else None
