"""The rows of ``mp-bench --engine A --vs B``: stages, whole chain, baselines, tiers and sweeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mambapose.benchmarks import sweeps
from mambapose.benchmarks.exported import exported, stage_of
from mambapose.benchmarks.jobs import Job, Row
from mambapose.benchmarks.sides import Side, measure_all
from mambapose.runtime.bundle.bundle import read_bundle
from mambapose.runtime.bundle.entries import Bundle

# Tier by tier, the comparison the project is held to: ours, then the baseline of the same tier.
TIERS = (("mambapose-tiny", "vitpose-s"), ("mambapose-small", "vitpose-b"))


def own_sides(bundle: Bundle) -> Iterator[Side]:
    """Each stage alone, then the whole chain where there is one."""
    parts = tuple((bundle, stage) for stage in bundle.stages)
    for part in parts:
        yield Side(part[1], "stage", (part,))
    if "pose2d" in bundle.stages:
        yield Side("pipeline", "pipeline", parts, kind="pipeline")


def shown_name(vs: str) -> str:
    """The name of a baseline in its rows: that of its folder, or of the network."""
    return Path(vs).resolve().name if Path(vs).is_dir() else vs


def baseline_sides(vs: str, bundle: Bundle) -> Iterator[Side]:
    """The sides of a baseline, which is a bundle's folder or a network's name.

    With a 2D pose network ViTPose-S is measured too, and each of the two also with the bundle's
    lifter after it.
    """
    if Path(vs).is_dir():
        for side in own_sides(read_bundle(Path(vs), verify=False)):
            yield replace(side, label=f"{shown_name(vs)} {side.label}", group="baseline")
        return
    names = (vs, "vitpose-s") if stage_of(vs) == "pose2d" else (vs,)
    for name in dict.fromkeys(names):
        part = (exported(name), stage_of(name))
        yield Side(name, "baseline", (part,))
        if "lift3d" in bundle.stages and stage_of(name) == "pose2d":
            yield Side(f"{name} + lifter", "baseline", (part, (bundle, "lift3d")))


def tier_sides() -> Iterator[Side]:
    """Each of our networks and its baseline, tier by tier."""
    for pair in TIERS:
        for name in pair:
            yield Side(name, "tier", ((exported(name), "pose2d"),))


def compare(
    bundle: Bundle, vs: Sequence[str], job: Job, *, sweep: bool, tell: Callable[[str], None]
) -> list[Row]:
    """Every row of the report, each measured in a process of its own.

    Tiers and sweeps are measured beside a whole pipeline only; about a lone network they say
    nothing.
    """

    def sides() -> Iterator[Side]:
        yield from own_sides(bundle)
        for name in vs:
            yield from baseline_sides(name, bundle)
        whole = "pose2d" in bundle.stages
        if whole and not all(Path(name).is_dir() for name in vs):
            yield from tier_sides()
        if whole and sweep:
            yield from sweeps.sides(sweeps.default_candidates(bundle))

    # Listed first: a name that is none, or an export that fails, shows before minutes of measuring.
    return measure_all(list(sides()), job, tell)
