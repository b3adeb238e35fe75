"""Frames read ahead: in order, bounded, forwarding errors, ending when nobody listens."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mambapose.runtime.errors import VideoError
from mambapose.runtime.types import Frame, Size
from mambapose.runtime.video.prefetch import Prefetch


class Counted:
    """A source of tiny frames that counts how far it was read and may break."""

    size = stored_size = Size(2, 2)
    fps, frame_count, problem, corrupt_frames = 30.0, None, None, 0
    notes: list[str] = []  # noqa: RUF012

    def __init__(self, count: int, fails_at: int | None = None) -> None:
        self.count, self.fails_at, self.read = count, fails_at, 0

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self.count):
            if index == self.fails_at:
                raise VideoError("camera was unplugged")
            self.read += 1
            yield Frame(np.zeros((2, 2, 3), np.uint8), index, index / 30)

    def close(self) -> None: ...

    def __enter__(self) -> Counted:
        return self

    def __exit__(self, *exception: object) -> None: ...


def test_prefetch_keeps_order() -> None:
    frames = list(Prefetch(Counted(500), depth=3))
    assert [frame.index for frame in frames] == list(range(500))


def test_prefetch_forwards_errors_after_the_frames_before_it() -> None:
    frames = Prefetch(Counted(50, fails_at=20))
    assert [next(frames).index for _ in range(20)] == list(range(20))
    with pytest.raises(VideoError, match="unplugged"):
        next(frames)


def test_prefetch_is_bounded_and_stops_early() -> None:
    source = Counted(10**9)
    before = threading.active_count()
    with Prefetch(source, depth=4) as frames:
        assert next(frames).index == 0
        time.sleep(0.2)
        assert source.read <= 6
    assert threading.active_count() == before
    assert list(frames) == []


GROWTH = """
import sys
from pathlib import Path
import numpy as np
from mambapose.runtime.results.overlay import Overlay
from mambapose.runtime.types import Size
from mambapose.runtime.video.prefetch import Prefetch
from mambapose.runtime.video.sources import open_source

def resident_kib():
    fields = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()
    return int(fields[0])

image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
path, sizes = Path(sys.argv[1]), []
with Overlay(path, Size(120, 160), 30) as video:
    for index in range(1500):
        video.write(np.roll(image, index, axis=1), index / 30)
        if index in (500, 1499):
            sizes.append(resident_kib())
with open_source(str(path)) as source, Prefetch(source) as frames:
    for frame in frames:
        if frame.index in (500, 1499):
            sizes.append(resident_kib())
print(sizes[1] - sizes[0], sizes[3] - sizes[2])
"""


def test_reading_and_writing_do_not_grow(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(tmp_path / "long.mp4")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    written, read_back = (int(text) for text in done.stdout.split())
    # 1,000 frames of 56 KiB pass through; the file is 10 MiB and stays on disk.
    assert written < 2048
    assert read_back < 2048


class Large(Counted):
    """Frames of a kibibyte."""

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self.count):
            self.read += 1
            yield Frame(np.zeros((16, 22, 3), np.uint8), index, index / 30)


@pytest.mark.parametrize(("most_bytes", "ahead"), [(1, 1), (1057, 2), (10**6, 4)])
def test_large_frames_are_not_read_ahead(most_bytes: int, ahead: int) -> None:
    source = Large(1000)
    with Prefetch(source, depth=4, most_bytes=most_bytes) as frames:
        for taken in range(3):
            time.sleep(0.1)
            assert source.read == taken + ahead
            assert next(frames).index == taken
    assert [frame.index for frame in Prefetch(Large(50), most_bytes=1)] == list(range(50))
