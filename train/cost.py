"""Measuring what a training step costs: time, memory, and cases in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch


def timed(call: Callable[[], None], device: str) -> float:
    """Milliseconds of a call; on a CPU only the time that this process got of the processor."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    start = clock()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return (clock() - start) * 1e3


def peak_mib(device: str, *, forget: bool = False) -> float:
    """The most memory in use since the last call with ``forget``.

    Of the GPU, or of the process on a CPU (Linux).
    """
    if device == "cuda":
        if forget:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 2**20
    if forget:  # what the imports took for a moment
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def in_fresh_process(module: str, words: Sequence[str]) -> dict[str, Any]:
    """The row that ``python -m module words`` prints as JSON in its last line."""
    command = [sys.executable, "-m", module, *words]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    row: dict[str, Any] = json.loads(lines.splitlines()[-1])
    return row


def append_row(file: Path | None, row: dict[str, Any]) -> None:
    """Add the row to a file of JSON lines, if there is one."""
    if file is not None:
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
