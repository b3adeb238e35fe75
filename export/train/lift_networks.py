"""The lifters that can be trained, by name, and how each is fed."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from mambapose.export.models import mambapose3d, posemamba
from mambapose.export.train import lift_baselines
from mambapose.runtime.errors import ExportError

NETWORKS = ("posemamba-s", "mambapose3d", *lift_baselines.BASELINES)
INPUTS = ("keypoints", "score", "depth", "flow", "present")


def takes_cues(name: str, cues: bool) -> bool:
    """Whether a network sees score, depth and flow; baselines do when asked."""
    return name == "mambapose3d" or (cues and name in lift_baselines.BASELINES)


def build(name: str, seed: int, *, cues: bool = False, pairs: int | None = None) -> nn.Module:
    """A seeded network of NETWORKS; pairs: of blocks, where not those of the published size or,
    of the transformer, of PoseMamba-S's."""
    if name not in NETWORKS:
        raise ExportError(f"a network of {', '.join(NETWORKS)} was wanted, found {name}")
    if name in lift_baselines.BASELINES:
        return lift_baselines.build(name, seed=seed, cues=cues, pairs=pairs)
    depth = {} if pairs is None else {"depth": pairs}
    module = mambapose3d if name == "mambapose3d" else posemamba
    made: nn.Module = module.build(seed=seed, **depth)
    return made


def lifted(model: nn.Module, inputs: Mapping[str, Tensor], cues: bool) -> Tensor:
    """(B, T, 17, 3) float32 with joint 0 at the origin, as the exported graph answers."""
    names = INPUTS if cues else INPUTS[:1]
    device = inputs["keypoints"].device
    # The networks make their index tables where torch makes tensors by default.
    with nullcontext() if device.type == "cpu" else device:
        xyz: Tensor = model(*(inputs[name] for name in names)).float()
    root = torch.arange(xyz.shape[2], device=xyz.device)[:, None] == 0
    return torch.where(root, torch.zeros_like(xyz), xyz)


def parameters(model: nn.Module) -> int:
    """The true count."""
    return sum(parameter.numel() for parameter in model.parameters())
