"""The overlay video: complete, exact in time and colours, and honest about a full disk."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mambapose.runtime.errors import OutputError
from mambapose.runtime.results import overlay
from mambapose.runtime.results.overlay import Overlay, encoder_name, encoder_note, even
from mambapose.runtime.types import Size
from mambapose.runtime.video.sources import open_source


def clip(size: tuple[int, int], count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(60, 200, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
    base = coarse.repeat(8, 0).repeat(8, 1)[: size[1], : size[0]]
    return [np.roll(base, 2 * index, axis=1) for index in range(count)]


@pytest.mark.parametrize("fps", [30, 25, 60, 30000 / 1001, 24000 / 1001, 12.5])
def test_overlay_has_the_exact_rate(tmp_path: Path, fps: float) -> None:
    path = tmp_path / "overlay.mp4"
    with Overlay(path, Size(48, 64), fps) as video:
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
    with Overlay(path, Size(size[1], size[0]), 30) as video:
        for index in range(3):
            video.write(image, index / 30)
    assert video.codec == "libx264"
    assert encoder_note(path) is None
    with open_source(str(path)) as source:
        assert source.size == Size(size[1] + size[1] % 2, size[0] + size[0] % 2)
        frames = list(source)
    assert len(frames) == 3
    np.testing.assert_allclose(frames[0].image.reshape(-1, 3).mean(axis=0), colour, atol=6)


def test_overlay_keeps_variable_times(tmp_path: Path) -> None:
    times = [0.0, 0.011, 0.2, 0.2, 1.5, 1.533]
    with Overlay(tmp_path / "overlay.mp4", Size(32, 32), 28.7) as video:
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
        Overlay(tmp_path / "o.mp4", Size(48, 64), 30) as video,
    ):
        video.write(np.zeros((64, 48, 3), np.uint8), 0.0)


def test_overlay_without_h264_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "ENCODERS", ("no-such-encoder", "mpeg4"))
    with Overlay(tmp_path / "o.mp4", Size(48, 64), 30) as video:
        for index, image in enumerate(clip((64, 48), 10)):
            video.write(image, index / 30)
    assert video.codec == "mpeg4"
    assert "o.mp4: this PyAV has no H.264 encoder" in str(encoder_note(tmp_path / "o.mp4"))
    with open_source(str(tmp_path / "o.mp4")) as source:
        assert len(list(source)) == 10
    monkeypatch.setattr(overlay, "ENCODERS", ("no-such-encoder",))
    with pytest.raises(OutputError, match="this PyAV has none"):
        encoder_name()


def test_overlay_on_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "o.mp4.part").symlink_to("/dev/full")
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)

    def fill() -> None:
        with Overlay(tmp_path / "o.mp4", Size(240, 320), 30) as video:
            # More frames than the queue holds: write() must neither block nor hide the error.
            for index in range(60):
                video.write(np.roll(noise, index, axis=0), index / 30)

    with pytest.raises(OutputError, match="No space left on device") as err:
        fill()
    assert "\n" not in str(err.value)
    assert list(tmp_path.iterdir()) == []


SMALL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
from mambapose.runtime.errors import OutputError
from mambapose.runtime.results.overlay import Overlay
from mambapose.runtime.types import Size
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
noise = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
try:
    with Overlay(Path(sys.argv[1]), Size(120, 160), 30) as video:
        for index in range(12):
            video.write(np.roll(noise, index, axis=0), index / 30)
except OutputError as err:
    print(err)
"""


def test_a_video_that_does_not_fit_never_takes_the_name_of_one_that_did(tmp_path: Path) -> None:
    """FFmpeg says nothing of what it could not write."""
    path = tmp_path / "o.mp4"
    path.write_bytes(b"earlier")
    command = [sys.executable, "-c", SMALL_DISK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert "cannot be written" in done.stdout
    assert done.stdout.count("\n") == 1
    assert path.read_bytes() == b"earlier"
    assert [item.name for item in tmp_path.iterdir()] == ["o.mp4"]


def test_a_video_takes_its_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "o.mp4"
    path.write_bytes(b"earlier")
    with Overlay(path, Size(48, 64), 30) as video:
        video.write(clip((64, 48), 1)[0], 0.0)
        assert path.read_bytes() == b"earlier"
    with open_source(str(path)) as source:
        assert len(list(source)) == 1
    assert [item.name for item in tmp_path.iterdir()] == ["o.mp4"]


def test_overlay_in_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        Overlay(tmp_path / "file" / "o.mp4", Size(48, 64), 30)
