"""The networks that can be exported, one row each.

A row names the module of this package that builds it. Every such module offers

    build(*, seed=0, **config) -> torch.nn.Module
                                                official state_dict keys, seeded random weights,
                                                eval mode; torch's random state is untouched
    graphs(model, size) -> dict[str, tuple[torch.nn.Module, GraphSpec]]
                                                what to export, pre-processing included; a
                                                lifter's also takes ``flip``
    key_tables(model) -> list[KeyTable]         other naming schemes: their key -> ours, or the
                                                part of ours it is (export/checkpoints)

A module may also offer

    apply_facts(model, facts)                   sets up the network as the facts ask that the
                                                checkpoint states (export/weights.py); without
                                                it, weights that state ``joints`` are refused
    load_encoder(model, path, weights_key, tell) -> bool
                                                True when the file was one of the encoder alone and
                                                has been loaded: with --untrained the other weights
                                                stay random

``size`` is (H, W) for image stages and T for lifters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mambapose.runtime.stages.joints import BODY_HEIGHTS, IMAGE_UNITS


@dataclass(frozen=True)
class Network:
    """One network that can be exported.

    stage: flow, depth, pose2d or lift3d. module: name inside mambapose.export.models. params: true
    parameter count, checked by a test. unit: the unit of a lifter's 3D joints, None for other
    networks. causal: whether a lifter works frame by frame, from a state that it carries on, not
    over a window.
    """

    name: str
    stage: str
    module: str
    config: Mapping[str, object] = field(default_factory=dict)
    weights_licence: str | None = None
    params: int | None = None
    unit: str | None = None
    causal: bool = False


NETWORKS: dict[str, Network] = {
    "raft-small": Network("raft-small", "flow", "raft", {"variant": "small"}, params=990_162),
    "raft-large": Network("raft-large", "flow", "raft", {"variant": "large"}, params=5_257_536),
    "depth-anything-v2-small": Network(
        "depth-anything-v2-small",
        "depth",
        "depth_anything",
        {"size": "small", "version": 2},
        weights_licence="Apache-2.0",
        params=24_785_089,
    ),
    "depth-anything-v2-base": Network(
        "depth-anything-v2-base",
        "depth",
        "depth_anything",
        {"size": "base", "version": 2},
        weights_licence="CC-BY-NC-4.0",
        params=97_470_785,
    ),
    "depth-anything-v2-large": Network(
        "depth-anything-v2-large",
        "depth",
        "depth_anything",
        {"size": "large", "version": 2},
        weights_licence="CC-BY-NC-4.0",
        params=335_315_649,
    ),
    "depth-anything-v1-small": Network(
        "depth-anything-v1-small",
        "depth",
        "depth_anything",
        {"size": "small", "version": 1},
        params=24_785_089,
    ),
    "depth-anything-v1-base": Network(
        "depth-anything-v1-base",
        "depth",
        "depth_anything",
        {"size": "base", "version": 1},
        params=97_470_785,
    ),
    "depth-anything-v1-large": Network(
        "depth-anything-v1-large",
        "depth",
        "depth_anything",
        {"size": "large", "version": 1},
        params=335_315_649,
    ),
    "vitpose-s": Network(
        "vitpose-s", "pose2d", "vitpose", {"size": "s", "head": "classic"}, params=24_290_577
    ),
    "vitpose-s-simple": Network(
        "vitpose-s-simple", "pose2d", "vitpose", {"size": "s", "head": "simple"}, params=21_722_513
    ),
    "vitpose-b": Network(
        "vitpose-b", "pose2d", "vitpose", {"size": "b", "head": "classic"}, params=89_994_513
    ),
    "vitpose-b-simple": Network(
        "vitpose-b-simple", "pose2d", "vitpose", {"size": "b", "head": "simple"}, params=85_912_337
    ),
    "vitpose-l": Network(
        "vitpose-l", "pose2d", "vitpose", {"size": "l", "head": "classic"}, params=308_544_785
    ),
    "vitpose-l-simple": Network(
        "vitpose-l-simple", "pose2d", "vitpose", {"size": "l", "head": "simple"}, params=303_453_201
    ),
    "vitpose-h": Network(
        "vitpose-h", "pose2d", "vitpose", {"size": "h", "head": "classic"}, params=637_208_849
    ),
    "vitpose-h-simple": Network(
        "vitpose-h-simple", "pose2d", "vitpose", {"size": "h", "head": "simple"}, params=631_107_857
    ),
    "mambapose-nano": Network("mambapose-nano", "pose2d", "mambapose_nano", params=2_488_410),
    "mambapose-tiny": Network(
        "mambapose-tiny", "pose2d", "mambapose", {"width": 192, "depth": 24}, params=7_131_089
    ),
    "mambapose-small": Network(
        "mambapose-small", "pose2d", "mambapose", {"width": 384, "depth": 24}, params=25_763_729
    ),
    # Our own re-implementation from a public description: no figure of the paper is theirs.
    "glsmamba-s": Network(
        "glsmamba-s", "pose2d", "glsmamba", {"encoder": "s", "width": 128}, params=25_894_257
    ),
    "glsmamba-b": Network(
        "glsmamba-b", "pose2d", "glsmamba", {"encoder": "b", "width": 256}, params=95_516_369
    ),
    "posemamba-s": Network(
        "posemamba-s",
        "lift3d",
        "posemamba",
        {"width": 64, "depth": 10},
        params=1_470_211,
        unit=IMAGE_UNITS,
    ),
    "posemamba-b": Network(
        "posemamba-b",
        "lift3d",
        "posemamba",
        {"width": 128, "depth": 10},
        params=4_742_659,
        unit=IMAGE_UNITS,
    ),
    "posemamba-l": Network(
        "posemamba-l",
        "lift3d",
        "posemamba",
        {"width": 128, "depth": 20},
        params=9_450_499,
        unit=IMAGE_UNITS,
    ),
    "mambapose3d-nano": Network(
        "mambapose3d-nano",
        "lift3d",
        "mambapose3d",
        {"width": 64, "depth": 2},
        params=308_611,
        unit=BODY_HEIGHTS,
    ),
    "mambapose3d": Network(
        "mambapose3d",
        "lift3d",
        "mambapose3d",
        {"width": 64, "depth": 10},
        params=1_470_851,
        unit=BODY_HEIGHTS,
    ),
    "posemagic": Network(
        "posemagic",
        "lift3d",
        "posemagic",
        {"width": 128, "depth": 26, "out_width": 512},
        params=8_830_263,
        unit=BODY_HEIGHTS,
    ),
    "posemagic-causal": Network(
        "posemagic-causal",
        "lift3d",
        "posemagic",
        {"width": 128, "depth": 26, "out_width": 512, "causal": True},
        params=8_357_687,
        unit=BODY_HEIGHTS,
        causal=True,
    ),
    "posemagic-nano": Network(
        "posemagic-nano",
        "lift3d",
        "posemagic",
        {"width": 64, "depth": 4, "out_width": 256},
        params=414_347,
        unit=BODY_HEIGHTS,
    ),
    "posemagic-nano-causal": Network(
        "posemagic-nano-causal",
        "lift3d",
        "posemagic",
        {"width": 64, "depth": 4, "out_width": 256, "causal": True},
        params=382_091,
        unit=BODY_HEIGHTS,
        causal=True,
    ),
}
