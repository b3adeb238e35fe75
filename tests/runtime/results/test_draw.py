"""The overlay shows what it should where it should."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from mambapose.runtime.results.draw import CENTRE, FAINT, LEFT, RIGHT, TRACKS, WARNING, draw_poses
from mambapose.runtime.skeleton import COCO17
from mambapose.runtime.types import Pose

SIZE = (480, 640)


def standing(score: float = 0.9, solid: bool = False, track: int = 0) -> Pose:
    """A person that faces the camera: its left is on the right of the picture."""
    places = {
        "nose": (320, 100), "eye": (8, 92), "ear": (16, 96), "shoulder": (50, 150),
        "elbow": (80, 210), "wrist": (85, 270), "hip": (30, 270), "knee": (35, 350),
        "ankle": (38, 430),
    }  # fmt: skip
    xy = []
    for name in COCO17.joints:
        side, _, joint = name.rpartition("_")
        away, y = places[joint]
        xy.append((away if not side else 320 + (away if side == "left" else -away), y))
    xyz = np.random.default_rng(0).normal(0, 0.2, (17, 3)).astype(np.float32) if solid else None
    return Pose(
        0,
        track,
        np.array([220, 70, 420, 450], np.float32),
        np.array(xy, np.float32),
        np.full(17, score, np.float32),
        xyz,
    )


def drawn(image: np.ndarray, poses: list[Pose], **said: Any) -> np.ndarray:
    picture = Image.fromarray(image)
    draw_poses(picture, poses, **said)
    return np.asarray(picture)


def grey() -> np.ndarray:
    return np.full((*SIZE, 3), 90, np.uint8)


def around(image: np.ndarray, first: str, second: str) -> set[tuple[int, ...]]:
    """Colours around the middle of a limb of standing()."""
    xy = standing().xy
    x, y = (xy[COCO17.joints.index(first)] + xy[COCO17.joints.index(second)]).astype(int) // 2
    return {tuple(pixel) for pixel in image[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3).tolist()}


def test_limbs_have_the_colour_of_their_side() -> None:
    image = drawn(grey(), [standing()])
    for limb in (("knee", "ankle"), ("elbow", "wrist"), ("shoulder", "hip")):
        left, right = (
            around(image, *(f"{side}_{joint}" for joint in limb)) for side in ("left", "right")
        )
        assert LEFT in left
        assert RIGHT not in left
        assert RIGHT in right
        assert LEFT not in right
    assert {LEFT, RIGHT} & around(image, "left_hip", "right_hip") == set()
    assert CENTRE in around(image, "left_hip", "right_hip")


def test_only_the_person_and_its_label_are_drawn_over() -> None:
    image = drawn(grey(), [standing()])
    changed = np.argwhere((image != 90).any(axis=2))
    assert changed[:, 0].min() >= 70 - 20
    assert changed[:, 0].max() <= 451
    assert changed[:, 1].min() >= 219
    assert changed[:, 1].max() <= 421


def test_no_people_gives_the_same_picture() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (31, 47, 3), dtype=np.uint8)
    np.testing.assert_array_equal(drawn(noise, []), noise)


def test_joints_below_the_threshold_are_hollow_and_their_limbs_grey() -> None:
    """The threshold is three tenths, as for the joints that count in tracking."""
    image = drawn(grey(), [standing(score=0.29)])
    assert FAINT in around(image, "left_knee", "left_ankle")
    assert LEFT not in around(image, "left_knee", "left_ankle")
    sure = drawn(grey(), [standing(score=0.31)])
    assert LEFT in around(sure, "left_knee", "left_ankle")


def test_joint_colour_follows_the_score() -> None:
    x, y = (round(float(value)) for value in standing().xy[15])
    low = drawn(grey(), [standing(score=0.35)])[y, x]
    high = drawn(grey(), [standing(score=1.0)])[y, x]
    assert low[0] > low[1]
    assert high[1] > high[0]


def test_people_have_the_colour_of_their_track() -> None:
    for track in (0, 1, len(TRACKS) + 1):
        image = drawn(grey(), [standing(track=track)])
        assert tuple(image[449, 300].tolist()) == TRACKS[track % len(TRACKS)] or (
            tuple(image[450, 300].tolist()) == TRACKS[track % len(TRACKS)]
        )


def test_untrained_is_written_in_red_only_when_asked() -> None:
    def reds(image: np.ndarray) -> int:
        return int((image == WARNING).all(axis=2).sum())

    assert reds(drawn(grey(), [standing()])) == 0
    assert reds(drawn(grey(), [], untrained=True)) > 300


def test_a_label_is_small_and_in_the_corner() -> None:
    image = drawn(grey(), [], label="demonstration weights")
    changed = np.argwhere((image != 90).any(axis=2))
    (top, left), (bottom, right) = changed.min(axis=0), changed.max(axis=0)
    assert top > 0.92 * image.shape[0]
    assert bottom < image.shape[0] - 1
    assert left < 20
    assert right < image.shape[1] / 2
    assert not (image == WARNING).all(axis=2).any()
    worthless = drawn(grey(), [], untrained=True)
    assert np.array_equal(drawn(grey(), [], untrained=True, label="demonstration"), worthless)


def test_inset_shows_people_that_have_3d() -> None:
    corner = np.s_[0:130, 500:640]
    assert (drawn(grey(), [standing()])[corner] == 90).all()
    with_inset = drawn(grey(), [standing(solid=True)])[corner]
    assert (with_inset == LEFT).all(axis=2).any()
    assert (with_inset == RIGHT).all(axis=2).any()


def test_three_people_have_an_inset_and_the_fourth_has_none() -> None:
    """More would reach the middle of a wide picture, where people are."""
    many = [standing(solid=True, track=track) for track in range(4)]
    levels = drawn(grey(), many)[1, 134 - 25 : 640 : 134, 0]  # near the left edge of each inset
    assert levels.tolist() == [90, 22, 22, 22]


def test_inset_draws_the_body_upright() -> None:
    person = standing(solid=True)
    assert person.xyz is not None
    person.xyz[:] = 0
    # Only the left leg has a length: straight down (y) from the pelvis.
    person.xyz[5, 1], person.xyz[6, 1] = 0.25, 0.5
    image = drawn(grey(), [person])
    left = np.argwhere((image[0:134, 506:640] == LEFT).all(axis=2))
    assert left[:, 0].min() >= 60
    assert left[:, 0].max() > 95
    assert np.ptp(left[:, 1]) <= 3


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9, -1e9])
def test_joints_that_cannot_be_shown_are_left_out(value: float) -> None:
    person = standing(solid=True)
    person.xy[9:11] = value
    assert person.xyz is not None
    person.xyz[3] = np.nan
    image = drawn(grey(), [person])
    assert around(image, "left_elbow", "left_wrist") == {(90, 90, 90)}
    assert LEFT in around(image, "left_knee", "left_ankle")


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (17, 400), (400, 17)])
def test_tiny_and_narrow_pictures(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 90, np.uint8)
    box = Pose(0, 2, np.array([-5, -5, 900, np.nan], np.float32), standing().xy, standing().score)
    assert drawn(image, [standing(solid=True), box], untrained=True).shape == image.shape
