"""What an export will build: networks, sizes and weights, chosen and checked before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mambapose.export.checkpoints.content import is_file
from mambapose.export.models import NETWORKS, Network
from mambapose.export.official_files import SOURCES, OfficialFile, wanted_sources, way_by_hand
from mambapose.export.sizes import check_clip, check_size
from mambapose.export.weights import DETECTOR, shipped_detector, shipped_weights
from mambapose.runtime.errors import ExportError
from mambapose.runtime.stages.table import DETECT, STAGES
from mambapose.runtime.targets import Schedule, Target
from mambapose.runtime.types import Size

MAX_FLOW_ITERS = 100
POSE = "pose2d"


@dataclass(frozen=True)
class ExportOptions:
    """What the user asked for, on top of a Target; None and empty mean the default."""

    networks: Mapping[str, str] = field(default_factory=dict)  # "none" drops the stage
    weights: Mapping[str, Path] = field(default_factory=dict)
    weights_keys: Mapping[str, str] = field(default_factory=dict)  # the entry of the file to take
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    detect: Path | None = None  # in place of the detector that ships
    detector: bool = True
    flow_iters: int | None = None
    clip_frames: int | None = None
    flip: bool = False
    precision: str | None = None
    download: tuple[str, ...] = ()  # NETWORK or NETWORK=SHA256, for the network's own stage
    untrained: bool = False
    seed: int = 0


@dataclass(frozen=True)
class StagePlan:
    """One network to export.

    sizes: (H, W) of each variant, the clip's landscape first; empty for a lifter. weights: the
    checkpoint, which may be the one that ships; source: where to download it instead; with neither,
    the weights are random from the seed. random_rest: the checkpoint may hold the network's encoder
    alone; the other weights are then random. weights_key: the entry of the checkpoint to take.
    """

    stage: str
    network: Network
    sizes: tuple[Size, ...] = ()
    weights: Path | None = None
    source: OfficialFile | None = None
    flip: bool = False
    shipped: bool = False
    random_rest: bool = False
    weights_key: str | None = None

    @property
    def untrained(self) -> bool:
        """True when the weights will be random."""
        return self.weights is None and self.source is None


@dataclass(frozen=True)
class Plan:
    """Everything an export does, in pipeline order.

    detect: a detector's ONNX file to copy; detect_source: where to download one instead. notes:
    what the user should know before the work starts. A bundle with a pose network has a detector
    unless some of its stages alone are asked for.
    """

    target: Target
    precision: str
    schedule: Schedule
    stages: tuple[StagePlan, ...]
    detect: Path | None = None
    detect_source: OfficialFile | None = None
    seed: int = 0
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The plan as text for the user, one line per stage."""
        s = self.schedule
        lines = [f"target {self.target.name}, {self.precision}, {self.target.backend}"]
        for stage in self.stages:
            window = "frame by frame" if stage.network.causal else f"T={s.clip_frames}"
            size = " ".join(map(str, stage.sizes)) or window
            weights = "weights that ship" if stage.shipped else f"weights {stage.weights}"
            if stage.source is not None:
                weights = f"download {stage.source}"
            elif stage.weights is None:
                weights = f"random weights, seed {self.seed}"
            rhythm = STAGES[stage.stage].rhythm.format(**vars(s))
            flip = ", flip test" if stage.flip else ""
            lines.append(
                f"{stage.stage:7} {stage.network.name:24} {size}{rhythm and f', {rhythm}'}"
                f"{flip}, {weights}"
            )
        if self.detect == shipped_detector():
            lines.append(f"detect  {DETECTOR:24} weights that ship")
        elif self.detect is not None:
            lines.append(f"detect  {self.detect}")
        if self.detect_source is not None:
            source = self.detect_source
            lines.append(f"detect  {source.name:24} download {source}")
        return lines


def make_plan(target: Target, options: ExportOptions) -> Plan:
    """The checked plan. ExportError names the option that is impossible and what to use instead."""
    precision = options.precision or target.precision
    if precision != target.precision:
        raise ExportError(
            f"precision {precision} was wanted, target {target.name} offers {target.precision}; "
            "leave --precision out"
        )
    sources = {source.stage: source for source in wanted_sources(options.download)}
    options = _with_downloads(options, sources)
    names = _chosen(options)
    schedule = _schedule(target.schedule, options)
    stages = tuple(
        _stage_plan(stage, name, schedule, options, sources.get(stage))
        for stage, name in names.items()
    )
    stages, notes = _without_weightless(stages, options)
    given_for_stages: tuple[tuple[str, Mapping[str, object]], ...] = (
        ("--weights", options.weights),
        ("--size", options.sizes),
        ("--weights-key", options.weights_keys),
    )
    for what, given in given_for_stages:
        for stage in given:
            if stage not in names:
                raise ExportError(
                    f"{what} {stage}=... names a stage that is not exported; the plan has: "
                    f"{', '.join(names)}"
                )
    detect = options.detect
    if detect is None and options.detector and not options.only and POSE in names:
        detect = None if DETECT in sources else shipped_detector()
    if options.detect is not None and not options.detect.is_file():
        raise ExportError(
            f"a detector's ONNX file was wanted, found none at {options.detect}; check the path"
        )
    for plan in stages:
        if plan.weights_key is not None and (plan.shipped or plan.untrained):
            raise ExportError(
                f"--weights-key {plan.stage}={plan.weights_key} chooses inside a file, none was "
                f"given; add --weights {plan.stage}=FILE"
            )
    _check_weights(stages, options)
    return Plan(
        target, precision, schedule, stages, detect, sources.get(DETECT), options.seed,
        notes,
    )  # fmt: skip


def default_networks() -> dict[str, str]:
    """Stage -> the network that is exported unless another is named, in pipeline order."""
    return {stage.name: stage.network for stage in STAGES.values() if stage.network is not None}


def networks_of(stage: str) -> list[str]:
    """The names of the networks of a stage."""
    return [name for name, network in NETWORKS.items() if network.stage == stage]


def _with_downloads(
    options: ExportOptions, sources: Mapping[str | None, OfficialFile]
) -> ExportOptions:
    """The options with the downloaded networks chosen for their stages."""
    networks = dict(options.networks)
    for stage, source in sources.items():
        if stage is None:
            raise ExportError(
                f"{source.name} makes no stage of a bundle, a training starts from it"
            )
        given = networks.get(stage, source.name)
        if given != source.name:
            raise ExportError(f"--{stage} {given} contradicts --download {source.name}; drop one")
        if stage in options.weights or (stage == DETECT and options.detect is not None):
            raise ExportError(
                f"--download {source.name} and {way_by_hand(source)} both give the weights of "
                f"{stage}; drop one"
            )
        if STAGES[stage].network is not None:
            networks[stage] = source.name
    return dataclasses.replace(options, networks=networks)


def _chosen(options: ExportOptions) -> dict[str, str]:
    """Stage -> network name, in pipeline order."""
    defaults = default_networks()
    for stage in (*options.only, *options.networks):
        if stage not in defaults:
            raise ExportError(f"stage {stage!r} is not known; use one of: {', '.join(defaults)}")
    chosen: dict[str, str] = {}
    for stage, default in defaults.items():
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


def _schedule(base: Schedule, options: ExportOptions) -> Schedule:
    """The target's schedule, changed as the options ask."""
    changes: dict[str, object] = {}
    sized = {stage.name: stage.size_field for stage in STAGES.values() if stage.size_field}
    for stage, size in options.sizes.items():
        if stage not in sized:
            raise ExportError(
                f"--size {stage}=... has no meaning; stages with a size: {', '.join(sized)}"
            )
        check_size(stage, size)
        changes[sized[stage]] = Size(*size)
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


def _stage_plan(
    stage: str, name: str, schedule: Schedule, options: ExportOptions, source: OfficialFile | None
) -> StagePlan:
    row, sizes = STAGES[stage], tuple[Size, ...]()
    if row.size_field is not None:
        size = schedule.size(row.size_field)
        both = row.both_orientations and size.height != size.width
        sizes = (size, size.turned) if both else (size,)
    weights = options.weights.get(stage)
    if weights is not None and not is_file(weights):
        raise ExportError(
            f"weights of {stage} were wanted, found no file at {weights}; check the path"
        )
    shipped = None
    if weights is None and source is None:
        weights = shipped = shipped_weights(name)
    flip = options.flip and row.clip
    if NETWORKS[name].causal:
        for option, given in (("--flip", flip), ("--clip-frames", options.clip_frames)):
            if given:
                raise ExportError(
                    f"{option} is for lifters of a window, {name} goes on frame by frame; leave it "
                    "out"
                )
    return StagePlan(
        stage, NETWORKS[name], sizes, weights, source, flip, shipped is not None,
        options.untrained, options.weights_keys.get(stage),
    )  # fmt: skip


def _without_weightless(
    stages: tuple[StagePlan, ...], options: ExportOptions
) -> tuple[tuple[StagePlan, ...], tuple[str, ...]]:
    """The stages without the optional ones that have no weights and that nobody asked for.

    Asked for is what --flow, --depth, --only or --size names, and everything with --untrained.
    """
    asked = {*options.networks, *options.only, *options.sizes}
    dropped = [
        stage
        for stage in stages
        if STAGES[stage.stage].optional
        and stage.untrained
        and not options.untrained
        and stage.stage not in asked
    ]
    notes = tuple(
        f"{stage.stage}: no weights ship; give --weights {stage.stage}=FILE or --download "
        f"{stage.network.name}; going on without"
        for stage in dropped
    )
    return tuple(stage for stage in stages if stage not in dropped), notes


def _check_weights(stages: tuple[StagePlan, ...], options: ExportOptions) -> None:
    """ExportError for random weights that nobody asked for."""
    lacking = [stage for stage in stages if stage.untrained]
    if not lacking or options.untrained:
        return
    first = lacking[0]
    name = first.network.name
    fetch = f" or --download {name}" if name in SOURCES and SOURCES[name].url else ""
    raise ExportError(
        f"weights were wanted for {', '.join(stage.stage for stage in lacking)}, none given: pass "
        f"--weights {first.stage}=FILE ({name}){fetch}, leave the stage out, or "
        "--untrained for random weights (poses will be meaningless)"
    )
