"""What every training loop does: make batches ahead, step the optimiser, decide when to stop."""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Generic, TypeVar

import click
import torch
from torch import Tensor

from mambapose.runtime.errors import ExportError
from mambapose.train.checkpoint import RunState
from mambapose.train.cost import peak_mib

LINE_S = 60.0  # between two lines of a curve
Made = TypeVar("Made")


class _Numbered(torch.utils.data.Dataset[Made], Generic[Made]):
    """Batches of consecutive numbers; each process opens the sources of its batches itself."""

    def __init__(self, opened: Callable[[], Callable[[int], Made]], first: int) -> None:
        self._opened, self._first = opened, first
        self._make: Callable[[int], Made] | None = None

    def __getitem__(self, index: int) -> Made:
        if self._make is None:
            self._make = self._opened()
        return self._make(self._first + index)


class _Order(torch.utils.data.Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        yield from range(1 << 30)


def _leave_stopping_to_parent(_: int) -> None:
    """Ignore Ctrl-C in a worker, because it reaches every process of the terminal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def made_ahead(
    opened: Callable[[], Callable[[int], Made]], first: int, workers: int
) -> Iterator[Made]:
    """Batches from number ``first`` on, made ahead in ``workers`` processes when there are any.

    opened: returns the function from a number to its batch; called once in every process.
    """
    source = _Numbered(opened, first)
    if not workers:
        return (source[index] for index in _Order())
    loader = torch.utils.data.DataLoader(
        source, batch_size=None, sampler=_Order(), num_workers=workers, prefetch_factor=4,
        worker_init_fn=_leave_stopping_to_parent,
    )  # fmt: skip
    return iter(loader)


@dataclass
class Minute:
    """Sums since the last line of the curve.

    samples: number of crops or windows; frames: number of frames in all windows.
    """

    started: float = field(default_factory=time.monotonic)
    steps: int = 0
    samples: int = 0
    frames: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, parts: Mapping[str, float], samples: int, frames: int = 0) -> None:
        """Add one step: its losses, and how many samples and frames it saw."""
        self.steps += 1
        self.samples += samples
        self.frames += frames
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def row(self, state: RunState, digits: int) -> dict[str, Any]:
        """The fields that every line of a curve has."""
        means = {
            name: round(value / max(self.steps, 1), digits) for name, value in self.sums.items()
        }
        device = next(state.model.parameters()).device.type
        return {
            "step": state.step,
            "hours": round(state.seconds / 3600, 4),
            **means,
            "rate": state.rate(),
            "peak_mib": round(peak_mib(device), 1),
        }

    def per_second(self, count: int) -> float:
        """The count divided by the seconds since the minute began."""
        return count / max(time.monotonic() - self.started, 1e-9)


def descend(state: RunState, loss: Tensor, samples: int) -> float:
    """The norm of the gradient of ``loss``, after one step of the optimiser.

    Also counts the step and its samples, and updates the mean weights.
    """
    for group in state.optimiser.param_groups:
        group["lr"] = state.rate()
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(state.model.parameters(), state.plan.clip_norm)
    if not bool(torch.isfinite(norm)):
        raise ExportError(
            f"finite gradients were wanted, step {state.step} has none; resume with a lower --rate"
        )
    state.optimiser.step()
    state.step += 1
    state.count(samples)
    state.update_average()
    return float(norm)


@functools.cache
def scan_in_float32(device: str) -> None:
    """Keep the scan in float32 under autocast, as in the published training."""
    torch.library.register_autocast("mambapose::selective_scan", device, torch.float32)


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A context with a list to which the signal's number is added on Ctrl-C or termination."""
    asked: list[int] = []

    def ask(number: int, _: FrameType | None) -> None:
        asked.append(number)

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Limits:
    """When to stop, and how often to save and to measure, in seconds."""

    minutes: float | None = None
    steps: int | None = None
    save_s: float = 300.0
    measure_s: float = 1800.0


@dataclass(frozen=True)
class Work:
    """The parts of ``loop`` that differ between runs.

    step: trains one step and returns its losses, samples and frames; report: writes a line of the
    curve; save: writes the checkpoint; look: measures on held-out material, if there is any.
    """

    step: Callable[[], tuple[Mapping[str, float], int, int]]
    report: Callable[[Minute], None]
    save: Callable[[], Path]
    look: Callable[[], None] | None = None


def loop(state: RunState, limits: Limits, work: Work) -> int:
    """The number of the signal that ended the training, or 0; trains until a limit, then saves.

    The time that ``work.look`` takes does not count as time of the run.
    """
    begun = saved = measured = last = time.monotonic()
    until = None if limits.steps is None else state.step + limits.steps
    minute = Minute()
    with stop_requests() as asked:
        while not asked and not state.finished() and (until is None or state.step < until):
            minute.add(*work.step())
            now = time.monotonic()
            state.seconds += now - last
            last = now
            if now - minute.started > LINE_S:
                work.report(minute)
                minute = Minute()
            if now - saved > limits.save_s:
                work.save()
                saved = now
            if work.look is not None and now - measured > limits.measure_s:
                work.look()
                measured = last = time.monotonic()
            if limits.minutes is not None and now - begun > limits.minutes * 60:
                break
    if minute.steps:
        work.report(minute)
    click.echo(f"saved step {state.step} in {work.save()}")
    return asked[0] if asked else 0
