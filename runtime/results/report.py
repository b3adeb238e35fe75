"""What is recorded about a run: the meta of its results, and run.json."""

from __future__ import annotations

import json
import platform
import resource
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mambapose.runtime import durable
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.edges import FAULTS, edge
from mambapose.runtime.errors import OutputError
from mambapose.runtime.pipeline import Pipeline
from mambapose.runtime.results.files import PART, conventions
from mambapose.runtime.stages.causal_lifting import CausalLifter
from mambapose.runtime.stages.table import STAGES, whole_frame_inputs
from mambapose.runtime.text import printable
from mambapose.runtime.version import tool_version
from mambapose.runtime.video.sources import Source

REPORT = "run.json"
FORMAT_VERSION = 1


def used_stages(pipeline: Pipeline) -> list[str]:
    """The stages whose engines are loaded, in the order in which a frame passes them."""
    return list(dict.fromkeys(name.partition(".")[0] for name in pipeline.engines))


def untrained_stages(bundle: Bundle, pipeline: Pipeline) -> list[str]:
    """Stages in use whose weights are random; a detector from outside the bundle is not counted."""
    return [
        name
        for name in used_stages(pipeline)
        if name in bundle.stages and not bundle.stages[name].weights.trained
    ]


def labelled_stages(bundle: Bundle, pipeline: Pipeline) -> dict[str, str]:
    """Stage in use -> label of its weights ("demonstration"); only stages that have one."""
    return {
        name: label
        for name in used_stages(pipeline)
        if name in bundle.stages and (label := bundle.stages[name].weights.label) is not None
    }


def label_text(labels: Mapping[str, str]) -> str | None:
    """``demonstration weights (pose2d, lift3d)``, None when no weights have a label."""
    named: dict[str, list[str]] = {}
    for stage, label in labels.items():
        named.setdefault(label, []).append(stage)
    parts = [f"{label} weights ({', '.join(stages)})" for label, stages in named.items()]
    return ", ".join(parts) or None


def absent_cues(bundle: Bundle) -> list[str]:
    """Which of flow and depth are inputs of the bundle's networks but no stage of the bundle."""
    graphs = [graph for stage in bundle.stages.values() for graph in stage.graphs.values()]
    wanted = whole_frame_inputs(*(graph.spec for graph in graphs))
    return [name for name in STAGES if name in wanted and name not in bundle.stages]


def run_meta(
    bundle: Bundle, pipeline: Pipeline, source: Source, name: str, *, height: float | None
) -> dict[str, object]:
    """The meta of every result file: what ran, on what, and what the numbers mean."""
    unit = "body heights" if height is None else f"metres, for a height of {height:g} m"
    lifter = pipeline.lifter
    untrained = untrained_stages(bundle, pipeline)
    return conventions(unit) | {
        "tool": {"name": "mambapose", "version": tool_version()},
        "bundle": {"hash": bundle.hash, "target": bundle.target, "created": bundle.created},
        "trained": not untrained,
        "untrained_stages": untrained,
        "label": label_text(labelled_stages(bundle, pipeline)),
        "stages": {stage: _stage_facts(bundle, stage) for stage in used_stages(pipeline)},
        "source": {
            "name": printable(name),
            "path": source_path(name),
            "width": source.stored_size.width,
            "height": source.stored_size.height,
            "fps": source.fps,
        },
        "people": people_rule(pipeline),
        "pose2d_lookahead": pipeline.lookahead,
        "lifter": None
        if lifter is None
        else {"frames": lifter.frames, "hop": lifter.hop, "lookahead": lifter.lookahead},
    }


def source_path(name: str) -> str | None:
    """The absolute path of a source that is a file or a folder; None for cameras and streams."""
    path = Path(name.removeprefix("file://"))
    with suppress(*FAULTS):
        if path.is_file() or path.is_dir():
            return printable(str(path.absolute()))
    return None


def people_rule(pipeline: Pipeline) -> str:
    """How people are found."""
    return "detector" if "detect" in pipeline.engines else "no detector: one person assumed"


def lift_rule(pipeline: Pipeline) -> str | None:
    """When the 3D joints come and how often the lifter runs, in words; None without a lifter."""
    lifter = pipeline.lifter
    if lifter is None:
        return None
    if isinstance(lifter, CausalLifter):
        return "3D at once, by one step of the lifter per frame"
    when = f"3D up to {lifter.lookahead} frames later" if lifter.lookahead else "3D at once"
    each = "every frame" if lifter.hop == 1 else f"every {lifter.hop} frames"
    return f"{when}, by a window of {lifter.frames} frames for {each}"


def late_poses(pipeline: Pipeline) -> str | None:
    """A sentence on what it means that the pose network looks ahead; None when it does not."""
    frames = pipeline.lookahead
    return (
        f"2D poses look ahead {frames} frames: they come {frames} frames late, and boxes follow "
        f"poses that are {frames} frames old"
        if frames
        else None
    )


def _stage_facts(bundle: Bundle, name: str) -> dict[str, object]:
    if name not in bundle.stages:
        return {"network": "a detector given with --detect"}
    stage = bundle.stages[name]
    return {
        "network": stage.network,
        "precision": stage.precision,
        "trained": stage.weights.trained,
        "label": stage.weights.label,
        "measured": dict(stage.weights.measured),
        "weights_sha256": stage.weights.sha256,
    }


def versions() -> dict[str, str]:
    """Package -> version of everything that took part in the run; absent packages are left out."""
    found = {"mambapose": tool_version(), "python": platform.python_version()}
    for name in ("numpy", "onnxruntime", "onnxruntime-gpu", "av"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def peak_rss_mib() -> float:
    """The largest resident size this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)


def write_report(folder: Path, facts: Mapping[str, object]) -> Path:
    """Write run.json, complete or not at all; returns its path."""
    path = folder / REPORT
    part = path.with_name(path.name + PART)
    report = {"format_version": FORMAT_VERSION, **facts, "versions": versions(),
              "machine": {"system": platform.platform(), "processor": platform.machine()},
              "peak_rss_mib": peak_rss_mib()}  # fmt: skip
    try:
        with edge(OutputError, f"report {path} cannot be written", "free some space"):
            part.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            durable.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return path
