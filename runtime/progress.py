"""How far a run is: a bar with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

import click

LINE_EVERY_S = 10.0
COUNTER_EVERY_S = 0.2  # often enough to look alive; free


class Progress:
    """Counts steps and shows them on ``stream`` (stderr); the cursor is left on a fresh line.

    total: steps to expect, or None when nobody knows (cameras, pipes). On a terminal it is a bar
    with the time left, or a running counter without a total. Elsewhere it is plain lines, at most
    one every ten seconds and one at the end. When quiet nothing is shown.
    """

    def __init__(
        self,
        total: int | None,
        label: str = "frames",
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.done = 0
        self._total = total or None
        self._label = label
        self._stream = stream or sys.stderr
        self._clock = clock
        self._start = self._said = clock()
        self._closed = quiet
        self._quiet = quiet
        self._terminal = not quiet and self._stream.isatty()
        self._bar: Any = None
        if self._terminal and self._total is not None:
            self._bar = click.progressbar(
                length=self._total, label=label, file=self._stream, show_pos=True, width=24
            )
            self._bar.__enter__()

    def step(self, count: int = 1) -> None:
        """Count ``count`` more steps as done, and show it when it is time to."""
        self.done += count
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.update(count)
            return
        now = self._clock()
        if now - self._said >= (COUNTER_EVERY_S if self._terminal else LINE_EVERY_S):
            self._said = now
            self._say("\r" if self._terminal else "", "" if self._terminal else "\n")

    def close(self) -> None:
        """Show the end (once) and leave the terminal on a fresh line."""
        if self._closed:
            return
        self._closed = True
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        elif self.done:
            self._say("\r" if self._terminal else "", "\n", last=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _say(self, before: str, after: str, *, last: bool = False) -> None:
        with suppress(BrokenPipeError):  # nobody reads on; the run is worth more than its progress
            self._stream.write(before + self.line(last=last) + after)
            self._stream.flush()

    def line(self, *, last: bool = False) -> str:
        """One line of text: what is done, how fast, and what is left if the total is known.

        last: no more will come, so nothing is left.
        """
        elapsed = max(self._clock() - self._start, 1e-9)
        rate = self.done / elapsed
        if self._total is None:
            return f"{self._label}: {self.done}, {rate:.1f} per second"
        text = f"{self._label}: {self.done} of {self._total}, {rate:.1f} per second"
        left = self._total - self.done
        if left > 0 and self.done and not last:
            text += f", about {duration_text(left / rate)} left"
        return text


def duration_text(seconds: float) -> str:
    """Seconds in words a person reads: 8 s, 3 min 5 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
