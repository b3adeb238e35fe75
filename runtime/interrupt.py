"""Signals that end a run: the first lets the current frame finish, the second stops at once.

Ctrl-C (SIGINT), SIGTERM (``kill``, a service that stops) and SIGHUP (a terminal that closes) are
alike. One that is ignored stays ignored, as under ``nohup``, and a handler of the program that
calls us stays too. Signals only reach the main thread; elsewhere nothing here does anything.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from mambapose.runtime.types import Frame

ENDING: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP told a command to end. number: of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal_name(number))
        self.number = number


def signal_name(number: int) -> str:
    """How a person knows the signal: Ctrl-C, SIGTERM, SIGHUP."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def exit_code(number: int) -> int:
    """The exit code by which a shell knows what ended a program: 130 after Ctrl-C."""
    return 128 + number


def _stop(number: int, stack: object) -> None:
    raise Stopped(number)


@contextmanager
def signals_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Stopped in the block, so that commands clean up as on Ctrl-C."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in ENDING[1:]:
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Interruptible:
    """While entered, the first ending signal is noted in ``asked`` (its number) and raises nothing.

    From then on signals do what they did before: Ctrl-C raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._before: dict[int, Any] = {}

    def frames(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The frames until a signal asks to end."""
        for frame in frames:
            if self.asked is not None:
                return
            yield frame

    def start(self) -> None:
        """Take signals from here on, until one comes or ``restore``."""
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler, _stop):
                    self._before[number] = signal.signal(number, self._ask)

    def __enter__(self) -> Interruptible:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()

    def _ask(self, number: int, stack: object) -> None:
        self.asked = number
        self.restore()

    def restore(self) -> None:
        """Let signals do what they did before; nothing if they already do."""
        while self._before:
            signal.signal(*self._before.popitem())
