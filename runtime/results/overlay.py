"""The overlay video: RGB frames to H.264 in a background thread.

It is written beside its name and takes it when it is complete. What a killed run leaves under the
other name may not play; ``mp-run --recover --overlay`` draws the video again.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mambapose.runtime import durable
from mambapose.runtime.edges import FAULTS, edge, reason
from mambapose.runtime.errors import OutputError
from mambapose.runtime.results.files import PART
from mambapose.runtime.types import ImageArray, Size
from mambapose.runtime.video.pictures import ITU601, ITU709, import_av

# H.264 plays everywhere; the others are for PyAV builds without it, and then stated.
ENCODERS = ("libx264", "libopenh264", "mpeg4")


class Overlay:
    """Writes RGB frames to a fragmented MP4 (H.264, yuv420p, BT.709) in a background thread.

    size: of the frames; odd sizes are padded by one row or column. codec: the encoder in
    use. At most ``depth`` frames wait to be encoded. Raises OutputError.
    """

    def __init__(
        self, path: Path, size: Size, fps: float, *, crf: int = 21, depth: int = 2
    ) -> None:
        av = import_av()
        from av.video.reformatter import VideoReformatter

        self.path = path
        self._part = path.with_name(path.name + PART)
        self.codec = encoder_name()
        self._size = size
        self._error: BaseException | None = None
        self._closed = False
        self._bytes = 0  # of the encoded frames
        rate = Fraction(fps).limit_denominator(1001)
        # A multiple of the rate, so constant rates stay exact; fine enough for variable ones.
        self._ticks = rate.numerator * math.ceil(60000 / rate.numerator)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._container: Any = av.open(
                str(self._part),
                "w",
                format="mp4",
                options={"movflags": "frag_keyframe+empty_moov", "flush_packets": "1"},
            )
            self._stream = self._add_stream(rate, crf)
        except (av.error.FFmpegError, *FAULTS) as err:
            with suppress(OSError):
                self._part.unlink(missing_ok=True)
            raise self._failure(err) from err
        self._reformatter = VideoReformatter()
        self._queue: queue.Queue[tuple[Any, float] | None] = queue.Queue(depth)
        self._thread = threading.Thread(
            target=self._encode_all, name="mambapose-encode", daemon=True
        )
        self._thread.start()

    def _add_stream(self, rate: Fraction, crf: int) -> Any:
        stream: Any = self._container.add_stream(self.codec, rate=rate)
        height, width = (side + side % 2 for side in self._size)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, self._ticks)
        context.framerate = rate
        # One fragment per second, as a fragment ends at a key frame; no B frames, so the first
        # timestamp is 0 without an edit list.
        context.gop_size = max(1, round(rate))
        context.max_b_frames = 0
        context.thread_count = 2
        context.colorspace = context.color_primaries = context.color_trc = ITU709
        context.color_range = 1
        if self.codec == "libx264":
            # zerolatency: no look-ahead, which would hold dozens of frames in memory.
            stream.options = {"preset": "veryfast", "tune": "zerolatency", "crf": str(crf)}
        else:
            stream.bit_rate = int(0.15 * width * height * float(rate))
        return stream

    def write(self, image: ImageArray, timestamp: float) -> None:
        """Queue one frame; timestamp in seconds, the first one becomes the start of the video."""
        import av

        self._raise_failure()
        if image.shape != (*self._size, 3) or image.dtype != np.uint8:
            raise OutputError(
                f"overlay {self.path}: a uint8 image of {self._size.width}x{self._size.height} was "
                f"wanted, found {image.dtype} {image.shape}; pass frames of one size"
            )
        # Converted here: a picture that waits as YUV takes half the memory.
        picture = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(even(image), format="rgb24"),
            format="yuv420p",
            src_colorspace=ITU601,
            dst_colorspace=ITU709,
            src_color_range=2,
            dst_color_range=0,
        )
        self._queue.put((picture, timestamp))

    def close(self) -> None:
        """Encode what waits, complete the file, stop the thread and give the file its name."""
        if self._closed:
            return
        try:
            self._end()
            self._check_whole()
            with edge(OutputError, self._cannot("written"), "free some space"):
                durable.replace(self._part, self.path)
        finally:
            with suppress(OSError):
                self._part.unlink(missing_ok=True)

    def _check_whole(self) -> None:
        """OutputError unless all that was encoded is in the file.

        FFmpeg is silent about a full disk; the file is then smaller than what went into it.
        """
        held = self._part.stat().st_size if self._part.exists() else 0
        if held < self._bytes:
            raise OutputError(
                f"{self._cannot('written')} ({held} of {self._bytes} bytes are in it: the disk is "
                "full, or files may not be as large); free some space or run without the overlay"
            )

    def _end(self) -> None:
        """Stop the thread. OutputError when it has failed."""
        self._closed = True
        self._queue.put(None)
        self._thread.join()
        self._raise_failure()

    def __enter__(self) -> Overlay:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            self.close()
        except OutputError:
            # An earlier error is the cause worth telling; a full disk often raises both.
            if kind is None:
                raise

    def _raise_failure(self) -> None:
        import av

        error, self._error = self._error, None
        if isinstance(error, (av.error.FFmpegError, *FAULTS)):
            raise self._failure(error) from error
        if error is not None:
            raise error

    def _cannot(self, done: str) -> str:
        return f"overlay video {self.path} cannot be {done}"

    def _failure(self, err: BaseException) -> OutputError:
        return OutputError(
            f"{self._cannot('written')} ({reason(err)}); free some space or run without the overlay"
        )

    def _encode_all(self) -> None:
        """The thread: after a failure the queue is still emptied, so write() never blocks."""
        try:
            self._encode_until_closed()
        except BaseException as err:
            self._error = err
            while not self._closed or not self._queue.empty():
                with suppress(queue.Empty):
                    if self._queue.get(timeout=0.1) is None:
                        break
        try:
            self._container.close()
        except BaseException as err:
            self._error = self._error or err

    def _encode_until_closed(self) -> None:
        origin: float | None = None
        last = -1
        while (item := self._queue.get()) is not None:
            picture, timestamp = item
            origin = timestamp if origin is None else origin
            last = max(last + 1, round((timestamp - origin) * self._ticks))
            picture.pts, picture.time_base = last, Fraction(1, self._ticks)
            self._mux(self._stream.encode(picture))
        self._mux(self._stream.encode(None))

    def _mux(self, packets: Sequence[Any]) -> None:
        self._bytes += sum(packet.size for packet in packets)
        self._container.mux(packets)


def even(image: ImageArray) -> ImageArray:
    """The image with its last row and column repeated where the size is odd; else itself."""
    height, width = image.shape[:2]
    if height % 2 == width % 2 == 0:
        return image
    return np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def encoder_note(path: Path) -> str | None:
    """A sentence when the video will not be H.264. OutputError without any encoder."""
    if encoder_name() != "mpeg4":
        return None
    return f"{path.name}: this PyAV has no H.264 encoder, MPEG-4 Part 2 is used instead"


def encoder_name() -> str:
    """The first of ENCODERS this PyAV build can use."""
    av = import_av()
    for name in ENCODERS:
        try:
            av.codec.Codec(name, "w")
        except ValueError:
            continue
        return name
    raise OutputError(
        f"a video encoder ({', '.join(ENCODERS)}) was wanted, this PyAV has none; "
        "install the av wheel or run without the overlay"
    )
