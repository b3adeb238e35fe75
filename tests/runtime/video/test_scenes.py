"""Cuts: found where the scene changes, not where something moves, whatever the frames are."""

from __future__ import annotations

import numpy as np
import pytest

from mambapose.runtime.types import Frame
from mambapose.runtime.video.scenes import SceneCuts, is_cut
from mambapose.runtime.video.sources import open_source


def scene(seed, frames=4, size=(96, 128)):
    """A smooth random texture that pans by 2 px per frame."""
    rng = np.random.default_rng(seed)
    small = rng.uniform(0, 255, (6, 9, 3)) * rng.uniform(0.3, 1.0, 3)
    big = np.kron(small, np.ones((24, 24, 1)))
    return [big[: size[0], 2 * k : 2 * k + size[1]].astype(np.uint8) for k in range(frames)]


def test_a_cut_is_found_and_motion_is_not():
    cuts = SceneCuts()
    images = [*scene(0), *scene(1)]
    found = [cuts.starts(Frame(image, k, k / 30)) for k, image in enumerate(images)]
    assert [cut for cut, _ in found] == [False] * 4 + [True] + [False] * 3
    assert [follows for _, follows in found] == [False] + [True] * 7


def test_a_dropped_frame_does_not_follow():
    cuts = SceneCuts()
    image = scene(0)[0]
    assert [cuts.starts(Frame(image, k, 0.0)) for k in (3, 4, 6)] == [
        (False, False),
        (False, True),
        (False, False),
    ]


def test_real_clips_hold_no_cut_and_their_seam_does(assets):
    with open_source(str(assets / "sintel-frames")) as film:
        images = [frame.image for frame in film]
    people = assets / "pose2sim-two-people" / "cam01.mp4"
    with open_source(str(people), frame_range=":5") as video:
        images += [frame.image for frame in video]
    cuts = SceneCuts()
    found = [cuts.starts(Frame(image, k, 0.0))[0] for k, image in enumerate(images)]
    assert found == [False] * 10 + [True] + [False] * 4


@pytest.mark.parametrize(
    ("colours", "picture", "cut"),
    [
        (0.5, 40.0, True),
        (0.16, 8.5, True),
        (0.14, 40.0, False),  # a pan: other pixels, the colours of the same place
        (0.5, 7.5, False),  # light that changes a little, over the edge of many colour cells
    ],
)
def test_both_colour_and_picture_must_change(colours, picture, cut):
    """By more than 0.15 of the histogram, more than 8 grey levels a pixel."""
    assert is_cut(colours, picture) is cut
