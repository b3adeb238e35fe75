"""Frames from videos, image folders, cameras and streams.

Frames leave upright (the display matrix of phones and the EXIF turn of photographs are applied),
RGB, full range, C-contiguous. ``index`` and ``timestamp`` count from the first frame of the
source, also when a range is cut out of it, so results always name frames of the original file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from mambapose.runtime.errors import VideoError
from mambapose.runtime.types import Frame, Size
from mambapose.runtime.video.containers import head_of
from mambapose.runtime.video.edges import masked
from mambapose.runtime.video.files import kind_of
from mambapose.runtime.video.headers import is_picture
from mambapose.runtime.video.images import ImageFolder
from mambapose.runtime.video.part import range_from_text
from mambapose.runtime.video.pictures import MAX_PIXELS
from mambapose.runtime.video.streams import VideoSource

# Files of many JPEG pictures, one after the other: each begins as a photograph does.
MOTION_JPEG = (".mjpeg", ".mjpg")


class Source(Protocol):
    """Frames in order.

    size: of the upright frames, whose pixels are square; stored_size: of the upright pictures of
    the file, in whose pixels results are given (``Frame.stretch`` leads from one to the other);
    fps: mean rate; frame_count: the number that the container promises, or None (used for progress
    only); problem: a sentence once the stream broke off early; notes: sentences on what was taken
    other than one might think; corrupt_frames: how many of the frames given out so far are damaged.
    """

    size: Size
    stored_size: Size
    fps: float
    frame_count: int | None
    problem: str | None
    notes: list[str]
    corrupt_frames: int

    def __iter__(self) -> Iterator[Frame]: ...

    def close(self) -> None: ...

    def __enter__(self) -> Source: ...

    def __exit__(self, *exception: object) -> None: ...


def open_source(
    uri: str, *, frame_range: str | None = None, max_pixels: int = MAX_PIXELS
) -> Source:
    """The source behind a file, image folder, camera, stream address, or ``-`` for stdin.

    frame_range: ``A:B`` keeps frames A to B-1, ``2s:5s`` seconds; either side may be left out.
    max_pixels: pictures with more are refused before they are decoded. Raises VideoError.
    """
    part = range_from_text(frame_range)
    if uri.startswith("csi://"):
        raise VideoError(
            f"camera {uri} was wanted, but CSI cameras need the Jetson backend (GStreamer), "
            "which is not part of this version; use /dev/videoN or an rtsp:// address"
        )
    if uri == "-":
        return VideoSource("stdin", "pipe:0", part, max_pixels=max_pixels)
    if re.fullmatch(r"/dev/video\d+", uri):
        return VideoSource(uri, uri, part, form="v4l2", max_pixels=max_pixels)
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", uri) and not uri.startswith("file://"):
        return VideoSource(masked(uri), uri, part, max_pixels=max_pixels)
    path = Path(uri.removeprefix("file://"))
    kind = kind_of(path)
    if kind == "folder":
        return ImageFolder(path, part, max_pixels)
    if kind == "camera":
        return VideoSource(str(path), str(path), part, form="v4l2", max_pixels=max_pixels)
    # The prefix keeps FFmpeg from taking the start of a name such as 10:30.mp4 for a protocol.
    address = f"file:{path}"
    head = head_of(address)
    if head == b"":
        raise VideoError(f"video {path} was wanted, found an empty file (0 bytes); copy it again")
    if head is not None and is_picture(head) and path.suffix.lower() not in MOTION_JPEG:
        return ImageFolder(path, part, max_pixels)
    return VideoSource(str(path), address, part, max_pixels=max_pixels)
