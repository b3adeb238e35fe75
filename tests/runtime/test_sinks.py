"""Journal and overlay video: complete, exact in time, and usable after a kill or a full disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mambapose.runtime import sinks
from mambapose.runtime.errors import OutputError
from mambapose.runtime.results import read_journal
from mambapose.runtime.sinks import Journal, Overlay, encoder_name, even
from mambapose.runtime.sources import open_source
from mambapose.runtime.types import Pose

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def pose(frame: int, track: int = 1, solid: bool = True) -> Pose:
    rng = np.random.default_rng([frame, track])
    return Pose(
        frame,
        track,
        rng.uniform(0, 500, 4).astype(np.float32),
        rng.uniform(0, 500, (17, 2)).astype(np.float32),
        rng.uniform(0, 1, 17).astype(np.float32),
        rng.normal(0, 0.3, (17, 3)).astype(np.float32) if solid else None,
    )


def test_journal_is_one_line_per_frame(tmp_path: Path) -> None:
    with Journal(tmp_path / "out", {"tool": "mambapose", "name": "Zoë"}) as journal:
        journal.append(0, 0.0, [pose(0, 3), pose(0, 4, solid=False)])
        journal.append(1, 1 / 3, [])
        # Flushed: readable while the run goes on.
        assert len(journal.path.read_text("utf-8").splitlines()) == 3
        journal.finish(frames=2)
    lines = [json.loads(line) for line in journal.path.read_text("utf-8").splitlines()]
    assert lines[0] == {"meta": {"tool": "mambapose", "name": "Zoë"}}
    assert lines[3] == {"end": {"frames": 2}}
    assert lines[2] == {"frame": 1, "timestamp": 0.333333, "people": []}
    first, second = lines[1]["people"]
    assert (first["id"], second["id"], second["xyz"]) == (3, 4, None)
    for name, tolerance in (("box", 6e-4), ("xy", 6e-4), ("score", 6e-5), ("xyz", 6e-6)):
        np.testing.assert_allclose(first[name], getattr(pose(0, 3), name), rtol=0, atol=tolerance)


def test_journal_writes_missing_joints_as_null(tmp_path: Path) -> None:
    person = pose(0)
    person.xy[5] = np.nan
    with Journal(tmp_path, {}) as journal:
        journal.append(0, 0.0, [person])
    (record,) = read_journal(journal.path)
    assert record["people"][0]["xy"][5] == [None, None]
    assert None not in record["people"][0]["xy"][4]


def test_journal_does_not_overwrite_unless_told(tmp_path: Path) -> None:
    with Journal(tmp_path, {"run": 1}) as journal:
        journal.append(0, 0.0, [])
    with pytest.raises(OutputError, match="found an earlier one"):
        Journal(tmp_path, {"run": 2})
    assert '"run":1' in journal.path.read_text()
    with Journal(tmp_path, {"run": 2}, overwrite=True) as journal:
        journal.finish()
    assert journal.path.read_text() == '{"meta":{"run":2}}\n{"end":{}}\n'
    with pytest.raises(OutputError, match="closed"):
        journal.append(1, 0.0, [])


def test_journal_on_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "poses.ndjson").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left on device") as caught:
        Journal(tmp_path, {}, overwrite=True)
    assert "\n" not in str(caught.value)


FILL_UP = """
import resource, signal, sys
from pathlib import Path
from mambapose.runtime.errors import OutputError
from mambapose.runtime.sinks import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
journal = Journal(Path(sys.argv[1]), {})
try:
    for frame in range(100):
        journal.append(frame, frame / 30, [])
except OutputError as err:
    print(journal.frames, err)
"""


def test_journal_that_cannot_grow_keeps_whole_lines(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILL_UP, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
        timeout=60,
    )
    frames = int(done.stdout.split()[0])
    assert f"after {frames} frames, which are safe" in done.stdout
    data = (tmp_path / "poses.ndjson").read_bytes()
    assert data.endswith(b"\n")
    assert [record["frame"] for record in read_journal(tmp_path / "poses.ndjson")] == list(
        range(frames)
    )
    assert 10 < frames < 100


def clip(size: tuple[int, int], count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(60, 200, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
    base = coarse.repeat(8, 0).repeat(8, 1)[: size[1], : size[0]]
    return [np.roll(base, 2 * index, axis=1) for index in range(count)]


@pytest.mark.parametrize("fps", [30, 25, 60, 30000 / 1001, 24000 / 1001, 12.5])
def test_overlay_has_the_exact_rate(tmp_path: Path, fps: float) -> None:
    path = tmp_path / "overlay.mp4"
    with Overlay(path, (64, 48), fps) as video:
        for index, image in enumerate(clip((64, 48), 40)):
            video.write(image, 5 + index / fps)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == Fraction(fps).limit_denominator(1001)
        assert stream.codec_context.pix_fmt == "yuv420p"
        times = [p.pts * stream.time_base for p in container.demux(stream) if p.size]
        rate = Fraction(fps).limit_denominator(1001)
        assert times == [index / rate for index in range(40)]


@pytest.mark.parametrize("size", [(64, 48), (65, 47), (2, 2), (1, 1), (640, 3)])
def test_overlay_size_and_colours(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "overlay.mp4"
    colour = np.array([200, 60, 30], np.uint8)
    image = np.broadcast_to(colour, (size[1], size[0], 3)).copy()
    with Overlay(path, size, 30) as video:
        for index in range(3):
            video.write(image, index / 30)
    assert video.codec == "libx264"
    assert video.note is None
    with open_source(str(path)) as source:
        assert source.size == (size[0] + size[0] % 2, size[1] + size[1] % 2)
        frames = list(source)
    assert len(frames) == 3
    np.testing.assert_allclose(frames[0].image.reshape(-1, 3).mean(axis=0), colour, atol=6)


def test_overlay_keeps_variable_times(tmp_path: Path) -> None:
    times = [0.0, 0.011, 0.2, 0.2, 1.5, 1.533]
    with Overlay(tmp_path / "overlay.mp4", (32, 32), 28.7) as video:
        for timestamp, image in zip(times, clip((32, 32), len(times)), strict=True):
            video.write(image, timestamp)
    with open_source(str(tmp_path / "overlay.mp4")) as source:
        got = [frame.timestamp for frame in source]
    np.testing.assert_allclose(got, times, atol=5e-5)
    assert np.all(np.diff(got) > 0)


def test_even_repeats_the_last_row_and_column() -> None:
    image = np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3)
    padded = even(image)
    assert padded.shape == (4, 6, 3)
    np.testing.assert_array_equal(padded[:3, :5], image)
    np.testing.assert_array_equal(padded[3, :5], image[2])
    np.testing.assert_array_equal(padded[:3, 5], image[:, 4])


def test_overlay_refuses_another_size(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="64x48 was wanted, found uint8"),
        Overlay(tmp_path / "o.mp4", (64, 48), 30) as video,
    ):
        video.write(np.zeros((64, 48, 3), np.uint8), 0.0)


def test_overlay_without_h264_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "ENCODERS", ("no-such-encoder", "mpeg4"))
    with Overlay(tmp_path / "o.mp4", (64, 48), 30) as video:
        for index, image in enumerate(clip((64, 48), 10)):
            video.write(image, index / 30)
    assert video.codec == "mpeg4"
    assert video.note is not None
    assert "no H.264 encoder" in video.note
    with open_source(str(tmp_path / "o.mp4")) as source:
        assert len(list(source)) == 10
    monkeypatch.setattr(sinks, "ENCODERS", ("no-such-encoder",))
    with pytest.raises(OutputError, match="this PyAV has none"):
        encoder_name()


def test_overlay_on_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "o.mp4").symlink_to("/dev/full")
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)

    def fill() -> None:
        with Overlay(tmp_path / "o.mp4", (320, 240), 30) as video:
            # More frames than the queue holds: write() must neither block nor hide the error.
            for index in range(60):
                video.write(np.roll(noise, index, axis=0), index / 30)

    with pytest.raises(OutputError, match=r"No space left on device.*poses so far are safe") as err:
        fill()
    assert "\n" not in str(err.value)


def test_overlay_in_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        Overlay(tmp_path / "file" / "o.mp4", (64, 48), 30)


KILLED_RUN = """
import sys, time
from pathlib import Path
import numpy as np
from mambapose.runtime.sinks import Journal, Overlay
out = Path(sys.argv[1])
journal = Journal(out, {"run": "killed"})
video = Overlay(out / "overlay.mp4", (64, 48), 30)
for frame in range(100000):
    video.write(np.full((48, 64, 3), frame % 200, np.uint8), frame / 30)
    journal.append(frame, frame / 30, [])
    time.sleep(0.002)
"""


def test_kill_nine_leaves_a_readable_journal_and_video(tmp_path: Path) -> None:
    journal = tmp_path / "poses.ndjson"
    process = subprocess.Popen([sys.executable, "-c", KILLED_RUN, str(tmp_path)], env=ENVIRONMENT)
    try:
        deadline = time.monotonic() + 60
        while not journal.exists() or journal.stat().st_size < 8000:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    frames = [record["frame"] for record in read_journal(journal)]
    assert frames == list(range(len(frames)))
    assert len(frames) > 100
    with open_source(str(tmp_path / "overlay.mp4")) as source:
        shown = len(list(source))
    # At most the last second and what was waiting in the queue is missing.
    assert len(frames) - 30 - 8 <= shown <= len(frames) + 1
