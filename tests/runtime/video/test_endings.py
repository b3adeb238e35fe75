"""Whole files are never called cut off, cut ones always where their container lets one know."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from mambapose.runtime.errors import VideoError
from mambapose.runtime.video.endings import missing_end
from mambapose.runtime.video.sources import open_source

from .test_sources import STDIN_READER, environment

SIZE, COUNT = (64, 48), 48
REGULAR = [round(k * 1000 / 30) for k in range(COUNT)]


@dataclass(frozen=True)
class Kind:
    """A container: encoder, pixel format, format and options of FFmpeg, encoder of sound.

    variable: it keeps a time for each picture.
    """

    codec: str
    form: str
    pix_fmt: str = "yuv420p"
    options: tuple[tuple[str, str], ...] = ()
    sound: str | None = None
    variable: bool = True
    rate: int = 30


KINDS = {
    "end.mp4": Kind("libx264", "mp4", sound="aac"),
    "front.mp4": Kind("libx264", "mp4", options=(("movflags", "faststart"),), sound="aac"),
    "fragments.mp4": Kind(
        "libx264", "mp4", options=(("movflags", "frag_keyframe+empty_moov"),), sound="aac"
    ),
    "a.mov": Kind("mjpeg", "mov", "yuvj420p", sound="pcm_s16le"),
    "a.mkv": Kind("libx264", "matroska", sound="aac"),
    "a.webm": Kind("libvpx", "webm", sound="libopus"),
    "a.avi": Kind("mpeg4", "avi", sound="pcm_s16le", variable=False),
    "a.ts": Kind("libx264", "mpegts", sound="aac"),
    "a.flv": Kind("flv", "flv"),
    "a.gif": Kind("gif", "gif", "rgb8", variable=False),
    "a.wmv": Kind("wmv2", "asf"),
    "a.mpg": Kind("mpeg1video", "mpeg", variable=False, rate=25),
    "a.mxf": Kind("mpeg2video", "mxf", "yuv422p", variable=False, rate=25),
    "a.ivf": Kind("libvpx", "ivf"),
    "a.y4m": Kind("wrapped_avframe", "yuv4mpegpipe", variable=False),
    "a.mjpeg": Kind("mjpeg", "mjpeg", "yuvj420p"),
}
# Of those that can be written into a pipe: then no length is filled in afterwards.
PIPES = ("fragments.mp4", "a.mkv", "a.webm", "a.avi", "a.ts", "a.flv", "a.gif", "a.wmv", "a.ivf",
         "a.y4m", "a.mjpeg")  # fmt: skip


class Pipe:
    """A file that cannot be sought in."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")

    def write(self, data: bytes) -> int:
        return self.file.write(data)


def write(
    path: Path,
    kind: Kind,
    ticks: list[int] = REGULAR,
    last_ms: int = 33,
    sound_s: float = 0.0,
    *,
    pipe: bool = False,
    options_of_stream: dict[str, str] | None = None,
) -> int:
    """Write pictures at ``ticks`` (ms), the last one shown for ``last_ms``; returns how many."""
    out: Any = Pipe(path) if pipe else str(path)
    with av.open(out, "w", format=kind.form, options=dict(kind.options)) as container:
        stream = container.add_stream(kind.codec, rate=kind.rate, options=options_of_stream or {})
        stream.width, stream.height, stream.pix_fmt = *SIZE, kind.pix_fmt
        stream.bit_rate = 400_000
        if kind.variable:
            stream.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream(kind.sound, rate=48000) if sound_s and kind.sound else None
        packets = [*pictures(stream, kind, ticks)]
        if kind.variable:
            lengthen(packets, last_ms)
        if sound is not None:
            packets += silence(sound, sound_s)
        packets.sort(key=lambda packet: packet.dts * packet.time_base)
        for packet in packets:
            container.mux(packet)
    if pipe:
        out.file.close()
    return len(ticks)


def pictures(stream: Any, kind: Kind, ticks: list[int]) -> Iterator[Any]:
    rng = np.random.default_rng(0)
    for index, tick in enumerate(ticks):
        image = np.full((SIZE[1], SIZE[0], 3), 20 * (index % 12), np.uint8)
        image[index % 20 : index % 20 + 20, 10:40] = rng.integers(0, 255, (20, 30, 3))
        picture = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=kind.pix_fmt)
        if kind.variable:
            picture.pts, picture.time_base = tick, Fraction(1, 1000)
        yield from stream.encode(picture)
    yield from stream.encode(None)


def lengthen(packets: list[Any], last_ms: int) -> None:
    """Give each packet the time to the next, and the last one ``last_ms``."""
    if int(av.__version__.split(".")[0]) < 14:
        return  # durations cannot be set there
    order = sorted(packet.pts for packet in packets)
    for packet in packets:
        place = order.index(packet.pts)
        held = int(Fraction(last_ms, 1000) / packet.time_base)
        packet.duration = order[place + 1] - packet.pts if place + 1 < len(order) else held


def silence(stream: Any, seconds: float) -> Iterator[Any]:
    form = "fltp" if stream.codec_context.name == "aac" else "s16"
    samples = np.zeros((1, int(48000 * seconds)), np.float32 if form == "fltp" else np.int16)
    frame = av.AudioFrame.from_ndarray(samples, form, "mono")
    frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
    yield from stream.encode(frame)
    yield from stream.encode(None)


WHOLE: dict[str, dict[str, Any]] = {
    "plain": {},
    "last picture held for 1 s": {"last_ms": 1000},
    "last picture held for 4 s": {"last_ms": 4000},
    "picture starts after its sound": {"ticks": [2000 + t for t in REGULAR], "sound_s": 4.0},
    "late start without sound": {"ticks": [5000 + t for t in REGULAR]},
    "variable rate": {
        "ticks": [0, 10, 100, 600, 601, 1500, *range(1600, 3000, 50)],
        "last_ms": 900,
    },
    "a gap of 5 s": {"ticks": [*REGULAR[:20], *(5000 + t for t in REGULAR[:20])]},
    "sound longer than the picture": {"sound_s": 5.0},
    "sound shorter than the picture": {"sound_s": 0.5},
}


@pytest.mark.parametrize("name", KINDS)
def test_whole_files_have_no_problem(tmp_path: Path, name: str) -> None:
    for case, options in WHOLE.items():
        path = tmp_path / name
        count = write(path, KINDS[name], **options)
        with open_source(str(path)) as source:
            assert len(list(source)) == count, case
            assert source.problem is None, case
            assert source.corrupt_frames == 0, case


@pytest.mark.parametrize("name", PIPES)
def test_files_without_lengths_have_no_problem(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    count = write(path, KINDS[name], pipe=True)
    with open_source(str(path)) as source:
        assert source.frame_count is None or source.frame_count <= 2 * count
        assert len(list(source)) == count
        assert source.problem is None


def verdict(path: Path) -> tuple[int, str | None]:
    """How many frames came, and what was wrong; -1 when it was refused."""
    try:
        with open_source(str(path)) as source:
            return len(list(source)), source.problem
    except VideoError as err:
        return -1, str(err)


@pytest.mark.parametrize("sound_s", [0.0, 3.0])
@pytest.mark.parametrize("name", KINDS)
def test_files_cut_short_are_named(tmp_path: Path, name: str, sound_s: float) -> None:
    path = tmp_path / name
    count = write(path, KINDS[name], sound_s=sound_s)
    data = path.read_bytes()
    for percent in (30, 60, 95, 99):
        path.write_bytes(data[: len(data) * percent // 100])
        found, problem = verdict(path)
        # Where only an index, a tail or sound is lost, every picture is there.
        assert problem is not None or found == count, percent
        if percent <= 60 and name != "a.mpg":
            assert problem is not None
            assert "cut off" in problem or found < 0


def test_a_file_that_lost_nothing_but_sound_has_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "front.mp4"
    count = write(path, KINDS["front.mp4"], sound_s=6.0)
    path.write_bytes(path.read_bytes()[:-40])
    assert missing_end(path, "mov") is not None
    assert verdict(path) == (count, None)


@pytest.mark.parametrize("name", [name for name in PIPES if name != "a.wmv"])
def test_cut_files_without_lengths_are_named_by_their_last_part(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write(path, KINDS[name], pipe=True)
    data = path.read_bytes()
    for percent in (30, 60, 95):
        cut = len(data) * percent // 100
        path.write_bytes(data[: cut + (cut % 188 == 0)])
        _, problem = verdict(path)
        assert problem is not None, percent


def test_what_is_behind_a_whole_file_is_no_cut(tmp_path: Path) -> None:
    """Cameras and tools append boxes of their own, padding and signatures."""
    for name, kind in KINDS.items():
        path = tmp_path / name
        count = write(path, kind)
        whole = path.read_bytes()
        for tail in (bytes(3), bytes(512), b"TAIL of a maker" * 9, b"\x7f\xff\xff\xffmine1234"):
            path.write_bytes(whole + tail)
            assert missing_end(path, kind.form if kind.form != "mp4" else "mov") is None, name
            if kind.form in ("mp4", "mov", "matroska", "webm", "gif"):
                assert verdict(path) == (count, None), (name, tail)


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_a_recording_that_starts_in_mid_stream_has_no_problem(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.ts"
    kind = Kind(codec, "mpegts", variable=False)
    count = write(path, kind, options_of_stream={"g": "12", "keyint_min": "12"})
    data, said = path.read_bytes(), 0
    for packets in (5, len(data) // 188 // 3, len(data) // 188 // 2):
        path.write_bytes(data[188 * packets :])
        with open_source(str(path)) as source:
            assert 12 < len(list(source)) <= count
            assert source.problem is None
            assert all("mid-stream" in note for note in source.notes)
            said += len(source.notes)
    assert said


def test_damage_before_the_first_key_frame_of_a_recording_is_no_problem(tmp_path: Path) -> None:
    """Longer than FFmpeg probes: the decoder learns of its parameters on the way."""
    path = tmp_path / "a.ts"
    kind = Kind("libx264", "mpegts", variable=False)
    write(path, kind, ticks=[0] * 400, options_of_stream={"g": "300", "sc_threshold": "0"})
    data = path.read_bytes()
    path.write_bytes(data[188 * 40 :])
    with open_source(str(path)) as source:
        assert len(list(source)) == 100
        assert source.problem is None
        assert "mid-stream" in source.notes[0]


@pytest.mark.parametrize("form", ["mov", "matroska", "avi", "mpegts", "flv", "ogg", "gif", "asf",
                                  "mxf", "ivf", "mjpeg", "yuv4mpegpipe"])  # fmt: skip
def test_nonsense_says_nothing_and_raises_nothing(tmp_path: Path, form: str) -> None:
    path, rng = tmp_path / "a", np.random.default_rng(0)
    starts = (b"", b"YUV4MPEG2 W-5 H0 C420\nFRAME\n", b"YUV4MPEG2 \n", b"GIF89a", b"FLV\1\1",
              b"DKIF", b"RIFF\0\0\0\0AVI ", b"\x1a\x45\xdf\xa3", b"OggS\0", b"\0\0\0\1moov",
              )  # fmt: skip
    for start in starts:
        for count in (0, 1, 7, 12, 40, 300):
            path.write_bytes(start + rng.bytes(count))
            assert isinstance(missing_end(path, form), str | None)


def test_an_unknown_container_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    write(path, KINDS["a.mkv"])
    path.write_bytes(path.read_bytes()[:5000])
    assert missing_end(path, "matroska,webm") is not None
    assert missing_end(path, "nut") is None
    assert missing_end(tmp_path / "none", "matroska,webm") is None


def test_a_file_of_nothing_but_empty_parts_is_not_walked_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(
        b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff"
        + b"\xec\x80" * 10**6
    )
    assert missing_end(path, "matroska,webm") is None
    path.write_bytes(b"\0\0\0\x08free" * 10**6 + b"\0\0\1\0mdat")
    assert missing_end(path, "mov") is None


@pytest.mark.parametrize(
    ("name", "options", "cut", "named"),
    [
        ("a.mkv", {"last_ms": 4000}, 1.0, False),
        ("fragments.mp4", {"last_ms": 4000}, 1.0, False),
        ("a.mkv", {"ticks": [2000 + t for t in REGULAR], "sound_s": 4.0}, 1.0, False),
        ("a.ts", {}, 1.0, False),
        ("a.mkv", {}, 0.4, True),
        ("fragments.mp4", {}, 0.5, True),
    ],
)
def test_verdicts_on_a_pipe(
    tmp_path: Path, name: str, options: dict[str, Any], cut: float, named: bool
) -> None:
    path = tmp_path / name
    write(path, KINDS[name], **options)
    data = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", STDIN_READER + "\nprint(source.problem, source.frame_count)\n"],
        input=data[: int(cut * len(data))],
        capture_output=True,
        timeout=60,
        check=True,
        env=environment(),
    )
    last = done.stdout.decode().splitlines()[-1]
    assert last.endswith(" None")
    assert (last != "None None") == named
