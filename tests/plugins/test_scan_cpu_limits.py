"""The CPU kernels where the system grants little: memory, threads."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.usefixtures("library"),
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


def _run(*settings) -> str:
    command = [sys.executable, "-c", SCRIPT, repr(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("threads", [1, 3])
def test_no_memory_for_the_scratch_is_one_sentence(threads):
    """128 MB of running sums where 50 MB are left: on the caller's thread and on others."""
    said = _run(2_000_000, 16, "float16", "sum", 50, threads)
    assert said.startswith("selective scan: scratch: 128")
    assert said.endswith("bytes of memory were wanted, found none")


def test_threads_that_the_system_refuses_are_not_needed():
    """Eight threads have room for no stack; the caller's own does all the work."""
    assert _run(300_000, 16, "float32", "none", 1, 8) == "equal"
