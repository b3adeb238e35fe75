"""Whatever the system, PyAV and FFmpeg raise, at whatever edge: a VideoError of one line."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest

from mambapose.runtime.errors import MambaPoseError, OutputError, VideoError
from mambapose.runtime.video import images, streams
from mambapose.runtime.video.edges import is_edge_error, masked, reason_of, video_errors
from mambapose.runtime.video.headers import PictureFacts
from mambapose.runtime.video.sources import open_source

from .test_sources import write_video


def every_error() -> list[Exception]:
    """One of each: those of Python, and all the classes of PyAV."""
    found: list[Exception] = [
        OSError(5, "Input/output error"),
        FileNotFoundError(2, "No such file"),
        ValueError("odd"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"),
        EOFError(),
        MemoryError(),
        IndexError("list index out of range"),
        KeyError("DURATION"),
        ZeroDivisionError("division by zero"),
        OverflowError("too large"),
        RuntimeError("two\nlines"),
        NotImplementedError(),
        struct.error("unpack requires 4 bytes"),
        zlib.error("invalid header"),
    ]
    kinds = (getattr(av.error, name) for name in dir(av.error))
    kinds = {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception)}
    ours = sorted((k for k in kinds if k.__module__.startswith("av")), key=lambda k: k.__name__)
    for kind in ours:
        try:
            found.append(kind(1094995529, "Invalid data\nfound"))
        except TypeError:
            found.append(kind("Invalid data\nfound"))
    return found


ERRORS = every_error()


class Clip:
    """A container of five pictures that raises at one edge."""

    def __init__(self, edge: str, error: Exception) -> None:
        self.edge, self.error = edge, error
        self.format = SimpleNamespace(name="nut")
        self.duration = None
        self.streams = SimpleNamespace(video=[Stream(self)], audio=[])
        self.closed = False

    def reach(self, edge: str) -> None:
        if edge == self.edge:
            raise self.error

    def demux(self, stream: Any) -> Any:
        for number in range(5):
            if number >= 2:
                self.reach("demux")
            yield SimpleNamespace(
                size=9, pts=number, duration=1, is_corrupt=False, is_keyframe=True, number=number
            )

    def close(self) -> None:
        self.closed = True


class Stream:
    average_rate, guessed_rate, sample_aspect_ratio = Fraction(30), None, None
    frames, duration, time_base, disposition = 0, None, Fraction(1, 30), 1
    thread_type = ""

    def __init__(self, clip: Clip) -> None:
        self.codec_context = Context(clip)
        self.metadata: dict[str, str] = {}


class Context:
    name, sample_aspect_ratio, thread_count = "h264", None, 0
    height = 8

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self.options: dict[str, str] = {}

    @property
    def width(self) -> int:
        self.clip.reach("size")
        return 8

    def decode(self, packet: Any) -> list[Any]:
        if packet is None:
            self.clip.reach("flush")
            return []
        if packet.number >= 2:
            self.clip.reach("decode")
        picture = av.VideoFrame.from_ndarray(np.zeros((8, 8, 3), np.uint8), format="rgb24")
        picture.pts = packet.pts
        return [picture]


def raising(error: Exception) -> Callable[..., Any]:
    def broken(*_: object, **__: object) -> object:
        raise error

    return broken


def check(error: Exception, action: Callable[[], object]) -> VideoError:
    """The VideoError of one line that an action raises because of ``error``."""
    with pytest.raises(VideoError) as caught:
        action()
    assert len(str(caught.value).splitlines()) == 1, error
    assert caught.value.__cause__ is error
    return caught.value


@pytest.mark.parametrize("edge", ["size", "turn"])
def test_every_error_at_the_edges_of_opening(monkeypatch: pytest.MonkeyPatch, edge: str) -> None:
    for error in ERRORS:
        clip = Clip(edge, error)
        monkeypatch.setattr(streams, "open_container", lambda *_, clip=clip: clip)
        if edge == "turn":
            monkeypatch.setattr(streams, "matrix_from_picture", raising(error))
        check(error, lambda: open_source("rtsp://camera/one"))
        assert clip.closed


@pytest.mark.parametrize(("edge", "count"), [("demux", 2), ("decode", 2), ("flush", 5)])
def test_every_error_in_mid_stream(monkeypatch: pytest.MonkeyPatch, edge: str, count: int) -> None:
    for error in ERRORS:
        clip = Clip(edge, error)
        monkeypatch.setattr(streams, "open_container", lambda *_, clip=clip: clip)
        with open_source("rtsp://camera/one") as source:
            assert len(list(source)) == count
            assert source.problem is not None
            assert len(source.problem.splitlines()) == 1


def test_every_error_while_a_picture_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in ERRORS:
        with monkeypatch.context() as patch:
            clip = Clip("none", error)
            patch.setattr(streams, "open_container", lambda *_, clip=clip: clip)
            with open_source("rtsp://camera/one") as source:
                patch.setattr(streams, "squared", raising(error))
                check(error, lambda source=source: list(source))


@pytest.mark.parametrize("address", ["a.mp4", "-", "/dev/video97", "rtsp://camera/one"])
def test_every_error_of_av_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    write_video(tmp_path / "a.mp4", count=1)
    monkeypatch.chdir(tmp_path)
    for error in ERRORS:
        monkeypatch.setattr(av, "open", raising(error))
        check(error, lambda: open_source(address))


@pytest.mark.parametrize("edge", ["read_regular", "picture_facts", "picture_from_bytes", "squared"])
def test_every_error_at_every_edge_of_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edge: str
) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(90))
    monkeypatch.setattr(images, "rgb_converter", lambda: None)
    monkeypatch.setattr(images, "picture_facts", lambda data: PictureFacts("png"))
    monkeypatch.setattr(images, "picture_from_bytes", lambda *_: None)
    for error in ERRORS:
        monkeypatch.setattr(images, edge, raising(error))
        for place in (tmp_path, tmp_path / "a.png"):
            check(error, lambda place=place: open_source(str(place)))


@pytest.mark.parametrize("function", ["stat", "listdir", "open"])
@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), PermissionError(13, "Permission denied"),
              ValueError("embedded null byte"), UnicodeEncodeError("utf-8", "x", 0, 1, "odd")],
    ids=lambda err: type(err).__name__,
)  # fmt: skip
def test_every_error_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: Exception
) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(90))
    before: Callable[..., Any] = getattr(os, function)

    def broken(path: Any, *rest: Any, **named: Any) -> Any:
        if str(path).startswith(str(tmp_path)):
            raise error
        return before(path, *rest, **named)

    monkeypatch.setattr(os, function, broken)
    message = str(check(error, lambda: open_source(str(tmp_path))))
    monkeypatch.undo()
    assert reason_of(error) in message


def test_bugs_and_our_own_errors_pass_through() -> None:
    for error in (TypeError("a bug"), AttributeError("a bug"), AssertionError()):
        assert not is_edge_error(error)
        with pytest.raises(type(error)), video_errors("x was wanted", "do y"):
            raise error
    with pytest.raises(OutputError, match="ours"), video_errors("x was wanted", "do y"):
        raise OutputError("ours")
    assert issubclass(OutputError, MambaPoseError)
    with pytest.raises(KeyboardInterrupt), video_errors("x was wanted", "do y"):
        raise KeyboardInterrupt


SECRET = "hunter2"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://user:hunter2@host:554/a", "rtsp://user:***@host:554/a"),
        ("rtsp://user:hunter2@x@host/a", "rtsp://user:***@host/a"),
        ("rtsp://user:hun/hunter2@host/a", "rtsp://user:***@host/a"),
        ("RTSP://hunter2@host/a", "RTSP://***@host/a"),
        ("rtsp://host/user=admin&password=hunter2&c=1", "rtsp://host/user=admin&password=***&c=1"),
        ("http://host/v?token=hunter2#x", "http://host/v?token=***#x"),
        ("https://host:8080/a@b", "https://host:8080/a@b"),
        ("rtsp://host/a", "rtsp://host/a"),
        ("walk.mp4", "walk.mp4"),
        (
            "a rtsp://u:hunter2@h/x and http://v:hunter2@h/y",
            "a rtsp://u:***@h/x and http://v:***@h/y",
        ),
    ],
)
def test_passwords_are_not_shown(address: str, shown: str) -> None:
    assert masked(address) == shown
    assert SECRET not in masked(address)
    assert masked(masked(address)) == shown


def test_the_password_of_a_camera_is_in_no_message(capfd: pytest.CaptureFixture[str]) -> None:
    for address in (
        f"rtsp://user:{SECRET}@127.0.0.1:9/a",
        f"http://user:{SECRET}@127.0.0.1:9/a.m3u8",
        f"rtsp://127.0.0.1:9/user=a&password={SECRET}",
    ):
        with pytest.raises(VideoError) as caught:
            open_source(address)
        assert SECRET not in str(caught.value)
        assert "127.0.0.1:9" in str(caught.value)
    assert SECRET not in "".join(capfd.readouterr())
