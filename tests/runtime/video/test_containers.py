"""Which stream is read, what is no video, and what may not open other files."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from mambapose.runtime.errors import VideoError
from mambapose.runtime.video.containers import FORMATS
from mambapose.runtime.video.sources import open_source

from .test_sources import (
    STDIN_READER,
    environment,
    number_of,
    numbered,
    read,
    write_video,
)

SMALL, LARGE = (64, 36), (128, 96)


def refusal(path: Path | str) -> str:
    with pytest.raises(VideoError) as caught:
        read(path)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def write_streams(path: Path, sizes: list[tuple[int, int]], default: int | None = None) -> Path:
    """A file with a video stream of each size; ``default``: which one is marked so."""
    with av.open(str(path), "w") as container:
        streams = []
        for size in sizes:
            stream = container.add_stream("libx264", rate=30)
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p"
            streams.append(stream)
        for number, stream in enumerate(streams):
            if default is not None:
                stream.disposition = 1 if number == default else 0
        for index in range(6):
            for stream in streams:
                image = numbered(index, (stream.width, stream.height))
                picture = av.VideoFrame.from_ndarray(image, format="rgb24")
                container.mux(stream.encode(picture.reformat(format="yuv420p")))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("sizes", [[SMALL, LARGE], [LARGE, SMALL], [SMALL, LARGE, SMALL]])
def test_the_largest_stream_is_read_and_named(tmp_path: Path, sizes) -> None:
    path = write_streams(tmp_path / "a.mkv", sizes)
    with open_source(str(path)) as source:
        assert source.size == LARGE[::-1]
        assert source.notes == [
            f"{len(sizes)} video streams ({', '.join(f'{w}x{h}' for w, h in sizes)}): "
            f"stream {sizes.index(LARGE) + 1} is read, of 128x96"
        ]
        assert [number_of(frame.image) for frame in source] == list(range(6))


@pytest.mark.skipif(
    not hasattr(av.video.stream.VideoStream, "disposition"), reason="this PyAV cannot mark streams"
)
@pytest.mark.parametrize("default", [0, 1])
def test_the_stream_marked_as_default_is_read(tmp_path: Path, default: int) -> None:
    path = write_streams(tmp_path / "a.mkv", [LARGE, SMALL], default)
    with open_source(str(path)) as source:
        assert source.size == (LARGE, SMALL)[default][::-1]
        assert f"stream {default + 1} is read" in source.notes[0]


def test_one_stream_is_not_worth_a_note(tmp_path: Path) -> None:
    with open_source(str(write_streams(tmp_path / "a.mkv", [LARGE]))) as source:
        assert source.notes == []


def id3_with_cover(picture: bytes) -> bytes:
    """The tag of an MP3 that holds a cover picture."""

    def sevens(number: int) -> bytes:
        return bytes(number >> shift & 127 for shift in (21, 14, 7, 0))

    body = b"\0image/png\0\x03\0" + picture
    frame = b"APIC" + sevens(len(body)) + b"\0\0" + body
    return b"ID3\x04\0\0" + sevens(len(frame)) + frame


def test_music_with_a_cover_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libmp3lame", rate=44100)
        for number in range(20):
            samples = np.zeros((1, 1152), np.float32)
            sound = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
            sound.sample_rate, sound.pts = 44100, 1152 * number
            container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    file = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(file, "PNG")
    path.write_bytes(id3_with_cover(file.getvalue()) + path.read_bytes())
    assert len(av.open(str(path)).streams.video) == 1
    assert "without a video stream" in refusal(path)


@pytest.mark.skipif(
    not hasattr(av.video.stream.VideoStream, "disposition"), reason="this PyAV cannot mark streams"
)
def test_a_cover_larger_than_the_film_is_not_the_film(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        film = container.add_stream("libx264", rate=30)
        film.width, film.height, film.pix_fmt = *SMALL, "yuv420p"
        cover = container.add_stream("png", rate=30)
        cover.width, cover.height, cover.pix_fmt = *LARGE, "rgb24"
        cover.disposition = 0x0400
        image = av.VideoFrame.from_ndarray(numbered(9, LARGE), format="rgb24")
        container.mux([*cover.encode(image), *cover.encode(None)])
        for index in range(4):
            image = av.VideoFrame.from_ndarray(numbered(index, SMALL), format="rgb24")
            container.mux(film.encode(image.reformat(format="yuv420p")))
        container.mux(film.encode(None))
    with open_source(str(path)) as source:
        assert source.size == SMALL[::-1]
        assert source.notes == []
        assert len(list(source)) == 4


def test_a_still_picture_of_several_parts_is_refused(tmp_path: Path) -> None:
    """HEIC: each tile is a stream, and a thumbnail is another."""
    path = write_streams(tmp_path / "a.mp4", [LARGE, SMALL])
    data = path.read_bytes()
    assert data[4:12] == b"ftypisom"
    path.write_bytes(data[:8] + b"heic" + data[12:])
    assert "HEIC" in refusal(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv"])
def test_an_unknown_codec_is_one_line(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, count=3)
    known = b"V_MPEG4/ISO/AVC" if name == "a.mkv" else b"avc1"
    data = path.read_bytes()
    assert known in data
    path.write_bytes(data.replace(known, b"x" * len(known)))
    assert "codec" in refusal(path)


@pytest.mark.parametrize("name", ["a.avi", "a.mkv", "a.mp4"])
def test_a_title_that_is_not_utf8_does_not_matter(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "Grandma TITLE"
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = *SMALL, "yuv420p"
        image = av.VideoFrame.from_ndarray(numbered(1, SMALL), format="rgb24")
        container.mux([*stream.encode(image.reformat(format="yuv420p")), *stream.encode(None)])
    data = path.read_bytes()
    assert b"TITLE" in data
    path.write_bytes(data.replace(b"TITLE", b"\xfcTL\xe4\xff"))
    with open_source(str(path)) as source:
        assert len(list(source)) == 1
        assert source.problem is None


LISTS = {
    "a list of files for FFmpeg": "ffconcat version 1.0\nfile {0}\n",
    "an HLS playlist": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{0}\n#EXT-X-ENDLIST\n",
    "a session description": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=video 9 RTP/AVP 96\n",
    "a DASH manifest": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011">'
    "<Period><BaseURL>{0}</BaseURL></Period></MPD>",
}


@pytest.mark.parametrize("suffix", ["mp4", "m3u8", "sdp", "ffconcat", "mpd", "ts"])
@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_other_files_is_refused_and_opens_none(
    tmp_path: Path, kind: str, suffix: str
) -> None:
    neighbour = tmp_path / "neighbour.ts"
    path = tmp_path / f"list.{suffix}"
    path.write_text(LISTS[kind].format(neighbour.name))
    os.mkfifo(neighbour)  # who opens it waits, and may be seen to

    opened = threading.Event()

    def watch() -> None:
        with neighbour.open("wb"):
            opened.set()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    message = refusal(path)
    assert kind in message
    assert "pass a video itself" in message
    assert not opened.is_set()
    with neighbour.open("rb"):  # lets the watcher go
        watcher.join(5)


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path: Path) -> None:
    """FFmpeg would take %03d for the numbers of a series of pictures."""
    write_video(tmp_path / "a1.mp4", count=2)
    write_video(tmp_path / "plain.gif", count=3, codec="gif", pix_fmt="rgb8")
    (tmp_path / "plain.gif").rename(tmp_path / "a%03d.gif")
    write_video(tmp_path / "a001.gif", count=2, codec="gif", pix_fmt="rgb8")
    assert len(read(tmp_path / "a%03d.gif")) == 3


def test_formats_that_open_other_files_are_on_no_list() -> None:
    for name in ("concat", "hls", "dash", "image2", "sdp", "rtsp", "lavfi", "imf", "vobsub"):
        assert name not in FORMATS


@pytest.mark.parametrize("kind", ["pipe", "device", "socket name"])
def test_only_regular_files_are_videos(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.mp4"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to("/dev/null")
    message = refusal(path)
    assert "stdin" in message
    assert "a named pipe" in message or "a device" in message


def test_damaged_pictures_are_counted_and_marked(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", count=40, noise=True, size=(160, 120))
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    for at in range(start + len(data) // 5, start + len(data) // 2, 701):
        data[at] ^= 0x55
    path.write_bytes(data)
    with open_source(str(path)) as source:
        frames = list(source)
        marked = [frame.index for frame in frames if frame.corrupt]
        assert source.corrupt_frames == len(marked) > 0
    assert len(marked) < len(frames)
    assert not frames[0].corrupt


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (20, 20), (2, 90), (90, 1)])
def test_tiny_videos(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write_video(tmp_path / "a.mkv", count=2, codec="ffv1", size=size, pix_fmt="gray")
    assert [frame.image.shape for frame in read(path)] == [(*size[::-1], 3)] * 2


def test_pictures_above_the_limit_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", count=2)
    with pytest.raises(VideoError, match=r"96x64.*--max-pixels"):
        open_source(str(path), max_pixels=96 * 64 - 1)
    with open_source(str(path), max_pixels=96 * 64) as source:
        assert len(list(source)) == 2


def test_a_picture_on_stdin_has_the_limit_too(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(30001))), (b"IEND", b"")):
        data += (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )
    done = subprocess.run(
        [sys.executable, "-c", STDIN_READER],
        input=data,
        capture_output=True,
        timeout=60,
        check=True,
        env=environment(),
    )
    assert "30000x30000" in done.stdout.decode()
    assert "--max-pixels" in done.stdout.decode()


def test_a_range_in_seconds(tmp_path: Path) -> None:
    ticks = [0, 400, 900, 1000, 1500, 2500]
    path = write_video(tmp_path / "a.mkv", count=6, ticks=ticks)
    with open_source(str(path), frame_range="0.4s:1.5s") as source:
        assert [frame.index for frame in source] == [1, 2, 3]
    with open_source(str(path), frame_range="1s:") as source:
        assert [frame.index for frame in source] == [3, 4, 5]
    with pytest.raises(VideoError, match="from 9 s on were wanted"):
        read(path, frame_range="9s:")
    for number in range(12):
        Image.fromarray(numbered(number, (20, 10))).save(tmp_path / f"{number}.png")
    with open_source(str(tmp_path), frame_range="0.1s:0.2s") as source:
        assert source.frame_count == 3
        assert [frame.index for frame in source] == [3, 4, 5]


@pytest.mark.parametrize("text", ["2s:90", "90:2s", "s:", "2m:", "2s", "1.5:3", ":s", "2s:2s"])
def test_ranges_that_mix_or_mean_nothing(text: str) -> None:
    with pytest.raises(VideoError, match="range"):
        open_source("none.mp4", frame_range=text)
