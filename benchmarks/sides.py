"""What one row of a table measures (a side), and the measurement of the row."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from mambapose.benchmarks.chain import sample_frames
from mambapose.benchmarks.exported import cache_folder
from mambapose.benchmarks.jobs import Job, Row, empty_peak_kib, percentiles_ms, run_job
from mambapose.benchmarks.worker import one_orientation
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.stages.causal_lifting import STEP
from mambapose.runtime.stages.table import MODEL, STAGES

CHAIN_FRAMES = 30  # at least one hop of the lifter
MIB = 1024.0 * 1024.0


@dataclass(frozen=True)
class Side:
    """Stages that are run together in one process, each with the bundle it comes from.

    size, frames: given for a network of the user's own, whose tensors do not tell; else None.
    """

    label: str
    group: str
    parts: tuple[tuple[Bundle, str], ...]
    kind: str = "stages"
    size: str | None = None
    frames: int | None = None


def window_of(bundle: Bundle, stage: str) -> int:
    """T of a lifter with a window; 1 for one that works frame by frame."""
    inputs = next(iter(bundle.stages[stage].graphs.values())).spec.inputs
    shape = next((spec.shape for spec in inputs if spec.name == "keypoints"), inputs[0].shape)
    return int(shape[1]) if len(shape) == 4 else 1


def is_step(bundle: Bundle, stage: str) -> bool:
    """Whether the stage is a lifter that works frame by frame."""
    return STAGES[stage].clip and STEP in bundle.stages[stage].graphs


def size_of(bundle: Bundle, stage: str) -> str:
    """The size of a stage as text.

    ``256x192`` for an image stage, ``T=81`` or ``step`` for a lifter, and every fixed side of the
    first input for a network of the user's own in stage ``model``.
    """
    specs = [spec for graph in bundle.stages[stage].graphs.values() for spec in graph.spec.inputs]
    shape = specs[0].shape
    if stage == MODEL:
        return "x".join(str(side) for side in shape if not isinstance(side, str))
    if STAGES[stage].clip:
        return STEP if is_step(bundle, stage) else f"T={window_of(bundle, stage)}"
    # Features of a video network have as many sides as an image: only the image is of bytes.
    images = [spec.shape for spec in specs if spec.dtype == "uint8" and len(spec.shape) == 4]
    height, width = images[0][1:3] if images else shape[2:4]
    return f"{height}x{width}"


def frames_of(side: Side) -> int | None:
    """How many frames the pipeline gets from one call.

    The hop for a lifter with a window, 1 for other stages. None where stages with different numbers
    are run in turn, or where it is not known.
    """
    if side.frames is not None:
        return side.frames
    if side.kind == "pipeline":
        return 1
    found = {_frames_of_stage(bundle, stage) for bundle, stage in side.parts}
    return found.pop() if len(found) == 1 else None


def _frames_of_stage(bundle: Bundle, stage: str) -> int | None:
    if stage == MODEL:
        return None
    return min(bundle.schedule.hop, window_of(bundle, stage)) if STAGES[stage].clip else 1


def weights_mib(bundle: Bundle, stage: str) -> float:
    """MiB of the files that one orientation of a stage loads: graphs and the weights they share."""
    graphs = bundle.stages[stage].graphs
    names: set[str] = set()
    for graph in (graphs[name] for name in one_orientation(graphs).values()):
        names |= {graph.onnx, *((graph.data.path,) if graph.data else ())}
    return sum((bundle.path / name).stat().st_size for name in names) / MIB


def text_of_size(side: Side) -> str:
    """The sizes of all parts, as the table shows them."""
    return side.size or " ".join(size_of(bundle, stage) for bundle, stage in side.parts)


def measure(side: Side, job: Job, floor_kib: int) -> Row:
    """The row of a side, measured in one fresh process."""
    parts = tuple((str(bundle.path), stage) for bundle, stage in side.parts)
    job = replace(job, kind=side.kind, parts=parts)
    if side.kind == "pipeline":
        count = job.warmup + max(job.iterations, CHAIN_FRAMES)
        job = replace(job, frames=str(sample_frames(count, cache_folder())))
    result = run_job(job)
    p50, p90, p99 = percentiles_ms(result["times_ms"])
    entries = [bundle.stages[stage] for bundle, stage in side.parts]
    return Row(
        label=side.label,
        group=side.group,
        network=" + ".join(entry.network for entry in entries),
        size=text_of_size(side),
        params=sum(entry.params for entry in entries),
        weights_mib=sum(weights_mib(bundle, stage) for bundle, stage in side.parts),
        peak_mib=(result["peak_kib"] - floor_kib) / 1024.0,
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        calls=len(result["times_ms"]),
        threads=job.where.thread_count,
        frames=frames_of(side),
    )


def measure_all(sides: Iterable[Side], job: Job, tell: Callable[[str], None]) -> list[Row]:
    """A row for every side, each measured in a process of its own.

    Sides with the same parts are measured once; a side that comes twice in a group is one row.
    """
    floor = empty_peak_kib(job)
    tell(f"empty {job.where.backend} process: {floor / 1024:.0f} MiB, taken off every row")
    measured: dict[tuple[str, tuple[tuple[str, str], ...]], Row] = {}
    rows: dict[tuple[object, ...], Row] = {}
    for side in sides:
        key = (side.kind, tuple((str(bundle.path), stage) for bundle, stage in side.parts))
        if key not in measured:
            tell(f"measuring {side.label} ({side.group})")
            measured[key] = measure(side, job, floor)
        row = replace(measured[key], label=side.label, group=side.group, frames=frames_of(side))
        rows.setdefault((side.label, side.group, key), replace(row, size=text_of_size(side)))
    return list(rows.values())
