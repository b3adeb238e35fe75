"""A person who never was, the same one for the same frame and number."""

from __future__ import annotations

import numpy as np

from mambapose.runtime.types import Pose


def pose(frame: int, track: int = 1, solid: bool = True) -> Pose:
    """Random joints in 500 px; solid: with 3D joints."""
    rng = np.random.default_rng([frame, track])
    return Pose(
        frame,
        track,
        rng.uniform(0, 500, 4).astype(np.float32),
        rng.uniform(0, 500, (17, 2)).astype(np.float32),
        rng.uniform(0, 1, 17).astype(np.float32),
        rng.normal(0, 0.3, (17, 3)).astype(np.float32) if solid else None,
    )
