"""Rotation matrices from axes, pairs of directions and each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float64]


def about(axis: Sequence[float] | Vectors, angle: float) -> Vectors:
    """(3, 3) right-handed turn by ``angle`` radians about an axis of any length."""
    x, y, z = (float(value) for value in axis)
    scale = 1 / (math.sqrt(x * x + y * y + z * z) + 1e-12)
    x, y, z = x * scale, y * scale, z * scale
    s, c = math.sin(angle), math.cos(angle)
    t = 1 - c
    return np.array(
        [
            [t * x * x + c, t * x * y - s * z, t * x * z + s * y],
            [t * x * y + s * z, t * y * y + c, t * y * z - s * x],
            [t * x * z - s * y, t * y * z + s * x, t * z * z + c],
        ]
    )


def length(vector: Vectors) -> float:
    """Euclidean length; np.linalg.norm costs five times as much on three numbers."""
    return math.sqrt(vector @ vector)


def frame(primary: Vectors, secondary: Vectors) -> Vectors:
    """(3, 3) rotation: first column along ``primary``, second as near ``secondary`` as can be."""
    a = primary / (length(primary) + 1e-12)
    b = secondary - a * (a @ secondary)
    size = length(b)
    if size < 1e-9:  # parallel: any direction across will do
        b = np.eye(3)[np.abs(a).argmin()]
        b = b - a * (a @ b)
        size = length(b)
    b = b / size
    out = np.empty((3, 3))
    out[:, 0], out[:, 1], out[:, 2] = a, b, cross(a, b)
    return out


def swing(start: Vectors, end: Vectors) -> Vectors:
    """(3, 3) smallest rotation that takes the direction ``start`` to ``end``."""
    u, v = start / (length(start) + 1e-12), end / (length(end) + 1e-12)
    axis = cross(u, v)
    sine = length(axis)
    if sine < 1e-9:
        return np.eye(3) if u @ v >= 0 else about(frame(u, u)[:, 1], np.pi)
    return about(axis, math.atan2(sine, float(u @ v)))


def between(start: Vectors, end: Vectors, share: float) -> Vectors:
    """(3, 3) rotation on the shortest way from ``start`` (share 0) to ``end`` (share 1)."""
    turn = end @ start.T
    axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    sine = length(axis) / 2
    angle = math.atan2(sine, float(turn[0, 0] + turn[1, 1] + turn[2, 2] - 1) / 2)
    return start if sine < 1e-9 else about(axis, angle * share) @ start


def cross(a: Vectors, b: Vectors) -> Vectors:
    """(3,) a x b; np.cross costs ten times as much on single vectors."""
    return np.array(
        [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
    )
