"""The overlay video of a run, drawn when a result is complete."""

from __future__ import annotations

from pathlib import Path

from mambapose.runtime.pipeline import FrameResult, Pipeline
from mambapose.runtime.sinks import Overlay
from mambapose.runtime.sources import Source

# Pictures that wait for their 3D are held up to this many bytes: 1080p with the usual look-ahead.
# Larger ones are drawn at once, without the 3D view.
HELD_BYTES = 384 << 20


class Painter:
    """The overlay video, or nothing. waits: it draws results once their 3D is known."""

    def __init__(
        self, path: Path | None, source: Source, pipeline: Pipeline, *, untrained: bool
    ) -> None:
        self._pipeline = pipeline
        self._untrained = untrained
        self._video = None if path is None else Overlay(path, source.size, source.fps)
        self.notes: list[str] = []
        waiting = 0 if pipeline.lifter is None else pipeline.lifter.lookahead + 1
        held = waiting * source.size[0] * source.size[1] * 3
        self.waits = self._video is not None and 0 < held <= HELD_BYTES
        if self._video is not None:
            if held > HELD_BYTES:
                self.notes.append(
                    f"overlay without the 3D view: {waiting} waiting frames would take "
                    f"{held >> 20} MiB"
                )
            if self._video.note is not None:
                self.notes.append(self._video.note)

    def paint_now(self, result: FrameResult) -> None:
        """Draw the 2D poses of a frame, unless its 3D is waited for."""
        if not self.waits:
            self._paint(result)

    def paint_later(self, result: FrameResult) -> None:
        """Draw a complete result, if that was waited for."""
        if self.waits:
            self._paint(result)

    def _paint(self, result: FrameResult) -> None:
        if self._video is None:
            return
        from mambapose.runtime.draw import draw_overlay

        with self._pipeline.times.measure("overlay"):
            image = draw_overlay(result.frame.image, result.poses, untrained=self._untrained)
            self._video.write(image, result.frame.timestamp)

    def __enter__(self) -> Painter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._video is not None:
            self._video.__exit__(kind, *rest)
