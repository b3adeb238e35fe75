"""The overlay of a run: pictures wait for their 3D in little memory and come out in order."""

from __future__ import annotations

import numpy as np
import pytest

from mambapose.runtime.errors import OutputError
from mambapose.runtime.pipeline import Pipeline
from mambapose.runtime.results import painter as module
from mambapose.runtime.results.painter import (
    BYTES_PER_PIXEL,
    Painter,
    packed,
    picture_from_array,
    unpacked,
)
from mambapose.runtime.run_options import RunOptions
from mambapose.runtime.targets import Schedule
from mambapose.runtime.types import Frame, Size
from mambapose.runtime.video.sources import open_source

from ..drawn_clip import DrawnClip
from ..fakes import gaussians, lift_engine, pose_engine

SIZE = (160, 96)
SCHEDULE = Schedule(clip_frames=9, hop=3)


class Grey:
    """Frames of 16, 24, 32 ... grey levels."""

    size, fps, frame_count, problem = Size(SIZE[1], SIZE[0]), 30.0, 24, None

    def __iter__(self):
        for k in range(self.frame_count):
            yield Frame(np.full((SIZE[1], SIZE[0], 3), 16 + 8 * k, np.uint8), k, k / 30)


def upright(inputs):
    people = len(inputs["rgb"])
    x = np.tile(np.linspace(15, 32, 17), (people, 1))
    y = np.tile(np.linspace(12, 52, 17), (people, 1))
    return {"heatmaps": gaussians(np.stack([x, y], -1))}


def paint(path, **options):
    """(frames of the overlay, notes, most pictures that waited)."""
    engines = {"pose2d": pose_engine(upright), "lift3d": lift_engine(None, 9)}
    # Not trained: the person's box stays the full frame, which keeps the corners free.
    pipeline = Pipeline(engines, SCHEDULE, RunOptions(trained=False, **options))
    source, most = Grey(), 0
    with Painter(path, source, pipeline, untrained=False) as painter:
        painter.start()
        for result in pipeline.run(source, painter.paint_now):
            most = max(most, len(painter._held))
            painter.paint_later(result)
    with open_source(str(path)) as video:
        return [frame.image for frame in video], painter.notes, most


def inset(image):
    """A corner of the 3D view, which darkens the picture to a quarter."""
    return float(image[18:24, 136:142].mean())


def test_pictures_wait_for_their_3d_and_come_in_order(tmp_path):
    images, notes, most = paint(tmp_path / "o.mp4")
    assert notes == []
    assert most == SCHEDULE.lookahead + 1
    # Away from the person, its box and the inset the grey level tells which frame it is.
    assert [round((float(i[80:92, 4:10].mean()) - 16) / 8) for i in images] == list(range(24))
    assert all(abs(inset(i) - (16 + 8 * k) // 4) < 8 for k, i in enumerate(images))


def test_too_large_pictures_are_drawn_at_once_without_the_3d_view(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HELD_BYTES", 6 * SIZE[0] * SIZE[1] * BYTES_PER_PIXEL - 1)
    images, (note,), most = paint(tmp_path / "o.mp4")
    assert note == "overlay without the 3D view: 6 waiting frames would take 0 MiB"
    assert most == 0
    assert all(abs(inset(i) - (16 + 8 * k)) < 8 for k, i in enumerate(images))


@pytest.mark.parametrize(("size", "waits"), [(Size(2160, 3840), True), (Size(2880, 5120), False)])
def test_pictures_up_to_4k_wait_for_their_3d(size, waits):
    """With the usual look-ahead of 53 frames; on a board of 8 GB no more than 128 MiB."""
    engines = {"pose2d": pose_engine(upright), "lift3d": lift_engine(None, 81)}
    pipeline = Pipeline(engines, Schedule(), RunOptions())
    source = Grey()
    source.size = size
    with Painter(None, source, pipeline, untrained=False) as painter:
        assert painter._waits is waits


def test_a_waiting_picture_is_small_and_looks_the_same():
    image = DrawnClip(size=(640, 360)).image(10)
    data = packed(picture_from_array(image))
    assert len(data) < BYTES_PER_PIXEL * image.shape[0] * image.shape[1]
    gap = np.asarray(unpacked(data)).astype(float) - image
    assert 20 * np.log10(255 / np.sqrt((gap**2).mean())) > 40


def test_without_pillow_the_overlay_is_refused(tmp_path, monkeypatch):
    def absent(name, *rest):
        raise ImportError(name)

    pipeline = Pipeline({"pose2d": pose_engine(upright)}, SCHEDULE)
    monkeypatch.setattr(module, "import_module", absent)
    with pytest.raises(OutputError, match=r"Pillow was wanted.*mambapose\[cpu\]"):
        Painter(tmp_path / "o.mp4", Grey(), pipeline, untrained=False)
    assert list(tmp_path.iterdir()) == []
    Painter(None, Grey(), pipeline, untrained=False)


def test_live_3d_is_drawn_without_waiting(tmp_path):
    images, notes, most = paint(tmp_path / "o.mp4", lookahead=0)
    assert (len(images), notes, most) == (24, [], 0)
    assert all(abs(inset(i) - (16 + 8 * k) // 4) < 8 for k, i in enumerate(images))
