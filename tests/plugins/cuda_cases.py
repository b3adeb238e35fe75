"""Calls of the CUDA kernels built for the host, for the tests that run them."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from .cached_build import CSRC, Compiler

# No strict aliasing, as nvcc has none; fused products as nvcc makes them are left to fmaf.
SHIM_FLAGS = (
    "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-fvisibility=hidden",
    "-fno-strict-aliasing", "-pthread",
)  # fmt: skip
SHIM = [CSRC / "tests" / f"cuda_{name}.cpp" for name in ("shim", "block", "fiber")]


def shim_objects(*flags: str, folder: Path | None = None) -> list[Path]:
    """The CUDA kernels and their shim (csrc/tests/cuda_shim.h) compiled as C++ for the host.

    flags: further ones of the compiler, such as a sanitizer; folder: holds changed files of csrc.
    """
    includes = (CSRC,) if folder is None else (folder, CSRC)
    compiler = Compiler((*SHIM_FLAGS, *flags), includes)
    of_shim: tuple[str, ...] = ()
    if any("address" in flag or "thread" in flag for flag in flags):
        of_shim = ("-DMAMBAPOSE_SHIM_SANITIZED",)
    if "-fsanitize=thread" in flags:
        # The shim is many threads to the sanitizer and shares its data among them on purpose.
        of_shim += ("-DMAMBAPOSE_SHIM_THREADS", "-fno-sanitize=thread")
    kernels = [*sorted(CSRC.glob("cuda/*.c*")), CSRC / "core" / "scan_check.cpp"]
    own = {source.stem: of_shim for source in SHIM}
    return compiler.objects([*compiler.overlaid(kernels), *SHIM], own)


def build_shim() -> Path:
    """The library of the CUDA kernels built for the host."""
    name = "libmambapose_cuda_shim.so"
    return Compiler(SHIM_FLAGS).link(name, shim_objects(), "-shared")


class GuardedMemory:
    """Memory for outputs and workspaces: not a number at first, with marked bytes around it."""

    GUARD, MARK, ALIGNMENT = 4096, 0xA5, 256

    def __init__(self) -> None:
        self._blocks: list[tuple[np.ndarray, int, int]] = []

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        size = int(np.prod(shape)) * dtype.itemsize
        block = np.full(size + 2 * self.GUARD + self.ALIGNMENT, self.MARK, np.uint8)
        begin = self.GUARD + -(block.ctypes.data + self.GUARD) % self.ALIGNMENT
        self._blocks.append((block, begin, begin + size))
        block[begin : begin + size] = 0xFF
        return block[begin : begin + size].view(dtype).reshape(shape)

    def check(self) -> None:
        """Fail if anything was written beside the memory that was handed out."""
        for block, begin, end in self._blocks:
            assert (block[:begin] == self.MARK).all(), "bytes before an output were written"
            assert (block[end:] == self.MARK).all(), "bytes after an output were written"


CUDA_LIMITS = {"float32": 2e-6, "float16": 1.5e-3, "bfloat16": 1.2e-2}
MULTIPROCESSORS = (1, 8, 132)


def _bfloat16_bits(array):
    """The nearest bfloat16 of every float32, ties to even, as uint16."""
    bits = array.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _from_bits(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _is_row(name, array):
    return name in ("u", "dt", "z") or (name in ("B", "C") and array.ndim == 3)


def _given_to_kernel(case, dtype):
    """The arguments in the type of the call."""
    if dtype != "bfloat16":
        return case.arguments
    return {n: _bfloat16_bits(a) if _is_row(n, a) else a for n, a in case.arguments.items()}


def _given_to_oracle(case, dtype):
    """The same values."""
    if dtype != "bfloat16":
        return case.arguments
    bits = _given_to_kernel(case, dtype)
    return {n: _from_bits(bits[n]) if _is_row(n, a) else a for n, a in case.arguments.items()}


def cuda_params(case, dtype="float32"):
    """The C structure of a call and what must live as long as it."""
    from mambapose.plugins import native_cuda
    from mambapose.plugins.native_scan import address_of, prepare_arrays, rows_of
    from mambapose.plugins.scan_abi import scan_attributes, scan_params

    absent = dict.fromkeys(("D", "z", "dt_bias", "order", "initial_state"))
    arguments = _given_to_kernel(case, dtype)
    ready = prepare_arrays({**absent, **arguments}, arguments["dt"].dtype)
    settings = scan_attributes(**case.attributes)
    batch, length, wide = ready["dt"].shape
    width = wide // settings["directions"] if settings["merge"] == "sum" else wide
    y = np.zeros((batch, length, width), ready["dt"].dtype)
    state = np.zeros((batch, *ready["A"].shape), np.float32)
    kind = native_cuda.DTYPES[ready["dt"].dtype]
    params = scan_params(ready, y, state, settings, kind, rows_of, address_of)
    return params, (ready, y, state)


def cuda_functions(library: ctypes.CDLL, close: Callable[..., None]) -> SimpleNamespace:
    """Functions that run a case on the host build; close: compares an array with a wanted one."""
    from mambapose.plugins import native_cuda
    from mambapose.plugins.reference import selective_scan_reference

    def plan(case, tactic, multiprocessors, dtype="float32"):
        params, _alive = cuda_params(case, dtype)
        number = native_cuda.TACTICS[tactic]
        return native_cuda.make_plan(params, number, multiprocessors, library=library)

    def forms(case, dtype="float32"):
        """(tactic, multiprocessors) for every form of launch that any of them plans."""
        found: dict[object, tuple[str, int]] = {}
        for tactic, count in itertools.product(native_cuda.TACTICS, MULTIPROCESSORS):
            made = plan(case, tactic, count, dtype)
            fields = [
                name for name, _ in made._fields_ if name not in ("tactic", "multiprocessors")
            ]
            found.setdefault(tuple(getattr(made, name) for name in fields), (tactic, count))
        return list(found.values())

    def run(case, form, dtype="float32", seed=1, **changes):
        """(y, final_state) with NaN where nothing was written; the memory around is checked."""
        memory = GuardedMemory()
        library.mambapose_shim_set_seed(seed)
        arguments = {**_given_to_kernel(case, dtype), **changes}
        tactic, multiprocessors = form
        y, state = native_cuda.scan(
            library, arguments, case.attributes, tactic=tactic,
            multiprocessors=multiprocessors, allocate=memory.allocate,
        )  # fmt: skip
        memory.check()
        return y, state

    def check(case, dtype="float32", limit=None):
        """Every form of launch agrees with the oracle."""
        arguments = _given_to_oracle(case, dtype)
        wanted, wanted_state = selective_scan_reference(**arguments, **case.attributes)
        for seed, form in enumerate(forms(case, dtype), start=1):
            y, state = run(case, form, dtype, seed)
            assert y.dtype == _given_to_kernel(case, dtype)["dt"].dtype
            y = _from_bits(y) if dtype == "bfloat16" else y
            close(f"{form} y", y, wanted, limit or CUDA_LIMITS[dtype])
            close(f"{form} final state", state, wanted_state, 5e-6)

    return SimpleNamespace(
        library=library, plan=plan, forms=forms, run=run, check=check, params=cuda_params,
        every_form=list(itertools.product(native_cuda.TACTICS, MULTIPROCESSORS)),
    )  # fmt: skip
