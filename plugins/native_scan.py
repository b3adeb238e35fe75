"""The compiled selective scan on NumPy arrays, through the C interface of plugins/csrc.

Arrays are read where they lie (any batch and row stride; only a strided last axis is copied), so
torch tensors can be passed as their ``numpy()`` views. Letters as in plugins/reference.py.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambapose.plugins.reference import check_arguments
from mambapose.runtime.errors import EngineError
from mambapose.runtime.native import find_library, library_info

DTYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1}
GRADIENTS = {
    "u": "gU",
    "dt": "gDt",
    "A": "gA",
    "B": "gB",
    "C": "gC",
    "D": "gD",
    "z": "gZ",
    "dt_bias": "gDtBias",
    "initial_state": "gInitialState",
}
ERROR_BYTES = 512

TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t)
PARALLEL_FOR = ctypes.CFUNCTYPE(None, ctypes.c_void_p, TASK, ctypes.c_void_p, ctypes.c_size_t)
FLOATS = ctypes.c_void_p
AnyArray = NDArray[Any]


class Rows(ctypes.Structure):
    """MambaposeRows: element (b, t, c) at data[b * batchStride + t * rowStride + c]."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batchStride", ctypes.c_int64),
        ("rowStride", ctypes.c_int64),
    )


class Params(ctypes.Structure):
    """MambaposeScanParams."""

    _fields_ = (
        ("structSize", ctypes.c_uint32),
        ("dtype", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in ("batch", "length", "channels", "states")),
        *((name, ctypes.c_int64) for name in ("directions", "groups", "segment")),
        ("reverseMask", ctypes.c_uint64),
        *((name, ctypes.c_int32) for name in ("deltaSoftplus", "mergeSum", "uShared")),
        *((name, ctypes.c_int32) for name in ("bConstant", "cConstant", "orderRows")),
        *((name, Rows) for name in ("u", "dt", "B", "C", "z", "y")),
        *((name, FLOATS) for name in ("A", "D", "dtBias", "order", "initialState", "finalState")),
        ("parallelFor", PARALLEL_FOR),
        ("poolContext", ctypes.c_void_p),
        ("numThreads", ctypes.c_int32),
    )


class Grads(ctypes.Structure):
    """MambaposeScanGrads."""

    _fields_ = (
        ("structSize", ctypes.c_uint32),
        ("dY", FLOATS),
        ("dFinalState", FLOATS),
        *((name, FLOATS) for name in ("gU", "gDt", "gA", "gB", "gC", "gD", "gZ", "gDtBias")),
        ("gInitialState", FLOATS),
    )


def library_path() -> Path:
    """The compiled library the loader finds. Raises EngineError when there is none."""
    path = find_library()
    if path is None:
        raise EngineError(
            "the compiled operator library was wanted, found none; "
            "build plugins/ with CMake or set MAMBAPOSE_LIBRARY to it"
        )
    return path


@functools.cache
def load_library(path: Path | None = None) -> ctypes.CDLL:
    """The library of this path, or the one the loader finds, with its functions typed.

    Raises EngineError when there is none or when its spec or ABI number is another one.
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


def force_instruction_set(name: str | None) -> bool:
    """Use this instruction set from now on (None: the best); False when it is absent here."""
    chosen = name.encode() if name is not None else None
    return bool(load_library().mambapose_scan_force_isa(chosen) == 0)


def _pointer(array: AnyArray | None) -> int | None:
    return None if array is None else array.ctypes.data


def _dense(array: AnyArray | None, dtype: type[np.generic] = np.float32) -> AnyArray | None:
    return None if array is None else np.require(array, dtype, ("C", "A"))


def _lined_up(array: AnyArray, dtype: np.dtype[Any]) -> AnyArray:
    """The array itself when its last axis is dense and its strides are whole elements."""
    array = np.asarray(array, dtype)
    whole = all(stride % array.itemsize == 0 for stride in array.strides)
    dense = array.shape[-1] <= 1 or array.strides[-1] == array.itemsize
    in_place = whole and dense and array.flags.aligned
    return array if in_place else np.require(array, requirements=("C", "A"))


def _rows(array: AnyArray | None) -> Rows:
    if array is None:
        return Rows(None, 0, 0)
    strides = [stride // array.itemsize for stride in array.strides]
    return Rows(array.ctypes.data, strides[0] if array.ndim == 3 else 0, strides[-2])


def _prepare(x: Mapping[str, AnyArray | None], dtype: np.dtype[Any]) -> dict[str, Any]:
    """Every argument as the C interface reads it; the caller keeps the dict alive."""
    ready: dict[str, Any] = {}
    for name, value in x.items():
        if value is None:
            ready[name] = None
        elif name in ("u", "dt", "z") or (name in ("B", "C") and np.ndim(value) == 3):
            ready[name] = _lined_up(value, dtype)
        else:
            ready[name] = _dense(value, np.int32 if name == "order" else np.float32)
    return ready


def _params(
    x: Mapping[str, Any],
    y: AnyArray | None,
    final_state: AnyArray | None,
    attributes: Mapping[str, Any],
    threads: int,
    parallel_for: Callable[..., None] | None,
) -> Params:
    batch, length, wide = x["dt"].shape
    params = Params(structSize=ctypes.sizeof(Params), dtype=DTYPES[x["dt"].dtype])
    params.batch, params.length = batch, length
    params.directions, params.groups = attributes["directions"], attributes["groups"]
    params.channels, params.states = wide // params.directions, x["A"].shape[1]
    params.segment = attributes["segment"]
    params.reverseMask = sum(int(flag) << k for k, flag in enumerate(attributes["reverse"]))
    params.deltaSoftplus = int(attributes["delta_softplus"])
    params.mergeSum = int(attributes["merge"] == "sum")
    params.uShared = int(x["u"].shape[2] == params.channels)
    params.bConstant, params.cConstant = int(x["B"].ndim == 2), int(x["C"].ndim == 2)
    order = x["order"]
    params.orderRows = 1 if order is None or order.ndim == 1 else len(order)
    for name in ("u", "dt", "B", "C", "z"):
        setattr(params, name, _rows(x[name]))
    params.y = _rows(y)
    params.A, params.D, params.dtBias = map(_pointer, (x["A"], x["D"], x["dt_bias"]))
    params.order, params.initialState = _pointer(order), _pointer(x["initial_state"])
    params.finalState = _pointer(final_state)
    params.numThreads = threads
    if parallel_for is not None:
        params.parallelFor = PARALLEL_FOR(parallel_for)
    return params


def _call(function: Callable[..., int], *arguments: object) -> None:
    error = ctypes.create_string_buffer(ERROR_BYTES)
    if function(*arguments, error, ERROR_BYTES):
        raise EngineError(f"selective scan: {error.value.decode()}")


def _attributes(
    *,
    directions: int = 1,
    groups: int = 1,
    reverse: Sequence[int] = (0,),
    delta_softplus: bool = True,
    segment: int = 0,
    merge: str = "none",
    gate: str = "silu",
) -> dict[str, Any]:
    return dict(locals())


@dataclass(frozen=True)
class BoundScan:
    """One call with its memory: ``run()`` computes y and, unless None, final_state again."""

    y: AnyArray
    final_state: NDArray[np.float32] | None
    params: Params
    inputs: Mapping[str, Any]  # what params points to

    def run(self) -> None:
        """Call the library. Raises EngineError for what it refuses."""
        _call(load_library().mambapose_scan_cpu, ctypes.byref(self.params))


def bind_scan(
    arguments: Mapping[str, AnyArray | None],
    attributes: Mapping[str, Any],
    *,
    y: AnyArray | None = None,
    with_state: bool = True,
    threads: int = 1,
    parallel_for: Callable[..., None] | None = None,
) -> BoundScan:
    """A call that can be run many times; arguments and attributes by the names of `scan`.

    y: memory to write to, made when None; it may not overlap the arguments. Raises ValueError for
    arguments that do not fit.
    """
    absent = dict.fromkeys(("D", "z", "dt_bias", "order", "initial_state"))
    x: dict[str, Any] = {**absent, **arguments}
    settings = _attributes(**attributes)
    check_arguments(**x, **settings)
    dt: AnyArray = x["dt"]
    if dt.dtype not in DTYPES:
        raise ValueError(f"dt: float32 or float16 was wanted, found {dt.dtype}")
    ready = _prepare(x, dt.dtype)
    batch, length, wide = dt.shape
    out = wide // settings["directions"] if settings["merge"] == "sum" else wide
    if y is None:
        y = np.empty((batch, length, out), dt.dtype)
    if y.shape != (batch, length, out) or y.dtype != dt.dtype or not y.flags.carray:
        raise ValueError(
            f"y: dense writable {dt.dtype} {(batch, length, out)} was wanted, "
            f"found {y.dtype} {y.shape}"
        )
    states = ready["A"].shape[1]
    final_state = np.empty((batch, wide, states), np.float32) if with_state else None
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
    """y in the type of dt (float32 or float16) and the final state, float32.

    Shapes and attributes as `selective_scan_reference`; threads 0 means all cores. Raises
    ValueError for arguments that do not fit together and EngineError for what the library refuses.
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


def _check_gradients(
    dy: AnyArray,
    dfinal_state: AnyArray | None,
    dt_shape: tuple[int, ...],
    states: int,
    settings: Mapping[str, Any],
) -> None:
    batch, length, wide = dt_shape
    out = wide // settings["directions"] if settings["merge"] == "sum" else wide
    if dy.shape != (batch, length, out):
        raise ValueError(f"dy: shape {(batch, length, out)} was wanted, found {dy.shape}")
    if dfinal_state is not None and dfinal_state.shape != (batch, wide, states):
        raise ValueError(
            f"dfinal_state: shape {(batch, wide, states)} was wanted, found {dfinal_state.shape}"
        )


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

    dy: gradient of y; dfinal_state: of the final state, or None for zero. float32 only.
    """
    x: dict[str, Any] = {"u": u, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z}
    x |= {"dt_bias": dt_bias}
    settings = _attributes(**attributes)
    check_arguments(**x, order=order, initial_state=initial_state, **settings)
    x["initial_state"] = initial_state
    _check_gradients(dy, dfinal_state, dt.shape, A.shape[1], settings)
    ready = _prepare({**x, "order": order}, np.dtype(np.float32))
    out = {
        name: np.empty(value.shape, np.float32) if value is not None and name in wanted else None
        for name, value in x.items()
    }
    dense = _dense(dy), _dense(dfinal_state)
    grads = Grads(ctypes.sizeof(Grads), *map(_pointer, dense))
    for name, field in GRADIENTS.items():
        setattr(grads, field, _pointer(out[name]))
    params = _params(ready, None, None, settings, threads, None)
    _call(load_library().mambapose_scan_cpu_backward, ctypes.byref(params), ctypes.byref(grads))
    return out
