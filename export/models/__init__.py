"""The networks that can be exported, one row each.

A row names the module of this package that builds it. Every such module offers

    build(**config) -> torch.nn.Module          official state_dict keys, eval mode
    graphs(model, size, **options) -> dict[str, tuple[torch.nn.Module, GraphSpec]]
                                                what to export, pre-processing included
    key_tables(model) -> list[dict[str, str]]   other naming schemes: their key -> ours

``size`` is (H, W) for image stages and T for lifters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Network:
    """stage: flow, depth, pose2d or lift3d. module: name inside mambapose.export.models."""

    name: str
    stage: str
    module: str
    config: Mapping[str, object] = field(default_factory=dict)
    weights_licence: str | None = None
    params: int | None = None  # true parameter count, checked by a test


NETWORKS: dict[str, Network] = {}
