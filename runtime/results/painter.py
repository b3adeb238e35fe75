"""The overlay video of a run, drawn when the 3D joints of a frame are known."""

from __future__ import annotations

from collections import deque
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from mambapose.runtime.errors import OutputError
from mambapose.runtime.pipeline import FrameResult, Pipeline
from mambapose.runtime.results.overlay import Overlay, encoder_note
from mambapose.runtime.types import ImageArray
from mambapose.runtime.video.sources import Source

# Pictures that wait for their 3D are held as JPEG. 95 costs 12 ms at 1080p and, with half the
# colour resolution as in the video itself, shows no difference (47 dB on real video, of which
# H.264 keeps 40); a pixel takes 0.15 to 0.4 bytes instead of 3.
QUALITY = 95
BYTES_PER_PIXEL = 0.25
# 4K with the usual look-ahead fits (107 MiB); larger pictures are drawn at once, without the 3D
# view. How much larger is free: more than 4K is rare.
HELD_BYTES = 128 << 20


class Painter:
    """Writes the overlay video of a run once it is started, or nothing when ``path`` is None.

    untrained: write in the picture that the weights are untrained; label: what the picture says
    about the weights, in small letters.
    """

    def __init__(
        self,
        path: Path | None,
        source: Source,
        pipeline: Pipeline,
        *,
        untrained: bool,
        label: str | None = None,
    ) -> None:
        self.notes: list[str] = []
        if path is not None:
            _check_pillow()
            self.notes += [note for note in (encoder_note(path),) if note is not None]
        self._path, self._source = path, source
        self._times = pipeline.times
        self._untrained = untrained
        self._label = label
        self._video: Overlay | None = None
        self._held: deque[bytes] = deque()
        waiting = 0
        if pipeline.lifter is not None and pipeline.lifts_later:
            waiting = pipeline.lifter.lookahead + 1
        held = waiting * source.size.height * source.size.width * BYTES_PER_PIXEL
        self._waits = 0 < held <= HELD_BYTES
        if path is not None and held > HELD_BYTES:
            self.notes.append(
                f"overlay without the 3D view: {waiting} waiting frames would take "
                f"{held / (1 << 20):.0f} MiB"
            )

    def start(self) -> None:
        """Open the video: the first frame is there. OutputError when it cannot be written."""
        if self._path is not None:
            self._video = Overlay(self._path, self._source.size, self._source.fps)

    def paint_now(self, result: FrameResult) -> None:
        """Draw the 2D poses of a frame, or keep its picture until the 3D ones are known."""
        if self._video is not None:
            with self._times.measure("overlay"):
                picture = picture_from_array(result.frame.image)
                if self._waits:
                    self._held.append(packed(picture))
                else:
                    self._paint(self._video, picture, result)

    def paint_later(self, result: FrameResult) -> None:
        """Draw a complete result whose picture was kept for its 3D joints; they come in order."""
        if self._video is not None and self._waits:
            with self._times.measure("overlay"):
                self._paint(self._video, unpacked(self._held.popleft()), result)

    def _paint(self, video: Overlay, picture: Any, result: FrameResult) -> None:
        from mambapose.runtime.results.draw import draw_poses

        draw_poses(picture, result.poses, untrained=self._untrained, label=self._label)
        video.write(np.asarray(picture), result.frame.timestamp)

    def __enter__(self) -> Painter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._video is not None:
            self._video.__exit__(kind, *rest)


def _check_pillow() -> None:
    try:
        import_module("PIL.Image")
    except ImportError as err:
        raise OutputError(
            "Pillow was wanted to draw the overlay, it is not installed; "
            "pip install 'mambapose[cpu]'"
        ) from err


def picture_from_array(image: ImageArray) -> Any:
    """The PIL picture of an RGB image."""
    from PIL import Image

    return Image.fromarray(image)


def packed(picture: Any) -> bytes:
    """A PIL picture as a JPEG file."""
    file = BytesIO()
    picture.save(file, "JPEG", quality=QUALITY, subsampling="4:2:0")
    return file.getvalue()


def unpacked(data: bytes) -> Any:
    """The PIL picture of a JPEG file."""
    from PIL import Image

    return Image.open(BytesIO(data))
