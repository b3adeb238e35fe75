"""What lies behind a path: a regular file, a folder or a camera; anything else is refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from mambapose.runtime.errors import VideoError
from mambapose.runtime.video.edges import reason_of

VIDEO4LINUX = 81  # the major number of its devices
KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# Text formats that make FFmpeg open what they name; how each begins.
PLAYLISTS = (
    (b"ffconcat", "a list of files for FFmpeg"),
    (b"#EXTM3U", "an HLS playlist"),
    (b"v=0", "a session description (SDP)"),
    (b"<MPD", "a DASH manifest"),
    (b"[playlist]", "a playlist"),
    (b"[Reference]", "a playlist"),
    (b"<ASX", "a playlist"),
    (b"<smil", "a playlist"),
)
HEAD_BYTES = 1 << 10


def kind_of(path: Path) -> str:
    """``file``, ``folder`` or ``camera``; VideoError when nothing of the kind is there."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as err:
        missing = isinstance(err, FileNotFoundError)
        reason = "there is no such file" if missing else reason_of(err)
        raise VideoError(f"video {path} was wanted, {reason}; check the path") from err
    if stat.S_ISDIR(status.st_mode):
        return "folder"
    if stat.S_ISREG(status.st_mode):
        return "file"
    if stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) == VIDEO4LINUX:
        return "camera"
    raise VideoError(
        f"video {path} was wanted, found {_kind_text(status.st_mode)}; pass a regular file, "
        "or - and send it through stdin"
    )


def _kind_text(mode: int) -> str:
    return next((text for test, text in KINDS if test(mode)), "something that is no file")


def read_regular(path: Path, most: int, *, part: bool = False) -> bytes:
    """The bytes of a regular file, or with ``part`` its first ``most`` ones.

    OSError when it cannot be read, ValueError when it is no regular file, or larger than ``most``.
    A pipe or a device is never waited for.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise ValueError("it is a folder")
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"it is {_kind_text(status.st_mode)}")
        if status.st_size > most and not part:
            raise ValueError(f"its {status.st_size >> 20} MiB are too many for one picture")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(descriptor)


def playlist_kind(head: bytes) -> str | None:
    """What kind of list of other files begins with ``head``, or None."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for magic, name in PLAYLISTS:
        if text[: len(magic)].lower() == magic.lower():
            return name
    return "a DASH manifest" if text.startswith(b"<?xml") and b"<MPD" in text else None
