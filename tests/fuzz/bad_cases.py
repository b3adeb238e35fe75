"""Cases that go wrong, for the test of the fuzz tests."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

from .worker import serve


def case(number: int, folder: Path) -> bool:
    """Accepted 0, 1 and 3; refused 5 and 9; each of the others fails in its own way."""
    if number == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    elif number == 4:
        time.sleep(60)
    elif number == 6:
        (folder.parent / "elsewhere").write_text("x")
    elif number == 7:
        socket.socket().close()
    elif number == 8:
        raise TypeError("a bug")
    (folder / "inside").write_text("x")
    return number in (0, 1, 3, 6, 7)


if __name__ == "__main__":
    serve(sys.argv[1:], case)
