"""What cameras, codecs and estimating networks do to pictures, flow and depth.

An ``Effects`` is drawn once and applied to every frame of a sample, so that a pair of frames shares
light, colours and blur; only noise is drawn anew per frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Maps = NDArray[np.float32]


@dataclass(frozen=True)
class Effects:
    """Parameters of the changes to a picture; 0 leaves a step out. Lengths in pixels of the crop.

    tables: (256, 3) uint8 colour tables; slope: (2,) change of brightness over the picture; haze:
    share of a haze of ``haze_grey`` per metre; blur: sigma; shutter: share of the frame time the
    shutter is open; shake: (2,) px of camera motion; shrink: the picture is sampled down by this
    and up again; noise: sigma of brightness noise at grey 128; quality: of JPEG; pixelated: whether
    the head is made of large squares.
    """

    tables: Image
    slope: tuple[float, float] = (0.0, 0.0)
    haze: float = 0.0
    haze_grey: float = 180.0
    blur: float = 0.0
    shutter: float = 0.0
    shake: tuple[float, float] = (0.0, 0.0)
    shrink: float = 1.0
    noise: float = 0.0
    quality: int = 0
    pixelated: bool = False

    def scaled(self, ratio: float) -> Effects:
        """The same effects for a crop of ``ratio`` times the size; smaller crops average noise."""
        return self if ratio == 1 else replace(
            self, blur=self.blur * ratio, shake=(self.shake[0] * ratio, self.shake[1] * ratio),
            shrink=max(1.0, self.shrink * ratio), noise=self.noise * ratio**0.5,
        )  # fmt: skip


def identity_effects() -> Effects:
    """Effects that change nothing."""
    return Effects(np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1))


def random_effects(rng: np.random.Generator, strength: float = 1.0) -> Effects:
    """Random effects.

    strength 1 is the full mixture, 0 nearly none (for a short clean start of training).
    """

    def chance(share: float) -> bool:
        return bool(rng.random() < share * strength)

    dark = rng.uniform(0.15, 0.5) if chance(0.06) else 1.0
    gain = np.exp(rng.normal(0, 0.08 * strength, 3) + rng.normal(0, 0.16 * strength)) * dark
    gamma = float(np.exp(rng.normal(0, 0.18 * strength)))
    levels = np.linspace(0, 1, 256)[:, None] ** gamma
    contrast = float(np.exp(rng.normal(0, 0.12 * strength)))
    levels = ((levels - 0.5) * contrast + 0.5) * gain
    return Effects(
        (levels.clip(0, 1) * 255 + 0.5).astype(np.uint8),
        tuple(rng.normal(0, 0.3, 2)) if chance(0.3) else (0.0, 0.0),
        float(rng.uniform(0.01, 0.06)) if chance(0.12) else 0.0,
        float(rng.uniform(120, 245)),
        float(rng.uniform(0.3, 1.6)) if chance(0.2) else 0.0,
        float(rng.uniform(0.2, 0.8)) if chance(0.3) else 0.0,
        tuple(rng.normal(0, 2.5, 2)) if chance(0.06) else (0.0, 0.0),
        float(rng.uniform(1.2, 3.0)) if chance(0.2) else 1.0,
        float(rng.gamma(1.5, 2.5)) if chance(0.4) else 0.0,
        int(rng.integers(15, 90)) if chance(0.5) else 0,
        chance(0.04),
    )


def apply_effects(
    rgb: Image, effects: Effects, rng: np.random.Generator, *, flow: Maps, inverse_depth: Maps,
    head: tuple[float, float, float] | None = None,
) -> Image:  # fmt: skip
    """(H, W, 3) the picture after all steps, in the order light meets them.

    flow: (H, W, 2) px of the motion that blurs; inverse_depth: (H, W) 1/m for haze; head: x, y and
    size in px of the part to pixelate.
    """
    import cv2

    out = rgb
    if effects.haze > 0:
        metres = 1 / np.maximum(inverse_depth, 0.02)
        share = np.exp(-effects.haze * metres).astype(np.float32)[..., None]
        out = (out * share + effects.haze_grey * (1 - share)).astype(np.uint8)
    if effects.shutter > 0:
        out = _moved_blur(out, flow * effects.shutter)
    if effects.shake != (0.0, 0.0):
        out = _shake(out, effects.shake)
    if effects.slope != (0.0, 0.0):
        out = _sloped(out, effects.slope)
    out = np.asarray(cv2.LUT(out, effects.tables[None]), np.uint8)
    if effects.blur > 0:
        out = np.asarray(cv2.GaussianBlur(out, (0, 0), effects.blur), np.uint8)
    if effects.pixelated and head is not None:
        out = _pixelated(out, head)
    if effects.shrink > 1:
        out = _shrunk(out, effects.shrink)
    if effects.noise > 0:
        out = _noisy(out, effects.noise, rng)
    if effects.quality:
        # Red and blue change places: the codec treats them nearly alike, and two copies are saved.
        packed = cv2.imencode(".jpg", out, [cv2.IMWRITE_JPEG_QUALITY, effects.quality])[1]
        out = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(out)


def _shrunk(rgb: Image, factor: float) -> Image:
    import cv2

    height, width = rgb.shape[:2]
    small = cv2.resize(
        rgb, (int(width / factor), int(height / factor)), interpolation=cv2.INTER_AREA
    )
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _moved_blur(rgb: Image, motion: Maps, steps: int = 5) -> Image:
    """Each pixel as the mean along the way it moved, (H, W, 2) px, centred on the pixel."""
    import cv2

    height, width = rgb.shape[:2]
    # Motion spreads beyond outlines, as the blur of a moving limb does.
    spread = np.asarray(cv2.blur(motion.clip(-24, 24), (9, 9)), np.float32)
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)
    total = np.zeros(rgb.shape, np.float32)
    remap: Any = cv2.remap  # its stubs refuse the second map's None
    for k in range(steps):
        place = grid + spread * np.float32(k / (steps - 1) - 0.5)
        total += remap(rgb, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(total / steps, np.uint8)


def _shake(rgb: Image, way: tuple[float, float]) -> Image:
    import cv2

    reach = int(min(10, np.ceil(max(abs(way[0]), abs(way[1])))))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    for share in np.linspace(-0.5, 0.5, 4 * reach + 1):
        x, y = (round(reach + share * float(np.clip(w, -reach, reach))) for w in way)
        kernel[y, x] += 1
    return np.asarray(cv2.filter2D(rgb, -1, kernel / kernel.sum()), np.uint8)


def _sloped(rgb: Image, slope: tuple[float, float]) -> Image:
    height, width = rgb.shape[:2]
    x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)
    gain = np.exp(slope[0] * x[None] + slope[1] * y[:, None]).astype(np.float32)
    return np.asarray(np.minimum(rgb * gain[..., None], 255), np.uint8)


def _pixelated(rgb: Image, head: tuple[float, float, float]) -> Image:
    import cv2

    x, y, size = head
    left, top = max(0, int(x - size)), max(0, int(y - size))
    part = rgb[top : int(y + size), left : int(x + size)]
    if part.shape[0] < 4 or part.shape[1] < 4:
        return rgb
    out: Image = rgb.copy()
    small = cv2.resize(part, (4, 4), interpolation=cv2.INTER_AREA)
    shape = (part.shape[1], part.shape[0])
    out[top : int(y + size), left : int(x + size)] = cv2.resize(
        small, shape, interpolation=cv2.INTER_NEAREST
    )
    return out


def _noisy(rgb: Image, sigma: float, rng: np.random.Generator) -> Image:
    """The picture with noise: more of it in the dark after gamma, part shared by the channels."""
    height, width = rgb.shape[:2]
    # A strip of noise rolled by random amounts: eight times cheaper than fresh noise everywhere.
    strip = rng.standard_normal((height // 4 + 1, width, 3), np.float32)
    strip += strip[..., :1]
    order = rng.integers(0, len(strip), height)
    noise = strip[order] * np.float32(0.7 * sigma)
    return np.asarray((rgb + noise).clip(0, 255), np.uint8)


def estimated_flow(flow: Maps, rng: np.random.Generator) -> Maps:
    """(H, W, 2) flow as a network estimates it: coarse, smeared over outlines, slightly wrong.

    In places it is the flow of the surroundings, as RAFT-small gives for limbs without texture.
    """
    import cv2

    height, width = flow.shape[:2]
    coarse = float(rng.uniform(2, 7))
    small = (max(4, int(width / coarse)), max(4, int(height / coarse)))
    out = cv2.resize(flow, small, interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        out = cv2.medianBlur(out[..., 0], 3)[..., None] * [1, 0] + (
            cv2.medianBlur(out[..., 1], 3)[..., None] * [0, 1]
        )
    if rng.random() < 0.5:
        reach = max(3, small[1] // 4)
        lost = cv2.resize(rng.random((5, 4)), small, interpolation=cv2.INTER_CUBIC)
        share = ((lost - rng.uniform(0.3, 0.9)) * 6).clip(0, 1)[..., None]
        out = out * (1 - share) + cv2.blur(out, (reach, reach)) * share
    error = rng.standard_normal((6, 5, 2)) * rng.uniform(0.02, 0.4)
    out = out * (1 + rng.normal(0, 0.05)) + cv2.resize(error, small, interpolation=cv2.INTER_CUBIC)
    return np.asarray(cv2.resize(out, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def estimated_depth(inverse_depth: Maps, rng: np.random.Generator) -> Maps:
    """(H, W) inverse depth as a network estimates it: unknown scale and offset, soft edges."""
    import cv2

    height, width = inverse_depth.shape
    coarse = float(rng.uniform(1, 4))
    small = (max(4, int(width / coarse)), max(4, int(height / coarse)))
    out = cv2.resize(inverse_depth, small, interpolation=cv2.INTER_AREA)
    out = np.maximum(out, 0) ** float(np.exp(rng.normal(0, 0.15)))
    spread = float(out.std()) + 1e-3
    error = rng.standard_normal((6, 5)) * spread * rng.uniform(0, 0.35)
    out = out + cv2.resize(error, small, interpolation=cv2.INTER_CUBIC)
    out = cv2.resize(out, (width, height), interpolation=cv2.INTER_LINEAR)
    out = cv2.GaussianBlur(out, (0, 0), float(rng.uniform(0.4, 2.0)))
    scale = float(np.exp(rng.normal(0, 1.0)))
    return np.asarray(out * scale + rng.normal(0, 0.1) * scale, np.float32)
