"""Frames read ahead in a background thread, so that decoding and inference overlap."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

from mambapose.runtime.types import Frame
from mambapose.runtime.video.sources import Source

WAIT_S = 0.1  # between two looks at what else was asked
# Two waiting frames of 4K fit. Of larger ones a single frame waits, and the next is not even
# decoded before it is taken; how much larger is free.
WAITING_BYTES = 64 << 20


class Prefetch:
    """Frames of a source read ahead by one thread, at most ``depth`` waiting; order is kept.

    Nothing is read ahead while the waiting frames have ``most_bytes`` or more. An exception of the
    source is raised here after the frames before it. The frames end when ``stop`` answers True
    while none is there, as from a camera that does not answer. close() stops the thread, also in
    the middle; the source itself is left to whoever opened it.
    """

    def __init__(
        self,
        source: Source,
        depth: int = 2,
        most_bytes: int = WAITING_BYTES,
        *,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._asked = stop
        self._depth, self._most = depth, most_bytes
        self._waiting: deque[Frame | BaseException | None] = deque()
        self._bytes = 0
        self._changed = threading.Condition()
        self._stopped = self._done = False
        self._thread = threading.Thread(
            target=self._fill, args=(source,), name="mambapose-decode", daemon=True
        )
        self._thread.start()

    def _fill(self, source: Source) -> None:
        try:
            frames = iter(source)
            # No name holds a frame here: one of 8K takes 100 MB.
            while self._has_room() and self._put(next(frames, None)):
                pass
        except BaseException as err:
            self._put(err)

    def _has_room(self) -> bool:
        """Wait until another frame may be read; False when nobody wants one."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._stopped or (len(self._waiting) < self._depth and self._bytes < self._most)
                )
            )
            return not self._stopped

    def _put(self, item: Frame | BaseException | None) -> bool:
        """Let a frame, an error or the end wait; whether more may come."""
        with self._changed:
            self._waiting.append(item)
            self._bytes += item.image.nbytes if isinstance(item, Frame) else 0
            self._changed.notify_all()
        return isinstance(item, Frame)

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
        with self._changed:
            while not self._changed.wait_for(lambda: self._waiting, timeout=WAIT_S):
                if self._asked():
                    return None
            item = self._waiting.popleft()
            self._bytes -= item.image.nbytes if isinstance(item, Frame) else 0
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Stop reading ahead; waits at most a second for a camera that does not answer."""
        self._done = True
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(timeout=1.0)

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
