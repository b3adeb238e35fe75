"""Times of GPU calls: by CUDA events around graph replays, and around plain launches."""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mambapose.benchmarks.gpu_check import shapes
from mambapose.benchmarks.gpu_check.floor import Device
from mambapose.benchmarks.gpu_check.shapes import Shape, inputs, options
from mambapose.plugins import torch_cuda
from mambapose.plugins.torch_loop import scan_loop
from mambapose.runtime.errors import EngineError

REPEATS = 30
CALLS_PER_GRAPH = 20
INPUT_SETS = 4
COPY_BYTES = 1 << 30
ERROR_BYTES = 256
Call = Callable[[], Any]


@dataclass(frozen=True)
class Timed:
    """Microseconds of one call: in a CUDA graph (None: not captured) and launched from Python.

    spread: the middle half of the measurements over their median.
    """

    graph_us: float | None
    plain_us: float
    spread: float


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def _elapsed_us(work: Call, calls: int, repeats: int) -> list[float]:
    """Microseconds per call for each repeat, by events on the current stream."""
    found = []
    for _ in range(repeats):
        begin, end = (_event() for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) * 1e3 / calls)
    return found


def time_calls(calls: Sequence[Call], *, capture: bool = True, repeats: int = REPEATS) -> Timed:
    """The median time over the repeats.

    The calls, each with an input set of its own, take turns within a repeat.
    """
    rounds = max(1, CALLS_PER_GRAPH // len(calls)) if capture else 1

    def row() -> None:
        for _ in range(rounds):
            for call in calls:
                call()

    row()
    torch.cuda.synchronize()
    count = rounds * len(calls)
    plain = _elapsed_us(row, count, repeats)
    if not capture:
        return Timed(None, statistics.median(plain), _spread(plain))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        row()
    _elapsed_us(graph.replay, count, 3)
    replayed = _elapsed_us(graph.replay, count, repeats)
    return Timed(statistics.median(replayed), statistics.median(plain), _spread(replayed))


def _spread(times: Sequence[float]) -> float:
    if len(times) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(times, n=4)
    return (high - low) / middle


def our_calls(shape: Shape, dtype: torch.dtype, tactic: str) -> list[torch_cuda.BoundScan]:
    """Bound calls of the CUDA kernels on several input sets, without the final state."""
    return [
        torch_cuda.bind_scan(
            inputs(shape, dtype, seed), options(shape), tactic=tactic, with_state=False
        )
        for seed in range(INPUT_SETS)
    ]


def loop_call(shape: Shape, dtype: torch.dtype) -> Call:
    """A call of the torch operator without compiled kernels."""
    x = inputs(shape, dtype)
    return lambda: scan_loop(*x.values(), *options(shape).values())  # type: ignore[arg-type]


def copy_bandwidth() -> float:
    """Bytes read plus bytes written per second in the best of several large device copies."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    times = _elapsed_us(lambda: target.copy_(source), 1, 12)
    return 2 * COPY_BYTES / (min(times) * 1e-6)


def measured_device(probe: Path) -> Device:
    """Name, size, clock and rates of the current GPU. Raises EngineError when the probe fails."""
    library = ctypes.CDLL(str(probe))
    clock, rate = ctypes.c_double(), ctypes.c_double()
    error = ctypes.create_string_buffer(ERROR_BYTES)
    if library.mambapose_gpu_probe(
        ctypes.byref(clock), ctypes.byref(rate), error, ctypes.c_size_t(ERROR_BYTES)
    ):
        raise EngineError(f"the clock of the GPU cannot be measured: {error.value.decode()}")
    about = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Device(
        name=about.name,
        capability=10 * about.major + about.minor,
        multiprocessors=about.multi_processor_count,
        clock_hz=clock.value,
        exponentials_per_s=rate.value,
        bandwidth=copy_bandwidth(),
    )


def training_calls(shape: Shape) -> Mapping[str, Call]:
    """Forward and backward of the operator in float32, by the CUDA kernels and by the loop."""
    import mambapose.plugins.torch_op  # noqa: F401  registers the operator

    def leaves() -> list[Any]:
        found = inputs(shape, torch.float32).values()
        return [t if t is None or t.dtype == torch.int32 else t.requires_grad_() for t in found]

    weight = torch.randn(shape.B, shape.L, shape.D, device=shapes.DEVICE)

    def step(function: Callable[..., Any], x: list[Any]) -> Call:
        roots = [t for t in x if t is not None and t.requires_grad]

        def run() -> None:
            y, _ = function(*x, *options(shape).values())
            torch.autograd.grad(y, roots, weight)

        return run

    operator = torch.ops.mambapose.selective_scan
    return {"mambapose": step(operator, leaves()), "torch loop": step(scan_loop, leaves())}
