"""Which part of a source is wanted: ``A:B`` in frames, ``2s:5s`` in seconds."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from mambapose.runtime.errors import VideoError

_FRAMES, _SECONDS = re.compile(r"\d+"), re.compile(r"(\d+(?:\.\d+)?)\s*s")


@dataclass(frozen=True)
class Part:
    """From ``start`` to before ``stop`` (None: the end), in frames or, with ``seconds``, in s."""

    start: float = 0
    stop: float | None = None
    seconds: bool = False

    def __str__(self) -> str:
        return f"from {self.start:g} s on" if self.seconds else f"frames from {self.start:g}"

    def begins_by(self, index: int, timestamp: float) -> bool:
        """Whether a frame is not before the part."""
        return (timestamp if self.seconds else index) >= self.start

    def ends_before(self, index: int, timestamp: float) -> bool:
        """Whether a frame is behind the part, and so is all that follows."""
        return self.stop is not None and (timestamp if self.seconds else index) >= self.stop

    def is_last(self, index: int) -> bool:
        """Whether the frame after this one need not be read to know that it is behind the part."""
        return not self.seconds and self.stop is not None and index >= self.stop - 1

    def indices(self, count: int, fps: float) -> range:
        """The frames of the part among ``count`` at a constant rate."""
        scale = fps if self.seconds else 1.0
        # 0.1 s at 30 per second is frame 3, not 3.0000000000000004.
        first, last = (
            count if side is None else math.ceil(round(side * scale, 6))
            for side in (self.start, self.stop)
        )
        return range(count)[first:last]

    def expected(self, count: int | None, fps: float) -> int | None:
        """How many frames to expect of a source that promises ``count``, or None."""
        if count:
            return len(self.indices(count, fps))
        if self.stop is None:
            return None
        return round((self.stop - self.start) * (fps if self.seconds else 1.0))


def range_from_text(text: str | None) -> Part:
    """The part that ``A:B``, ``A:``, ``:B`` or ``2s:5s`` names; everything from None.

    VideoError for any other text.
    """
    if text is None:
        return Part()
    sides = [side.strip() for side in text.split(":")]
    given = [side for side in sides if side]
    in_frames = all(_FRAMES.fullmatch(side) for side in given)
    in_seconds = bool(given) and all(_SECONDS.fullmatch(side) for side in given)
    if len(sides) != 2 or not (in_frames or in_seconds):
        raise VideoError(
            f"range A:B in frames was wanted, found {text!r}; use for example 100:200, 100: or "
            ":200 (counted from 0, the end excluded), or 2s:5s in seconds"
        )
    first, last = (float(side.rstrip("s ")) if side else None for side in sides)
    if last is not None and last <= (first or 0):
        raise VideoError(f"range {text!r} holds no frame; the end must be larger than the start")
    return Part(first or 0, last, in_seconds)
