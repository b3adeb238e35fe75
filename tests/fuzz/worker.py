"""Cases of a fuzz test in a process of their own, started again when one of them kills it."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
HANG_S = 5.0
START_S = 60.0  # for a busy machine to start Python
# What nothing that only reads pictures does, by the names of Python's audit events.
FORBIDDEN = (
    "subprocess.", "socket.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove",
    "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown",
    "os.truncate", "shutil.", "ctypes.dlopen", "pty.", "ftplib.", "urllib.",
)  # fmt: skip


@dataclass
class Outcome:
    """How many cases were tried, how many the first parser accepted, and what went wrong."""

    tried: int = 0
    accepted: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.tried} cases, {self.accepted} accepted, {len(self.failures)} failed, "
            f"{self.seconds:.0f} s"
        )


def run_cases(module: str, numbers: range, folder: Path) -> Outcome:
    """The outcome of the cases of a module that calls ``serve``, in other processes.

    A process that dies, or is silent for HANG_S seconds twice in the same case, is a failure.
    """
    outcome, start, at, retried = Outcome(), time.monotonic(), numbers.start, -1
    while at < numbers.stop:
        command = [sys.executable, "-m", module, str(at), str(numbers.stop), str(folder)]
        path = os.pathsep.join(dict.fromkeys([*sys.path, os.environ.get("PYTHONPATH", "")]))
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
        )
        lines, reason = _read_cases(process)
        for line in lines:
            _, kind, *rest = line.split(" ", 2)
            outcome.tried += 1
            outcome.accepted += kind == "accepted"
            if kind == "failed":
                outcome.failures.append(" ".join([line.split(" ")[0], *rest]))
        at += len(lines)
        if at == numbers.stop:
            break
        if reason.startswith("silent") and retried != at:
            retried = at  # a busy machine; once more, alone
            continue
        outcome.tried += 1
        outcome.failures.append(f"{at} {reason}")
        at += 1
    outcome.seconds = time.monotonic() - start
    return outcome


def _read_cases(process: subprocess.Popen[bytes]) -> tuple[list[str], str]:
    """The lines of a process until it ends or hangs, and how it ended."""
    assert process.stdout is not None
    descriptor, data, reason = process.stdout.fileno(), b"", ""
    with process, selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            if not selector.select(HANG_S if b"\n" in data else START_S):
                reason = f"silent for {HANG_S:.0f} s"
                process.kill()
                break
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                break
            data += piece
    reason = reason or f"the process ended with {process.returncode}"
    whole = data.decode().split("\n")[:-1]
    return [line for line in whole if line != "ready"], reason


def check_line(err: Exception) -> None:
    """AssertionError unless the message of an error is one line."""
    assert len(str(err).splitlines()) == 1, str(err)


def serve(arguments: Sequence[str], case: Callable[[int, Path], bool]) -> None:
    """Run cases FIRST to STOP-1 in FOLDER: ``case`` says whether the input was accepted.

    Whatever it raises is a failure, and so is a file touched outside FOLDER.
    """
    first, stop, folder = int(arguments[0]), int(arguments[1]), Path(arguments[2])
    touched: list[str] = []
    _watch(folder, touched)
    print("ready", flush=True)
    for number in range(first, stop):
        try:
            kind = "accepted" if case(number, folder) else "refused"
            text = ""
        except BaseException as err:
            frames = traceback.extract_tb(err.__traceback__)[-3:]
            places = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
            kind, text = "failed", f"{type(err).__name__}: {err} at {places}"
        if touched:
            kind, text = "failed", f"touched {touched}"
            touched.clear()
        print(f"{number} {kind} {text!a}", flush=True)


def _watch(folder: Path, touched: list[str]) -> None:
    """Note every file that is written outside the folder, and everything in FORBIDDEN."""
    inside = str(folder.resolve()) + os.sep

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            flags = arguments[2] if isinstance(arguments[2], int) else 0
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            name = os.path.realpath(os.fsdecode(arguments[0]))
            if writes and not name.startswith(inside) and not name.startswith("/dev/null"):
                touched.append(f"wrote {name}")
        elif event.startswith(FORBIDDEN) and not _is_inside(arguments, inside):
            touched.append(f"{event} {arguments!r}"[:200])

    sys.addaudithook(hook)


def _is_inside(arguments: tuple[object, ...], inside: str) -> bool:
    names = [os.fsdecode(a) for a in arguments if isinstance(a, (str, bytes))]
    return bool(names) and all(os.path.realpath(name).startswith(inside) for name in names)
