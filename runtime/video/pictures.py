"""Decoded PyAV pictures as upright RGB arrays: colours, display matrix, square pixels."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from mambapose.runtime.errors import VideoError
from mambapose.runtime.types import ImageArray, Size, Stretch
from mambapose.runtime.video.headers import Matrix, PictureFacts

# H.273 matrix numbers to swscale's; everything else, unspecified too, is BT.601 as in ffmpeg
# and OpenCV, with which the public networks were trained.
ITU601, ITU709, BT2020 = 5, 1, 9
COLOURSPACES = {1: ITU709, 4: 4, 7: 7, 9: BT2020, 10: BT2020}
FULL_RANGE = 2

# The most pixels that one picture may have, unless asked for: four times 8K UHD is 133 M.
MAX_PIXELS = 100_000_000
# Width by height of a pixel. What differs less is rounding of an encoder; no camera or broadcast
# standard lies outside the second pair, in which 2:1 and 1:2 are the extremes.
SQUARE_WITHIN = 0.01
ASPECTS = (0.1, 10.0)


def import_av() -> Any:
    """The av package with its log switched off, because real problems come as exceptions.

    VideoError when it is not installed.
    """
    try:
        av: Any = import_module("av")
    except ImportError as err:
        raise VideoError(
            "PyAV was wanted to read and write pictures, it is not installed; "
            "pip install 'mambapose[cpu]'"
        ) from err
    # PyAV 12 logs through Python by default, later ones not at all (level None).
    if av.logging.get_level() is not None:
        av.logging.set_level(av.logging.PANIC)
        logging.getLogger("libav").setLevel(logging.CRITICAL)
    return av


def rgb_converter() -> Callable[[Any, Size | None], ImageArray]:
    """A function from av.VideoFrame, and a size to scale it to, to uint8 RGB (H, W, 3).

    It uses one swscale context for all.
    """
    av = import_av()
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()
    knows_bt2020 = int(av.__version__.split(".")[0]) >= 14

    def convert(picture: Any, size: Size | None = None) -> ImageArray:
        source = COLOURSPACES.get(int(picture.colorspace), ITU601)
        if source == BT2020 and not knows_bt2020:
            source = ITU709
        full = picture.color_range == FULL_RANGE or picture.format.name.startswith("yuvj")
        # PyAV ignores the source's matrix and range when they equal the destination's, and
        # RGB has no matrix, so any other one is named. Range 0 means limited in every release;
        # PyAV 12 takes MPEG (1) for full.
        rgb: Any = reformatter.reformat(
            picture,
            width=picture.width if size is None else size.width,
            height=picture.height if size is None else size.height,
            format="rgb24",
            src_colorspace=source,
            dst_colorspace=ITU709 if source == ITU601 else ITU601,
            src_color_range=FULL_RANGE if full else 0,
            dst_color_range=FULL_RANGE,
        )
        image: ImageArray = rgb.to_ndarray()
        return image

    return convert


def matrix_from_picture(picture: Any) -> Matrix | None:
    """(a, b, c, d) of the display matrix that came with a picture; None when it has none."""
    try:
        # By number: PyAV 19 iterates over types where older releases iterate over the data.
        every = picture.side_data
        for side in (every[index] for index in range(len(every))):
            if str(side.type).endswith("DISPLAYMATRIX"):
                a, b, _, c, d = struct.unpack("=9i", bytes(side))[:5]
                return a, b, c, d
    except ValueError:
        # PyAV 18 cannot list side data that holds EXIF, but still knows the turn.
        turn = round(picture.rotation / 90) % 4
        return ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))[turn]
    return None


def upright(image: ImageArray, matrix: Matrix | None) -> ImageArray:
    """The image as it is meant to be seen, C-contiguous.

    matrix: a pixel (x, y) is shown at (a x + c y, b x + d y); quarter turns and mirrors.
    """
    if matrix is not None:
        a, b, c, d = matrix
        if abs(b) > abs(a):
            image, a, d = image.transpose(1, 0, 2), c, b
        image = image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(image)


def is_turned(matrix: Matrix | None) -> bool:
    """Whether ``upright`` swaps the sides of a picture."""
    return matrix is not None and abs(matrix[1]) > abs(matrix[0])


def square_size(stored: Size, aspect: float) -> Size:
    """The size of a picture with square pixels, when its pixels are ``aspect`` as wide as high.

    It is only ever enlarged: nothing that the file holds is lost.
    """
    if not ASPECTS[0] <= aspect <= ASPECTS[1] or abs(aspect - 1) < SQUARE_WITHIN:
        return stored
    if aspect > 1:
        return Size(stored.height, max(1, round(stored.width * aspect)))
    return Size(max(1, round(stored.height / aspect)), stored.width)


def squared(
    convert: Callable[[Any, Size | None], ImageArray],
    picture: Any,
    aspect: float,
    matrix: Matrix | None,
    frame: Size | None = None,
) -> tuple[ImageArray, Stretch]:
    """The upright RGB image of a picture, its pixels made square, and how it was stretched.

    frame: the size it must have, None for its own; a picture of another shape is fitted into it
    between black bars, as a television does.
    """
    stored = Size(picture.height, picture.width)
    inner = square_size(stored, aspect)
    if frame is not None:
        room = frame.turned if is_turned(matrix) else frame
        fit = min(room.height / inner.height, room.width / inner.width)
        if inner != room:
            inner = Size(
                *(max(1, min(round(fit * a), b)) for a, b in zip(inner, room, strict=True))
            )
    image = upright(convert(picture, inner), matrix)
    wide, high = inner.width / stored.width, inner.height / stored.height
    if is_turned(matrix):
        wide, high = high, wide
    left = top = 0
    if frame is not None and image.shape[:2] != frame:
        canvas = np.zeros((*frame, 3), np.uint8)
        top, left = ((a - b) // 2 for a, b in zip(frame, image.shape[:2], strict=True))
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
        image = canvas
    return image, Stretch(wide, high, float(left), float(top))


def picture_from_bytes(data: bytes, facts: PictureFacts, max_pixels: int = MAX_PIXELS) -> Any:
    """The av.VideoFrame of one encoded image; ValueError when it cannot be decoded."""
    if facts.refused is not None:
        raise ValueError(facts.refused)
    av = import_av()
    context: Any = av.CodecContext.create(facts.codec, "r")
    context.options = {"max_pixels": decoder_limit(max_pixels)}
    try:
        pictures = [*context.decode(av.Packet(data)), *context.decode(None)]
    except av.error.FFmpegError as err:
        raise ValueError(str(err.strerror or err)) from err
    if not pictures:
        raise ValueError("it holds no picture")
    return pictures[0]


def decoder_limit(max_pixels: int) -> str:
    """The limit for FFmpeg, where a header lies or a stream grows.

    It counts rows and columns that it adds to the picture, so its own limit is wider than ours.
    """
    return str(min(max_pixels * 5 // 4 + (1 << 22), (1 << 31) - 1))


def check_pixels(name: str, size: Size, max_pixels: int) -> None:
    """VideoError when pictures of this size have more than ``max_pixels`` pixels."""
    if size.height * size.width > max_pixels:
        raise VideoError(
            f"pictures of at most {max_pixels / 1e6:g} million pixels were wanted, {name} has "
            f"{size.width}x{size.height}; make it smaller, or allow more with --max-pixels"
        )
