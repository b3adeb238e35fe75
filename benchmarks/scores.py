"""Measured accuracies: one score per network, material and inputs; tables, files, comparison."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mambapose.benchmarks.truth.pose_metrics import PoseMetrics
from mambapose.runtime.errors import MambaPoseError
from mambapose.runtime.skeleton import COCO17


@dataclass(frozen=True)
class Metric:
    """How a number is shown and compared: a share 0..1 or its own unit, and which way is better."""

    head: str
    better: int
    share: bool
    digits: int


METRICS = {
    "pck20": Metric("PCK@.2", +1, True, 3),
    "pck10": Metric("PCK@.1", +1, True, 3),
    "pck20_side_ignored": Metric("side ign.", +1, True, 3),
    "collapsed": Metric("collapsed", -1, True, 3),
    "median": Metric("med. height", -1, True, 4),
    "mean": Metric("mean height", -1, True, 4),
    "found": Metric("found", +1, True, 3),
    "pa_mpjpe_mm": Metric("PA-MPJPE mm", -1, False, 1),
    "mpjpe_mm": Metric("MPJPE mm", -1, False, 1),
    "acceleration_mm": Metric("accel. mm", -1, False, 2),
    "epe_px": Metric("EPE px", -1, False, 3),
    "epe_person_px": Metric("EPE person", -1, False, 3),
    "correlation": Metric("correlation", +1, True, 3),
}


@dataclass(frozen=True)
class Score:
    """The accuracy of one network on one material.

    stage: what is measured; data: what it is measured on; inputs: with which modalities or cues.
    values: numbers by the names of METRICS; joints: median error of each COCO joint as a share of
    body height, empty for 3D.
    """

    stage: str
    data: str
    inputs: str
    values: Mapping[str, float]
    joints: Mapping[str, float]

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies a measurement, so that two of the same thing can be compared."""
        return self.stage, self.data, self.inputs


def pose_score(stage: str, data: str, inputs: str, metrics: PoseMetrics, **more: float) -> Score:
    """A score of 2D joints; more: other numbers of METRICS."""
    every = {**metrics.as_dict(), **more}
    joints = dict(zip(COCO17.joints, metrics.per_joint, strict=True))
    return Score(stage, data, inputs, {k: every[k] for k in METRICS if k in every}, joints)


def lift_score(stage: str, data: str, inputs: str, values: Mapping[str, float]) -> Score:
    """A score of 3D joints from the numbers of lift_metrics.summary."""
    return Score(stage, data, inputs, {k: values[k] for k in METRICS if k in values}, {})


def table(scores: Sequence[Score]) -> list[str]:
    """The scores as aligned text, one block for each set of metrics."""
    lines: list[str] = []
    for names in dict.fromkeys(tuple(score.values) for score in scores):
        block = [score for score in scores if tuple(score.values) == names]
        texts = [[*score.key, *map(cell, names, score.values.values())] for score in block]
        texts.insert(0, ["stage", "material", "inputs", *(METRICS[name].head for name in names)])
        widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
        for text in texts:
            left = [part.ljust(width) for part, width in zip(text[:3], widths[:3], strict=True)]
            right = [part.rjust(width) for part, width in zip(text[3:], widths[3:], strict=True)]
            lines.append("  ".join(left + right))
        lines.append("")
    return lines[:-1]


def cell(name: str, value: float) -> str:
    """The number as text, in the form that the tables show."""
    return f"{value:.{METRICS[name].digits}f}" if math.isfinite(value) else "-"


def joint_table(scores: Iterable[Score]) -> list[str]:
    """Median error by joint in percent of body height, left and right."""
    lines = []
    for score in scores:
        percent = {
            name: f"{100 * value:.1f}" if math.isfinite(value) else "-"
            for name, value in score.joints.items()
        }
        pairs = [f"nose {percent['nose']}"]
        for name in (joint.removeprefix("left_") for joint in COCO17.joints if "left" in joint):
            pairs.append(f"{name} {percent['left_' + name]}/{percent['right_' + name]}")
        lines.append(f"{score.data}, {score.inputs}: {', '.join(pairs)}")
    return lines


def write_scores(scores: Iterable[Score], path: Path, about: Mapping[str, object]) -> None:
    """Append one JSON object per score, each with what it was measured on and with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for score in scores:
            row = {
                "stage": score.stage,
                "data": score.data,
                "inputs": score.inputs,
                "values": {name: _plain(value) for name, value in score.values.items()},
                "joints": {name: _plain(value) for name, value in score.joints.items()},
                **about,
            }
            file.write(json.dumps(row, allow_nan=False) + "\n")


def _plain(value: float) -> float | None:
    """The number for JSON; None for infinity and for what is not a number."""
    return round(value, 6) if math.isfinite(value) else None


def read_scores(path: Path) -> dict[tuple[str, str, str], Score]:
    """The last score of each key in a file of JSON lines; MambaPoseError for any other file."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
        found = [
            Score(r["stage"], r["data"], r["inputs"], _numbers(r["values"]), _numbers(r["joints"]))
            for r in rows
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise MambaPoseError(
            f"scores written by mp-bench accuracy --json were wanted in {path}, it cannot be read "
            f"({err!r}); give such a file"
        ) from err
    return {score.key: score for score in found}


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float("nan") if value is None else value for name, value in values.items()}


def worse(
    scores: Iterable[Score], baseline: Mapping[tuple[str, str, str], Score], tolerance: float
) -> list[str]:
    """A sentence for every number that is worse than the baseline's by more than allowed.

    Shares such as PCK may be worse by ``tolerance``; errors by height (``median``, ``mean``) and
    lengths by ``tolerance`` times the stored number. MambaPoseError when nothing is in common.
    """
    lines, common = [], 0
    for score in scores:
        stored = baseline.get(score.key)
        for name, value in score.values.items():
            if stored is None or name not in stored.values:
                continue
            common += 1
            limit = _limit(name, stored.values[name], tolerance)
            metric = METRICS[name]
            # A number that was known and is none now is worse; one never known holds nothing.
            if math.isfinite(limit) and not metric.better * (value - limit) >= 0:
                lines.append(
                    f"{' '.join(score.key)}: {name} {value:.4f}, baseline "
                    f"{stored.values[name]:.4f}, wanted {_sign(metric)} {limit:.4f}"
                )
    if not common:
        raise MambaPoseError(
            "the baseline holds none of the scores that were measured; give the file that "
            "mp-bench accuracy --json wrote with the same --only and --assets"
        )
    return lines


def _limit(name: str, stored: float, tolerance: float) -> float:
    metric = METRICS[name]
    relative = name in ("median", "mean") or not metric.share
    return stored - metric.better * tolerance * (abs(stored) if relative else 1.0)


def _sign(metric: Metric) -> str:
    return "at least" if metric.better > 0 else "at most"
