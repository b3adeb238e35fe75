"""A small motion capture file from nothing: people of both skeletons who swing their limbs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

# y up, metres: the hips hang 10 cm below joint 0, as in the capture.
REST = np.array([
    [0.0, 1.0, 0.0], [-0.09, 0.9, 0.0], [-0.09, 0.48, 0.02], [-0.09, 0.06, 0.0],
    [0.09, 0.9, 0.0], [0.09, 0.48, 0.02], [0.09, 0.06, 0.0],
    [0.0, 1.23, -0.02], [0.0, 1.35, 0.0], [0.0, 1.53, 0.03], [0.0, 1.63, 0.04],
    [0.18, 1.4, 0.0], [0.25, 1.14, 0.0], [0.27, 0.95, 0.05],
    [-0.18, 1.4, 0.0], [-0.25, 1.14, 0.0], [-0.27, 0.95, 0.05],
])  # fmt: skip
NAMES = {
    "asf_01_01": 120, "asf_02_03": 100, "asf_02_10": 110, "exp_soccer__soccer_1": 130,
    "exp_jumping__jumping_2": 110, "exp_walking_extra__walking_5": 140,
}  # fmt: skip


def clip(frames: int, seed: int, *, lumbar: bool = True) -> np.ndarray:
    """(T, 17, 3) someone who walks along z with swinging knees and elbows."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames) / 60
    xyz = np.repeat(REST[None], frames, 0)
    for joint in (2, 3, 5, 6, 12, 13, 15, 16):
        swing = 0.1 * np.sin(2 * np.pi * rng.uniform(0.5, 1.5) * time + rng.uniform(0, 6))
        xyz[:, joint, 2] += swing
    xyz[..., 2] += 0.8 * time[:, None]
    if not lumbar:
        xyz[:, 7:] -= (xyz[:, 7] - xyz[:, 0])[:, None] / 2
    return xyz.astype(np.float32)


def write(folder: Path) -> Path:
    """The folder, with the file in it."""
    clips = {
        name: clip(frames, seed, lumbar=name.startswith("asf"))
        for seed, (name, frames) in enumerate(NAMES.items())
    }
    np.savez(folder / "cmu_17j_60hz.npz", **clips)  # type: ignore[arg-type]  # none is an option
    return folder
