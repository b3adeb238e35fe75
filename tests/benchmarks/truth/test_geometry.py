"""Geometry of the lifter's data: bones, mirror, cameras, surfaces, and the metrics."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from mambapose.benchmarks.truth import body
from mambapose.benchmarks.truth import lift_metrics as metrics
from mambapose.benchmarks.truth.camera import (
    NEAREST,
    Cameras,
    cameras_drawn,
    spheres_from_joints,
    surfaces,
)
from mambapose.runtime.skeleton import COCO17
from mambapose.runtime.stages.joints import body_heights, h36m_from_coco


@pytest.fixture
def people(lift_motion: ModuleType) -> np.ndarray:
    """(3, 9, 17, 3) people of height about 1, y down, about the origin."""
    clips = [body.redefined(body.camera_axes(lift_motion.clip(9, seed))) for seed in range(3)]
    xyz = np.stack(clips) / 1.7
    return (xyz - xyz[:, :, :1].mean(axis=1, keepdims=True)).astype(np.float32)


def test_bones_and_joints_are_inverse(people: np.ndarray) -> None:
    again = body.joints_from_bones(body.bones_from_joints(people))
    np.testing.assert_allclose(again, people, atol=1e-6)


def test_pelvis_and_thorax_are_between_their_joints(people: np.ndarray) -> None:
    np.testing.assert_allclose(people[..., 0, :], people[..., [1, 4], :].mean(-2), atol=1e-6)
    np.testing.assert_allclose(people[..., 8, :], people[..., [11, 14], :].mean(-2), atol=1e-6)


def test_resized_people_have_the_wanted_lengths(people: np.ndarray) -> None:
    lengths = body.lengths_drawn(np.random.default_rng(0), len(people))
    np.testing.assert_array_equal(lengths[:, 2], lengths[:, 5])  # both thighs
    bones = body.resized(body.bones_from_joints(people), lengths)
    found = np.linalg.norm(bones, axis=-1).mean(axis=1)
    np.testing.assert_allclose(found[:, 1:], lengths[:, 1:], rtol=1e-5)


def test_mean_lengths_stand_one_body_height_tall() -> None:
    ankle_to_floor = 0.039
    legs = body.LENGTHS[2] + body.LENGTHS[3]
    trunk_and_head = body.LENGTHS[7:11].sum()
    assert legs + trunk_and_head + ankle_to_floor == pytest.approx(1.0, abs=0.005)


def test_rotations_are_rotations() -> None:
    turn = body.rotations_from_vectors(np.array([[0, 0, np.pi / 2], [0, 0, 0], [0.3, -1.0, 2.0]]))
    np.testing.assert_allclose(turn[0] @ [1, 0, 0], [0, 1, 0], atol=1e-6)
    np.testing.assert_array_equal(turn[1], np.eye(3))
    np.testing.assert_allclose(
        turn @ np.swapaxes(turn, 1, 2), np.tile(np.eye(3), (3, 1, 1)), atol=1e-6
    )
    np.testing.assert_allclose(np.linalg.det(turn), 1, atol=1e-6)


def test_mirror_is_its_own_inverse_and_keeps_sides(people: np.ndarray) -> None:
    image = body.mirrored(people)
    np.testing.assert_array_equal(body.mirrored(image), people)
    # The left hip of the mirror image is the right hip seen in the mirror.
    np.testing.assert_array_equal(image[..., 4, 1:], people[..., 1, 1:])
    np.testing.assert_array_equal(image[..., 4, 0], -people[..., 1, 0])


def test_variation_keeps_lengths_and_turning_keeps_shape(people: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    bones = body.bones_from_joints(people)
    lengths = np.linalg.norm(bones[..., 1:, :], axis=-1)
    for change in (body.varied, body.turned_bodies):
        changed = change(rng, bones)
        found = np.linalg.norm(changed[..., 1:, :], axis=-1)
        if change is body.varied:  # arms of another window keep that window's lengths
            arms = [11, 12, 14, 15]
            found, known = np.delete(found, arms, -1), np.delete(lengths, arms, -1)
        else:
            known = lengths
        np.testing.assert_allclose(found, known, atol=1e-5)


def test_faces_look_forward_with_the_left_eye_on_the_left(people: np.ndarray) -> None:
    coco = body.coco_from_bones(np.random.default_rng(0), body.bones_from_joints(people), people)
    forward = np.cross(
        people[..., 11, :] - people[..., 14, :], people[..., 8, :] - people[..., 0, :]
    )
    nose = coco[..., 0, :] - coco[..., 3:5, :].mean(axis=-2)
    assert ((nose * forward).sum(-1) > 0).all()
    left = people[..., 11, :] - people[..., 14, :]
    for a, b in COCO17.pairs:
        assert (((coco[..., a, :] - coco[..., b, :]) * left).sum(-1) > 0).all(), COCO17.joints[a]
    np.testing.assert_array_equal(coco[..., 13, :], people[..., 5, :])  # left knee


def test_the_runtime_converts_projected_joints_near_the_truth(people: np.ndarray) -> None:
    """Twelve limb joints and pelvis exactly; the made-up ones within a tenth of the height."""
    coco = body.coco_from_bones(np.random.default_rng(0), body.bones_from_joints(people), people)
    truth = body.h36m_from_body(people, coco)[..., :2]
    found = h36m_from_coco(coco[..., :2])
    measured = list(metrics.MEASURED)
    np.testing.assert_allclose(found[..., measured, :], truth[..., measured, :], atol=1e-5)
    np.testing.assert_allclose(found[..., 9, :], truth[..., 9, :], atol=1e-5)
    assert np.abs(found - truth).max() < 0.1


def test_projection_and_back(people: np.ndarray) -> None:
    cameras = cameras_drawn(np.random.default_rng(2), people)
    seen = cameras.view(people)
    assert seen[..., 2].min() >= NEAREST * 0.999
    again = cameras.back(cameras.project(seen), seen[..., 2])
    np.testing.assert_allclose(again, seen, atol=2e-5)
    # Distances within a body do not change with the camera.
    np.testing.assert_allclose(
        np.linalg.norm(seen[..., 3, :] - seen[..., 10, :], axis=-1),
        np.linalg.norm(people[..., 3, :] - people[..., 10, :], axis=-1),
        rtol=1e-4,
    )


def test_projection_by_hand() -> None:
    camera = Cameras(np.eye(3, dtype=np.float32)[None], np.array([[0, 0, 4.0]], np.float32),
                     np.array([2.0], np.float32))  # fmt: skip
    point = np.array([1.0, -0.5, 0.0], np.float32).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(camera.project(camera.view(point)).ravel(), [0.5, -0.25])


def test_nearest_surface_hides_what_is_behind() -> None:
    camera = Cameras(np.eye(3, dtype=np.float32)[None], np.zeros((1, 3), np.float32),
                     np.ones(1, np.float32))  # fmt: skip
    spheres = np.array([[0, 0, 3.0], [0, 0, 2.0], [1.0, 0, 2.0]], np.float32).reshape(1, 1, 3, 3)
    radii = np.array([0.1, 0.2, 0.1], np.float32)
    at = np.array([[0, 0], [0.5, 0], [0.25, 0]], np.float32).reshape(1, 1, 3, 2)
    depth, owner = surfaces(camera, spheres, radii, at)
    assert owner.ravel().tolist() == [1, 2, -1]
    np.testing.assert_allclose(depth.ravel(), [1.8, 1.9, np.inf])


def test_spheres_lie_on_the_body(people: np.ndarray) -> None:
    centres, radii = spheres_from_joints(people)
    assert centres.shape == (*people.shape[:2], len(radii), 3)
    apart = np.linalg.norm(centres[..., None, :] - people[..., None, :, :], axis=-1).min(axis=-1)
    assert apart.max() < 0.2


def test_metrics_by_hand() -> None:
    truth = np.zeros((4, 13, 3))
    truth[:, :, 0] = np.arange(13) / 10
    found = truth + np.array([0.03, 0.04, 0.0])
    assert metrics.distances(found, truth) == pytest.approx(0.05)
    values = metrics.summary(found, truth)
    assert values["mpjpe_mm"] == pytest.approx(0.05 * 1750)
    assert values["pa_mpjpe_mm"] == pytest.approx(0, abs=1e-6)
    assert values["acceleration_mm"] == pytest.approx(0, abs=1e-9)
    jumped = truth.copy()
    jumped[2] += [0, 0, 0.1]  # second differences: 0.1, then -0.2
    values = metrics.summary(jumped, truth)
    assert values["acceleration_mm"] == pytest.approx(0.15 * 1750)
    assert values["jitter_mm"] == pytest.approx(0.15 * 1750)


def test_alignment_undoes_any_similarity() -> None:
    rng = np.random.default_rng(3)
    truth = rng.normal(size=(50, 13, 3))
    turn = body.rotations_from_vectors(rng.normal(size=(50, 3)) * 2).astype(np.float64)
    scale = np.exp(rng.normal(size=(50, 1, 1)))
    found = scale * truth @ np.swapaxes(turn, 1, 2) + rng.normal(size=(50, 1, 3))
    assert metrics.distances(metrics.aligned(found, truth), truth).max() < 1e-6


def test_alignment_is_the_best_and_never_mirrors() -> None:
    rng = np.random.default_rng(4)
    truth, found = rng.normal(size=(2, 1, 13, 3))
    best = ((metrics.aligned(found, truth) - truth) ** 2).sum()
    for _ in range(200):
        turn = body.rotations_from_vectors(rng.normal(size=(1, 3)) * 0.2).astype(np.float64)
        moved = metrics.aligned(found, truth) @ np.swapaxes(turn, 1, 2)
        moved = moved * np.exp(rng.normal() * 0.05) + rng.normal(size=3) * 0.02
        assert ((moved - truth) ** 2).sum() >= best
    image = truth * [1, 1, -1]
    assert metrics.distances(metrics.aligned(image, truth), truth)[0] > 0.3


def test_coco_and_h36m_joints_are_the_same_ones() -> None:
    """The joints measured on both skeletons, numbered so that a mix-up shows."""
    coco = np.arange(17 * 3, dtype=np.float64).reshape(17, 3)
    flat = np.stack([coco[:, 0], coco[:, 1]], -1)
    h36m = np.concatenate([h36m_from_coco(flat), np.zeros((17, 1))], -1)
    np.testing.assert_allclose(
        metrics.measured_coco(coco)[:, :2], metrics.measured_h36m(h36m)[:, :2]
    )


def test_limbs_of_oneself_seen_from_elsewhere_change_nothing(
    people: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limb is taken as it hangs on the body, wherever that body faces."""
    monkeypatch.setattr(body, "TURNED", ())
    bones = body.bones_from_joints(people)
    yaw = body.rotations_from_vectors(np.array([0.0, 1.0, 0.0]))
    both = np.concatenate([bones[:1], bones[:1] @ yaw.T])
    for seed in range(5):
        found = body.varied(np.random.default_rng(seed), both)
        np.testing.assert_allclose(found, both, atol=1e-6)
    taken = body.varied(np.random.default_rng(0), np.tile(bones, (20, 1, 1, 1)))
    changed = np.abs(taken - np.tile(bones, (20, 1, 1, 1))).max(axis=(1, 3)) > 1e-3
    assert changed[:, [2, 3, 5, 6, 12, 13, 15, 16]].any(axis=0).all()
    assert not changed[:, [0, 1, 4, 7, 8, 9, 10, 11, 14]].any()
    assert (changed[:, 2] != changed[:, 5]).any()


def test_the_runtime_finds_the_height_of_people_of_mean_proportions(people: np.ndarray) -> None:
    """Its share of bones in a body height fits the people that lifters are trained on."""
    bones = body.resized(body.bones_from_joints(people), np.tile(body.LENGTHS, (3, 1)))
    xyz = body.joints_from_bones(bones)
    coco = body.coco_from_bones(np.random.default_rng(0), bones, xyz)
    found = body_heights(body.h36m_from_body(xyz, coco))
    np.testing.assert_allclose(found, 1, atol=0.02)
