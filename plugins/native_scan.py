"""The compiled selective scan on NumPy arrays, through the C interface of plugins/csrc.

Arrays are read where they are, without a copy (any batch and row stride; only a strided last axis
is copied), so torch tensors can be passed as their ``numpy()`` views. Letters as in
plugins/reference.py.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambapose.plugins.reference import check_arguments
from mambapose.plugins.scan_abi import (
    FP16,
    FP32,
    GRADIENTS,
    PARALLEL_FOR,
    Grads,
    Params,
    Rows,
    call_library,
    check_gradients,
    output_shape,
    scan_attributes,
    scan_grads,
    scan_params,
)
from mambapose.runtime.backends.native import ISA_VARIABLE, find_library, library_info
from mambapose.runtime.errors import EngineError

DTYPES = {np.dtype(np.float32): FP32, np.dtype(np.float16): FP16}
INSTRUCTION_SETS = ("avx512", "avx2", "neon", "scalar")
AnyArray = NDArray[Any]


def library_path() -> Path:
    """The path of the compiled library that is used. Raises EngineError when there is none."""
    path = find_library()
    if path is None:
        raise EngineError(
            "the compiled operator library was wanted, found none; "
            "build plugins/ with CMake or set MAMBAPOSE_LIBRARY to it"
        )
    return path


@functools.cache
def load_library(path: Path | None = None) -> ctypes.CDLL:
    """The library at this path, or the one that is found, with its functions typed.

    Raises EngineError when there is none or when its spec or ABI number differs from ours.
    """
    path = path or library_path()
    library_info(path)
    library = ctypes.CDLL(str(path))
    tail = (ctypes.c_char_p, ctypes.c_size_t)
    library.mambapose_scan_cpu.argtypes = (ctypes.POINTER(Params), *tail)
    library.mambapose_scan_cpu_backward.argtypes = (
        ctypes.POINTER(Params),
        ctypes.POINTER(Grads),
        *tail,
    )
    library.mambapose_scan_isa.restype = ctypes.c_char_p
    library.mambapose_scan_force_isa.argtypes = (ctypes.c_char_p,)
    return library


def instruction_set() -> str:
    """The instruction set in use: avx512, avx2, neon or scalar."""
    name: bytes = load_library().mambapose_scan_isa()
    return name.decode()


def instruction_sets() -> list[str]:
    """The instruction sets that this processor can run, the best first.

    Each is tried; afterwards the one that was in use is in use again.
    """
    usable = [name for name in INSTRUCTION_SETS if force_instruction_set(name)]
    force_instruction_set(None)
    return usable


def force_instruction_set(name: str | None) -> bool:
    """Use this instruction set from now on; returns False when the processor does not have it.

    name: None goes back to the one that MAMBAPOSE_ISA names, or to the best.
    """
    name = name or os.environ.get(ISA_VARIABLE) or None
    chosen = os.fsencode(name) if name is not None else None
    return bool(load_library().mambapose_scan_force_isa(chosen) == 0)


def address_of(array: AnyArray | None) -> int | None:
    """The address of the array's first element."""
    return None if array is None else array.ctypes.data


def rows_of(array: AnyArray | None) -> Rows:
    """The array in the form that the C interface reads; its last axis must be dense."""
    if array is None:
        return Rows(None, 0, 0)
    strides = [stride // array.itemsize for stride in array.strides]
    return Rows(array.ctypes.data, strides[0] if array.ndim == 3 else 0, strides[-2])


def dense_array(array: AnyArray | None, dtype: type[np.generic] = np.float32) -> AnyArray | None:
    """The array, or a copy when it is not dense or of another type."""
    return None if array is None else np.require(array, dtype, ("C", "A"))


def _lined_up(array: AnyArray, dtype: np.dtype[Any]) -> AnyArray:
    """The array itself when its last axis is dense and its strides are whole elements."""
    array = np.asarray(array, dtype)
    whole = all(stride % array.itemsize == 0 for stride in array.strides)
    dense = array.shape[-1] <= 1 or array.strides[-1] == array.itemsize
    in_place = whole and dense and array.flags.aligned
    return array if in_place else np.require(array, requirements=("C", "A"))


def prepare_arrays(x: Mapping[str, AnyArray | None], dtype: np.dtype[Any]) -> dict[str, Any]:
    """Every argument in the form that the C interface reads; the caller keeps the dict alive."""
    ready: dict[str, Any] = {}
    for name, value in x.items():
        if value is None:
            ready[name] = None
        elif name in ("u", "dt", "z") or (name in ("B", "C") and np.ndim(value) == 3):
            ready[name] = _lined_up(value, dtype)
        else:
            ready[name] = dense_array(value, np.int32 if name == "order" else np.float32)
    return ready


def _params(
    x: Mapping[str, Any],
    y: AnyArray | None,
    final_state: AnyArray | None,
    attributes: Mapping[str, Any],
    threads: int,
    parallel_for: Callable[..., None] | None,
) -> Params:
    dtype = DTYPES[x["dt"].dtype]
    params = scan_params(x, y, final_state, attributes, dtype, rows_of, address_of)
    params.numThreads = threads
    if parallel_for is not None:
        params.parallelFor = PARALLEL_FOR(parallel_for)
    return params


@dataclass(frozen=True)
class BoundScan:
    """One call with its memory: ``run()`` computes y again, and final_state unless it is None."""

    y: AnyArray
    final_state: NDArray[np.float32] | None
    params: Params
    inputs: Mapping[str, Any]  # what params points to

    def run(self) -> None:
        """Call the library. Raises EngineError when it refuses the call."""
        call_library(load_library().mambapose_scan_cpu, ctypes.byref(self.params))


def bind_scan(
    arguments: Mapping[str, AnyArray | None],
    attributes: Mapping[str, Any],
    *,
    y: AnyArray | None = None,
    with_state: bool = True,
    threads: int = 1,
    parallel_for: Callable[..., None] | None = None,
) -> BoundScan:
    """A call that can be run many times; arguments and attributes have the names used by `scan`.

    y: memory to write to, made when None; it may not overlap the arguments. Raises ValueError for
    arguments that do not fit.
    """
    absent = dict.fromkeys(("D", "z", "dt_bias", "order", "initial_state"))
    x: dict[str, Any] = {**absent, **arguments}
    settings = scan_attributes(**attributes)
    check_arguments(**x, **settings)
    dt: AnyArray = x["dt"]
    if dt.dtype not in DTYPES:
        raise ValueError(f"dt: float32 or float16 was wanted, found {dt.dtype}")
    ready = prepare_arrays(x, dt.dtype)
    shape = output_shape(dt, settings)
    if y is None:
        y = np.empty(shape, dt.dtype)
    if y.shape != shape or y.dtype != dt.dtype or not y.flags.carray:
        raise ValueError(
            f"y: dense writable {dt.dtype} {shape} was wanted, found {y.dtype} {y.shape}"
        )
    state_shape = dt.shape[0], *ready["A"].shape
    final_state = np.empty(state_shape, np.float32) if with_state else None
    params = _params(ready, y, final_state, settings, threads, parallel_for)
    return BoundScan(y, final_state, params, ready)


def scan(
    u: AnyArray,
    dt: AnyArray,
    A: AnyArray,
    B: AnyArray,
    C: AnyArray,
    D: AnyArray | None = None,
    z: AnyArray | None = None,
    dt_bias: AnyArray | None = None,
    order: AnyArray | None = None,
    initial_state: AnyArray | None = None,
    *,
    threads: int = 1,
    parallel_for: Callable[..., None] | None = None,
    **attributes: Any,
) -> tuple[AnyArray, NDArray[np.float32]]:
    """y in the type of dt (float32 or float16) and the final state in float32.

    Shapes and attributes are those of `selective_scan_reference`; threads 0 means all cores. Raises
    ValueError for arguments that do not fit together and EngineError when the library refuses them.
    """
    arguments = {"u": u, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias}
    bound = bind_scan(
        {**arguments, "order": order, "initial_state": initial_state},
        attributes,
        threads=threads,
        parallel_for=parallel_for,
    )
    bound.run()
    assert bound.final_state is not None
    return bound.y, bound.final_state


def scan_backward(
    dy: AnyArray,
    dfinal_state: AnyArray | None,
    u: AnyArray,
    dt: AnyArray,
    A: AnyArray,
    B: AnyArray,
    C: AnyArray,
    D: AnyArray | None = None,
    z: AnyArray | None = None,
    dt_bias: AnyArray | None = None,
    order: AnyArray | None = None,
    initial_state: AnyArray | None = None,
    *,
    threads: int = 1,
    wanted: Collection[str] = tuple(GRADIENTS),
    **attributes: Any,
) -> dict[str, NDArray[np.float32] | None]:
    """Gradients by argument name, each in its argument's shape; None when absent or not wanted.

    dy: gradient of y; dfinal_state: gradient of the final state, or None for zero. float32 only.
    """
    x: dict[str, Any] = {"u": u, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z}
    x |= {"dt_bias": dt_bias}
    settings = scan_attributes(**attributes)
    check_arguments(**x, order=order, initial_state=initial_state, **settings)
    x["initial_state"] = initial_state
    check_gradients(dy, dfinal_state, dt, A.shape[1], settings)
    ready = prepare_arrays({**x, "order": order}, np.dtype(np.float32))
    out = {
        name: np.empty(value.shape, np.float32) if value is not None and name in wanted else None
        for name, value in x.items()
    }
    dense = dense_array(dy), dense_array(dfinal_state)
    grads = scan_grads(*dense, out, address_of)
    params = _params(ready, None, None, settings, threads, None)
    function = load_library().mambapose_scan_cpu_backward
    call_library(function, ctypes.byref(params), ctypes.byref(grads))
    return out
