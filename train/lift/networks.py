"""The lifters that can be trained, by name, and the inputs that each gets."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from mambapose.benchmarks import lift_baselines
from mambapose.export import models
from mambapose.export.models import mambapose3d, posemagic, posemamba
from mambapose.runtime.errors import ExportError

POSEMAGIC = tuple(name for name in models.NETWORKS if name.startswith("posemagic"))
NETWORKS = ("posemamba-s", "mambapose3d", *POSEMAGIC, *lift_baselines.BASELINES)
TYPICAL_SIZE = 0.15  # median in training (lift_data), half widths of the picture
INPUTS = ("keypoints", "score", "depth", "flow", "present")


def takes_cues(name: str, cues: bool) -> bool:
    """Whether a network takes score, depth and flow; a baseline does if ``cues`` asks for it."""
    return name == "mambapose3d" or (cues and name in lift_baselines.BASELINES)


def build(name: str, seed: int, *, cues: bool = False, pairs: int | None = None) -> nn.Module:
    """A seeded network of NETWORKS.

    pairs: how many pairs of blocks (posemagic: layers); None for the published size or, for the
    transformer, for about the parameters of PoseMamba-S.
    """
    if name not in NETWORKS:
        raise ExportError(f"a network of {', '.join(NETWORKS)} was wanted, found {name}")
    if name in lift_baselines.BASELINES:
        return lift_baselines.build(name, seed=seed, cues=cues, pairs=pairs)
    depth = {} if pairs is None else {"depth": pairs}
    made: nn.Module
    if name in POSEMAGIC:
        made = posemagic.build(seed=seed, **{**models.NETWORKS[name].config, **depth})  # type: ignore[arg-type]
    elif name == "mambapose3d":
        made = mambapose3d.build(seed=seed, **depth)
    else:
        made = posemamba.build(seed=seed, centred=True, **depth)
    return made


def input_names(model: nn.Module, cues: bool) -> tuple[str, ...]:
    """Which of INPUTS a network takes: its own ``takes``, else all of them with cues."""
    return getattr(model, "takes", INPUTS if cues else INPUTS[:1])


def lifted(model: nn.Module, inputs: Mapping[str, Tensor], cues: bool) -> Tensor:
    """(B, T, 17, 3) float32 with joint 0 at the origin, as the exported graph gives it."""
    names = input_names(model, cues)
    device = inputs["keypoints"].device
    # The networks make their index tables where torch makes tensors by default.
    with nullcontext() if device.type == "cpu" else device:
        xyz: Tensor = model(*(inputs[name] for name in names)).float()
    root = torch.arange(xyz.shape[2], device=xyz.device)[:, None] == 0
    return torch.where(root, torch.zeros_like(xyz), xyz)


def without_cues(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a centred posemamba-s made from those of a mambapose3d.

    Its poses are those of mambapose3d without any cue, for a person of TYPICAL_SIZE in the middle
    of the picture.
    """
    found = dict(weights)
    first, bias = "Spatial_patch_to_embedding.weight", "Spatial_patch_to_embedding.bias"
    columns, absent = found[first], found.pop("missing_embed")
    found[first] = columns[:, :2].clone()
    found[bias] = found[bias] + absent.sum(0) + TYPICAL_SIZE * columns[:, 8]
    return found


def parameters(model: nn.Module) -> int:
    """The true number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
