"""What every format has to offer; ``results/files.py`` has the table of them."""

from __future__ import annotations

import io
from contextlib import suppress
from typing import Protocol, TextIO

from mambapose.runtime.results.journal import Record


class Writer(Protocol):
    """Takes frames one by one; ``finish()`` completes the file; leaving the context closes it."""

    def add(self, record: Record) -> None: ...

    def finish(self) -> None: ...

    def __enter__(self) -> Writer: ...

    def __exit__(self, *exception: object) -> None: ...


def close_quietly(file: io.IOBase | TextIO) -> None:
    """Close the file; an error while its last bytes are written is ignored."""
    # What could not be flushed was reported by finish(); a second error would hide it.
    with suppress(OSError):
        file.close()
