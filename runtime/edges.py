"""Where the world outside begins: what it raises there becomes an error of ours, in one line.

Files, libraries and text of others fail with OSError, but also with UnicodeError (a name that is
not UTF-8), ValueError (a zero byte in a name, a closed pipe), OverflowError and MemoryError.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mambapose.runtime.errors import MambaPoseError

# RecursionError: text nested deeper than Python's stack. EOFError: data that ends early.
FAULTS = (OSError, ValueError, OverflowError, MemoryError, RecursionError, EOFError)


def reason(err: BaseException) -> str:
    """Why something failed, on one line and without the names of Python's classes."""
    if isinstance(err, MemoryError):
        return "not enough memory"
    if isinstance(err, RecursionError):
        return "nested too deeply"
    if isinstance(err, UnicodeError):
        return "text that is not UTF-8"
    # FFmpeg's errors have a strerror too, and are not all of them OSErrors.
    text = getattr(err, "strerror", None) or str(err) or type(err).__name__
    return " ".join(text.split())


@contextmanager
def edge(kind: type[MambaPoseError], wanted: str, todo: str) -> Iterator[None]:
    """Raise ``kind`` as "WANTED (REASON); TODO" for any of FAULTS in the block."""
    try:
        yield
    except MambaPoseError:
        raise
    except FAULTS as err:
        raise kind(f"{wanted} ({reason(err)}); {todo}") from err
