"""Decoded PyAV pictures as upright RGB arrays: colours, display matrix, single image files."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from mambapose.runtime.errors import VideoError
from mambapose.runtime.types import ImageArray

Matrix = tuple[int, int, int, int]

# The content decides, not the suffix: photographs renamed from .jpg to .png are common.
IMAGE_CODECS = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "mjpeg"),
    (b"BM", "bmp"),
    (b"RIFF", "webp"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
)

# H.273 matrix numbers to swscale's; everything else, unspecified too, is BT.601 as in ffmpeg
# and OpenCV, with which the public networks were trained.
ITU601, ITU709, BT2020 = 5, 1, 9
COLOURSPACES = {1: ITU709, 4: 4, 7: 7, 9: BT2020, 10: BT2020}
FULL_RANGE = 2


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


def rgb_converter() -> Callable[[Any], ImageArray]:
    """A function from av.VideoFrame to uint8 RGB (H, W, 3); it uses one swscale context for all."""
    av = import_av()
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()
    knows_bt2020 = int(av.__version__.split(".")[0]) >= 14

    def convert(picture: Any) -> ImageArray:
        source = COLOURSPACES.get(int(picture.colorspace), ITU601)
        if source == BT2020 and not knows_bt2020:
            source = ITU709
        full = picture.color_range == FULL_RANGE or picture.format.name.startswith("yuvj")
        # PyAV ignores the source's matrix and range when they equal the destination's, and
        # RGB has no matrix, so any other one is named. Range 0 means limited in every release;
        # PyAV 12 takes MPEG (1) for full.
        rgb: Any = reformatter.reformat(
            picture,
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


def picture_from_bytes(data: bytes) -> Any:
    """The av.VideoFrame of one encoded image; ValueError when the format is not known."""
    av = import_av()
    codec = next((name for magic, name in IMAGE_CODECS if data.startswith(magic)), None)
    if codec is None:
        raise ValueError("not a PNG, JPEG, BMP, WebP or TIFF file")
    context: Any = av.CodecContext.create(codec, "r")
    try:
        pictures = [*context.decode(av.Packet(data)), *context.decode(None)]
    except av.error.FFmpegError as err:
        raise ValueError(str(err.strerror or err)) from err
    if not pictures:
        raise ValueError("it holds no picture")
    return pictures[0]
