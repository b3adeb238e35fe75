"""The CUDA kernels through the C interface of plugins/csrc/cuda/scan_cuda.h.

`make_plan`, `launch` and `launch_backward` take addresses as they are, so torch tensors on a GPU
can be passed without a copy. `scan` and `scan_backward` take NumPy arrays: they are for the host
build of the same kernels that the tests use (csrc/tests/cuda_shim.h), where device memory is host
memory.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mambapose.plugins.native_scan import address_of, dense_array, prepare_arrays, rows_of
from mambapose.plugins.reference import check_arguments
from mambapose.plugins.scan_abi import (
    BF16,
    FP16,
    FP32,
    GRADIENTS,
    Grads,
    Params,
    call_library,
    check_gradients,
    output_shape,
    scan_attributes,
    scan_grads,
    scan_params,
)
from mambapose.runtime.backends.native import find_library as find_file
from mambapose.runtime.errors import EngineError

LIBRARY_NAME = "libmambapose_cuda.so"
VARIABLE = "MAMBAPOSE_CUDA_LIBRARY"
TACTICS = {"auto": 0, "sequential": 1, "lane_split": 2, "chunked": 3}
WORKSPACE_ALIGNMENT = 256
# NumPy has no bfloat16: its bits travel as uint16.
DTYPES = {
    np.dtype(np.float32): FP32,
    np.dtype(np.float16): FP16,
    np.dtype(np.uint16): BF16,
}
OPTIONAL = ("D", "z", "dt_bias", "order", "initial_state")
AnyArray = NDArray[Any]
Allocate = Callable[[tuple[int, ...], "np.dtype[Any]"], AnyArray]


class LaunchPlan(ctypes.Structure):
    """The C structure MambaposeCudaPlan."""

    _fields_ = (
        ("structSize", ctypes.c_uint32),
        *((name, ctypes.c_int32) for name in ("tactic", "lanes", "statesPerLane", "threads")),
        *((name, ctypes.c_int32) for name in ("tileSteps", "fused", "multiprocessors")),
        *((name, ctypes.c_int64) for name in ("chunks", "chunkSteps", "sharedBytes")),
        ("workspaceBytes", ctypes.c_int64),
    )


class Device(NamedTuple):
    """The GPU in use. compute_capability: 10 * major + minor."""

    multiprocessors: int
    compute_capability: int


def find_library() -> Path | None:
    """The compiled kernels: those MAMBAPOSE_CUDA_LIBRARY names, or the installed ones, or None."""
    return find_file(name=LIBRARY_NAME, variable=VARIABLE)


@functools.cache
def load_library(path: Path | None = None) -> ctypes.CDLL:
    """The library at this path, or the one found, with its functions typed.

    Raises EngineError when there is none or when the file is no library of these kernels.
    """
    path = path or find_library()
    if path is None:
        raise EngineError(
            f"the compiled CUDA kernels were wanted, found no {LIBRARY_NAME}; "
            f"build plugins/ with CMake on the device or set {VARIABLE} to it"
        )
    params, plan, grads = map(ctypes.POINTER, (Params, LaunchPlan, Grads))
    tail = (ctypes.c_char_p, ctypes.c_size_t)
    memory = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)  # workspace, its size, stream
    number, size = ctypes.c_int32, ctypes.POINTER(ctypes.c_int64)
    numbers = (ctypes.POINTER(number),) * 2
    try:
        library = ctypes.CDLL(str(path))
        library.mambapose_scan_cuda_plan.argtypes = (params, number, number, plan, *tail)
        library.mambapose_scan_cuda.argtypes = (params, plan, *memory, *tail)
        sizing = library.mambapose_scan_cuda_backward_workspace
        sizing.argtypes = (params, grads, number, size, *tail)
        library.mambapose_scan_cuda_backward.argtypes = (params, grads, number, *memory, *tail)
        library.mambapose_scan_cuda_device.argtypes = (*numbers, *tail)
        library.mambapose_scan_cuda_version.restype = ctypes.c_char_p
    except (OSError, AttributeError) as err:
        raise EngineError(
            f"a library of the CUDA kernels was wanted at {path}, found something else: {err}; "
            "build plugins/ with CMake on the device"
        ) from err
    return library


def version(library: ctypes.CDLL | None = None) -> str:
    """The version of the kernels, which changes with their results or speed."""
    name: bytes = (library or load_library()).mambapose_scan_cuda_version()
    return name.decode()


def device(library: ctypes.CDLL | None = None) -> Device:
    """The current device. Raises EngineError when there is none."""
    numbers = ctypes.c_int32(), ctypes.c_int32()
    function = (library or load_library()).mambapose_scan_cuda_device
    call_library(function, *map(ctypes.byref, numbers))
    return Device(numbers[0].value, numbers[1].value)


def make_plan(
    params: Params, tactic: int, multiprocessors: int, *, library: ctypes.CDLL | None = None
) -> LaunchPlan:
    """How to launch the kernels, decided by sizes alone; tactic: a value of TACTICS.

    Raises EngineError for sizes that the library refuses.
    """
    plan = LaunchPlan(structSize=ctypes.sizeof(LaunchPlan))
    function = (library or load_library()).mambapose_scan_cuda_plan
    arguments = (tactic, multiprocessors, ctypes.byref(plan))
    call_library(function, ctypes.byref(params), *arguments)
    return plan


def launch(
    params: Params,
    plan: LaunchPlan,
    workspace: int | None,
    workspace_bytes: int,
    stream: int | None,
    *,
    library: ctypes.CDLL | None = None,
) -> None:
    """Put the kernels on the stream; workspace and stream are addresses.

    The arrays and the workspace must live until the stream has run them. Raises EngineError when
    the library refuses the call.
    """
    memory = (workspace, workspace_bytes, stream)
    function = (library or load_library()).mambapose_scan_cuda
    call_library(function, ctypes.byref(params), ctypes.byref(plan), *memory)


def backward_workspace(
    params: Params, grads: Grads, multiprocessors: int, *, library: ctypes.CDLL | None = None
) -> int:
    """How many bytes of device memory `launch_backward` needs."""
    size = ctypes.c_int64()
    structures = ctypes.byref(params), ctypes.byref(grads)
    function = (library or load_library()).mambapose_scan_cuda_backward_workspace
    call_library(function, *structures, multiprocessors, ctypes.byref(size))
    return size.value


def launch_backward(
    params: Params,
    grads: Grads,
    multiprocessors: int,
    workspace: int | None,
    workspace_bytes: int,
    stream: int | None,
    *,
    library: ctypes.CDLL | None = None,
) -> None:
    """Put the kernels of the gradients on the stream, under the same conditions as `launch`."""
    structures = ctypes.byref(params), ctypes.byref(grads)
    memory = (workspace, workspace_bytes, stream)
    function = (library or load_library()).mambapose_scan_cuda_backward
    call_library(function, *structures, multiprocessors, *memory)


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> AnyArray:
    """An empty array whose address has the alignment that a workspace needs."""
    count = int(np.prod(shape))
    memory = np.empty(count * dtype.itemsize + WORKSPACE_ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % WORKSPACE_ALIGNMENT
    return memory[start : start + count * dtype.itemsize].view(dtype).reshape(shape)


def _checked(
    arguments: Mapping[str, AnyArray | None], attributes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every argument, None when absent, and every attribute. ValueError when they do not fit."""
    x: dict[str, Any] = {**dict.fromkeys(OPTIONAL), **arguments}
    settings = scan_attributes(**attributes)
    check_arguments(**x, **settings)
    return x, settings


def scan(
    library: ctypes.CDLL,
    arguments: Mapping[str, AnyArray | None],
    attributes: Mapping[str, Any],
    *,
    tactic: str = "auto",
    multiprocessors: int = 8,
    allocate: Allocate = aligned_empty,
) -> tuple[AnyArray, NDArray[np.float32]]:
    """y in the type of dt (float32, float16, or bfloat16 bits as uint16) and the final state.

    For the host build. arguments and attributes have the names and shapes of
    `selective_scan_reference`; allocate: makes y, the final state and the workspace. Raises
    ValueError and EngineError in the same cases as `native_scan.scan`.
    """
    x, settings = _checked(arguments, attributes)
    dt: AnyArray = x["dt"]
    if dt.dtype not in DTYPES:
        raise ValueError(f"dt: float32, float16 or uint16 was wanted, found {dt.dtype}")
    ready = prepare_arrays(x, dt.dtype)
    y = allocate(output_shape(dt, settings), dt.dtype)
    final_state = allocate((dt.shape[0], *x["A"].shape), np.dtype(np.float32))
    dtype = DTYPES[dt.dtype]
    params = scan_params(ready, y, final_state, settings, dtype, rows_of, address_of)
    plan = make_plan(params, TACTICS[tactic], multiprocessors, library=library)
    workspace = allocate((plan.workspaceBytes,), np.dtype(np.uint8))
    launch(params, plan, workspace.ctypes.data, workspace.nbytes, None, library=library)
    return y, final_state


def scan_backward(
    library: ctypes.CDLL,
    dy: AnyArray,
    dfinal_state: AnyArray | None,
    arguments: Mapping[str, AnyArray | None],
    attributes: Mapping[str, Any],
    *,
    multiprocessors: int = 8,
    wanted: Collection[str] = tuple(GRADIENTS),
    allocate: Allocate = aligned_empty,
) -> dict[str, NDArray[np.float32] | None]:
    """Gradients by argument name, as `native_scan.scan_backward`. For the host build; float32."""
    x, settings = _checked(arguments, attributes)
    check_gradients(dy, dfinal_state, x["dt"], x["A"].shape[1], settings)
    float32 = np.dtype(np.float32)
    ready = prepare_arrays(x, float32)
    out = {
        name: allocate(x[name].shape, float32) if x[name] is not None and name in wanted else None
        for name in GRADIENTS
    }
    params = scan_params(ready, None, None, settings, FP32, rows_of, address_of)
    dense = dense_array(dy), dense_array(dfinal_state)
    grads = scan_grads(*dense, out, address_of)
    size = backward_workspace(params, grads, multiprocessors, library=library)
    workspace = allocate((size,), np.dtype(np.uint8))
    memory = workspace.ctypes.data, workspace.nbytes, None
    launch_backward(params, grads, multiprocessors, *memory, library=library)
    return out
