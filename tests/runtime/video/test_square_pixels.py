"""Pixels that are not square: seen as they are meant, results in pixels of the stored picture."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

import mambapose.runtime as mp
from mambapose.runtime.errors import VideoError
from mambapose.runtime.pipeline import FrameResult
from mambapose.runtime.types import Frame, Pose, Size, Stretch
from mambapose.runtime.video.pictures import square_size
from mambapose.runtime.video.sample import SAMPLE
from mambapose.runtime.video.sources import open_source

from .test_sources import set_display_matrix

STORED = (96, 64)
DISC = (30, 20, 12)  # centre x, y and radius, px of the square picture


def write(
    path: Path,
    images: list[np.ndarray],
    aspect: Fraction | int,
    start: int = 0,
    codec: str = "libx264",
    form: str | None = None,
) -> Path:
    """Pictures with pixels ``aspect`` as wide as high, encoded almost without loss."""
    height, width = images[0].shape[:2]
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=30, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = 5_000_000
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        for index, image in enumerate(images):
            picture = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            picture.pts = index + start
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def disc(wide: float, high: float = 1.0, grey: int = 230) -> np.ndarray:
    """A stored picture in which a disc is squeezed as an anamorphic camera does."""
    y, x = np.mgrid[: STORED[1], : STORED[0]]
    left, top, radius = DISC
    shown = np.hypot((x + 0.5) * wide - 0.5 - left, (y + 0.5) * high - 0.5 - top)
    return np.where(shown[..., None] < radius, grey, 20).repeat(3, 2).astype(np.uint8)


def sides(image: np.ndarray) -> tuple[float, float, float, float]:
    """Centre x, y and width, height of what is bright."""
    y, x = np.nonzero(image[..., 1] > 100)
    return x.mean(), y.mean(), float(np.ptp(x) + 1), float(np.ptp(y) + 1)


@pytest.mark.parametrize(
    ("aspect", "size"),
    [
        (Fraction(4, 3), (64, 128)),
        (Fraction(2), (64, 192)),
        (Fraction(8, 9), (72, 96)),
        (Fraction(1), (64, 96)),
        (Fraction(3201, 3200), (64, 96)),
    ],
)
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.mov"])
def test_a_disc_is_round(
    tmp_path: Path, name: str, aspect: Fraction, size: tuple[int, int]
) -> None:
    wide, high = (size[1] / STORED[0], size[0] / STORED[1])
    path = write(tmp_path / name, [disc(wide, high)] * 3, aspect)
    with open_source(str(path)) as source:
        assert source.size == size
        assert source.stored_size == (64, 96)
        assert len(source.notes) == (size != (64, 96))
        frames = list(source)
    for frame in frames:
        assert frame.image.shape == (*size, 3)
        assert frame.image.flags.c_contiguous
        x, y, width, height = sides(frame.image)
        assert (x, y) == pytest.approx(DISC[:2], abs=0.7)
        assert (width, height) == pytest.approx((2 * DISC[2], 2 * DISC[2]), abs=2)
        back = frame.stretch.stored(np.array([[x, y]], np.float32))
        stored = sides(disc(wide, high))
        np.testing.assert_allclose(back[0], stored[:2], atol=0.7)
        np.testing.assert_allclose(frame.stretch.shown(back), [[x, y]], atol=1e-4)


def test_a_turned_picture_is_stretched_along_the_side_that_was_its_width(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [disc(2.0)] * 2, 2)
    set_display_matrix(path, (0, 1, -1, 0))
    with open_source(str(path)) as source:
        assert (source.size, source.stored_size) == ((192, 64), (96, 64))
        frame = next(iter(source))
    assert frame.stretch[:2] == (1, 2)
    x, y, width, height = sides(frame.image)
    assert width == pytest.approx(height, abs=2)
    assert (x, y) == pytest.approx((63 - DISC[1], DISC[0]), abs=0.7)


def test_the_shape_may_change_in_mid_stream(tmp_path: Path) -> None:
    """As television does between programmes: later pictures are fitted into the first frame."""
    parts = [(Fraction(4, 3), 230), (Fraction(2), 180), (Fraction(1), 130)]
    data = b""
    for number, (aspect, grey) in enumerate(parts):
        images = [disc(float(aspect), grey=grey)] * 15
        path = write(tmp_path / f"{number}.ts", images, aspect, 15 * number, form="mpegts")
        data += path.read_bytes()
    (tmp_path / "all.ts").write_bytes(data)
    with open_source(str(tmp_path / "all.ts")) as source:
        assert source.size == (64, 128)
        frames = list(source)
        assert len([note for note in source.notes if "changes" in note]) == 2
    seen = set()
    for frame in frames:
        assert frame.image.shape == (64, 128, 3)
        part = int(np.argmin([abs(int(frame.image.max()) - grey) for _, grey in parts]))
        seen.add(part)
        _, _, width, height = sides(frame.image)
        assert width == pytest.approx(height, abs=2.5), (frame.index, part)
        x, y = sides(frame.image)[:2]
        stored = sides(disc(float(parts[part][0])))[:2]
        back = frame.stretch.stored(np.array([x, y], np.float32))
        np.testing.assert_allclose(back, stored, atol=1.2)
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("aspect", [Fraction(1, 12), Fraction(20)])
def test_a_shape_that_no_camera_has_is_not_believed(tmp_path: Path, aspect: Fraction) -> None:
    path = write(tmp_path / "a.mp4", [disc(1.0)] * 2, aspect)
    with open_source(str(path)) as source:
        assert source.size == source.stored_size == (64, 96)
        assert "no camera" in source.notes[0]
    assert square_size(Size(64, 96), 0.0) == (64, 96)


def test_the_limit_counts_square_pixels(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [disc(2.0)] * 2, 2)
    with pytest.raises(VideoError, match="192x64"):
        open_source(str(path), max_pixels=64 * 96)


def test_results_are_in_pixels_of_the_stored_picture() -> None:
    frame = Frame(np.zeros((64, 128, 3), np.uint8), 0, 0.0, stretch=Stretch(4 / 3, 1.0, 0.0, 8.0))
    pose = Pose(
        0,
        1,
        np.array([3.5, 7.5, 127.5, 71.5], np.float32),
        np.full((17, 2), [11.5, 27.5], np.float32),
        np.ones(17, np.float32),
    )
    (stored,) = FrameResult(frame, [pose]).stored_poses
    np.testing.assert_allclose(stored.box, [2.5, -0.5, 95.5, 63.5], atol=1e-5)
    np.testing.assert_allclose(stored.xy, np.full((17, 2), [8.5, 19.5]), atol=1e-5)


def test_an_anamorphic_clip_gives_the_poses_of_the_plain_one(tmp_path: Path) -> None:
    """The same pictures, squeezed: 2D differs by the factor alone, 3D does not."""
    with open_source(str(SAMPLE), frame_range="60:72") as source:
        plain = [frame.image for frame in source]
    squeezed = []
    for image in plain:
        picture = av.VideoFrame.from_ndarray(image, format="rgb24")
        squeezed.append(
            picture.reformat(width=480, height=360, interpolation="BICUBIC").to_ndarray()
        )
    paths = [
        write(tmp_path / "plain.mp4", plain, 1),
        write(tmp_path / "squeezed.mp4", squeezed, Fraction(4, 3)),
    ]
    first, second = (mp.run(path) for path in paths)
    assert second.meta["source"]["width"] == 480
    assert len(first.poses) == len(second.poses) == 12
    for one, two in zip(first.poses, second.poses, strict=True):
        sure = one.score > 0.3
        apart = np.linalg.norm((two.xy + 0.5) * [4 / 3, 1] - 0.5 - one.xy, axis=1)[sure]
        assert np.median(apart) < 1.5
        assert one.xyz is not None
        assert two.xyz is not None
        widths = np.ptp(one.xyz[:, 0]), np.ptp(two.xyz[:, 0])
        assert widths[1] == pytest.approx(widths[0], rel=0.08)
