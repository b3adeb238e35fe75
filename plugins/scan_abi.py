"""The C structures of plugins/csrc/core/mambapose_scan.h, filled from arrays of any kind.

Both callers of the compiled scan use them: NumPy arrays on the CPU and torch tensors on a GPU.
Letters as in plugins/reference.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mambapose.plugins.reference import Shaped
from mambapose.runtime.errors import EngineError

FP32, FP16, BF16 = 0, 1, 2
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
ADDRESS = ctypes.c_void_p


class Rows(ctypes.Structure):
    """The C structure MambaposeRows.

    Element (b, t, c) is data[b * batchStride + t * rowStride + c].
    """

    _fields_ = (
        ("data", ADDRESS),
        ("batchStride", ctypes.c_int64),
        ("rowStride", ctypes.c_int64),
    )


class Params(ctypes.Structure):
    """The C structure MambaposeScanParams."""

    _fields_ = (
        ("structSize", ctypes.c_uint32),
        ("dtype", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in ("batch", "length", "channels", "states")),
        *((name, ctypes.c_int64) for name in ("directions", "groups", "segment")),
        ("reverseMask", ctypes.c_uint64),
        *((name, ctypes.c_int32) for name in ("deltaSoftplus", "mergeSum", "uShared")),
        *((name, ctypes.c_int32) for name in ("bConstant", "cConstant", "orderRows")),
        *((name, Rows) for name in ("u", "dt", "B", "C", "z", "y")),
        *((name, ADDRESS) for name in ("A", "D", "dtBias", "order", "initialState", "finalState")),
        ("parallelFor", PARALLEL_FOR),
        ("poolContext", ctypes.c_void_p),
        ("numThreads", ctypes.c_int32),
    )


class Grads(ctypes.Structure):
    """The C structure MambaposeScanGrads."""

    _fields_ = (
        ("structSize", ctypes.c_uint32),
        ("dY", ADDRESS),
        ("dFinalState", ADDRESS),
        *((name, ADDRESS) for name in ("gU", "gDt", "gA", "gB", "gC", "gD", "gZ", "gDtBias")),
        ("gInitialState", ADDRESS),
    )


AddressOf = Callable[[Any], int | None]
RowsOf = Callable[[Any], Rows]


def scan_params(
    x: Mapping[str, Any],
    y: Any,
    final_state: Any,
    attributes: Mapping[str, Any],
    dtype: int,
    rows_of: RowsOf,
    address_of: AddressOf,
) -> Params:
    """The structure of one call; the caller keeps the arrays alive.

    x: every argument of the scan by name, None when absent; attributes: from `scan_attributes`;
    dtype: FP32, FP16 or BF16; rows_of and address_of must also take None.
    """
    batch, length, wide = x["dt"].shape
    params = Params(structSize=ctypes.sizeof(Params), dtype=dtype)
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
        setattr(params, name, rows_of(x[name]))
    params.y = rows_of(y)
    params.A, params.D, params.dtBias = map(address_of, (x["A"], x["D"], x["dt_bias"]))
    params.order, params.initialState = address_of(order), address_of(x["initial_state"])
    params.finalState = address_of(final_state)
    params.numThreads = 1
    return params


def scan_grads(
    dy: Any, dfinal_state: Any, gradients: Mapping[str, Any], address_of: AddressOf
) -> Grads:
    """The structure of the gradients; gradients: memory by argument name, None when not wanted."""
    grads = Grads(ctypes.sizeof(Grads), address_of(dy), address_of(dfinal_state))
    for name, field in GRADIENTS.items():
        setattr(grads, field, address_of(gradients[name]))
    return grads


def scan_attributes(
    *,
    directions: int = 1,
    groups: int = 1,
    reverse: Sequence[int] = (0,),
    delta_softplus: bool = True,
    segment: int = 0,
    merge: str = "none",
    gate: str = "silu",
) -> dict[str, Any]:
    """The attributes by name, with the defaults of the specification."""
    return dict(locals())


def output_shape(dt: Shaped, attributes: Mapping[str, Any]) -> tuple[int, int, int]:
    """The shape of y."""
    batch, length, wide = dt.shape
    return batch, length, wide // attributes["directions"] if attributes["merge"] == "sum" else wide


def check_gradients(
    dy: Shaped, dfinal_state: Shaped | None, dt: Shaped, states: int, attributes: Mapping[str, Any]
) -> None:
    """Raise ValueError unless the gradients of the outputs have the outputs' shapes."""
    wanted = output_shape(dt, attributes)
    if tuple(dy.shape) != wanted:
        raise ValueError(f"dy: shape {wanted} was wanted, found {tuple(dy.shape)}")
    wanted = dt.shape[0], dt.shape[2], states
    if dfinal_state is not None and tuple(dfinal_state.shape) != wanted:
        raise ValueError(
            f"dfinal_state: shape {wanted} was wanted, found {tuple(dfinal_state.shape)}"
        )


def call_library(function: Callable[..., int], *arguments: object) -> None:
    """Call a function of the library whose last arguments are (error, errorSize).

    Raises EngineError with the message that it wrote there.
    """
    error = ctypes.create_string_buffer(ERROR_BYTES)
    if function(*arguments, error, ERROR_BYTES):
        raise EngineError(f"selective scan: {error.value.decode()}")
