"""What is exactly true about a picture: depth, flow, masks, joints and which of them are seen.

For each pixel the ray through its centre is cut with the plane of the triangle there, in float64;
the same point of the surface is then followed to the moments before and after.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mambapose.train.world.scene import AFTER, BEFORE, NOW, Scene, Thing

Vectors = NDArray[np.float64]

HIDDEN, SEEN, OUTSIDE = 1, 2, 0
UNKNOWN = 3  # of joints in real pictures that nobody is sure of
# Metres from a joint inside the body to the skin in front of it, by COCO joint: a surface farther
# in front hides it.
_FACE, _LIMBS = (0.04, 0.04, 0.04, 0.06, 0.06), (0.15, 0.10, 0.08, 0.20, 0.12, 0.12)
THICKNESS = np.array([*_FACE, *(value for value in _LIMBS for _ in range(2))])
# Human3.6M joints from the 19 landmarks (COCO-17, spine, crown); pelvis and thorax are middles.
_H36M_FROM = ((11, 12), 12, 14, 16, 11, 13, 15, 17, (5, 6), 0, 18, 5, 7, 9, 6, 8, 10)


@dataclass(frozen=True)
class Surface:
    """What is known about the surface at each pixel.

    thing: (H, W) int16 number of the thing, -1 for none; depth: (H, W) m along the view, inf
    where nothing is; flow_before, flow_after: (H, W, 2) px, where the surface point of each pixel
    is in the picture before (after), minus where it is now, hidden points included, 0 where
    nothing is; depth_before, depth_after: (H, W) m, the depth of that point in those pictures.
    """

    thing: NDArray[np.int16]
    depth: Vectors
    flow_before: Vectors
    flow_after: Vectors
    depth_before: Vectors
    depth_after: Vectors


@dataclass(frozen=True)
class Joints:
    """The joints of a person.

    coco_xy (17, 2) px and visibility (17,): 0 outside the picture, 1 hidden, 2 seen;
    coco_xyz, h36m_xyz (17, 3) m in camera axes; h36m_xy (17, 2) px; stature m.
    """

    coco_xy: Vectors
    visibility: NDArray[np.uint8]
    coco_xyz: Vectors
    h36m_xy: Vectors
    h36m_xyz: Vectors
    stature: float


def surface_of(scene: Scene, triangle: NDArray[np.int32]) -> Surface:
    """The surface at every pixel of the present picture; triangle (H, W) from the renderer."""
    height, width = triangle.shape
    starts = np.cumsum([0, *(len(thing.mesh.triangles) for thing in scene.things)])
    rows, columns = np.nonzero(triangle >= 0)
    number = triangle[rows, columns]
    owner = np.searchsorted(starts, number, side="right") - 1
    rays = scene.cameras[NOW].rays(np.stack([columns, rows], axis=-1).astype(np.float64))
    depths = np.full((3, height, width), np.inf)
    flows = np.zeros((3, height, width, 2))
    thing = np.full((height, width), -1, np.int16)
    thing[rows, columns] = owner
    for index, one in enumerate(scene.things):
        mine = np.flatnonzero(owner == index)
        if not len(mine):
            continue
        places = (rows[mine], columns[mine])
        corners = one.mesh.triangles[number[mine] - starts[index]]
        seen = _followed(scene, one, corners, rays[mine])
        pixel = np.stack([places[1], places[0]], axis=-1)
        for moment in (BEFORE, NOW, AFTER):
            depths[moment][places] = seen[moment][:, 2]
            there = scene.cameras[moment].pixels(seen[moment])
            flows[moment][places] = there - pixel
    return Surface(thing, depths[NOW], flows[BEFORE], flows[AFTER], depths[BEFORE], depths[AFTER])


def _followed(
    scene: Scene, thing: Thing, corners: NDArray[np.int32], rays: Vectors
) -> list[Vectors]:
    """Camera coordinates (n, 3) of points on triangles, before, now and after.

    The points are where rays (n, 3) meet the triangles with vertex numbers ``corners`` (n, 3).
    """
    used, local = np.unique(corners.astype(np.intp), return_inverse=True)
    local = local.reshape(corners.shape)
    views = [
        camera.view(thing.mesh.points(thing.transforms[moment], used))
        for moment, camera in enumerate(scene.cameras)
    ]
    weights = _barycentric(views[NOW][local], rays)
    return [np.einsum("nk,nkc->nc", weights, view[local]) for view in views]


def _barycentric(triangles: Vectors, rays: Vectors) -> Vectors:
    """(n, 3) weights of corners (n, 3, 3) where rays (n, 3) meet their planes.

    The renderer works in float32 and lets a pixel belong to a triangle that misses its centre by
    a hair; such weights are clipped to the triangle's edge.
    """
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    # Signed volumes of ray and two corners.
    weights = np.stack(
        [
            _volume(rays, b, c),
            _volume(rays, c, a),
            _volume(rays, a, b),
        ],
        axis=1,
    )
    total = weights.sum(axis=1, keepdims=True)
    flat = np.abs(total) < 1e-18
    weights = np.where(flat, 1 / 3, weights / np.where(flat, 1.0, total))
    weights = weights.clip(0, 1)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _volume(a: Vectors, b: Vectors, c: Vectors) -> Vectors:
    """(n,) a . (b x c); six times faster than np.cross on such thin arrays."""
    ax, ay, az = a.T
    bx, by, bz = b.T
    cx, cy, cz = c.T
    return np.asarray(
        ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx)
    )


def joints_of(scene: Scene, thing: Thing, surface: Surface) -> Joints:
    """The joints of a person now; one is seen when nothing lies in front of the skin over it."""
    if thing.person is None:
        raise ValueError("joints of a person were wanted, this thing is none")
    camera = scene.cameras[NOW]
    marks = camera.view(thing.person.landmarks(thing.transforms[NOW]))
    h36m = h36m_from_landmarks(marks)
    coco = marks[:17]
    xy = camera.pixels(coco)
    return Joints(
        xy, visibility(xy, coco[:, 2], surface.depth), coco, camera.pixels(h36m), h36m,
        thing.person.stature,
    )  # fmt: skip


def h36m_from_landmarks(marks: Vectors) -> Vectors:
    """(17, 3) Human3.6M joints of the landmarks (19, 3)."""
    return np.stack(
        [marks[list(s)].mean(axis=0) if isinstance(s, tuple) else marks[s] for s in _H36M_FROM]
    )


def visibility(xy: Vectors, z: Vectors, depth: Vectors) -> NDArray[np.uint8]:
    """(17,) visibility of COCO joints at xy (17, 2) px and z (17,) m; depth: picture (H, W)."""
    height, width = depth.shape
    place = np.round(xy)
    inside = (place >= 0).all(axis=1) & (place < (width, height)).all(axis=1)
    column, row = place.clip(0, (width - 1, height - 1)).astype(int).T
    hidden = depth[row, column] < z - THICKNESS
    return np.where(inside, np.where(hidden, HIDDEN, SEEN), OUTSIDE).astype(np.uint8)
