"""Frames of whatever PyAV reads: video files, cameras, network streams, a container on stdin."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mambapose.runtime.errors import VideoError
from mambapose.runtime.types import Frame, Size
from mambapose.runtime.video.containers import advice, open_container, video_stream
from mambapose.runtime.video.edges import is_edge_error, masked, reason_of, video_errors
from mambapose.runtime.video.endings import missing_end
from mambapose.runtime.video.headers import ORIENTATIONS, Matrix, picture_facts
from mambapose.runtime.video.images import stretch_note
from mambapose.runtime.video.part import Part
from mambapose.runtime.video.pictures import (
    ASPECTS,
    MAX_PIXELS,
    check_pixels,
    decoder_limit,
    is_turned,
    matrix_from_picture,
    rgb_converter,
    square_size,
    squared,
)

# Frame threads hold a few decoded pictures each; four keep up with 4K and bound the memory. Larger
# pictures are decoded by threads that share one. Both decide speed and memory, nothing else.
DECODE_THREADS = 4
FRAME_THREAD_PIXELS = 4096 * 2304
# Formats whose header states how long the video lasts; elsewhere FFmpeg estimates it.
TIMED_FORMATS = ("mov", "matroska")
# Formats without a beginning: a recording of them starts between two key frames.
MID_STREAM = ("mpeg", "rtsp", "rtp", "sdp", "h264", "hevc")
STILL_CODECS = ("mjpeg", "png")  # of which each packet is a file with a header of its own


class VideoSource:
    """Frames of anything PyAV reads.

    The first frame is decoded when the source is opened, so a file that cannot be read fails here,
    and ``size`` is the size that the frames really have.
    """

    def __init__(
        self,
        name: str,
        address: str,
        part: Part,
        *,
        form: str | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.name = masked(name)
        self.problem: str | None = None
        self.notes: list[str] = []
        self.corrupt_frames = 0
        self._address = address
        self._part = part
        self._max_pixels = max_pixels
        self._lock = threading.Lock()
        self._closed = self._read = False
        self._count = 0
        self._damaged = self._before = 0
        self._keyed = False
        self._packets_read = 0
        self._last_pts = -1
        self._end_s: float | None = None
        self._container = open_container(self.name, address, form, max_pixels)
        try:
            self._start()
        except BaseException:
            self._container.close()
            raise

    def _start(self) -> None:
        with self._edge("it cannot be read"):
            self._stream, several = video_stream(self.name, self._address, self._container)
            context = self._stream.codec_context
            if several is not None:
                self.notes.append(several)
            size = Size(context.height or 0, context.width or 0)
            check_pixels(f"video {self.name}", size, self._max_pixels)
            many = size.height * size.width > FRAME_THREAD_PIXELS
            self._stream.thread_type = "SLICE" if many else "AUTO"
            context.thread_count = DECODE_THREADS
            context.options = {"max_pixels": decoder_limit(self._max_pixels)}
            self.fps = _rate_of(self._stream)
            coded = context.sample_aspect_ratio
            self._coded_aspect = float(coded or 1)
            self._next_aspect = float(self._stream.sample_aspect_ratio or coded or 1)
            self._convert = rgb_converter()
        self._frames = self._number(self._decode())
        self._first = next(self._frames, None)
        if self._first is None:
            raise VideoError(
                f"video {self.name} was wanted, no frame of it could be decoded "
                f"({self.problem or 'it holds no picture'}); {advice(self._address)}"
            )
        with self._edge("it cannot be read"):
            self.frame_count = self._promised_frames()

    def _edge(self, what: str) -> Any:
        """Whatever FFmpeg raises in the block becomes a VideoError."""
        return video_errors(
            f"video {self.name} was wanted, {what}", "it is damaged or of a kind that is not read"
        )

    def __iter__(self) -> Iterator[Frame]:
        if self._read and not self._closed:
            raise VideoError(f"video {self.name} has been read; open it again to read it again")
        self._read = True
        part, delivered, last_s = self._part, False, 0.0
        while (frame := self._next()) is not None:
            index, last_s = frame.index, frame.timestamp
            if part.ends_before(index, last_s):
                break
            if part.begins_by(index, last_s):
                delivered = True
                self.corrupt_frames += frame.corrupt
                yield frame
            del frame
            if part.is_last(index):
                return
        if not delivered and not self._closed:
            raise VideoError(
                f"{part} were wanted, video {self.name} has {self._count}, the last one at "
                f"{last_s:.2f} s; start the range earlier"
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

    def _decode(self) -> Iterator[tuple[Any, Matrix | None]]:
        """Decoded pictures, and the turn that their packet asks for; broken packets are counted."""
        context = self._stream.codec_context
        for packet in self._packets():
            # A cut-off packet in a frame-threaded decoder would cost the frames in flight.
            if packet is not None and packet.is_corrupt:
                self._count_damage()
                continue
            turn = None if packet is None or self._count else self._turn_of(packet)
            try:
                pictures = context.decode(packet)
                aspect = context.sample_aspect_ratio
            except Exception as err:
                if not is_edge_error(err):
                    raise
                self._count_damage()
                continue
            # What the container gives stands above what the pictures say, until they say another.
            if (coded := float(aspect or 1)) != self._coded_aspect:
                self._coded_aspect = self._next_aspect = coded
            for picture in pictures:
                yield picture, turn

    def _turn_of(self, packet: Any) -> Matrix | None:
        """The turn that the first packet asks for, where it is a picture file of its own."""
        known = self._stream.codec_context.name in STILL_CODECS
        facts = picture_facts(bytes(packet)) if known else None
        if facts is not None and facts.size is not None:
            check_pixels(f"video {self.name}", facts.size, self._max_pixels)
        # Upright in itself, it may still be turned by its container.
        return None if facts is None or facts.matrix == ORIENTATIONS[1] else facts.matrix

    def _count_damage(self) -> None:
        """A packet cannot be decoded: damage, or the rest of a picture that began before."""
        if self._count or not self._container.format.name.startswith(MID_STREAM):
            self._damaged += 1

    def _packets(self) -> Iterator[Any]:
        """Packets of the stream, then None to flush; a read error sets ``problem``."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except Exception as err:
                if not is_edge_error(err):
                    raise
                self.problem = f"{self.name}: the stream broke off ({reason_of(err)})"
                packet = None
            if packet is None:
                break
            # Empty ones end every stream, and are what AVI has for a picture left out.
            if packet.size:
                self._packets_read += 1
                self._keyed = self._keyed or bool(packet.is_keyframe)
                self._before += not self._keyed
                self._note_end(packet)
                yield packet
        yield None

    def _note_end(self, packet: Any) -> None:
        """Until when the last picture is shown; None when its packet does not say it."""
        if packet.pts is not None and packet.pts > self._last_pts:
            self._last_pts = packet.pts
            end = (packet.pts + packet.duration) * self._tick_s() if packet.duration else None
            self._end_s = end

    def _number(self, pictures: Iterator[tuple[Any, Matrix | None]]) -> Iterator[Frame]:
        """Upright RGB frames with index and timestamp; at the end, whether the stream was whole."""
        first: tuple[Size, Matrix | None] | None = None
        origin = timestamp = 0.0
        aspect = self._next_aspect
        for index, (picture, turn) in enumerate(pictures):
            stored = Size(picture.height, picture.width)
            time = self._time_of(picture)
            # A decoder that reorders knows of a new shape some pictures before it shows it.
            if first is None:
                aspect = self._next_aspect
            elif picture.key_frame and aspect != self._next_aspect:
                aspect = self._next_aspect
                self.notes.append(
                    f"the shape of the pixels changes at frame {index}: from there pictures are "
                    "fitted into the first one's frame"
                )
            if first is None:
                with self._edge("its first picture cannot be shown"):
                    matrix = turn or matrix_from_picture(picture)
                self._open_shape(stored, aspect, matrix)
                first = stored, matrix
                origin = time or 0.0
            elif stored != first[0]:
                before = first[0]
                self.problem = (
                    f"{self.name}: pictures change from {before.width}x{before.height} to "
                    f"{stored.width}x{stored.height} at frame {index}; it was read up to there"
                )
                return
            elif time is None or time - origin <= timestamp:
                # Raw AVI and broken cameras repeat timestamps or have none: nominal rate.
                timestamp += 1.0 / self.fps
            else:
                timestamp = time - origin
            self._count = index + 1
            # No name holds a frame after it was given out: one of 8K takes 100 MB.
            yield self._frame(picture, index, timestamp, aspect, first[1])
        self._judge_end()

    def _frame(
        self, picture: Any, index: int, timestamp: float, aspect: float, matrix: Matrix | None
    ) -> Frame:
        with self._edge(f"frame {index} cannot be shown"):
            image, stretch = squared(self._convert, picture, aspect, matrix, self.size)
            return Frame(image, index, timestamp, bool(picture.is_corrupt), stretch)

    def _open_shape(self, stored: Size, aspect: float, matrix: Matrix | None) -> None:
        """Fix the size of all frames by the first picture, and say what is done to its pixels."""
        shown = square_size(stored, aspect)
        check_pixels(f"video {self.name}", shown, self._max_pixels)
        if self._before and self._container.format.name.startswith(MID_STREAM):
            self.notes.append(
                f"it starts in mid-stream, {self._before} packet(s) before a key frame: their "
                "pictures are missing or incomplete"
            )
        if is_turned(matrix):
            stored, shown = stored.turned, shown.turned
        self.stored_size, self.size = stored, shown
        if stored != shown:
            self.notes.append(stretch_note(stored, shown))
        elif not ASPECTS[0] <= aspect <= ASPECTS[1]:
            self.notes.append(
                f"its pixels are said to be {aspect:g} times as wide as high, which no camera has: "
                "they are taken for square"
            )

    def _judge_end(self) -> None:
        """Set ``problem`` when packets were damaged or the file ended before its header says."""
        if self.problem is not None:
            return
        missing = self._missing()
        if missing is not None:
            self.problem = (
                f"{self.name}: the file is cut off ({missing}), {self._count} frames could be "
                "decoded"
            )
        elif self._damaged:
            self.problem = (
                f"{self.name}: {self._damaged} damaged packet(s) were skipped, "
                f"{self._count} frames could be decoded"
            )

    def _missing(self) -> str | None:
        """What says that pictures are missing at the end, or None."""
        frames = int(self._stream.frames)
        if self._path is not None:
            form = self._container.format.name
            # All that the index of an MP4 promises was there: what is cut is sound.
            every = 0 < frames <= self._packets_read and not self._damaged
            return None if every and form.startswith("mov") else missing_end(self._path, form)
        promised = self._promised_s()
        if promised is None or self._end_s is None or self._end_s >= promised - 0.5 - 3 / self.fps:
            return None
        return f"its pictures last {self._end_s:.1f} of {promised:.1f} s"

    @property
    def _path(self) -> Path | None:
        """The file, None for a camera, a stream or a pipe."""
        prefix, _, rest = self._address.partition(":")
        return Path(rest) if prefix == "file" else None

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
        """How many frames to expect, None for a pipe or a stream: its header tells only a part."""
        count = 0
        if self._path is not None:
            seconds = self._promised_s()
            count = int(self._stream.frames) or (seconds and max(1, round(seconds * self.fps))) or 0
            # AVI and IVF that were written into a pipe promise what a field can hold.
            count = 0 if count > self._path.stat().st_size else count
        return self._part.expected(count, self.fps)

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


def _rate_of(stream: Any) -> float:
    """Mean frames per second; 30 where the container has no sensible answer."""
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    return rate if 0.1 <= rate <= 1000 else 30.0
