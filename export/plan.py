"""What an export will build: networks, sizes, weights, decided and checked before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mambapose.export.download import SOURCES, Source
from mambapose.export.models import NETWORKS, Network
from mambapose.export.sizes import check_clip, check_size
from mambapose.runtime.errors import ExportError
from mambapose.runtime.targets import Schedule, Target

# In pipeline order. posemamba-s lifts by default: of the lifters it alone has published weights
# and the smallest; mambapose3d, which takes depth and flow too, is chosen with --lift3d.
DEFAULTS = {
    "flow": "raft-small",
    "depth": "depth-anything-v2-small",
    "pose2d": "mambapose-tiny",
    "lift3d": "posemamba-s",
}
IMAGE_STAGES = ("flow", "depth")  # exported in both orientations of the clip
MAX_FLOW_ITERS = 100
SIZE_NAMES = {"flow": "flow_size", "depth": "depth_size", "pose2d": "pose_size"}


@dataclass(frozen=True)
class Options:
    """What the user asked for, on top of a Target; None and empty mean the default."""

    networks: Mapping[str, str] = field(default_factory=dict)  # "none" drops the stage
    weights: Mapping[str, Path] = field(default_factory=dict)
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    detect: Path | None = None
    flow_iters: int | None = None
    clip_frames: int | None = None
    flip: bool = False
    precision: str | None = None
    download: bool = False
    untrained: bool = False
    seed: int = 0


@dataclass(frozen=True)
class StagePlan:
    """One network to export.

    sizes: (H, W) of each variant, the clip's landscape first; empty for a lifter. weights: the
    checkpoint; source: where to download it instead; neither: seeded random weights.
    """

    stage: str
    network: Network
    sizes: tuple[tuple[int, int], ...] = ()
    weights: Path | None = None
    source: Source | None = None
    flip: bool = False

    @property
    def untrained(self) -> bool:
        """True when the weights will be random."""
        return self.weights is None and self.source is None


@dataclass(frozen=True)
class Plan:
    """Everything an export does, in pipeline order. detect: a detector's ONNX file to copy."""

    target: Target
    precision: str
    schedule: Schedule
    stages: tuple[StagePlan, ...]
    detect: Path | None = None
    seed: int = 0

    def lines(self) -> list[str]:
        """The plan for a person, one line per stage."""
        s = self.schedule
        lines = [f"target {self.target.name}, {self.precision}, {self.target.backend}"]
        for stage in self.stages:
            size = " ".join(f"{h}x{w}" for h, w in stage.sizes) or f"T={s.clip_frames}"
            weights = f"weights {stage.weights}"
            if stage.source is not None:
                weights = f"download {stage.source.url} ({stage.source.licence})"
            elif stage.weights is None:
                weights = f"random weights, seed {self.seed}"
            extra = {"flow": f", {s.flow_iters} iterations", "depth": f", every {s.depth_every}"}
            flip = ", flip test" if stage.flip else ""
            lines.append(
                f"{stage.stage:7} {stage.network.name:24} {size}{extra.get(stage.stage, '')}"
                f"{flip}, {weights}"
            )
        if self.detect is not None:
            lines.append(f"detect  {self.detect}")
        return lines


def make_plan(target: Target, options: Options) -> Plan:
    """The checked plan. ExportError names the option that cannot be, and what would do."""
    precision = options.precision or target.precision
    if precision != target.precision:
        raise ExportError(
            f"precision {precision} was wanted, target {target.name} offers {target.precision}; "
            "leave --precision out"
        )
    names = _chosen(options)
    schedule = _schedule(target.schedule, options)
    stages = tuple(_stage_plan(stage, name, schedule, options) for stage, name in names.items())
    for what, given in (("--weights", options.weights), ("--size", options.sizes)):
        for stage in given:
            if stage not in names:
                raise ExportError(
                    f"{what} {stage}=... names a stage that is not exported; the plan has: "
                    f"{', '.join(names)}"
                )
    if options.detect is not None and not options.detect.is_file():
        raise ExportError(
            f"a detector's ONNX file was wanted, found none at {options.detect}; check the path"
        )
    _check_weights(stages, options)
    return Plan(target, precision, schedule, stages, options.detect, options.seed)


def networks_of(stage: str) -> list[str]:
    """The names of the networks of a stage."""
    return [name for name, network in NETWORKS.items() if network.stage == stage]


def _chosen(options: Options) -> dict[str, str]:
    """Stage -> network name, in pipeline order."""
    for stage in (*options.only, *options.networks):
        if stage not in DEFAULTS:
            raise ExportError(f"stage {stage!r} is not known; use one of: {', '.join(DEFAULTS)}")
    chosen: dict[str, str] = {}
    for stage, default in DEFAULTS.items():
        name = options.networks.get(stage, default)
        if options.only and stage not in options.only:
            if stage in options.networks:
                raise ExportError(
                    f"--{stage} {name} contradicts --only {' '.join(options.only)}; drop one"
                )
            continue
        if name == "none":
            continue
        if name not in networks_of(stage):
            raise ExportError(
                f"network {name!r} is not known for stage {stage}; use one of: "
                f"{', '.join(networks_of(stage))}"
            )
        chosen[stage] = name
    if not chosen:
        raise ExportError("no stage is left to export; drop an --only or a 'none'")
    return chosen


def _schedule(base: Schedule, options: Options) -> Schedule:
    """The target's schedule with the options in place."""
    changes: dict[str, object] = {}
    for stage, size in options.sizes.items():
        if stage not in SIZE_NAMES:
            raise ExportError(
                f"--size {stage}=... has no meaning; stages with a size: {', '.join(SIZE_NAMES)}"
            )
        check_size(stage, size)
        changes[SIZE_NAMES[stage]] = size
    if options.flow_iters is not None:
        if not 1 <= options.flow_iters <= MAX_FLOW_ITERS:
            raise ExportError(
                f"--flow-iters from 1 to {MAX_FLOW_ITERS} was wanted, found {options.flow_iters}"
            )
        changes["flow_iters"] = options.flow_iters
    if options.clip_frames is not None:
        clip = options.clip_frames
        check_clip(clip)
        changes["clip_frames"] = clip
        changes["hop"] = max(1, clip // 3)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def _stage_plan(stage: str, name: str, schedule: Schedule, options: Options) -> StagePlan:
    sizes: tuple[tuple[int, int], ...] = ()
    if stage in SIZE_NAMES:
        height, width = getattr(schedule, SIZE_NAMES[stage])
        sizes = ((height, width),)
        if stage in IMAGE_STAGES and height != width:
            sizes += ((width, height),)
    weights = options.weights.get(stage)
    source = None
    if weights is None and options.download:
        candidate = SOURCES.get(name)
        source = candidate if candidate is not None and candidate.url is not None else None
    if weights is not None and not weights.is_file():
        raise ExportError(
            f"weights of {stage} were wanted, found no file at {weights}; check the path"
        )
    flip = options.flip and stage == "lift3d"
    return StagePlan(stage, NETWORKS[name], sizes, weights, source, flip)


def _check_weights(stages: tuple[StagePlan, ...], options: Options) -> None:
    """Random weights only when asked for."""
    lacking = [stage for stage in stages if stage.untrained]
    if not lacking or options.untrained:
        return
    first = lacking[0]
    source = SOURCES.get(first.network.name, Source("", by_hand="no source is known"))
    where = "--download fetches them" if source.url else source.by_hand
    raise ExportError(
        f"weights were wanted for {', '.join(stage.stage for stage in lacking)}, none given: pass "
        f"--weights {first.stage}=FILE ({first.network.name}: {where}), leave the stage out, or "
        "--untrained for random weights (poses will be meaningless)"
    )
