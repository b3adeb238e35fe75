"""The CUDA kernels of the selective scan on torch tensors.

Tensors are read where they are; only a strided last axis is copied. Kernels go on the current
stream of the tensors' device and nothing waits for them: y, the state and the workspace come from
torch's allocator, which hands memory freed on a stream to later work of the same stream. So a call
may be captured in a CUDA graph.

An order lies on the device, and reading it back makes the host wait for the stream. So an order is
checked once, when a tensor is first seen or has changed, and not while a graph is captured.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from mambapose.plugins import native_cuda
from mambapose.plugins.reference import check_order
from mambapose.plugins.scan_abi import (
    BF16,
    FP16,
    FP32,
    GRADIENTS,
    Params,
    Rows,
    output_shape,
    scan_grads,
    scan_params,
)

DTYPES = {torch.float32: FP32, torch.float16: FP16, torch.bfloat16: BF16}
NOTICE = (
    "no compiled CUDA selective scan: tensors on a GPU go through the slow torch loop; build "
    f"{native_cuda.LIBRARY_NAME} (docs/cuda.md) and set {native_cuda.VARIABLE} to it"
)
Tensors = Mapping[str, Tensor | None]


def takes(tensor: Tensor) -> bool:
    """Whether the CUDA kernels can run on this tensor's device and type.

    When they could but are not compiled, that is said once.
    """
    return is_on_gpu(tensor) and tensor.dtype in DTYPES and _has_library()


def is_on_gpu(tensor: Tensor) -> bool:
    """Whether the tensor lies in the memory of a CUDA device."""
    return tensor.device.type == "cuda" and torch.version.cuda is not None


@functools.cache
def _has_library() -> bool:
    found = native_cuda.find_library() is not None
    if not found:
        logging.getLogger(__name__).warning(NOTICE)
    return found


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Number of multiprocessors of the device, on which the form of a launch depends."""
    with _current(device):
        return native_cuda.device().multiprocessors


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which this device is the current one, to which launches go."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _stream(device: torch.device) -> int | None:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None


@dataclass(frozen=True)
class BoundScan:
    """One call with its memory: ``launch()`` computes y again, and final_state unless None."""

    y: Tensor
    final_state: Tensor | None
    params: Params
    plan: native_cuda.LaunchPlan
    workspace: Tensor
    inputs: Tensors  # what params points to

    def launch(self) -> None:
        """Put the kernels on the current stream. EngineError when the library refuses the call."""
        device = self.y.device
        memory = _address_of(self.workspace), self.workspace.numel(), _stream(device)
        with _current(device):
            native_cuda.launch(self.params, self.plan, *memory)


def bind_scan(
    tensors: Tensors, options: Mapping[str, Any], *, tactic: str = "auto", with_state: bool = True
) -> BoundScan:
    """A call that can be launched many times; tensors and options have the operator's names.

    tactic: a key of `native_cuda.TACTICS`. The caller has checked shapes and types.
    """
    x = _prepare(tensors)
    _check_order_once(tensors["order"])
    dt, decay = x["dt"], x["A"]
    y = dt.new_empty(output_shape(dt, options))
    final_state = decay.new_empty(dt.shape[0], *decay.shape) if with_state else None
    dtype = DTYPES[dt.dtype]
    params = scan_params(x, y, final_state, options, dtype, _rows_of, _address_of)
    plan = native_cuda.make_plan(params, native_cuda.TACTICS[tactic], multiprocessors(dt.device))
    workspace = _workspace(plan.workspaceBytes, dt.device)
    return BoundScan(y, final_state, params, plan, workspace, x)


def scan(tensors: Tensors, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """(y, final_state) by the CUDA kernels: y in the type of u, the state in float32."""
    bound = bind_scan(tensors, options)
    bound.launch()
    assert bound.final_state is not None
    return bound.y, bound.final_state


def scan_backward(
    grad_y: Tensor | None,
    grad_state: Tensor | None,
    tensors: Tensors,
    options: Mapping[str, Any],
    wanted: Sequence[str],
) -> list[Tensor]:
    """The wanted gradients, computed in float32, each in the type of its tensor."""
    x = _prepare({name: _float32(tensor) for name, tensor in tensors.items()})
    dt = x["dt"]
    if grad_y is None:
        grad_y = dt.new_zeros(output_shape(dt, options))
    dy = grad_y.float().contiguous()
    dstate = None if grad_state is None else grad_state.float().contiguous()
    out = {name: dt.new_empty(x[name].shape) if name in wanted else None for name in GRADIENTS}
    params = scan_params(x, None, None, options, FP32, _rows_of, _address_of)
    grads = scan_grads(dy, dstate, out, _address_of)
    count = multiprocessors(dt.device)
    size = native_cuda.backward_workspace(params, grads, count)
    workspace = _workspace(size, dt.device)
    memory = _address_of(workspace), size, _stream(dt.device)
    with _current(dt.device):
        native_cuda.launch_backward(params, grads, count, *memory)
    return [_present(out, name).to(_present(tensors, name).dtype) for name in wanted]


def _present(tensors: Tensors, name: str) -> Tensor:
    tensor = tensors[name]
    assert tensor is not None
    return tensor


def _float32(tensor: Tensor | None) -> Tensor | None:
    half = tensor is not None and tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.float() if tensor is not None and half else tensor


def _prepare(tensors: Tensors) -> dict[str, Any]:
    """Every tensor in the form that the C interface reads, detached from autograd."""
    device = _present(tensors, "dt").device
    ready: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name}: a tensor on {device} was wanted, found {tensor.device}")
        if tensor is None:
            ready[name] = None
        elif name in ("u", "dt", "z") or (name in ("B", "C") and tensor.ndim == 3):
            dense = tensor.shape[-1] <= 1 or tensor.stride(-1) == 1
            ready[name] = (tensor if dense else tensor.contiguous()).detach()
        else:
            ready[name] = tensor.detach().contiguous()
    return ready


_checked_orders: Any = WeakIdKeyDictionary()  # order tensor: the version that was checked


def _check_order_once(order: Tensor | None) -> None:
    if order is None or (order.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    version = 0 if order.is_inference() else order._version
    if _checked_orders.get(order) != version:
        check_order(order.cpu())
        _checked_orders[order] = version


def _rows_of(tensor: Tensor | None) -> Rows:
    if tensor is None:
        return Rows(None, 0, 0)
    batch_stride = tensor.stride(0) if tensor.ndim == 3 else 0
    return Rows(tensor.data_ptr(), batch_stride, tensor.stride(-2))


def _address_of(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _workspace(size: int, device: torch.device) -> Tensor:
    """Bytes with the alignment that a workspace needs; on a GPU all memory of torch has it."""
    alignment = native_cuda.WORKSPACE_ALIGNMENT
    memory = torch.empty(size + alignment, dtype=torch.uint8, device=device)
    skipped = -memory.data_ptr() % alignment
    return memory[skipped : skipped + size]
