"""compute-sanitizer over a small case: memory, races, uninitialised reads, barriers.

The case runs in a process of its own that knows neither torch nor its allocator: every tensor is an
allocation of the driver, so that one byte outside of it is an error. That process is ``python -m
mambapose.benchmarks.gpu_check.sanitize case``; with ``memory`` it only touches memory, which shows
whether the tool works on this machine at all.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mambapose.plugins import native_cuda
from mambapose.plugins.reference import selective_scan_reference
from mambapose.plugins.scan_abi import FP32, GRADIENTS, Params, Rows, scan_grads, scan_params
from mambapose.runtime.errors import EngineError

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND_ERRORS = 86
TIMEOUT_S = 240
ATTRIBUTES = {
    "directions": 2, "groups": 1, "reverse": (0, 1), "delta_softplus": True, "segment": 0,
    "merge": "sum", "gate": "silu",
}  # fmt: skip
Array = NDArray[Any]


class Memory(Protocol):
    """Memory that kernels can use."""

    def allocate(self, size: int) -> int:
        """The address of bytes that nothing has written to."""

    def put(self, array: Array) -> int:
        """The address of a copy of the array."""

    def get(self, address: int, array: Array) -> None:
        """Fill the array from the address, after all work is done."""


class DriverMemory:
    """Memory of the first GPU, through the driver's own library; never freed."""

    def __init__(self) -> None:
        self.driver = ctypes.CDLL("libcuda.so.1")
        context = ctypes.c_void_p()
        self._call("cuInit", 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self._call("cuCtxSetCurrent", context)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.driver, name)(*arguments)
        if status:
            raise EngineError(f"{name} of the CUDA driver failed with error {status}")

    def allocate(self, size: int) -> int:
        """The address of a new allocation of exactly this size."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def put(self, array: Array) -> int:
        """The address of a copy of the array, in an allocation of exactly its size."""
        address = self.allocate(array.nbytes)
        self._call(
            "cuMemcpyHtoD_v2", ctypes.c_uint64(address), ctypes.c_void_p(array.ctypes.data),
            ctypes.c_size_t(array.nbytes),
        )  # fmt: skip
        return address

    def get(self, address: int, array: Array) -> None:
        """Fill the array from device memory, after all work is done."""
        self._call("cuCtxSynchronize")
        self._call(
            "cuMemcpyDtoH_v2", ctypes.c_void_p(array.ctypes.data), ctypes.c_uint64(address),
            ctypes.c_size_t(array.nbytes),
        )  # fmt: skip


def find_tool(nvcc: Path | None = None) -> Path | None:
    """compute-sanitizer on the PATH, beside nvcc, or in /usr/local/cuda."""
    beside = [] if nvcc is None else [str(nvcc.parent / "compute-sanitizer")]
    for name in ("compute-sanitizer", *beside, "/usr/local/cuda/bin/compute-sanitizer"):
        found = shutil.which(name)
        if found:
            return Path(found)
    return None


@dataclass(frozen=True)
class Verdict:
    """What one tool found.

    ok: True for clean, None when the tool does not work here; said: its last line.
    """

    tool: str
    ok: bool | None
    said: str


def run_tools(tool: Path, library: Path) -> list[Verdict]:
    """The verdict of each tool on the case; the first one is a trial that only touches memory."""
    trial = _run(tool, "memcheck", "memory", library)
    if not trial.ok:
        return [Verdict("compute-sanitizer", None, trial.said)]
    return [_run(tool, name, "case", library) for name in TOOLS]


def _run(tool: Path, name: str, what: str, library: Path) -> Verdict:
    command = [str(tool), "--tool", name, "--error-exitcode", str(FOUND_ERRORS)]
    command += [sys.executable, "-m", "mambapose.benchmarks.gpu_check.sanitize", what]
    env = {**os.environ, native_cuda.VARIABLE: str(library)}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=env, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return Verdict(name, None, f"not done after {TIMEOUT_S} s")
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or [""]
    summary = next((line for line in reversed(lines) if "SUMMARY" in line), lines[-1])
    if done.returncode == FOUND_ERRORS:
        first = next((line for line in lines if line.startswith("=========  ")), summary)
        return Verdict(name, False, f"{summary.strip()} {first.strip()}")
    clean = done.returncode == 0 and "SUMMARY" in summary
    return Verdict(name, True if clean else None, summary.strip())


def small_arguments() -> dict[str, Array]:
    """Arguments for two directions, with every input but the state; no tile divides the sizes."""
    rng = np.random.default_rng(5)
    B, L, D, N, K = 2, 75, 20, 16, 2

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "u": normal(B, L, D), "dt": normal(B, L, K * D) - 2, "A": -np.exp(normal(K * D, N)),
        "B": normal(B, L, K * N), "C": normal(B, L, K * N), "D": normal(K * D),
        "z": normal(B, L, D), "dt_bias": normal(K * D) / 10,
        "order": np.stack([rng.permutation(L) for _ in range(K)]).astype(np.int32),
    }  # fmt: skip


def run_case(memory: Memory) -> float:
    """The largest error of y relative to its largest value, over every tactic.

    After that all gradients run once.
    """
    x = small_arguments()
    wanted, _ = selective_scan_reference(**x, **ATTRIBUTES)  # type: ignore[arg-type]
    multiprocessors = native_cuda.device().multiprocessors
    worst = 0.0
    for tactic in native_cuda.TACTICS:
        y = np.full(wanted.shape, np.nan, np.float32)
        state = np.full((len(y), *x["A"].shape), np.nan, np.float32)
        params = _params(x, memory, y, state)
        plan = native_cuda.make_plan(params, native_cuda.TACTICS[tactic], multiprocessors)
        workspace = memory.allocate(plan.workspaceBytes) if plan.workspaceBytes else None
        native_cuda.launch(params, plan, workspace, plan.workspaceBytes, None)
        memory.get(params.y.data, y)
        memory.get(params.finalState, state)
        worst = max(worst, float(np.abs(y - wanted).max() / np.abs(wanted).max()))
        if not np.isfinite(state).all():
            raise EngineError("a finite state was wanted of finite inputs, found another")
    _run_gradients(x, memory, multiprocessors, wanted.shape)
    return worst


def _params(x: dict[str, Array], memory: Memory, y: Any, state: Any) -> Params:
    """Parameters that point to copies of the arrays."""

    def rows_of(array: Array | None) -> Rows:
        if array is None:
            return Rows(None, 0, 0)
        return Rows(memory.put(array), array.shape[1] * array.shape[2], array.shape[2])

    def address_of(array: Array | None) -> int | None:
        return None if array is None else memory.put(array)

    absent = {"initial_state": None}
    return scan_params({**absent, **x}, y, state, ATTRIBUTES, FP32, rows_of, address_of)


def _run_gradients(
    x: dict[str, Array], memory: Memory, multiprocessors: int,
    y_shape: tuple[int, ...],
) -> None:  # fmt: skip
    found = {name: np.full_like(x[name], np.nan) if name in x else None for name in GRADIENTS}
    params = _params(x, memory, None, None)
    addresses = {
        name: None if array is None else memory.put(array) for name, array in found.items()
    }
    dy = memory.put(np.ones(y_shape, np.float32))
    grads = scan_grads(dy, None, addresses, lambda address: address)
    size = native_cuda.backward_workspace(params, grads, multiprocessors)
    workspace = memory.allocate(size) if size else None
    native_cuda.launch_backward(params, grads, multiprocessors, workspace, size, None)
    for name, array in found.items():
        address = addresses[name]
        if array is not None and address is not None:
            memory.get(address, array)
            if not np.isfinite(array).all():
                raise EngineError(f"a finite gradient of {name} was wanted, found another")


def main() -> int:
    """Run the case; 1 when its results are wrong."""
    memory = DriverMemory()
    if sys.argv[1:] == ["memory"]:
        values = np.arange(100, dtype=np.float32)
        memory.get(memory.put(values), values)
        return 0
    error = run_case(memory)
    print(f"largest error {error:.1e}")
    return int(not error <= 2e-6)


if __name__ == "__main__":
    sys.exit(main())
