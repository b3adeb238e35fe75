"""Colours of cloth, skin, hair and things, linear RGB 0..1, and the table that shaders read."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Colour = NDArray[np.float64]


class Role(IntEnum):
    """What a surface is; the shader colours it accordingly."""

    PLAIN = 0
    BODY = 1  # skin with painted face and clothes
    EYE = 2
    HAIR = 3
    UPPER = 4  # a layer cut to the shirt's region
    LOWER = 5  # a layer cut to the trousers' region
    SKIRT = 6  # cut at its hem


class Pattern(IntEnum):
    """Patterns of cloth, in coordinates of the unshaped body."""

    PLAIN = 0
    RINGS = 1
    STRIPES = 2
    PLAID = 3
    CLOUDS = 4
    PATCHES = 5
    FADE = 6
    DOTS = 7
    PRINT = 8


_PATTERN_SHARES = (0.46, 0.10, 0.06, 0.08, 0.08, 0.06, 0.04, 0.05, 0.07)
MATERIAL_TEXELS, LOOK_TEXELS = 4, 8


@dataclass
class Table:
    """Rows of four floats for the shader; the number of its first row names a material or look."""

    rows: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, block: list[list[float]]) -> int:
        """Append a block; returns the number of its first row."""
        start = len(self.rows)
        self.rows += [np.asarray(row, np.float32) for row in block]
        return start

    def array(self) -> NDArray[np.float32]:
        """(rows, 4)."""
        return np.stack(self.rows).astype(np.float32)


def cloth_colour(rng: np.random.Generator) -> Colour:
    """A random grey, denim, pastel or saturated colour, about as frequent as in the street."""
    kind = rng.choice(4, p=[0.42, 0.14, 0.14, 0.30])
    if kind == 0:
        colour = np.full(3, rng.choice([0.02, 0.05, 0.2, 0.5, 0.8]) * rng.uniform(0.6, 1.15))
        colour = colour + rng.normal(0, 0.006, 3)
    elif kind == 1:
        colour = np.array([0.05, 0.10, 0.22]) * rng.uniform(0.3, 2.2)
    elif kind == 2:
        colour = 0.45 + 0.45 * rng.random(3)
    else:
        colour = rng.random(3) ** rng.choice([1.0, 2.0, 3.0])
    return np.asarray(colour.clip(0.008, 0.92))


def skin_colour(rng: np.random.Generator) -> Colour:
    """A random skin colour between light and dark on a logarithmic scale, with a little hue."""
    share = rng.beta(1.1, 1.3)
    light, dark = np.array([0.68, 0.43, 0.32]), np.array([0.085, 0.040, 0.022])
    colour = light ** (1 - share) * dark**share
    return np.asarray(
        (colour * np.exp(rng.normal(0, 0.06, 3)) * rng.uniform(0.9, 1.1)).clip(0.01, 0.9)
    )


def hair_colour(rng: np.random.Generator, old: float, dark: float) -> Colour:
    """A random hair colour: black to blond, grey with age, now and then dyed.

    dark: 1 for dark skin.
    """
    if rng.random() < 0.05:
        return np.asarray(rng.random(3) ** 2 * 0.6)
    if old > 0.5 and rng.random() < 0.7:
        return np.full(3, rng.uniform(0.15, 0.6))
    tones = np.array([[0.008, 0.007, 0.006], [0.03, 0.016, 0.009], [0.08, 0.04, 0.018],
                      [0.22, 0.08, 0.03], [0.42, 0.28, 0.12]])  # fmt: skip
    last = 5 if rng.random() > dark else 2
    return np.asarray(tones[rng.integers(last)] * rng.uniform(0.6, 1.5))


def material(
    rng: np.random.Generator, role: Role, colour: Colour, *, patterned: bool = True, look: int = -1,
    shine: float | None = None, wrinkle: float | None = None, grain: float = 0.10,
) -> list[list[float]]:  # fmt: skip
    """The four rows of a material; see ``material`` in shaders.py."""
    kind = Pattern(rng.choice(len(Pattern), p=_PATTERN_SHARES)) if patterned else Pattern.PLAIN
    other = cloth_colour(rng) if rng.random() < 0.6 else (colour * rng.uniform(0.4, 1.8)).clip(0, 1)
    frequency = float(rng.choice([0.5, 0.8, 1.4, 2.2, 3.5]) * rng.uniform(0.8, 1.25))
    if shine is None:
        shine = float(rng.choice([0.0, 0.02, 0.15], p=[0.5, 0.4, 0.1]))
    if wrinkle is None:
        wrinkle = float(rng.uniform(0.05, 0.55))
    return [
        [*colour, float(role)],
        [*other, float(kind)],
        [frequency, float(rng.integers(1, 1000)), wrinkle, shine],
        [float(rng.uniform(0.1, 0.4)), grain, float(look), 0.0],
    ]
