"""Depth, flow, masks and joints against each other and against slow, obvious computations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mambapose.runtime.skeleton import COCO17, H36M17
from mambapose.train.world.camera import Camera, look_at, moved
from mambapose.train.world.clothes import random_person
from mambapose.train.world.colours import Role, material
from mambapose.train.world.mesh import box, quad
from mambapose.train.world.rotations import about
from mambapose.train.world.scene import NOW, Scene, Thing, acted, random_light
from mambapose.train.world.truth import THICKNESS, joints_of, surface_of


def plain_table(seed: int = 0) -> np.ndarray:
    """The table of one material without folds."""
    rng = np.random.default_rng(seed)
    return np.asarray(material(rng, Role.PLAIN, np.full(3, 0.5), wrinkle=0.0), np.float32)


def camera_at(eye: Sequence[float], target: Sequence[float], focal: float = 210.0) -> Camera:
    """A camera of 192x256 pixels."""
    matrix = np.array([[focal, 0, 95.5], [0, focal, 127.5], [0, 0, 1]])
    place = np.asarray(eye, float)
    return Camera(look_at(place, np.asarray(target, float)), place, matrix, (192, 256))


def test_clip_matrix_agrees_with_the_pixels() -> None:
    rng = np.random.default_rng(0)
    matrix = np.array([[300.0, 0, 90], [0, 310, 130], [0, 0, 1]])
    camera = Camera(look_at(np.array([1.0, 2, -4]), np.zeros(3), 0.2), np.array([1.0, 2, -4]),
                    matrix, (193, 255))  # fmt: skip
    points = rng.uniform(-1, 1, (50, 3))
    clip = np.hstack([points, np.ones((50, 1))]) @ camera.clip_matrix(0.1, 50).T.astype(float)
    ndc = clip[:, :3] / clip[:, 3:]
    # OpenGL: the pixel with index i has its centre at i + 1/2.
    gl = (ndc[:, :2] + 1) / 2 * camera.size - 0.5
    np.testing.assert_allclose(gl, camera.project(points), atol=2e-3)
    z = camera.view(points)[:, 2]
    np.testing.assert_allclose(ndc[:, 2], (50.1 - 2 * 0.1 * 50 / z) / 49.9, atol=1e-5)


def test_box_and_wall_move_by_their_rigid_motion(renderer: Any) -> None:
    """Every pixel's flow and depth follow from two rigid motions, to rounding."""
    rng = np.random.default_rng(1)
    camera = camera_at((0.3, 1.4, -3), (0, 0, 0), 220.0)
    cameras = (moved(camera, rng.normal(0, 0.02, 3), rng.normal(0, 0.05, 3)), camera,
               moved(camera, rng.normal(0, 0.02, 3), rng.normal(0, 0.05, 3)))  # fmt: skip
    moves = np.stack(
        [
            np.column_stack([about(rng.normal(size=3), 0.6 + 0.1 * k), rng.normal(0, 0.1, 3)])
            for k in range(3)
        ]
    )[:, None]
    wall = quad(np.array([0, 0, 2.0]), np.array([3.0, 0, 0]), np.array([0, 3.0, 0.5]),
                plain_table(1), np.zeros((4, 3)))  # fmt: skip
    still = np.tile(np.eye(3, 4), (3, 1, 1, 1))
    scene = Scene((Thing(box(np.array([0.9, 1.1, 0.7]), plain_table()), moves), Thing(wall, still)),
                  cameras, random_light(rng))  # fmt: skip
    surface = surface_of(scene, renderer.picture(scene).triangle)
    assert set(np.unique(surface.thing)) >= {0, 1}
    rows, columns = np.nonzero(surface.thing >= 0)
    pixels = np.stack([columns, rows], axis=-1).astype(float)
    seen = camera.rays(pixels) * surface.depth[rows, columns][:, None]
    world_points = seen @ camera.rotation + camera.position
    for flow, depth, moment in ((surface.flow_before, surface.depth_before, 0),
                                (surface.flow_after, surface.depth_after, 2)):  # fmt: skip
        for number, transforms in ((0, moves), (1, still)):
            mine = surface.thing[rows, columns] == number
            now, other = transforms[NOW, 0], transforms[moment, 0]
            local = (world_points[mine] - now[:, 3]) @ now[:, :3]
            there = cameras[moment].view(local @ other[:, :3].T + other[:, 3])
            at = (rows[mine], columns[mine])
            np.testing.assert_allclose(depth[at], there[:, 2], atol=2e-6)
            found = cameras[moment].pixels(there) - pixels[mine]
            # float32 of the renderer puts a pixel on the wrong side of an edge by 1e-3 px at most.
            np.testing.assert_allclose(flow[at], found, atol=2e-3)
            assert np.median(np.abs(flow[at] - found)) < 1e-9


def nearest_hit(scene: Scene, pixel: np.ndarray) -> float:
    """Depth of the first triangle on the ray of a pixel; every triangle is tried."""
    ray, best = scene.cameras[NOW].rays(pixel), np.inf
    for thing in scene.things:
        points = scene.cameras[NOW].view(thing.mesh.points(thing.transforms[NOW]))
        a, b, c = (points[thing.mesh.triangles[:, k]] for k in range(3))
        across = np.cross(b - a, c - a)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (across * a).sum(axis=1) / (across @ ray)
        inside = np.isfinite(z) & (z > 0)
        hit = z[:, None] * ray
        for p, q in ((a, b), (b, c), (c, a)):
            inside &= (np.cross(q - p, hit - p) * across).sum(axis=1) >= 0
        best = min(best, z[inside].min(initial=np.inf))
    return float(best)


def solid_scene(world: Any, seed: int) -> Scene:
    """A person without cut layers, seen whole."""
    rng = np.random.default_rng(seed)
    cut = {Role.UPPER, Role.LOWER, Role.SKIRT}
    while True:
        person = random_person(world.body, rng)
        rows = person.mesh.material.astype(int)
        if not cut & set(np.unique(person.mesh.table[rows, 3]).astype(int)):
            break
    thing = acted(world.body.rig, person, world.motion.moment(rng), rng, lift=0.0)
    camera = camera_at((2.0, 1.6, 2.5), (0, 0.8, 0))
    return Scene((thing,), (camera, camera, camera), random_light(rng))


def test_every_pixel_holds_the_first_surface_of_its_centre(world: Any, renderer: Any) -> None:
    scene = solid_scene(world, 5)
    picture = renderer.picture(scene)
    surface = surface_of(scene, picture.triangle)
    rows, columns = np.nonzero(surface.thing == 0)
    assert len(rows) > 1000
    rng = np.random.default_rng(0)
    wrong = 0
    for k in rng.choice(len(rows), 80, replace=False):
        found = surface.depth[rows[k], columns[k]]
        best = nearest_hit(scene, np.array([columns[k], rows[k]], float))
        wrong += not abs(found - best) < 1e-6
    assert wrong <= 1  # a pixel whose centre lies on an outline may go to either side
    empty = np.argwhere((surface.thing < 0) & (picture.rgba[..., 3] == 0))
    for row, column in empty[rng.choice(len(empty), 10, replace=False)]:
        assert nearest_hit(scene, np.array([column, row], float)) == np.inf


def test_colours_lie_where_the_numbers_do(world: Any, renderer: Any) -> None:
    """The middle of the alpha is the middle of the mask: no half pixel between the two."""
    grid, apart = np.stack(np.mgrid[0:256, 0:192], axis=-1), []
    for seed in range(5):
        scene = solid_scene(world, seed)
        scene = Scene(scene.things, scene.cameras, scene.light, shadows=False)
        picture = renderer.picture(scene)
        alpha, mask = picture.rgba[..., 3] / 255.0, picture.triangle >= 0
        inner = mask.copy()
        for axis in (0, 1):
            inner &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
        assert np.median(alpha[inner]) == 1
        assert alpha.sum() == pytest.approx(mask.sum(), rel=0.02)
        middle, other = ((w[..., None] * grid).sum((0, 1)) / w.sum() for w in (alpha, mask))
        apart.append(middle - other)
    assert np.abs(apart).max() < 0.2
    assert np.abs(np.mean(apart, axis=0)).max() < 0.08


def bilinear(image: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Values of (H, W, C) at (n, 2) pixels inside."""
    x0, y0 = np.floor(xy).astype(int).T
    fx, fy = (xy - np.floor(xy)).T[..., None]
    top = image[y0, x0] * (1 - fx) + image[y0, x0 + 1] * fx
    return top * (1 - fy) + (image[y0 + 1, x0] * (1 - fx) + image[y0 + 1, x0 + 1] * fx) * fy


def neighbours_agree(values: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Whether the four pixels around each place belong to one thing."""
    x, y = np.floor(xy).astype(int).T
    four = np.stack([values[y, x], values[y + 1, x], values[y, x + 1], values[y + 1, x + 1]])
    return np.asarray((four == four[0]).all(axis=0))


@pytest.mark.parametrize("back", [False, True])
def test_flow_leads_to_the_same_surface_in_the_other_frame(clip: Any, back: bool) -> None:
    now, other = (2, 1) if back else (1, 2)
    here, there = clip.surface(now), clip.surface(other)
    flow, depth = (
        (here.flow_before, here.depth_before) if back else (here.flow_after, here.depth_after)
    )
    reverse = there.flow_after if back else there.flow_before
    rows, columns = np.nonzero(here.thing >= 0)
    target = np.stack([columns, rows], axis=-1) + flow[rows, columns]
    inside = ((target >= 1) & (target < (317, 177))).all(axis=1)
    rows, columns, target = rows[inside], columns[inside], target[inside]
    same = neighbours_agree(there.thing, target)
    same &= there.thing[tuple(np.floor(target).astype(int).T[::-1])] == here.thing[rows, columns]
    # Inverse depth is linear on a triangle, so interpolating it is exact but for edges.
    inverse = bilinear(1 / there.depth[..., None], target)[:, 0]
    gap = inverse * depth[rows, columns] - 1
    visible = same & (np.abs(gap) < 0.01)
    assert visible.mean() > 0.95
    people = here.thing[rows, columns] < 2
    assert (visible & people).sum() > 1500
    assert np.median(np.abs(gap[visible & people])) < 2e-4
    assert np.median(np.abs(gap[visible & ~people])) < 1e-9
    cycle = bilinear(reverse, target) + flow[rows, columns]
    error = np.linalg.norm(cycle, axis=1)
    assert np.median(error[visible & ~people]) < 1e-4
    assert np.median(error[visible & people]) < 0.01
    assert np.quantile(error[visible & people], 0.9) < 0.1


def test_flow_leads_back_to_the_same_colours(clip: Any) -> None:
    now, before = clip.image(2).astype(float), clip.image(1).astype(float)
    surface = clip.surface(2)
    rows, columns = np.nonzero(clip.mask(2))
    target = np.stack([columns, rows], axis=-1) + surface.flow_before[rows, columns]
    moved_ = np.linalg.norm(surface.flow_before[rows, columns], axis=1) > 0.5
    assert moved_.sum() > 200
    error = np.abs(bilinear(before, target) - now[rows, columns]).mean(axis=1)[moved_]
    still = np.abs(before[rows, columns] - now[rows, columns]).mean(axis=1)[moved_]
    assert np.median(error) < 4
    assert error.mean() < 0.8 * still.mean()


def test_joints_depth_and_masks_are_one_body(clip: Any) -> None:
    camera = clip.camera(2)
    surface = clip.surface(2)
    for person in (0, 1):
        joints = clip.joints(2, person)
        np.testing.assert_allclose(camera.pixels(joints.coco_xyz), joints.coco_xy, atol=1e-9)
        np.testing.assert_allclose(camera.pixels(joints.h36m_xyz), joints.h36m_xy, atol=1e-9)
        for name in set(COCO17.joints) & set(H36M17.joints):
            np.testing.assert_array_equal(
                joints.coco_xyz[COCO17.joints.index(name)],
                joints.h36m_xyz[H36M17.joints.index(name)],
            )
        x, y = np.round(joints.coco_xy).astype(int).T
        skin = surface.depth[y, x]
        seen = joints.visibility == 2
        assert seen.sum() >= 6
        behind = joints.coco_xyz[:, 2] - skin
        assert (behind[seen] <= THICKNESS[seen]).all()
        assert (surface.thing[y, x][seen & (skin < joints.coco_xyz[:, 2])] == person).all()
        assert 1.3 < joints.stature < 2.2
        x0, y0, x1, y1 = clip.box(2, person)
        assert (joints.coco_xy >= (x0 - 1, y0 - 1)).all()
        assert (joints.coco_xy <= (x1 + 1, y1 + 1)).all()


def test_left_is_left(world: Any, renderer: Any) -> None:
    """Seen from the front the person's left is on the picture's right, and the nose is seen."""
    rng = np.random.default_rng(3)
    person = random_person(world.body, rng)
    joints = world.motion.clips["exp_walking__walking_2"][[20, 21, 22]].astype(float)
    thing = acted(world.body.rig, person, joints, rng, lift=0.0)
    marks = person.landmarks(thing.transforms[NOW])
    left = marks[11] - marks[12]
    ahead = np.cross(left, [0, 1.0, 0])
    ahead = ahead / np.linalg.norm(ahead)
    for side, sign in ((ahead, 1), (-ahead, -1)):
        eye = marks[11:13].mean(axis=0) + 3.5 * side + (0, 0.3, 0)
        camera = camera_at(eye, marks[11:13].mean(axis=0), 300.0)
        scene = Scene((thing,), (camera,) * 3, random_light(rng))
        found = joints_of(scene, thing, surface_of(scene, renderer.picture(scene).triangle))
        assert sign * (found.coco_xy[5, 0] - found.coco_xy[6, 0]) > 5
        assert (found.visibility[0] == 2) == (sign > 0)
    with pytest.raises(ValueError, match="this thing is none"):
        joints_of(scene, Thing(box(np.ones(3), plain_table()), thing.transforms), None)


def test_two_renderers_of_a_process_do_not_meet(renderer: Any) -> None:
    """Each draws in its own context, also when the other drew last or is closed."""
    from mambapose.train.world.render import Renderer

    rng = np.random.default_rng(4)
    still = np.tile(np.eye(3, 4), (3, 1, 1, 1))
    scenes = []
    for size, focal in (((192, 256), 210.0), ((64, 48), 60.0), ((96, 80), 90.0)):
        matrix = np.array([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1]])
        near = camera_at((0.3, 1.4, -3), (0, 0, 0))
        camera = Camera(near.rotation, near.position, matrix, size)
        thing = Thing(box(np.array([0.9, 1.1, 0.7]), plain_table()), still)
        scenes.append(Scene((thing,), (camera,) * 3, random_light(rng)))
    alone = [renderer.picture(scene) for scene in scenes]
    with Renderer() as other:
        other.picture(scenes[1])
        for scene, wanted in zip(scenes, alone, strict=True):
            np.testing.assert_array_equal(renderer.picture(scene).rgba, wanted.rgba)
    for scene, wanted in zip(scenes, alone, strict=True):
        found = renderer.picture(scene)
        np.testing.assert_array_equal(found.triangle, wanted.triangle)
        np.testing.assert_array_equal(found.rgba, wanted.rgba)
