"""One measurement in a fresh process: ``python -m mambapose.benchmarks.worker JSON``.

Prints one JSON object. Peak memory is VmHWM of the whole process, so nothing else may have run in
it; the caller subtracts the peak of the ``empty`` job, a process whose backend has run one tiny
graph. Latencies are wall-clock milliseconds of one call: the work of a stage on one more frame, or
on one window of a lifter.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mambapose.benchmarks.jobs import Job, job_from_dict
from mambapose.runtime.backends.engine import Engine
from mambapose.runtime.backends.loader import load_engine
from mambapose.runtime.bundle.bundle import read_bundle
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.errors import MambaPoseError
from mambapose.runtime.stages.flow import PAIR, FlowStage
from mambapose.runtime.text import printable
from mambapose.runtime.types import GraphName, TensorSpec

Step = Callable[[], None]


def status_kib(field: str) -> int:
    """A size field of /proc/self/status in KiB: ``VmHWM`` is the peak resident size."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise KeyError(field)


def seeded_input(spec: TensorSpec, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Noise that fits a tensor, for one person where a dimension is free."""
    shape = tuple(size if isinstance(size, int) else 1 for size in spec.shape)
    if spec.dtype == "uint8":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    return rng.standard_normal(shape).astype(spec.dtype)


def graph_step(engine: Engine) -> Step:
    """A function that runs one graph once on fixed noise."""
    rng = np.random.default_rng(0)
    inputs = {spec.name: seeded_input(spec, rng) for spec in engine.spec.inputs}
    return lambda: void(engine.run(inputs))


def void(_: object) -> None:
    """Drop a result, so that nothing is kept between calls."""


def flow_step(engines: dict[str, Engine], iterations: int) -> Step:
    """A function that runs the runtime's flow stage on one more frame."""
    size = engines["encode" if "encode" in engines else PAIR].spec.inputs[0].shape[1:3]
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (int(size[0]), int(size[1]), 3), dtype=np.uint8)
    stage = FlowStage(engines, iterations)
    stage.run(image)
    return lambda: void(stage.run(image))


def one_orientation(graphs: Iterable[str]) -> dict[str, str]:
    """Base name -> name of the graphs of one orientation: that of the first graph in the bundle."""
    names = [GraphName.parse(graph) for graph in graphs]
    return {name.base: str(name) for name in names if name.size == names[0].size}


def stage_step(bundle: Bundle, stage: str, job: Job) -> Step:
    """A function that does a stage's work on one frame or window.

    It runs each graph once; the flow stage runs its loop.
    """
    engines = {
        base: load_engine(bundle, stage, name, job.where)
        for base, name in one_orientation(bundle.stages[stage].graphs).items()
    }
    if stage == "flow":
        return flow_step(engines, bundle.schedule.flow_iters)
    return in_turn([graph_step(engine) for engine in engines.values()])


def in_turn(steps: Sequence[Step]) -> Step:
    """A function that does all steps, one after another.

    For a video network these are encoding the new frame and then running the window. A graph gets
    noise in place of features from another graph of the stage, or of a state from its own last
    call.
    """

    def once() -> None:
        for step in steps:
            step()

    return once


def timed(step: Step, job: Job) -> list[float]:
    """Milliseconds per call after the warm-up, until the count and the time are both reached."""
    for _ in range(job.warmup):
        step()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < job.iterations or time.perf_counter() - begin < job.seconds:
        start = time.perf_counter()
        step()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def run_empty(job: Job) -> dict[str, Any]:
    """Measure the backend with one tiny graph, which every measured process needs as well."""
    from mambapose.runtime.backends.native import find_library
    from mambapose.runtime.check.machine import run_probe

    run_probe(job.where.backend, find_library(job.where.operator))
    return {"times_ms": []}


def run_stages(job: Job) -> dict[str, Any]:
    """Measure all named stages, loaded together and run one after another."""
    steps = [
        stage_step(read_bundle(Path(folder), verify=False), stage, job)
        for folder, stage in job.parts
    ]
    return {"times_ms": timed(in_turn(steps), job)}


def run_pipeline(job: Job) -> dict[str, Any]:
    """Measure the whole chain on frames of the sample clip: milliseconds spent on each frame."""
    from mambapose.benchmarks.chain import frame_gaps_ms

    return {"times_ms": frame_gaps_ms(job)}


RUNNERS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "empty": run_empty,
    "stages": run_stages,
    "pipeline": run_pipeline,
}


def main() -> None:
    """Run the job given as the only argument and print its result as JSON."""
    job = job_from_dict(json.loads(sys.argv[1]))
    try:
        result = RUNNERS[job.kind](job)
    except MambaPoseError as err:  # a sentence, which the process that asked passes on
        print(f"error: {printable(str(err))}", file=sys.stderr)
        sys.exit(1)
    result["peak_kib"] = status_kib("VmHWM")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
