"""From which side a rendered person is seen, and shots in which unusual sides are more frequent.

Real crops show mostly people who face the camera; the rendered ones have to supply the other sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from mambapose.train.world.motion import Variety
from mambapose.train.world.scene import NOW
from mambapose.train.world.shot import Shot

# Squats, seats and raised arms more often than in the clips and than Variety() has them.
UNUSUAL_POSES = Variety(free_arm=0.40, low=0.30)
FRONT_KEPT = 0.35  # share of the people kept who face a level camera, of one shot in four
FRONT_RAD, STEEP_RAD = np.pi / 4, np.radians(20.0)


def azimuths(xyz: NDArray[np.floating]) -> NDArray[np.float64]:
    """(N,) radians: 0 faces the camera, half pi shows the left side, pi the back.

    xyz: (N, 17, 3) COCO joints in camera axes. Shoulders and hips count alike, so an upper body
    turned against the hips counts half.
    """
    across = xyz[:, 5] - xyz[:, 6] + xyz[:, 11] - xyz[:, 12]
    # Who faces the camera has the left side on the right of the picture; seen from the left that
    # side is the nearer one.
    return np.asarray(np.arctan2(-across[:, 2], across[:, 0]))


def is_usual(shot: Shot) -> bool:
    """Whether the person of the shot faces a camera that looks neither down nor up."""
    forward = shot.cameras[NOW].rotation[2]
    steep = abs(float(np.arcsin(np.clip(forward[1], -1, 1)))) > STEEP_RAD
    return not steep and abs(float(azimuths(shot.marks[:1])[0])) < FRONT_RAD


def mostly_unusual(shots: Iterable[Shot], seed: int, kept: float = FRONT_KEPT) -> Iterator[Shot]:
    """The shots without most of the usual ones, of which only the share ``kept`` stays."""
    rng = np.random.default_rng([seed, 5])
    return (shot for shot in shots if not is_usual(shot) or rng.random() < kept)
