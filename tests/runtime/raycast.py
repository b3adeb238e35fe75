"""Exact pictures, depth and motion of a figure in a room, by casting one ray per pixel.

A pixel (column, row) is the point (column, row): whole numbers are pixel centres. All surfaces
are met analytically, so depth and motion are exact to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.types import FloatArray, ImageArray

from .figure import STATURE, Figure, Part, Vector

WALL_Z = 8.5
# Ids of surfaces in Surface.part; parts of the figure are 0, 1, ...
FLOOR, WALL = -1, -2
LIGHT = np.array([-0.45, -0.80, -0.55]) / np.linalg.norm([-0.45, -0.80, -0.55])


@dataclass(frozen=True)
class Camera:
    """Pinhole: a world point p is seen at R (p - position), then divided by depth.

    rotation R (3, 3); focal in pixels; centre (x, y) in pixels; size (W, H).
    """

    rotation: Vector
    position: Vector
    focal: float
    centre: tuple[float, float]
    size: tuple[int, int]

    def view(self, points: Vector) -> Vector:
        """(..., 3) camera coordinates (x right, y down, z forward) of world points."""
        return turned(points - self.position, self.rotation.T)

    def project(self, points: Vector) -> Vector:
        """(..., 2) pixels of world points in front of the camera."""
        seen = self.view(points)
        return np.asarray(self.focal * seen[..., :2] / seen[..., 2:] + self.centre)


@dataclass(frozen=True)
class Surface:
    """What each pixel sees. part (H, W) int; points (H, W, 3) in camera coordinates."""

    part: NDArray[np.int16]
    points: Vector

    @property
    def inverse_depth(self) -> FloatArray:
        """(H, W) 1/m, larger = nearer."""
        return np.asarray(1.0 / self.points[..., 2], np.float32)

    def pixels(self) -> Iterator[tuple[int, NDArray[np.intp]]]:
        """(part number, flat pixel indices) of every part of the figure that is seen."""
        flat = self.part.ravel()
        figure = np.flatnonzero(flat >= 0)
        numbers = flat[figure]
        for number in np.unique(numbers):
            yield int(number), figure[numbers == number]


@dataclass(frozen=True)
class Look:
    """Colours of one clip. texture: (S, S) noise in 0..1; colours: RGB 0..1 by material."""

    texture: FloatArray
    colours: dict[str, FloatArray]


def turned(points: Vector, matrix: Vector) -> Vector:
    """points (..., 3) times matrix (3, 3). Not by BLAS: its threads cost more than they save on
    such thin arrays, ten times more when the other processors are busy.
    """
    x, y, z = points[..., 0, None], points[..., 1, None], points[..., 2, None]
    return np.asarray(x * matrix[0] + y * matrix[1] + z * matrix[2])


def cast(camera: Camera, figure: Figure) -> Surface:
    """The nearest surface behind every pixel."""
    width, height = camera.size
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    rays = np.stack(
        [
            (columns - camera.centre[0]) / camera.focal,
            (rows - camera.centre[1]) / camera.focal,
            np.ones((height, width)),
        ],
        axis=-1,
    )
    world = turned(rays, camera.rotation)
    with np.errstate(divide="ignore"):
        floor = -camera.position[1] / world[..., 1]
    wall = (WALL_Z - camera.position[2]) / world[..., 2]
    on_floor = (floor > 0) & (floor < wall)
    depth = np.where(on_floor, floor, wall)
    ids = np.where(on_floor, FLOOR, WALL).astype(np.int16)
    for number, part in enumerate(figure.parts):
        window = _window(camera, part)
        if window is None:
            continue
        hit = _hit(camera, part, rays[window])
        nearer = hit < depth[window]
        depth[window][nearer] = hit[nearer]
        ids[window][nearer] = number
    return Surface(ids, rays * depth[..., None])


def _window(camera: Camera, part: Part) -> tuple[slice, slice] | None:
    """(rows, columns) that hold every pixel the part can cover; None when it is out of sight."""
    ends = camera.view(part.origin + np.stack([part.start, part.end]) @ part.rotation.T)
    radius = float(part.radii.max())
    near = ends[:, 2] - radius
    if near.min() <= 0.1:
        return None
    middle = camera.focal * ends[:, :2] / ends[:, 2:] + camera.centre
    # A sphere's outline reaches less than r (1 + tan^2) / near from its projected centre.
    tangent = np.abs(ends[:, :2]).max() / ends[:, 2].min()
    margin = (camera.focal * radius * (1 + tangent**2) / near)[:, None] + 2
    low = np.floor((middle - margin).min(axis=0)).astype(int).clip(0)
    high = np.ceil((middle + margin).max(axis=0)).astype(int) + 1
    high = np.minimum(high, camera.size)
    if (high <= low).any():
        return None
    return slice(low[1], high[1]), slice(low[0], high[0])


def _hit(camera: Camera, part: Part, rays: Vector) -> Vector:
    """Depth along rays (h, w, 3) with z = 1 where they meet the part first; inf elsewhere."""
    if part.is_capsule:
        start, end = camera.view(part.origin + np.stack([part.start, part.end]) @ part.rotation.T)
        return _hit_capsule(rays, start, end, float(part.radii[0]))
    turned = rays @ (camera.rotation @ part.rotation) / part.radii
    centre = camera.view(part.origin + part.rotation @ part.start)
    centre = centre @ (camera.rotation @ part.rotation) / part.radii
    return _hit_sphere(turned, centre, 1.0)


def _hit_sphere(rays: Vector, centre: Vector, radius: float) -> Vector:
    a = (rays * rays).sum(axis=-1)
    b = rays @ centre
    inside = b * b - a * (centre @ centre - radius * radius)
    with np.errstate(invalid="ignore"):
        return np.where(inside >= 0, (b - np.sqrt(inside)) / a, np.inf)


def _hit_capsule(rays: Vector, start: Vector, end: Vector, radius: float) -> Vector:
    """The cylinder's side where the ray meets it between the ends, the end spheres elsewhere."""
    axis = end - start
    length2 = axis @ axis
    along = rays @ axis
    offset = start @ axis
    a = length2 * (rays * rays).sum(axis=-1) - along * along
    b = length2 * (rays @ start) - offset * along
    c = length2 * (start @ start) - offset * offset - radius * radius * length2
    inside = b * b - a * c
    with np.errstate(invalid="ignore", divide="ignore"):
        side = (b - np.sqrt(inside)) / a
        place = side * along - offset
        on_side = (inside >= 0) & (place > 0) & (place < length2)
    ends = np.minimum(_hit_sphere(rays, start, radius), _hit_sphere(rays, end, radius))
    return np.where(on_side, side, ends)


def motion(
    now: Surface, camera: Camera, figure: Figure, before: Camera, figure_before: Figure
) -> FloatArray:
    """(H, W, 2) px: where the surface point of each pixel was seen before, minus where it is."""
    height, width = now.part.shape
    # Room points stay; each part's points go through its own frame.
    world = turned(now.points.reshape(-1, 3), camera.rotation) + camera.position
    for number, pixels in now.pixels():
        part, old = figure.parts[number], figure_before.parts[number]
        local = (world[pixels] - part.origin) @ part.rotation
        world[pixels] = old.origin + local @ old.rotation.T
    rows, columns = np.mgrid[0:height, 0:width]
    seen = before.project(world).reshape(height, width, 2)
    return np.asarray(seen - np.stack([columns, rows], axis=-1), np.float32)


def shade(surface: Surface, camera: Camera, figure: Figure, look: Look) -> ImageArray:
    """(H, W, 3) RGB picture of the surfaces: textured, lit from the upper left."""
    world = turned(surface.points.reshape(-1, 3), camera.rotation) + camera.position
    world = world.astype(np.float32)
    colour = np.empty_like(world)
    flat = surface.part.ravel()
    floor, wall = np.flatnonzero(flat == FLOOR), np.flatnonzero(flat == WALL)
    colour[floor] = _floor_colour(world[floor], figure, look)
    colour[wall] = _wall_colour(world[wall], look)
    for number, pixels in surface.pixels():
        part = figure.parts[number]
        local = (world[pixels] - part.origin) @ part.rotation
        normal = _normal(part, local) @ part.rotation.T
        light = 0.52 + 0.55 * np.clip(normal @ LIGHT, 0, None)
        colour[pixels] = _part_colour(part, number, local, look) * light[:, None]
    np.clip(255 * colour + 0.5, 0, 255, out=colour)
    return np.asarray(colour.reshape(surface.points.shape), np.uint8)


def _normal(part: Part, local: Vector) -> Vector:
    if part.is_capsule:
        axis = part.end - part.start
        place = ((local - part.start) @ axis / (axis @ axis)).clip(0, 1)
        normal = local - part.start - place[:, None] * axis
    else:
        normal = (local - part.start) / part.radii**2
    return np.asarray(normal / np.linalg.norm(normal, axis=1, keepdims=True))


def _noise(look: Look, u: Vector, v: Vector) -> Vector:
    """Smooth texture in 0..1 at (u, v), repeating every 1; bilinear between texels."""
    size = look.texture.shape[0]
    texels = look.texture.ravel()
    x, y = u * size, v * size
    x0, y0 = np.floor(x), np.floor(y)
    fx, fy = x - x0, y - y0
    i, j = x0.astype(np.int32) % size, y0.astype(np.int32) % size * size
    right, below = (i + 1) % size, (j + size) % (size * size)
    top = texels[j + i] * (1 - fx) + texels[j + right] * fx
    bottom = texels[below + i] * (1 - fx) + texels[below + right] * fx
    return np.asarray(top * (1 - fy) + bottom * fy)


def _floor_colour(points: Vector, figure: Figure, look: Look) -> Vector:
    x, z = points[:, 0], points[:, 2]
    tiles = np.tanh(6 * np.sin(2.2 * np.pi * x) * np.sin(2.2 * np.pi * z))
    grey = 0.62 + 0.07 * tiles + 0.35 * (_noise(look, x / 3, z / 3) - 0.5)
    # A soft shadow under the pelvis keeps the figure on the ground.
    away = (x - figure.h36m[0, 0]) ** 2 + (z - figure.h36m[0, 2]) ** 2
    grey *= 1 - 0.45 * np.exp(-away / 0.09)
    return np.asarray(grey[:, None] * look.colours["floor"])


def _wall_colour(points: Vector, look: Look) -> Vector:
    x, y = points[:, 0], points[:, 1]
    base = 0.62 + 0.5 * (_noise(look, x / 5, y / 5) - 0.5)
    planks = np.where(np.abs(np.sin(np.pi * y / 0.6)) < 0.08, 0.85, 1.0).astype(np.float32)
    colour = (base * planks)[:, None] * look.colours["wall"]
    picture = (np.abs((x + 0.4) % 3.0 - 1.0) < 0.55) & (np.abs(y + 2.0) < 0.42)
    hue = _noise(look, x[picture] / 2, y[picture] / 2)[:, None]
    colour[picture] = hue * look.colours["paint"] + (1 - hue) * look.colours["canvas"]
    return np.asarray(colour)


def _part_colour(part: Part, number: int, local: Vector, look: Look) -> Vector:
    x, y, z = local.T
    if part.material == "head":
        return _head_colour(local, look)
    noise = _noise(look, x * 1.1 + 0.37 * number, (y + z) * 1.1 + 0.11 * number)
    strength = {"shirt": 0.35, "trousers": 0.5, "skin": 0.2, "shoe": 0.3}[part.material]
    colour = look.colours[part.material] * (1 + strength * (2 * noise - 1))[:, None]
    if part.material == "shirt":
        stripe = 0.5 + 0.5 * np.tanh(5 * np.sin(2 * np.pi * y / 0.11))
        colour = colour * (1 - 0.45 * stripe[:, None]) + 0.40 * stripe[:, None]
    return np.asarray(colour)


def _head_colour(local: Vector, look: Look) -> Vector:
    """Hair on top and behind, eyes and a mouth in front."""
    x, y, z = (local / STATURE).T
    noise = _noise(look, x * 2.5, (y + z) * 2.5)[:, None]
    colour = look.colours["skin"] * (0.95 + 0.15 * noise)
    hair = (y < -0.148) | ((z > 0.002) & (y < -0.085)) | ((z > -0.02) & (y < -0.13))
    colour[hair] = look.colours["hair"] * (0.7 + 0.6 * noise[hair])
    for eye in (-0.018, 0.018):
        colour[((x - eye) ** 2 + (y + 0.122) ** 2 < 0.0065**2) & (z < 0)] = 0.1
    mouth = (np.abs(x) < 0.014) & (np.abs(y + 0.079) < 0.0035) & (z < 0)
    colour[mouth] = (0.6, 0.2, 0.2)
    return np.asarray(colour)
