"""The rows of ``mp-bench --engine A --vs B``: stages, whole chain, tiers and sweeps."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import mambapose.export
import mambapose.plugins
from mambapose.benchmarks.chain import sample_frames
from mambapose.benchmarks.jobs import Job, Row, empty_peak_kib, percentiles_ms, run_job
from mambapose.runtime.bundle import MODEL, Bundle, read_bundle
from mambapose.runtime.causal_lifting import STEP
from mambapose.runtime.errors import BundleError

# Tier by tier, the comparison the project is held to: ours, then the baseline of the same tier.
TIERS = (("mambapose-tiny", "vitpose-s"), ("mambapose-small", "vitpose-b"))
SWEEP_SIZES = ((256, 192), (384, 288), (512, 384))
SWEEP_NETWORKS = ("mambapose-tiny", "vitpose-s", "vitpose-b")
SWEEP_FRAMES = (27, 81, 243)
SWEEP_LIFTER = "posemamba-s"
CHAIN_FRAMES = 30  # at least one hop of the lifter
MIB = 1024.0 * 1024.0


@dataclass(frozen=True)
class Side:
    """Stages that are run together in one process, each with the bundle it comes from."""

    label: str
    group: str
    parts: tuple[tuple[Bundle, str], ...]
    kind: str = "stages"


def source_digest() -> str:
    """Changes whenever the code that exports changes, so a cached bundle is never stale."""
    digest = hashlib.sha256()
    for package in (mambapose.export, mambapose.plugins):
        for path in sorted(Path(package.__path__[0]).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def cache_folder() -> Path:
    """Where baselines exported on the spot are kept."""
    return Path.home() / ".cache" / "mambapose" / "bench" / source_digest()


def exported(network: str, stage: str, *options: str) -> Bundle:
    """A one-stage bundle of a named network with seeded random weights, exported once.

    Latency and memory do not depend on the values of the weights.
    """
    if find_spec("torch") is None:
        raise BundleError(
            f"{network} has to be exported to be measured, which needs torch; "
            "install '.[export]' or give a bundle folder instead of a name"
        )
    name = "_".join((network, *options)).replace("--", "").replace("=", "-")
    folder = cache_folder() / name
    if not (folder / "bundle.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "mambapose.export.cli", "--target", "cpu", "--untrained"]
        command += ["--only", stage, f"--{stage}", network, "--out", str(folder), *options]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise BundleError(f"exporting {network} for the comparison failed: {reason}")
    return read_bundle(folder, verify=False)


def size_of(bundle: Bundle, stage: str) -> str:
    """``256x192`` of an image stage, ``T=81`` of a lifter, ``step`` of a causal one, every fixed
    side of a user's model."""
    spec = next(iter(bundle.stages[stage].graphs.values())).spec
    shape = spec.inputs[0].shape
    if spec.name == STEP:
        return STEP
    if stage == MODEL:
        return "x".join(str(side) for side in shape if not isinstance(side, str))
    return f"T={shape[1]}" if stage == "lift3d" else f"{shape[1]}x{shape[2]}"


def weights_mib(bundle: Bundle, stage: str) -> float:
    """Size of the files one orientation of a stage loads: its graphs and the weights they share."""
    graphs = bundle.stages[stage].graphs
    suffix = next(iter(graphs)).partition("@")[2]
    names: set[str] = set()
    for name, graph in graphs.items():
        if name.partition("@")[2] == suffix:
            names.update(filter(None, (graph.file, graph.data)))
    return sum((bundle.path / name).stat().st_size for name in names) / MIB


def measure(side: Side, job: Job, floor_kib: int) -> Row:
    """One row, from one fresh process."""
    parts = tuple((str(bundle.path), stage) for bundle, stage in side.parts)
    result = run_job(replace(job, kind=side.kind, parts=parts))
    p50, p90, p99 = percentiles_ms(result["times_ms"])
    entries = [bundle.stages[stage] for bundle, stage in side.parts]
    return Row(
        label=side.label,
        group=side.group,
        network=" + ".join(entry.network for entry in entries),
        size=" ".join(size_of(bundle, stage) for bundle, stage in side.parts),
        params=sum(entry.params for entry in entries),
        weights_mib=sum(weights_mib(bundle, stage) for bundle, stage in side.parts),
        peak_mib=(result["peak_kib"] - floor_kib) / 1024.0,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        calls=len(result["times_ms"]),
        threads=job.threads,
    )


def own_sides(bundle: Bundle) -> Iterator[Side]:
    """Each stage alone, then the whole chain where there is one."""
    parts = tuple((bundle, stage) for stage in bundle.stages)
    for part in parts:
        yield Side(part[1], "stage", (part,))
    if "pose2d" in bundle.stages:
        yield Side("pipeline", "pipeline", parts, kind="pipeline")


def baseline_sides(vs: str, bundle: Bundle) -> Iterator[Side]:
    """The baseline, ViTPose-S beside it, and each with the lifter of the bundle behind it."""
    if Path(vs).is_dir():
        for side in own_sides(read_bundle(Path(vs), verify=False)):
            yield replace(side, label=f"vs {side.label}", group="baseline")
        return
    for name in dict.fromkeys((vs, "vitpose-s")):
        part = (exported(name, "pose2d"), "pose2d")
        yield Side(name, "baseline", (part,))
        if "lift3d" in bundle.stages:
            yield Side(f"{name} + lifter", "baseline", (part, (bundle, "lift3d")))


def tier_sides() -> Iterator[Side]:
    """Our network and its baseline, tier by tier."""
    for pair in TIERS:
        for name in pair:
            yield Side(name, "tier", ((exported(name, "pose2d"), "pose2d"),))


def sweep_sides() -> Iterator[Side]:
    """How time and memory grow with the crop, and with the lifter's window."""
    for height, width in SWEEP_SIZES:
        for name in SWEEP_NETWORKS:
            bundle = exported(name, "pose2d", f"--size=pose2d={height}x{width}")
            yield Side(name, "size sweep", ((bundle, "pose2d"),))
    for frames in SWEEP_FRAMES:
        bundle = exported(SWEEP_LIFTER, "lift3d", f"--clip-frames={frames}")
        yield Side(SWEEP_LIFTER, "T sweep", ((bundle, "lift3d"),))


def compare(
    bundle: Bundle, vs: str | None, job: Job, *, sweep: bool, tell: Callable[[str], None]
) -> list[Row]:
    """Every row of the report, each measured in a process of its own."""
    floor = empty_peak_kib(job)
    frames = sample_frames(job.warmup + max(job.iterations, CHAIN_FRAMES), cache_folder())
    job = replace(job, frames=str(frames))
    tell(f"empty {job.backend} process: {floor / 1024:.0f} MiB, taken off every row")
    sides = list(own_sides(bundle))
    if vs is not None:
        sides += baseline_sides(vs, bundle)
    if vs is not None and not Path(vs).is_dir():
        sides += tier_sides()
    if sweep:
        sides += sweep_sides()
    rows: list[Row] = []
    measured: dict[tuple[str, tuple[tuple[str, str], ...]], Row] = {}
    for side in sides:
        key = (side.kind, tuple((str(bundle.path), stage) for bundle, stage in side.parts))
        if key not in measured:
            tell(f"measuring {side.label} ({side.group})")
            measured[key] = measure(side, job, floor)
        rows.append(replace(measured[key], label=side.label, group=side.group))
    return rows
