"""Ctrl-C: the first one lets the current frame finish, the second one stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from mambapose.runtime.types import Frame


class Interruptible:
    """While entered, SIGINT sets ``asked`` instead of raising; a second SIGINT raises.

    Signals only reach the main thread of a program; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def frames(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The frames until an interrupt is asked for."""
        for frame in frames:
            if self.asked:
                return
            yield frame

    def __enter__(self) -> Interruptible:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _ask(self, number: int, stack: object) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
