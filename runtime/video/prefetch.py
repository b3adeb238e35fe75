"""Frames read ahead in a background thread, so that decoding and inference overlap."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

from mambapose.runtime.types import Frame
from mambapose.runtime.video.sources import Source

WAIT_S = 0.1  # between two looks at what else was asked


class Prefetch:
    """Frames of a source read ahead by one thread, at most ``depth`` waiting; order is kept.

    An exception of the source is raised here after the frames before it. The frames end when
    ``stop`` answers True while none is there, as from a camera that does not answer. close() stops
    the thread, also in the middle; the source itself is left to whoever opened it.
    """

    def __init__(
        self, source: Source, depth: int = 2, *, stop: Callable[[], bool] = lambda: False
    ) -> None:
        self._asked = stop
        self._queue: queue.Queue[Frame | BaseException | None] = queue.Queue(depth)
        self._stop = threading.Event()
        self._done = False
        self._thread = threading.Thread(
            target=self._fill, args=(source,), name="mambapose-decode", daemon=True
        )
        self._thread.start()

    def _fill(self, source: Source) -> None:
        try:
            for frame in source:
                if not self._put(frame):
                    return
            self._put(None)
        except BaseException as err:
            self._put(err)

    def _put(self, item: Frame | BaseException | None) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=WAIT_S)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        if self._done:
            raise StopIteration
        item = self._next()
        if isinstance(item, Frame):
            return item
        self._done = True
        if item is None:
            raise StopIteration
        self._thread.join()
        raise item

    def _next(self) -> Frame | BaseException | None:
        """The next item; None also when ``stop`` asks to end and nothing has come."""
        while True:
            try:
                return self._queue.get(timeout=WAIT_S)
            except queue.Empty:
                if self._asked():
                    return None

    def close(self) -> None:
        """Stop reading ahead; waits at most a second for a camera that does not answer."""
        self._done = True
        self._stop.set()
        self._thread.join(timeout=1.0)

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
