"""Frames of whatever PyAV reads: video files, cameras, network streams, a container on stdin."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any

from mambapose.runtime.errors import VideoError
from mambapose.runtime.types import Frame, Size
from mambapose.runtime.video.pictures import (
    Matrix,
    import_av,
    matrix_from_picture,
    rgb_converter,
    upright,
)

# Longer than a camera needs for its first picture, shorter than anybody waits; free in between.
STREAM_TIMEOUT_S = 10.0
# Frame threads hold a few decoded pictures each; four keep up with 4K and bound the memory. It
# decides speed and nothing else.
DECODE_THREADS = 4
# Formats whose header states how long the video lasts; elsewhere FFmpeg estimates it.
TIMED_FORMATS = ("mov", "matroska")

Slice = tuple[int, int | None]  # first frame, and the one after the last or None


class VideoSource:
    """Frames of anything PyAV reads.

    The first frame is decoded when the source is opened, so a file that cannot be read fails here,
    and ``size`` is the size that the frames really have.
    """

    def __init__(self, name: str, address: str, part: Slice, *, form: str | None = None) -> None:
        self.name = name
        self.problem: str | None = None
        self._part = part
        self._lock = threading.Lock()
        self._closed = False
        self._count = 0
        self._damaged = 0
        self._end_s = 0.0
        self._container = _open_container(name, address, form)
        try:
            self._start()
        except BaseException:
            self._container.close()
            raise

    def _start(self) -> None:
        if not self._container.streams.video:
            raise VideoError(
                f"video {self.name} was wanted, found a file without a video stream; "
                "pass one that has pictures"
            )
        self._stream: Any = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self._stream.codec_context.thread_count = DECODE_THREADS
        self.fps = _rate_of(self._stream)
        self._frames = self._number(self._decode())
        self._first = next(self._frames, None)
        if self._first is None:
            raise VideoError(
                f"video {self.name} was wanted, no frame of it could be decoded; "
                f"{self.problem or 'it holds no picture'}"
            )
        self.size = Size(*self._first.image.shape[:2])
        self.frame_count = self._promised_frames()

    def __iter__(self) -> Iterator[Frame]:
        start, stop = self._part
        delivered = False
        while (frame := self._next()) is not None:
            if frame.index >= start:
                delivered = True
                yield frame
            if stop is not None and frame.index >= stop - 1:
                return
        if not delivered and not self._closed:
            raise VideoError(
                f"frames from {start} were wanted, video {self.name} has {self._count}; "
                "start the range earlier"
            )

    def _next(self) -> Frame | None:
        # The lock keeps close() from freeing the demuxer under a thread that is decoding.
        with self._lock:
            if self._closed:
                return None
            if self._first is not None:
                frame, self._first = self._first, None
                return frame
            return next(self._frames, None)

    def _decode(self) -> Iterator[Any]:
        """Decoded pictures; broken packets are skipped and counted."""
        import av

        for packet in self._packets():
            # A cut-off packet in a frame-threaded decoder would cost the frames in flight.
            if packet is not None and packet.is_corrupt:
                self._damaged += 1
                continue
            try:
                pictures = self._stream.codec_context.decode(packet)
            except av.error.FFmpegError:
                self._damaged += 1
                continue
            last_s = 0.0 if packet is None else float(packet.duration or 0) * self._tick_s()
            for picture in pictures:
                self._end_s = (self._time_of(picture) or 0.0) + last_s
                yield picture

    def _packets(self) -> Iterator[Any]:
        """Packets of the stream; a read error sets ``problem`` and flushes the decoder (None)."""
        import av

        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as err:
                self.problem = f"{self.name}: the stream broke off ({_reason(err)})"
                packet = None
            if packet is None:
                break
            yield packet
        if self.problem is not None:
            yield None

    def _number(self, pictures: Iterator[Any]) -> Iterator[Frame]:
        """Upright RGB frames with index and timestamp; at the end, whether the stream was whole."""
        convert = rgb_converter()
        matrix: Matrix | None = None
        size: Size | None = None
        origin = timestamp = 0.0
        for index, picture in enumerate(pictures):
            time = self._time_of(picture)
            if size is None:
                size = Size(picture.height, picture.width)
                matrix = matrix_from_picture(picture)
                origin = time or 0.0
            elif size != (picture.height, picture.width):
                self.problem = (
                    f"{self.name}: pictures change from {size.width}x{size.height} to "
                    f"{picture.width}x{picture.height} at frame {index}; it was read up to there"
                )
                return
            elif time is None or time - origin <= timestamp:
                # Raw AVI and broken cameras repeat timestamps or have none: nominal rate.
                timestamp += 1.0 / self.fps
            else:
                timestamp = time - origin
            self._count = index + 1
            yield Frame(upright(convert(picture), matrix), index, timestamp)
        self._judge_end(origin)

    def _judge_end(self, origin: float) -> None:
        """Set ``problem`` when packets were damaged or the file ended before its header says."""
        promised = self._promised_s()
        if self.problem is not None:
            return
        shown = self._end_s - origin
        if promised is not None and shown < promised - 0.5 - 3.0 / self.fps:
            self.problem = (
                f"{self.name}: the file is cut off, {self._count} frames "
                f"({shown:.1f} of {promised:.1f} s) could be decoded"
            )
        elif self._damaged:
            self.problem = (
                f"{self.name}: {self._damaged} damaged packet(s) were skipped, "
                f"{self._count} frames could be decoded"
            )

    def _promised_s(self) -> float | None:
        """Seconds the header promises for the video stream, where it says so reliably."""
        container, stream = self._container, self._stream
        if not container.format.name.startswith(TIMED_FORMATS) or not container.duration:
            return None
        whole = float(container.duration) / 1e6
        if stream.duration:
            # The smaller one: edit lists shorten what is shown, sound lengthens the container.
            return min(whole, float(stream.duration) * self._tick_s())
        match = re.match(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
        if match:
            return min(whole, int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]))
        return whole if len(container.streams) == 1 else None

    def _promised_frames(self) -> int | None:
        seconds = self._promised_s()
        count = int(self._stream.frames) or (seconds and max(1, round(seconds * self.fps)))
        start, stop = self._part
        if not count:
            return None if stop is None else stop - start
        return max(0, min(count, stop or count) - start)

    def _tick_s(self) -> float:
        return float(self._stream.time_base)

    def _time_of(self, picture: Any) -> float | None:
        return None if picture.pts is None else float(picture.pts * self._stream.time_base)

    def close(self) -> None:
        """Free the demuxer, or leave it to the end of the process if a thread is stuck reading."""
        if self._lock.acquire(timeout=0.0 if self._closed else 1.0):
            try:
                self._closed = True
                self._container.close()
            finally:
                self._lock.release()
        self._closed = True

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _open_container(name: str, address: str, form: str | None) -> Any:
    av = import_av()
    options = {"rtsp_transport": "tcp"} if address.startswith("rtsp") else {}
    # A server that falls silent has gone; a pipe or a camera may take its time.
    timeout = STREAM_TIMEOUT_S if "://" in address else None
    try:
        return av.open(address, format=form, options=options, timeout=timeout)
    except (av.error.FFmpegError, OSError, ValueError) as err:
        raise VideoError(
            f"video {name} was wanted, it cannot be read ({_reason(err)}); {_advice(address)}"
        ) from err


def _advice(address: str) -> str:
    if address == "pipe:0":
        return (
            "stdin must carry a container (mkv, mpegts, nut, fragmented mp4, y4m): "
            "raw frames do not tell their size"
        )
    if not address.startswith("file:"):
        return "check the address and that the camera or server answers"
    try:
        with open(address.removeprefix("file:"), "rb") as file:
            is_mp4 = file.read(8)[4:] == b"ftyp"
    except OSError:
        return "check its permissions"
    if is_mp4:
        return "its index (moov) is missing: the recording or copy was cut off; copy it again"
    return "pass a video file such as .mp4, .mkv, .webm or .avi"


def _reason(err: BaseException) -> str:
    return str(getattr(err, "strerror", None) or err).splitlines()[0]


def _rate_of(stream: Any) -> float:
    """Mean frames per second; 30 where the container has no sensible answer."""
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    return rate if 0.1 <= rate <= 1000 else 30.0
