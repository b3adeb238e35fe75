"""Odd videos, made on the fly: every frame arrives upright, in order, with its true time."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mambapose.runtime.errors import VideoError
from mambapose.runtime.types import Frame
from mambapose.runtime.video.part import range_from_text
from mambapose.runtime.video.pictures import upright
from mambapose.runtime.video.prefetch import Prefetch
from mambapose.runtime.video.sources import open_source

UNIT = 65536


def numbered(index: int, size: tuple[int, int]) -> np.ndarray:
    """A picture that carries its number in the grey level and has a red top-left corner."""
    width, height = size
    image = np.full((height, width, 3), 40 + 4 * (index % 50), np.uint8)
    image[: height // 3, : width // 3] = (230, 30, 20)
    return image


def number_of(image: np.ndarray) -> int:
    return round((float(image[image.shape[0] // 2, image.shape[1] // 2].mean()) - 40) / 4)


def write_video(
    path: Path,
    count: int = 12,
    size: tuple[int, int] = (96, 64),
    codec: str = "libx264",
    rate: Fraction | int = 30,
    ticks: list[int] | None = None,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    noise: bool = False,
) -> Path:
    """A clip of numbered pictures; ticks: presentation times in 1/1000 s instead of the rate."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.bit_rate = 2_000_000
        if ticks is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(count):
            image = numbered(index, size)
            if noise:
                image = image + rng.integers(0, 30, image.shape, dtype=np.uint8)
            picture = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
            if ticks is not None:
                picture.pts, picture.time_base = ticks[index], Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def set_display_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write (a, b, c, d) into the track header of an MP4, as a phone held sideways does."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    assert struct.unpack(">9i", data[at : at + 36]) == (UNIT, 0, 0, 0, UNIT, 0, 0, 0, 1 << 30)
    a, b, c, d = (UNIT * value for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def read(path: Path | str, **options: str) -> list[Frame]:
    with open_source(str(path), **options) as source:
        return list(source)


@pytest.mark.parametrize(
    ("name", "codec", "size"),
    [
        ("h264.mp4", "libx264", (96, 64)),
        ("vp9.webm", "libvpx-vp9", (96, 64)),
        ("odd.mkv", "ffv1", (97, 63)),
        ("old.avi", "mpeg4", (96, 64)),
        ("motion.mov", "mjpeg", (96, 64)),
    ],
)
def test_codecs_and_odd_sizes(tmp_path: Path, name: str, codec: str, size: tuple[int, int]) -> None:
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_video(tmp_path / name, codec=codec, size=size, pix_fmt=pix_fmt)
    with open_source(str(path)) as source:
        assert source.size == (size[1], size[0])
        assert source.fps == pytest.approx(30, rel=0.01)
        assert source.frame_count == 12
        frames = list(source)
        assert source.problem is None
    assert [frame.index for frame in frames] == list(range(12))
    assert [number_of(frame.image) for frame in frames] == list(range(12))
    np.testing.assert_allclose([f.timestamp for f in frames], np.arange(12) / 30, atol=1e-3)
    for frame in frames:
        assert frame.image.shape == (size[1], size[0], 3)
        assert frame.image.dtype == np.uint8
        assert frame.image.flags.c_contiguous
        assert frame.image[4, 4, 0] > 180 > 90 > frame.image[4, 4, 1]


def test_one_frame(tmp_path: Path) -> None:
    frames = read(write_video(tmp_path / "one.mp4", count=1))
    assert [(f.index, f.timestamp) for f in frames] == [(0, 0.0)]


def test_grey_video(tmp_path: Path) -> None:
    frames = read(write_video(tmp_path / "grey.mkv", codec="ffv1", pix_fmt="gray"))
    assert frames[3].image.shape == (64, 96, 3)
    assert np.ptp(frames[3].image, axis=2).max() == 0
    assert number_of(frames[3].image) == 3


def test_variable_frame_rate_keeps_true_times(tmp_path: Path) -> None:
    ticks = [500, 510, 600, 1100, 1101, 3000]
    frames = read(write_video(tmp_path / "vfr.mkv", count=6, ticks=ticks))
    want = (np.array(ticks) - 500) / 1000
    np.testing.assert_allclose([f.timestamp for f in frames], want, atol=1e-6)


def test_ntsc_rate_is_exact(tmp_path: Path) -> None:
    path = write_video(tmp_path / "ntsc.mp4", rate=Fraction(30000, 1001))
    with open_source(str(path)) as source:
        assert source.fps == pytest.approx(30000 / 1001, abs=1e-9)
        assert [f.timestamp for f in source] == pytest.approx(
            [index * 1001 / 30000 for index in range(12)], abs=1e-9
        )


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, -1, 1, 0), lambda image: np.rot90(image, 1)),
        ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
        ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
    ],
)
def test_display_matrix_turns_frames_upright(tmp_path: Path, matrix, turn) -> None:
    path = write_video(tmp_path / "turned.mp4", count=3)
    plain = read(path)[0].image
    set_display_matrix(path, matrix)
    with open_source(str(path)) as source:
        size = source.size
        frames = list(source)
    for frame in frames:
        assert frame.image.shape[:2] == size
        assert frame.image.flags.c_contiguous
    np.testing.assert_array_equal(frames[0].image, turn(plain))


def test_upright_follows_the_matrix_point_by_point() -> None:
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    for a, b, c, d in [(1, 0, 0, 1), (0, 1, -1, 0), (0, -1, 1, 0), (-1, 0, 0, 1), (0, -1, -1, 0)]:
        shown = upright(image, (a, b, c, d))
        points = [(a * x + c * y, b * x + d * y) for y in range(2) for x in range(3)]
        left, top = min(p[0] for p in points), min(p[1] for p in points)
        for (x, y), point in zip([(x, y) for y in range(2) for x in range(3)], points, strict=True):
            np.testing.assert_array_equal(shown[point[1] - top, point[0] - left], image[y, x])


@pytest.mark.parametrize("matrix_number", [1, 5, 9])
@pytest.mark.parametrize("value_range", [1, 2])
def test_colours_follow_the_streams_matrix_and_range(
    tmp_path: Path, matrix_number: int, value_range: int
) -> None:
    red, blue = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}[matrix_number]
    path = tmp_path / "colour.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv444p"
        stream.codec_context.colorspace = matrix_number
        stream.codec_context.color_range = value_range
        picture = av.VideoFrame(32, 32, "yuv444p")
        for plane, value in zip(picture.planes, (120, 100, 160), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        picture.pts = 0
        container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    luma, chroma, black = (1 / 219, 1 / 224, 16) if value_range == 1 else (1 / 255, 1 / 255, 0)
    y, u, v = (120 - black) * luma, (100 - 128) * chroma, (160 - 128) * chroma
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    g = (y - red * r - blue * b) / (1 - red - blue)
    got = read(path)[0].image[16, 16].astype(float)
    # PyAV before 14 has no BT.2020 matrix; BT.709 is the nearest it offers.
    bound = 5 if int(av.__version__.split(".")[0]) < 14 and matrix_number == 9 else 2
    np.testing.assert_allclose(got, 255 * np.array([r, g, b]), atol=bound)


@pytest.mark.parametrize(
    ("text", "indices"),
    [("2:5", [2, 3, 4]), (":3", [0, 1, 2]), ("9:", [9, 10, 11]), ("10:99", [10, 11])],
)
def test_range_names_frames_of_the_file(tmp_path: Path, text: str, indices: list[int]) -> None:
    path = write_video(tmp_path / "clip.mp4")
    with open_source(str(path), frame_range=text) as source:
        assert source.frame_count == len(indices)
        frames = list(source)
        assert source.problem is None
    assert [frame.index for frame in frames] == indices
    assert [number_of(frame.image) for frame in frames] == indices
    assert frames[0].timestamp == pytest.approx(indices[0] / 30)


@pytest.mark.parametrize("text", ["", "5", "-3:", "a:b", "5:5", "7:2", "1:2:3"])
def test_range_that_makes_no_sense(text: str) -> None:
    with pytest.raises(VideoError, match="range"):
        range_from_text(text)


def test_range_beyond_the_end(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4")
    with pytest.raises(VideoError, match=r"frames from 50 were wanted, .* has 12"):
        read(path, frame_range="50:")


def truncated(path: Path, fraction: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("front.mp4", "libx264", {"movflags": "faststart"}),
        ("fragments.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
        ("clip.mkv", "libx264", {}),
        ("clip.webm", "libvpx", {}),
        ("clip.avi", "mpeg4", {}),
    ],
)
def test_truncated_video_gives_frames_up_to_the_break(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    path = write_video(tmp_path / name, count=48, codec=codec, options=options, noise=True)
    whole = read(path)
    assert len(whole) == 48
    truncated(path, 0.5)
    with open_source(str(path)) as source:
        frames = list(source)
        assert source.problem is not None
        assert "damaged" in source.problem or "cut off" in source.problem
        assert "\n" not in source.problem
    assert 8 <= len(frames) < 48
    for frame, same in zip(frames, whole, strict=False):
        np.testing.assert_array_equal(frame.image, same.image)
        assert frame.timestamp == same.timestamp


def test_complete_video_with_longer_sound_has_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=30)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("aac", rate=16000)
        for index in range(10):
            picture = av.VideoFrame.from_ndarray(numbered(index, (64, 48)), format="rgb24")
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.int16), "s16", "mono")
        silence.sample_rate = 16000
        container.mux(audio.encode(silence))
        container.mux(audio.encode(None))
    with open_source(str(path)) as source:
        assert len(list(source)) == 10
        assert source.problem is None


def test_sound_without_pictures(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        audio = container.add_stream("pcm_s16le", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        silence.sample_rate = 8000
        container.mux(audio.encode(silence))
    with pytest.raises(VideoError, match="without a video stream"):
        open_source(str(path))


def test_unreadable_inputs_are_one_clear_line(tmp_path: Path, capfd) -> None:
    (tmp_path / "text.mp4").write_text("hello, this is a diary\n" * 40)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    cut = truncated(write_video(tmp_path / "cut.mp4", noise=True), 0.7)
    cases = {
        str(tmp_path / "none.mp4"): "no such file",
        str(tmp_path / "text.mp4"): "cannot be read .* pass a video file",
        str(tmp_path / "empty.mp4"): "empty file",
        str(tmp_path / "folder"): "series of images, found none",
        str(tmp_path / "bad.png"): "cannot be decoded",
        str(cut): r"its index \(moov\) is missing",
        "csi://0": "Jetson backend",
        "/dev/video97": "cannot be read",
        "rtsp://127.0.0.1:9/none": "check the address",
    }
    for uri, message in cases.items():
        with pytest.raises(VideoError, match=message) as caught:
            open_source(uri)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_name_that_looks_like_a_protocol(tmp_path: Path, monkeypatch) -> None:
    write_video(tmp_path / "10:30.mp4", count=2)
    monkeypatch.chdir(tmp_path)
    assert len(read("10:30.mp4")) == 2


STDIN_READER = """
import sys
from mambapose.runtime.errors import VideoError
from mambapose.runtime.video.sources import open_source
try:
    with open_source("-") as source:
        print(tuple(source.size), [frame.index for frame in source])
except VideoError as err:
    print(err)
"""


def test_stdin_carries_a_container_but_not_raw_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mkv", count=5)
    noise = np.random.default_rng(0).integers(0, 256, 30000, dtype=np.uint8).tobytes()
    for data, want in [
        (path.read_bytes(), "(64, 96) [0, 1, 2, 3, 4]"),
        (noise, "stdin must carry"),
    ]:
        done = subprocess.run(
            [sys.executable, "-c", STDIN_READER],
            input=data,
            capture_output=True,
            timeout=60,
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert want in done.stdout.decode()
        assert done.stderr == b""


STALLED_READER = """
import time
from mambapose.runtime.video.part import range_from_text
from mambapose.runtime.video.prefetch import Prefetch
from mambapose.runtime.video.sources import open_source
with open_source("-") as source, Prefetch(source, depth=1000) as frames:
    print(next(frames).index, flush=True)
    time.sleep(0.5)
"""


def test_reader_of_a_stalled_pipe_can_leave(tmp_path: Path) -> None:
    """A producer that stops without closing must not keep the process from ending."""
    # Long enough to be probed, small enough to fit into the pipe.
    data = write_video(tmp_path / "clip.mkv", count=300).read_bytes()
    assert len(data) < 60_000
    process = subprocess.Popen(
        [sys.executable, "-c", STALLED_READER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(data[: len(data) * 9 // 10])
        process.stdin.flush()
        assert process.stdout.readline() == b"0\n"
        assert process.wait(timeout=120) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def test_real_videos(assets: Path) -> None:
    for name, codec_size in [("pose2sim-single/cam01.mp4", (1080, 1920))]:
        with open_source(str(assets / name), frame_range=":10") as source:
            assert source.size == codec_size[::-1]
            assert [frame.index for frame in source] == list(range(10))


def test_real_vp9(assets: Path) -> None:
    with open_source(str(assets / "pose2sim-single/cam02.mp4"), frame_range=":3") as source:
        times = [frame.timestamp for frame in source]
    np.testing.assert_allclose(times, np.arange(3) / 60, atol=1e-4)


def test_close_while_a_thread_decodes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", count=50)
    for _ in range(5):
        with open_source(str(path)) as source, Prefetch(source, depth=1) as frames:
            next(frames)
        assert list(source) == []
