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
from mambapose.runtime.video.images import IMAGE_SUFFIXES, ImageFolder
from mambapose.runtime.video.streams import Slice, VideoSource


class Source(Protocol):
    """Frames in order.

    size: of the upright frames; fps: mean rate; frame_count: the number that the container
    promises, or None (used for progress only); problem: a sentence once the stream broke off early.
    """

    size: Size
    fps: float
    frame_count: int | None
    problem: str | None

    def __iter__(self) -> Iterator[Frame]: ...

    def close(self) -> None: ...

    def __enter__(self) -> Source: ...

    def __exit__(self, *exception: object) -> None: ...


def open_source(uri: str, *, frame_range: str | None = None) -> Source:
    """The source behind a file, image folder, camera, stream address, or ``-`` for stdin.

    frame_range: ``A:B`` keeps frames A to B-1; either side may be left out. Raises VideoError.
    """
    part = range_from_text(frame_range)
    if uri.startswith("csi://"):
        raise VideoError(
            f"camera {uri} was wanted, but CSI cameras need the Jetson backend (GStreamer), "
            "which is not part of this version; use /dev/videoN or an rtsp:// address"
        )
    if uri == "-":
        return VideoSource("stdin", "pipe:0", part)
    if uri.startswith("/dev/video"):
        return VideoSource(uri, uri, part, form="v4l2")
    if re.match(r"[a-z][a-z0-9+.-]+://", uri) and not uri.startswith("file://"):
        return VideoSource(uri, uri, part)
    path = Path(uri.removeprefix("file://"))
    if path.is_dir():
        return ImageFolder(path, part)
    if not path.exists():
        raise VideoError(f"video {path} was wanted, there is no such file; check the path")
    if path.is_file() and path.stat().st_size == 0:
        raise VideoError(f"video {path} was wanted, found an empty file (0 bytes); copy it again")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageFolder(path, part)
    # The prefix keeps FFmpeg from taking the start of a name such as 10:30.mp4 for a protocol.
    return VideoSource(str(path), f"file:{path}", part)


def range_from_text(text: str | None) -> Slice:
    """(start, stop or None) from ``A:B``, ``A:``, ``:B``; (0, None) from None.

    VideoError for any other text.
    """
    if text is None:
        return 0, None
    match = re.fullmatch(r"\s*(\d*)\s*:\s*(\d*)\s*", text)
    if match is None:
        raise VideoError(
            f"range A:B in frames was wanted, found {text!r}; "
            "use for example 100:200, 100: or :200 (counted from 0, the end excluded)"
        )
    start = int(match[1] or 0)
    stop = int(match[2]) if match[2] else None
    if stop is not None and stop <= start:
        raise VideoError(f"range {text!r} holds no frame; the end must be larger than the start")
    return start, stop
