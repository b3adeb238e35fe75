"""The CPU kernels where the system grants little: memory, threads."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.usefixtures("library", "best_isa"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc"),
]

SCRIPT = """
import resource, sys
import numpy as np
from mambapose.plugins import native_scan
from mambapose.runtime.errors import EngineError

L, D, dtype, merge, megabytes, threads = eval(sys.argv[1])
call = native_scan.bind_scan(
    {
        **{name: np.ones((1, L, 2 * D), dtype) for name in ("u", "dt")},
        **{name: np.ones((1, L, 2), dtype) for name in ("B", "C")},
        "A": -np.ones((2 * D, 1), np.float32),
    },
    {"directions": 2, "reverse": (0, 1), "merge": merge},
)
if merge == "none":
    call.run()
    wanted = call.y.copy()
    call.y[:] = 0
call.params.numThreads = threads
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + int(megabytes * 1e6)
before = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
try:
    call.run()
    resource.setrlimit(resource.RLIMIT_AS, before)
    print("equal" if (call.y == wanted).all() else "different")
except EngineError as problem:
    print(problem)
"""


LANES = {"scalar": 8, "avx2": 8, "avx512": 16, "neon": 4}  # kWIDTH of plugins/csrc/vec_*.h


def _run(*settings, isa=None) -> str:
    command = [sys.executable, "-c", SCRIPT, repr(settings)]
    chosen = {} if isa is None else {"MAMBAPOSE_ISA": isa}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **chosen}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("threads", [1, 3])
def test_no_memory_for_the_scratch_is_one_sentence(scans, threads):
    """4 MB of running sums per lane, 64 MB with eight lanes, where half of them are left."""
    for isa in list(scans.each_isa()):
        megabytes = 4 * LANES[isa]
        said = _run(1_000_000, 16, "float16", "sum", megabytes / 2, threads, isa=isa)
        assert said.startswith(f"selective scan: scratch: {megabytes}"), isa
        assert said.endswith("bytes of memory were wanted, found none")


def test_an_instruction_set_that_is_absent_is_refused():
    script = "from mambapose.plugins import native_scan; native_scan.load_library()"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False,
        env={**os.environ, "MAMBAPOSE_ISA": "sse9"},
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert "instruction set 'sse9' was wanted by MAMBAPOSE_ISA" in last
    assert "avx2" in last


def test_threads_that_the_system_refuses_are_not_needed():
    """Eight threads have room for no stack; the caller's own does all the work."""
    assert _run(300_000, 16, "float32", "none", 1, 8) == "equal"
