"""The drawn clip: what its truth says is what its pictures show."""

from __future__ import annotations

import numpy as np
import pytest

from mambapose.runtime.skeleton import COCO17, H36M17

from .drawn_clip import DrawnClip
from .figure import STATURE
from .raycast import FLOOR, WALL, WALL_Z, cast, motion

CLIP = DrawnClip(frames=90, size=(320, 180), seed=0)


def test_same_seed_same_clip_other_seed_another() -> None:
    again = DrawnClip(frames=90, size=(320, 180), seed=0)
    np.testing.assert_array_equal(CLIP.image(7), again.image(7))
    np.testing.assert_array_equal(CLIP.h36m_xyz(7), again.h36m_xyz(7))
    other = DrawnClip(frames=90, size=(320, 180), seed=1)
    assert np.abs(CLIP.h36m_xyz(7) - other.h36m_xyz(7)).max() > 0.01
    assert (CLIP.image(7) != other.image(7)).mean() > 0.3


def inside(part, points: np.ndarray, slack: float) -> np.ndarray:
    """Whether world points lie deeper than slack inside a part; the obvious way."""
    local = (points - part.origin) @ part.rotation
    if part.radii.size == 3:
        return (((local - part.start) / (part.radii - slack)) ** 2).sum(axis=-1) < 1
    axis = part.end - part.start
    place = ((local - part.start) @ axis / (axis @ axis)).clip(0, 1)
    return np.linalg.norm(local - part.start - place[:, None] * axis, axis=-1) < part.radii - slack


@pytest.mark.parametrize("t", [0, 40, 75])
def test_every_ray_ends_on_the_first_surface_it_meets(t: int) -> None:
    camera, figure = CLIP.camera(t), CLIP.figure(t)
    surface = cast(camera, figure)
    points = surface.points @ camera.rotation + camera.position
    rng = np.random.default_rng(t)
    rows, columns = np.nonzero(surface.part >= 0)
    chosen = rng.choice(rows.size, 60, replace=False)
    pixels = [*zip(rows[chosen], columns[chosen], strict=True), (5, 5), (170, 300), (90, 20)]
    for row, column in pixels:
        point, number = points[row, column], surface.part[row, column]
        if number == FLOOR:
            assert point[1] == pytest.approx(0, abs=1e-9)
        elif number == WALL:
            assert point[2] == pytest.approx(WALL_Z, abs=1e-9)
        else:
            part = figure.parts[number]
            assert inside(part, point[None], -1e-6)[0]
            assert not inside(part, point[None], 1e-6)[0]
        # Nothing lies in front of it.
        way = camera.position + np.linspace(0, 0.999, 4000)[:, None] * (point - camera.position)
        for part in figure.parts:
            assert not inside(part, way, 2e-3).any()
        np.testing.assert_allclose(camera.project(point), (column, row), atol=1e-9)


def sample_image(image: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Bilinear values of an image (H, W, C) at pixel positions (..., 2) inside it."""
    x, y = xy[..., 0], xy[..., 1]
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    image = image.astype(float)
    top = image[y0, x0] * (1 - fx) + image[y0, x0 + 1] * fx
    bottom = image[y0 + 1, x0] * (1 - fx) + image[y0 + 1, x0 + 1] * fx
    return top * (1 - fy) + bottom * fy


@pytest.mark.parametrize("t", [20, 45, 80])
def test_motion_leads_back_to_the_same_colours(t: int) -> None:
    clip = DrawnClip(size=(640, 360), seed=2)
    rows, columns = np.mgrid[0:360, 0:640]
    # The room moves slowly (the camera sways), so it is compared over more frames.
    for region, back in ((clip.mask(t), 3), (~clip.mask(t), 20)):
        surface = cast(clip.camera(t), clip.figure(t))
        old = clip.camera(t - back), clip.figure(t - back)
        flow = motion(surface, clip.camera(t), clip.figure(t), *old)
        there = np.stack([columns, rows], axis=-1) + flow
        pixels = region & ((there >= 0) & (there < (639, 359))).all(axis=2)
        now, before = clip.image(t)[pixels].astype(float), clip.image(t - back)
        error = np.abs(sample_image(before, there[pixels]) - now).mean(axis=1)
        still = np.abs(before[pixels] - now).mean(axis=1)
        # Edges and pixels that were hidden before stay different; nothing else may.
        assert np.median(error) < 3
        assert error.mean() < 0.4 * still.mean()


def test_flow_is_the_motion_since_the_frame_before() -> None:
    surface = cast(CLIP.camera(9), CLIP.figure(9))
    want = motion(surface, CLIP.camera(9), CLIP.figure(9), CLIP.camera(8), CLIP.figure(8))
    np.testing.assert_array_equal(CLIP.flow(9), want)
    assert want.shape == (180, 320, 2)
    assert want.dtype == np.float32
    with pytest.raises(ValueError, match="t >= 1"):
        CLIP.flow(0)


def test_flow_at_a_joint_is_the_way_the_joint_went() -> None:
    seen = 0
    for t in (20, 60):
        flow, xy, before = CLIP.flow(t), CLIP.coco_xy(t), CLIP.coco_xy(t - 1)
        for joint in np.flatnonzero(CLIP.visibility(t) == 2):
            x, y = np.round(xy[joint]).astype(int)
            if CLIP.mask(t)[y - 1 : y + 2, x - 1 : x + 2].all():
                # The skin in front of a joint turns about it: some tenths of a pixel.
                np.testing.assert_allclose(flow[y, x], before[joint] - xy[joint], atol=0.6)
                seen += 1
    assert seen > 12


def test_depth_is_inverse_and_matches_the_joints() -> None:
    for t in (0, 50):
        depth = CLIP.depth(t)
        assert depth.shape == (180, 320)
        assert depth.dtype == np.float32
        assert (depth > 0).all()
        joints = CLIP.root(t) + CLIP.h36m_xyz(t) * STATURE
        xy = CLIP.coco_xy(t)
        for name in ("left_shoulder", "right_knee", "left_wrist"):
            number = COCO17.joints.index(name)
            x, y = np.round(xy[number]).astype(int)
            if CLIP.visibility(t)[number] == 2:
                z = joints[H36M17.joints.index(name), 2]
                assert 1 / depth[y, x] == pytest.approx(z - 0.08, abs=0.09)
        assert depth[CLIP.mask(t)].mean() > depth[~CLIP.mask(t)].mean()


def test_both_skeletons_are_one_body() -> None:
    clip = DrawnClip(size=(640, 360))
    for t in (0, 33, 89):
        xyz = clip.root(t) + clip.h36m_xyz(t) * STATURE
        lens = clip.camera(t)
        projected = lens.focal * xyz[:, :2] / xyz[:, 2:] + np.array(lens.centre)
        shared = [name for name in H36M17.joints if name in COCO17.joints]
        assert len(shared) == 10
        pairs = [(name, name) for name in shared]
        pairs += [("left_foot", "left_ankle"), ("right_foot", "right_ankle"), ("neck", "nose")]
        for solid, flat in pairs:
            np.testing.assert_allclose(
                projected[H36M17.joints.index(solid)],
                clip.coco_xy(t)[COCO17.joints.index(flat)],
                atol=1e-3,
            )
        relative = dict(zip(H36M17.joints, clip.h36m_xyz(t), strict=True))
        np.testing.assert_allclose(relative["pelvis"], 0, atol=1e-7)
        np.testing.assert_allclose(relative["left_hip"] + relative["right_hip"], 0, atol=1e-5)
        middle = (relative["left_shoulder"] + relative["right_shoulder"]) / 2
        np.testing.assert_allclose(middle, relative["thorax"], atol=1e-5)
        assert relative["head"][1] < relative["thorax"][1] < 0 < relative["left_foot"][1]


def test_bones_keep_their_length_and_feet_stay_on_the_floor() -> None:
    lengths = []
    for t in range(0, 90, 3):
        xyz = CLIP.figure(t).h36m
        lengths.append([np.linalg.norm(xyz[a] - xyz[b]) for a, b in H36M17.edges])
        feet = xyz[[H36M17.joints.index("left_foot"), H36M17.joints.index("right_foot")], 1]
        assert feet.max() == pytest.approx(-0.045 * STATURE)
    assert np.ptp(lengths, axis=0).max() < 1e-9


@pytest.mark.parametrize(
    ("size", "seed"), [((640, 360), 0), ((640, 360), 5), ((360, 640), 1), ((193, 161), 2)]
)
def test_the_whole_figure_is_in_every_picture(size: tuple[int, int], seed: int) -> None:
    clip = DrawnClip(size=size, seed=seed)
    for t in range(0, 241, 24):
        x0, y0, x1, y1 = clip.box(t)
        assert (x0 > 0, y0 > 0, x1 < size[0] - 1, y1 < size[1] - 1) == (True,) * 4
        assert y1 - y0 > 0.4 * min(size)
        xy, visibility = clip.coco_xy(t), clip.visibility(t)
        assert (visibility > 0).all()
        assert (xy >= (x0 - 1, y0 - 1)).all()
        assert (xy <= (x1 + 1, y1 + 1)).all()


def test_face_is_hidden_from_behind_and_seen_from_the_front() -> None:
    face = {t: CLIP.visibility(t)[:3] for t in range(0, 240, 6)}
    # It starts far away, walks towards the camera (facing it) and later away from it.
    assert face[60].tolist() == [2, 2, 2]
    assert face[180].tolist() == [1, 1, 1]
