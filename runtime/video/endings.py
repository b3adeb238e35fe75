"""Whether a file ends before its container says: the structure of each container, to its end.

Only what cannot be otherwise counts: a box, a chunk or a packet that begins in the file and ends
behind it, or a length of the whole file that is larger than the file. How long the pictures are
shown does not: last pictures are held, sound goes on, and streams start late.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

# Boxes of MP4 whose loss costs pictures; ``free`` or a maker's own box at the end may lie.
MOV_PICTURES = (b"mdat", b"moof", b"moov")
SEGMENT, CLUSTER, EBML = 0x18538067, 0x1F43B675, 0x1A45DFA3
# What Matroska has after its last cluster, or between: no pictures in it.
MATROSKA_REST = {
    0x1C53BB6B: "Cues", 0x1254C367: "Tags", 0x114D9B74: "SeekHead", 0x1941A469: "Attachments",
    0x1043A770: "Chapters", 0xEC: "Void", 0x1549A966: "Info", 0x1654AE6B: "Tracks",
}  # fmt: skip
MATROSKA_BLOCKS = (0xA3, 0xA0, 0xE7, 0xA7, 0xAB, 0xBF)  # in a cluster of unknown length
STREAMED = (0, 0xFFFFFFFF, 0x7FFFFFFF)  # lengths of AVI that was written into a pipe
TS_SYNC = 0x47
# More boxes than any whole file has; a file made of nothing else is not walked to its end.
MOST_STEPS = 500_000
MJPEG_TAIL_BYTES = 16 << 20  # more than one picture takes
# Of Y4M: how many pixels share a sample of colour, across and down, and how many such planes.
Y4M_SAMPLES = {
    "420": (2, 2, 2), "422": (2, 1, 2), "444alpha": (1, 1, 3), "444": (1, 1, 2),
    "411": (4, 1, 2), "mono": (1, 1, 0),
}  # fmt: skip
OGG_PAGE_BYTES = 27 + 255 + 255 * 255
ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
MXF_HEADER = bytes.fromhex("060e2b34020501010d01020101")

Verdict = str | None


def missing_end(path: Path, form: str) -> Verdict:
    """What is missing at the end of a file, None when nothing says that anything is.

    form: FFmpeg's name of the container. A file that cannot be read has nothing to say.
    """
    check = ENDS.get(form.split(",")[0])
    if check is None:
        return None
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            return check(file, size)
    except (OSError, ValueError, struct.error, IndexError):
        return None


class _Steps:
    """Goes on while there is room, but not for ever: ValueError after MOST_STEPS."""

    def __init__(self) -> None:
        self._left = MOST_STEPS

    def to(self, file: BinaryIO, at: int) -> None:
        """Move to a place in the file."""
        self._left -= 1
        if not self._left:
            raise ValueError("too many parts")
        file.seek(at)


def _beyond(what: str, end: int, size: int) -> str:
    return f"{what} ends at byte {end}, the file has {size}"


def _boxes(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of the boxes of an MP4; the last may end behind the file."""
    at, steps = 0, _Steps()
    while at + 8 <= size:
        steps.to(file, at)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
        if length == 0:  # to the end of the file, wherever that is
            length = size - at
        if length < 8:
            return
        yield kind, at, at + length
        at += length


def has_index(path: Path) -> bool:
    """Whether an MP4 has a moov box, cut off or not."""
    try:
        with path.open("rb") as file:
            return any(kind == b"moov" for kind, *_ in _boxes(file, file.seek(0, 2)))
    except (OSError, ValueError, struct.error):
        return False


def _mov(file: BinaryIO, size: int) -> Verdict:
    kind, end = b"", 0
    for kind, _, end in _boxes(file, size):
        if end > size:
            name = kind.decode("latin-1")
            return _beyond(f"its {name} box", end, size) if kind in MOV_PICTURES else None
    if kind == b"moof":
        return "its last fragment has no pictures"
    file.seek(end + 4)
    rest = file.read(4)
    begun = bool(rest) and any(name.startswith(rest) for name in MOV_PICTURES)
    return "its last box has no length" if begun else None


def _vint(file: BinaryIO, *, marker: bool) -> tuple[int, int] | None:
    """(value, bytes) of a number of Matroska; None at the end. marker: keep the length bit."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    count = 9 - first[0].bit_length()
    rest = file.read(count - 1)
    if len(rest) < count - 1:
        return None
    value = int.from_bytes(first + rest, "big")
    return (value if marker else value & ((1 << 7 * count) - 1)), count


def _matroska(file: BinaryIO, size: int) -> Verdict:
    at, seen, last, steps = 0, False, 0, _Steps()
    end: int | None = None
    while at < size:
        steps.to(file, at)
        name, length = _vint(file, marker=True), _vint(file, marker=False)
        if name is None or length is None:
            break
        start = at + name[1] + length[1]
        unknown = length[0] == (1 << 7 * length[1]) - 1
        last = name[0]
        if last == SEGMENT:
            if end is not None:  # a second segment is a file of its own
                return None
            end = 0 if unknown else start + length[0]
            at = start
        elif last == CLUSTER and unknown:
            seen, at = True, start
        elif unknown or last not in (EBML, CLUSTER, *MATROSKA_REST, *MATROSKA_BLOCKS):
            break
        else:
            seen = seen or last == CLUSTER
            if start + length[0] > size:
                if last in MATROSKA_REST and seen:
                    return None  # only the index or the tags are cut: no picture is lost
                what = "a cluster" if last == CLUSTER else "an element"
                return _beyond(f"{what} of it", start + length[0], size)
            at = start + length[0]
    whole = last in MATROSKA_REST and seen and at >= size
    return _beyond("it", end, size) if end and end > size and not whole else None


def _avi(file: BinaryIO, size: int) -> Verdict:
    at, steps = 0, _Steps()
    while at + 12 <= size:
        steps.to(file, at)
        riff, length, form = struct.unpack("<4sI4s", file.read(12))
        if riff != b"RIFF" or form not in (b"AVI ", b"AVIX"):
            return None
        if length in STREAMED:
            return None
        inside, end = at + 12, at + 8 + length
        while inside + 12 <= min(end, size):
            steps.to(file, inside)
            kind, count, name = struct.unpack("<4sI4s", file.read(12))
            if kind == b"LIST" and name == b"movi":
                if count not in STREAMED and inside + 8 + count > size:
                    return _beyond("its list of pictures", inside + 8 + count, size)
                if end > size and inside + 8 + count <= size:
                    return None  # only the index is cut
            inside += 8 + count + count % 2
        if end > size + 1:
            return _beyond("it", end, size)
        at = end + end % 2
    return None


def _mpegts(file: BinaryIO, size: int) -> Verdict:
    head = file.read(5 * 204)
    for packet, sync in ((188, 0), (192, 4), (204, 0)):
        for start in range(packet):
            marks = head[start + sync :: packet]
            if len(marks) >= 4 and set(marks) == {TS_SYNC}:
                rest = (size - start) % packet
                file.seek(size - rest)
                tail = file.read(rest)
                begun = len(tail) > sync and tail[sync] == TS_SYNC
                return f"its last packet has {rest} of {packet} bytes" if begun else None
    return None


def _flv(file: BinaryIO, size: int) -> Verdict:
    """Every tag is followed by its length: the last four bytes must lead to a tag."""
    steps = _Steps()
    if size < 13 or file.read(3) != b"FLV":
        return None
    (at,) = struct.unpack(">2xI", file.read(6))
    at += 4
    while at + 11 <= size:
        steps.to(file, at)
        head = file.read(4)
        if head[0] & 0x1F not in (8, 9, 18):
            return None
        end = at + 11 + int.from_bytes(head[1:], "big") + 4
        if end > size:
            return _beyond("its last tag", end, size)
        at = end
    return None if at == size or at + 11 <= size else "its last tag has no length"


def _ogg(file: BinaryIO, size: int) -> Verdict:
    file.seek(max(0, size - 2 * OGG_PAGE_BYTES))
    base, tail = file.tell(), file.read()
    at = tail.rfind(b"OggS\0")
    if at < 0:
        return None
    segments = tail[at + 26] if len(tail) > at + 26 else 255
    lacing = tail[at + 27 : at + 27 + segments]
    end = base + at + 27 + segments + sum(lacing)
    return _beyond("its last page", end, size) if end > size else None


def _gif(file: BinaryIO, size: int) -> Verdict:
    file.seek(10)
    flags = file.read(3)[0]
    file.seek(3 * (2 << (flags & 7)) if flags & 0x80 else 0, 1)
    steps = _Steps()
    while mark := file.read(1):
        if mark == b";":
            return None
        if mark == b"\0":
            steps.to(file, file.tell())
            continue
        if mark == b"!":
            file.seek(1, 1)
        elif mark == b",":
            local = file.read(9)
            file.seek((3 * (2 << (local[8] & 7)) if local[8] & 0x80 else 0) + 1, 1)
        else:
            return None  # damage, of which the decoder has its own to say
        while (count := file.read(1)) and count[0]:
            steps.to(file, file.tell() + count[0])
    return "its end mark is missing"


def _asf(file: BinaryIO, size: int) -> Verdict:
    head = file.read(1 << 16)
    at = head.find(ASF_FILE) if head.startswith(ASF_HEADER) else -1
    if at < 0:
        return None
    (whole,) = struct.unpack_from("<Q", head, at + 40)
    (flags,) = struct.unpack_from("<I", head, at + 88)
    return _beyond("it", whole, size) if whole > size and not flags & 1 else None


def _mxf(file: BinaryIO, size: int) -> Verdict:
    head = file.read(1 << 16)
    at = head.find(MXF_HEADER)
    if at < 0:
        return None
    body = at + 17 + (head[at + 16] & 0x7F if head[at + 16] & 0x80 else 0)
    (footer,) = struct.unpack_from(">Q", head, body + 24)
    return _beyond("it", footer, size) if footer >= size else None


def _ivf(file: BinaryIO, size: int) -> Verdict:
    (at,) = struct.unpack("<6xH", file.read(8))
    steps = _Steps()
    while at + 12 <= size:
        steps.to(file, at)
        at += 12 + struct.unpack("<I", file.read(4))[0]
    return _beyond("its last picture", at, size) if at > size else None


def _mjpeg(file: BinaryIO, size: int) -> Verdict:
    file.seek(max(0, size - MJPEG_TAIL_BYTES))
    tail = file.read()
    begun = tail.rfind(b"\xff\xd8\xff") > tail.rfind(b"\xff\xd9")
    return "its last picture has no end mark" if begun else None


def _y4m(file: BinaryIO, size: int) -> Verdict:
    head = file.readline(1 << 10).split()
    known = {field[:1]: field[1:] for field in head[1:]}
    width, height = int(known[b"W"]), int(known[b"H"])
    colours = known.get(b"C", b"420").decode("latin-1")
    form = next((form for form in Y4M_SAMPLES if colours.startswith(form)), None)
    if form is None or head[0] != b"YUV4MPEG2":
        return None
    across, down, planes = Y4M_SAMPLES[form]
    samples = width * height + planes * (-(-width // across) * -(-height // down))
    picture = samples * (2 if re.search(r"p(9|1\d)$|mono(9|1\d)$", colours) else 1)
    at, steps = file.tell(), _Steps()
    while at < size:
        steps.to(file, at)
        line = file.readline(1 << 10)
        if not b"FRAME".startswith(line[:5]):
            return None
        at += len(line) + picture
        if at > size or not line.endswith(b"\n"):
            return _beyond("its last picture", at, size)
    return None


ENDS: Mapping[str, Callable[[BinaryIO, int], Verdict]] = {
    "mov": _mov,
    "matroska": _matroska,
    "avi": _avi,
    "mpegts": _mpegts,
    "flv": _flv,
    "ogg": _ogg,
    "gif": _gif,
    "asf": _asf,
    "mxf": _mxf,
    "ivf": _ivf,
    "mjpeg": _mjpeg,
    "yuv4mpegpipe": _y4m,
}
