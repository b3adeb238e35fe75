"""Backgrounds with exact depth and flow: textured planes under the camera of the people.

On a plane the picture is a homography of its texture, the inverse depth is linear in the pixel and
the flow is the homography to the other camera, so everything is exact and costs no ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambapose.train.world.camera import Camera
from mambapose.train.world.textures import floors

Vectors = NDArray[np.float64]
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Card:
    """A textured rectangle.

    corner: (3,) m of texture (0, 0); across, down: (3,) m along its width and height; repeat: the
    texture tiles the whole plane, each tile ``across`` wide and ``down`` high; tones: (1, 256, 3)
    new values for the levels of the texture, None to keep them.
    """

    texture: Image
    corner: Vectors
    across: Vectors
    down: Vectors
    repeat: bool = False
    tones: Image | None = None

    def from_plane(self, camera: Camera) -> Vectors:
        """(3, 3) camera coordinates of (u, v, 1), u and v in 0..1."""
        columns = np.stack([self.across, self.down, self.corner - camera.position], axis=1)
        return np.asarray(camera.rotation @ columns)


@dataclass(frozen=True)
class Backdrop:
    """A background with its depth and flow.

    rgb (H, W, 3) uint8; inverse_depth (H, W) 1/m, 0 for the sky; flow_before, flow_after
    (H, W, 2) px.
    """

    rgb: Image
    inverse_depth: NDArray[np.float32]
    flow_before: NDArray[np.float32]
    flow_after: NDArray[np.float32]


def draw_backdrop(
    cards: Sequence[Card], cameras: tuple[Camera, Camera, Camera], sky: Image
) -> Backdrop:
    """The cards as the second camera (now) sees them; sky: (H, W, 3) shown where no card is."""
    width, height = cameras[1].size
    rgb = sky.copy()
    inverse = np.zeros((height, width), np.float32)
    columns, rows = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    turns = [camera.matrix @ camera.rotation for camera in cameras]
    flows = [np.empty((height, width, 2), np.float32) for _ in range(2)]
    for flow, other in zip(flows, (0, 2), strict=True):  # the sky is infinitely far
        _flow_into(flow, turns[other] @ np.linalg.inv(turns[1]), columns, rows)
    planes = [[card.from_plane(camera) for camera in cameras] for card in cards]
    owner = _owners(cards, planes, cameras[1], inverse)
    for number, card in enumerate(cards):
        mine = owner == number
        window = _bounding(mine)
        if window is None:
            continue
        back = _back(cameras[1], planes[number][1])
        x, y, where = columns[window[1]], rows[window[0]], mine[window][..., None]
        near = inverse[window]
        np.copyto(rgb[window], _drawn(card, cameras[1], back, window, near), where=where)
        for flow, other in zip(flows, (0, 2), strict=True):
            part = np.empty((len(y), len(x), 2), np.float32)
            _flow_into(part, cameras[other].matrix @ planes[number][other] @ back, x, y)
            np.copyto(flow[window], part, where=where)
    return Backdrop(rgb, inverse, flows[0], flows[1])


def _owners(
    cards: Sequence[Card], planes: Sequence[Sequence[Vectors]], camera: Camera,
    inverse: NDArray[np.float32],
) -> NDArray[np.int16]:  # fmt: skip
    """(H, W) number of the nearest card, -1 for none; writes its inverse depth to ``inverse``."""
    height, width = inverse.shape
    columns, rows = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    owner = np.full(inverse.shape, -1, np.int16)
    for number, card in enumerate(cards):
        plane = planes[number][1]
        if abs(np.linalg.det(plane)) < 1e-9:
            continue  # seen from its edge
        everything = (0, height, 0, width)
        bounds = everything if card.repeat else _bounds(camera.matrix @ plane, width, height)
        top, bottom, left, right = bounds
        if top >= bottom or left >= right:
            continue
        window = slice(top, bottom), slice(left, right)
        x, y = columns[window[1]], rows[window[0]]
        back = _back(camera, plane)
        # (u, v, 1) / z of a pixel: the third row is the inverse depth.
        near = _linear(back[2], x, y)
        seen = near > np.maximum(inverse[window], 1e-3)
        if not card.repeat:
            u, v = _linear(back[0], x, y), _linear(back[1], x, y)
            seen &= (u >= 0) & (v >= 0) & (u < near) & (v < near)
        np.copyto(inverse[window], near, where=seen, casting="same_kind")
        owner[window][seen] = number
    return owner


def _back(camera: Camera, plane: Vectors) -> Vectors:
    """(3, 3) matrix from pixels (x, y, 1) to (u, v, 1) / z."""
    return np.asarray(np.linalg.inv(camera.matrix @ plane), np.float64)


def _bounding(mine: NDArray[np.bool_]) -> tuple[slice, slice] | None:
    """The rows and columns that contain every True, or None without any."""
    rows, columns = np.flatnonzero(mine.any(axis=1)), np.flatnonzero(mine.any(axis=0))
    if not len(rows):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _linear(
    row: Vectors, columns: NDArray[np.float32], rows: NDArray[np.float32]
) -> NDArray[np.float64]:
    """(H, W) row . (column, row, 1)."""
    return np.asarray((row[0] * columns.astype(np.float64) + row[2]) + row[1] * rows[:, None])


def _bounds(plane: Vectors, width: int, height: int) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of the pixels that a card can cover.

    Everything when the card passes behind the camera.
    """
    corners = plane @ np.array([[0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1.0]])
    if corners[2].min() < 0.05:
        return 0, height, 0, width
    x, y = corners[:2] / corners[2]
    left, right = np.clip([np.floor(x.min()), np.ceil(x.max()) + 1], 0, width).astype(int)
    top, bottom = np.clip([np.floor(y.min()), np.ceil(y.max()) + 1], 0, height).astype(int)
    return int(top), int(bottom), int(left), int(right)


def _drawn(
    card: Card, camera: Camera, back: Vectors, window: tuple[slice, slice],
    near: NDArray[np.floating[Any]],
) -> Image:  # fmt: skip
    """(h, w, 3) the card's texture in a window of the picture."""
    import cv2

    texture_h, texture_w = card.texture.shape[:2]
    # Texture (0, 0) is the corner of the first texel, not its centre.
    texels = np.array([[texture_w, 0, -0.5], [0, texture_h, -0.5], [0, 0, 1.0]])
    shift = np.array([[1.0, 0, window[1].start], [0, 1.0, window[0].start], [0, 0, 1.0]])
    drawn = cv2.warpPerspective(
        card.texture, texels @ back @ shift, near.shape[::-1],
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT if card.repeat else cv2.BORDER_REPLICATE,
    )  # fmt: skip
    image = np.asarray(drawn, np.uint8)
    if card.repeat:
        image = _far_mean(image, card, camera, near)
    # Last, on the few pixels that are seen: a texture has many more.
    return image if card.tones is None else np.asarray(cv2.LUT(image, card.tones), np.uint8)


def _flow_into(
    out: NDArray[np.float32], homography: Vectors, columns: NDArray[np.float32],
    rows: NDArray[np.float32],
) -> None:  # fmt: skip
    if np.abs(homography / homography[2, 2] - np.eye(3)).max() < 1e-12:
        out[:] = 0
        return
    x, y, z = (_linear(row, columns, rows) for row in homography)
    safe = np.where(np.abs(z) < 1e-9, 1.0, z)
    out[..., 0] = x / safe - columns
    out[..., 1] = y / safe - rows[:, None]


def _far_mean(drawn: Image, card: Card, camera: Camera, near: NDArray[np.floating[Any]]) -> Image:
    """The picture with far parts of a tiled plane faded to its mean colour.

    There many pixels of the texture would share one of the picture.
    """
    texel = float(np.linalg.norm(card.across)) / card.texture.shape[1]
    focal = float(np.sqrt(abs(np.linalg.det(camera.matrix[:2, :2]))))
    share = (1.5 * focal * texel * near).clip(0.15, 1).astype(np.float32)[..., None]
    import cv2

    mean = np.array(cv2.mean(card.texture)[:3], np.float32)
    return np.asarray(drawn * share + mean * (1 - share), np.uint8)


def random_cards(
    camera: Camera, centre: Vectors, depth: float, textures: Sequence[Image],
    pictures: Sequence[Image], rng: np.random.Generator,
) -> list[Card]:  # fmt: skip
    """Floor, a back wall or a far picture, and some cards that stand about.

    centre: (3,) where the person is; depth: how far away, in m; pictures: frames of films.
    """
    cards = []
    forward = camera.rotation[2] * (1, 0, 1)
    forward = forward / (np.linalg.norm(forward) + 1e-9)
    turn = rng.normal(0, 0.35)
    forward = np.array([
        forward[0] * np.cos(turn) + forward[2] * np.sin(turn), 0.0,
        forward[2] * np.cos(turn) - forward[0] * np.sin(turn),
    ])  # fmt: skip
    right = np.array([-forward[2], 0.0, forward[0]])
    up = np.array([0.0, 1.0, 0.0])

    def standing(
        texture: Image, foot: Vectors, wide: float, tall: float, tones: Image | None
    ) -> Card:
        way = right if rng.random() < 0.5 else -right
        corner = foot - way * wide / 2 + up * tall
        return Card(texture, corner, way * wide, -up * tall, tones=tones)

    def choose() -> Image:
        return textures[int(rng.integers(len(textures)))]

    indoors = rng.random() < 0.6
    if rng.random() < 0.9:
        size = float(rng.choice([0.6, 1.2, 2.5, 5.0]))
        grounds = floors(textures)
        ground = grounds[int(rng.integers(len(grounds)))]
        corner = centre * (1, 0, 1)
        across, down = right * size, forward * size
        cards.append(Card(ground, corner, across, down, repeat=True, tones=random_tones(rng)))
    away = float(rng.uniform(0.5, 4.0) if indoors else rng.uniform(8, 40))
    foot = centre * (1, 0, 1) + forward * away
    if rng.random() < (0.35 if pictures else 0.0):
        picture = _cut(pictures[int(rng.integers(len(pictures)))], rng)
        tall = (depth + away) * float(rng.uniform(1.0, 2.0))
        wide = tall * picture.shape[1] / picture.shape[0]
        low = foot - up * tall * rng.uniform(0, 0.3)
        cards.append(standing(picture, low, wide, tall, random_tones(rng, mild=True)))
    elif indoors:
        size = float(rng.choice([0.8, 1.5, 3.0]))
        across, down = right * size, -up * size
        cards.append(Card(choose(), foot, across, down, repeat=True, tones=random_tones(rng)))
    for _ in range(int(rng.integers(0, 7))):
        tall = float(rng.choice([0.4, 0.9, 1.8, 3.0]) * rng.uniform(0.7, 1.4))
        wide = tall * float(np.exp(rng.normal(0, 0.6)))
        behind = float(rng.uniform(0.35, max(0.5, away - 0.02)))
        side = float(rng.normal(0, 0.5) * (depth + behind))
        hung = float(rng.uniform(0.5, 2.0)) if rng.random() < 0.35 else 0.0
        place = centre * (1, 0, 1) + forward * behind + right * side + up * hung
        texture = choose()
        tones: Image | None = random_tones(rng)
        if pictures and rng.random() < 0.3:
            texture, tones = _cut(pictures[int(rng.integers(len(pictures)))], rng), None
        cards.append(standing(texture, place, wide, tall, tones))
    return cards


def _cut(picture: Image, rng: np.random.Generator) -> Image:
    """A part of a picture, a third of it or more, as a view."""
    height, width = picture.shape[:2]
    h, w = int(height * rng.uniform(0.5, 1)), int(width * rng.uniform(0.3, 1))
    top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
    return picture[top : top + h, left : left + w]


def random_tones(rng: np.random.Generator, *, mild: bool = False) -> Image:
    """(1, 256, 3) levels with a random gain and gamma for each channel."""
    spread = 0.06 if mild else 0.14
    gain = np.exp(rng.normal(0, spread, 3)) * np.exp(rng.normal(0, 2 * spread))
    gamma = float(np.exp(rng.normal(0, 0.25)))
    levels = np.linspace(0, 1, 256)[:, None] ** gamma * gain
    return np.asarray(levels.clip(0, 1) * 255, np.uint8)[None]


def random_sky(size: tuple[int, int], rng: np.random.Generator) -> Image:
    """(H, W, 3) picture of a vertical gradient; size (W, H)."""
    top, low = rng.uniform(40, 255, 3), rng.uniform(90, 255, 3)
    if rng.random() < 0.5:  # blue above, bright below
        top, low = np.array([70, 120, 200.0]) * rng.uniform(0.6, 1.2), np.array([200, 215, 230.0])
    share = np.linspace(0, 1, size[1])[:, None, None]
    column = top * (1 - share) + low * share
    return np.ascontiguousarray(np.broadcast_to(column.clip(0, 255).astype(np.uint8),
                                                (size[1], size[0], 3)))  # fmt: skip
