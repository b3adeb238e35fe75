"""The losses PoseMamba is trained with (those of MotionBERT), in body heights."""

from __future__ import annotations

import torch
from torch import Tensor

SCALED, VELOCITY = 0.5, 20.0  # weights of the published configuration, beside 1 for the position


def losses(found: Tensor, truth: Tensor, velocity: float = VELOCITY) -> dict[str, Tensor]:
    """``total`` and its parts, in body heights; found, truth: (B, T, J, 3).

    The parts are position (MPJPE), scaled (the same after the best scale of each frame) and
    velocity (between consecutive frames; its weight in the total is ``velocity``).
    """
    parts = {
        "position": _distance(found, truth),
        "scaled": _distance(found * _best_scale(found, truth), truth),
        "velocity": found.new_zeros(()),
    }
    if found.shape[1] > 1:
        parts["velocity"] = _distance(found.diff(dim=1), truth.diff(dim=1))
    total = parts["position"] + SCALED * parts["scaled"] + velocity * parts["velocity"]
    return {"total": total, **parts}


def _distance(a: Tensor, b: Tensor) -> Tensor:
    distance: Tensor = torch.linalg.vector_norm(a - b, dim=-1).mean()
    return distance


def _best_scale(found: Tensor, truth: Tensor) -> Tensor:
    """(B, T, 1, 1) the scale that brings each pose of ``found`` nearest to the truth."""
    shared = (found * truth).sum((-2, -1), keepdim=True)
    return shared / found.square().sum((-2, -1), keepdim=True).clamp(min=1e-8)
