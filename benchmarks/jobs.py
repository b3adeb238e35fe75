"""What to measure: a job runs in a process of its own and its results become a row."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mambapose.runtime.errors import EngineError
from mambapose.runtime.types import Where

ONE_THREAD = Where("onnxruntime", threads=1)


@dataclass(frozen=True)
class Job:
    """One measurement.

    kind: empty, stages (loaded together, run in turn) or pipeline (the whole chain).
    parts: (bundle folder, stage) pairs; the chain takes the bundle of the first.
    frames: file of raw RGB frames for the chain, see ``chain.sample_frames``.
    """

    kind: str
    parts: tuple[tuple[str, str], ...] = ()
    frames: str = ""
    where: Where = ONE_THREAD
    warmup: int = 2
    iterations: int = 20
    seconds: float = 2.0


@dataclass(frozen=True)
class Row:
    """One line of the table. Memory in MiB above an empty backend process, times in ms of a call.

    frames: how many frames the pipeline gets from one call; None where that is not known.
    """

    label: str
    group: str
    network: str
    size: str
    params: int
    weights_mib: float
    peak_mib: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    calls: int
    threads: int
    frames: int | None = None

    @property
    def frame_ms(self) -> float | None:
        """The p50 time of a call divided by its frames; None where they are not known."""
        return None if self.frames is None else self.p50_ms / self.frames


def job_from_dict(values: Mapping[str, Any]) -> Job:
    """The job a JSON object describes; unknown keys are errors."""
    parts = tuple(map(tuple, values.get("parts", ())))
    operator = values["where"].get("operator")
    where = {**values["where"], "operator": None if operator is None else Path(operator)}
    return Job(**{**values, "parts": parts, "where": Where(**where)})


def row_from_dict(values: Mapping[str, Any]) -> Row:
    """The row a line of results holds beside its machine; TypeError when a number is missing."""
    names = Row.__dataclass_fields__
    return Row(**{name: value for name, value in values.items() if name in names})


def run_job(job: Job) -> dict[str, Any]:
    """Measure in a fresh interpreter; EngineError carries the last line it printed."""
    command = own_module("mambapose.benchmarks.worker", json.dumps(asdict(job), default=str))
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        reason = last_sentence(done.stderr)
        what = " + ".join(f"{stage} of {bundle}" for bundle, stage in job.parts) or "the backend"
        raise EngineError(f"measuring {what} in a fresh process failed: {reason}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# Runs the module named as first argument. Python puts the folder it is started in before all others
# for -m and -c, and that may be a bundle, whose files must never be imported.
_RUN = (
    "import sys; sys.path[:1] = [path for path in sys.path[:1] if path]; "
    "import runpy; runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def own_module(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of ours in a fresh interpreter, wherever it is started."""
    return [sys.executable, "-c", _RUN, module, *arguments]


def last_sentence(said: str) -> str:
    """The last line of what a failed process printed, without the word ``error`` before it."""
    return (said.strip().splitlines() or ["no message"])[-1].removeprefix("error: ")


def empty_peak_kib(job: Job) -> int:
    """Peak memory of a process that only started the backend: the smallest of three, as a floor."""
    return min(int(run_job(replace(job, kind="empty"))["peak_kib"]) for _ in range(3))


def percentiles_ms(times: list[float]) -> tuple[float, float, float]:
    """p50, p90 and p99 of call times."""
    p50, p90, p99 = np.percentile(times, (50, 90, 99))
    return float(p50), float(p90), float(p99)
