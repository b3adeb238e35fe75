"""The selective scan in torch: one opaque operator with gradients, and its ONNX translation.

``torch.ops.mambapose.selective_scan`` runs the compiled kernels on CPU tensors of float32 and
float16 and the CUDA kernels on GPU tensors of those and bfloat16, and the plain loop of
``torch_loop`` for float64, for other devices and where no library was compiled. Exporters see one
node. Semantics: docs/operator.md, version 1.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mambapose.plugins import torch_cuda
from mambapose.plugins.reference import check_arguments, check_order
from mambapose.plugins.scan_node import DOMAIN, INPUTS, OPERATOR
from mambapose.plugins.torch_loop import scan_loop
from mambapose.runtime.backends.native import SPEC, find_library, slow_notice

OPTIONS = ("directions", "groups", "reverse", "delta_softplus", "segment", "merge", "gate")
NATIVE_TYPES = (torch.float32, torch.float16)
_SCHEMA = (
    "(Tensor u, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, "
    "Tensor? order, Tensor? initial_state, int directions, int groups, int[] reverse, "
    "bool delta_softplus, int segment, str merge, str gate)"
)


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    order: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    directions: int = 1,
    groups: int = 1,
    reverse: Sequence[int] = (0,),
    delta_softplus: bool = True,
    segment: int = 0,
    merge: str = "none",
    gate: str = "silu",
) -> tuple[Tensor, Tensor]:
    """(y, final_state) of the selective scan over K directions, differentiable.

    u: (B, L, D) shared or (B, L, K*D); dt: (B, L, K*D) before softplus; A: (K*D, N) negative;
    B, C: (B, L, K*G*N), or (K*D, N) when constant; D, dt_bias: (K*D); z: (B, L, D); order: int32
    (L) or (K, L), the token visited at each step; initial_state: (B, K*D, N).
    y: (B, L, D) when merge is "sum", else (B, L, K*D), in token order and of u's type;
    final_state: (B, K*D, N). Raises ValueError naming the argument that does not fit.
    """
    result: tuple[Tensor, Tensor] = torch.ops.mambapose.selective_scan(
        u, dt, A, B, C, D, z, dt_bias, order, initial_state,
        directions, groups, list(reverse), delta_softplus, segment, merge, gate,
    )  # fmt: skip
    return result


@torch.library.custom_op(
    "mambapose::selective_scan", mutates_args=(), schema=_SCHEMA + " -> (Tensor, Tensor)"
)
def _scan(*arguments: Any) -> tuple[Tensor, Tensor]:
    tensors, options = _checked(arguments)
    if torch_cuda.takes(tensors["u"]):
        return torch_cuda.scan(tensors, options)
    if not _runs_native(tensors["u"]):
        if tensors["order"] is not None:
            check_order(tensors["order"].cpu())
        return scan_loop(*arguments)
    from mambapose.plugins.native_scan import scan

    y, final_state = scan(**_arrays(tensors), **options, threads=torch.get_num_threads())
    return torch.from_numpy(y), torch.from_numpy(final_state)


@_scan.register_fake
def _scan_shapes(*arguments: Any) -> tuple[Tensor, Tensor]:
    tensors, options = _checked(arguments)
    u, dt, A = tensors["u"], tensors["dt"], tensors["A"]
    batch, length, width = dt.shape
    summed = options["merge"] == "sum"
    y = u.new_empty(batch, length, width // options["directions"] if summed else width)
    return y, A.new_empty(batch, width, A.shape[1])


def _checked(arguments: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors and the options by name. Raises ValueError for what does not fit together."""
    tensors = dict(zip(INPUTS, arguments[:10], strict=True))
    options = dict(zip(OPTIONS, arguments[10:], strict=True))
    check_arguments(**tensors, **options)
    rows = tensors["u"].dtype
    exact = torch.float64 if rows == torch.float64 else torch.float32
    for name, tensor in tensors.items():
        constant = name in ("B", "C") and tensor.ndim == 2
        wanted = rows if name in ("u", "dt", "B", "C", "z") and not constant else exact
        if tensor is not None and name != "order" and tensor.dtype != wanted:
            raise ValueError(f"{name}: {wanted} was wanted beside u, found {tensor.dtype}")
    return tensors, options


def _runs_native(u: Tensor) -> bool:
    """Whether the compiled CPU kernels can run this call; says once when they are missing."""
    return u.device.type == "cpu" and u.dtype in NATIVE_TYPES and _has_library()


@functools.cache
def _has_library() -> bool:
    found = find_library() is not None
    if not found:
        logging.getLogger(__name__).warning(slow_notice())
    return found


def _arrays(tensors: Mapping[str, Tensor | None]) -> dict[str, Any]:
    """NumPy views of the tensors: nothing is copied, strides are kept."""
    return {
        name: None if tensor is None else tensor.detach().numpy()
        for name, tensor in tensors.items()
    }


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:10])
    ctx.options = inputs[10:]


def _backward(ctx: Any, grad_y: Tensor | None, grad_state: Tensor | None) -> tuple[Any, ...]:
    wanted = list(ctx.needs_input_grad[:10])
    tensors = ctx.saved_tensors
    if torch_cuda.takes(tensors[0]) or _runs_native(tensors[0]):
        made: list[Tensor] = torch.ops.mambapose.selective_scan_backward(
            grad_y, grad_state, wanted, *tensors, *ctx.options
        )
    else:
        made = _loop_gradients(tensors, ctx.options, grad_y, grad_state, wanted)
    found = iter(made)
    return *(next(found) if want else None for want in wanted), *(None for _ in ctx.options)


@torch.library.custom_op(
    "mambapose::selective_scan_backward",
    mutates_args=(),
    schema=_SCHEMA.replace("(", "(Tensor? grad_y, Tensor? grad_state, bool[] wanted, ", 1)
    + " -> Tensor[]",
)
def _scan_backward(
    grad_y: Tensor | None, grad_state: Tensor | None, wanted: Sequence[bool], *arguments: Any
) -> list[Tensor]:
    """The wanted gradients by the compiled kernels, in float32, cast to the type of each tensor."""
    from mambapose.plugins.native_scan import scan_backward

    tensors, options = _checked(arguments)
    if torch_cuda.takes(tensors["u"]):
        return torch_cuda.scan_backward(grad_y, grad_state, tensors, options, _chosen(wanted))
    arrays = _arrays({name: _float32(tensor) for name, tensor in tensors.items()})
    if grad_y is None:
        grad_y = _scan_shapes(*arguments)[0].zero_()
    found = scan_backward(
        grad_y.detach().float().numpy(),
        None if grad_state is None else grad_state.detach().numpy(),
        **arrays,
        **options,
        threads=torch.get_num_threads(),
        wanted=_chosen(wanted),
    )
    return [torch.from_numpy(found[name]).to(tensors[name].dtype) for name in _chosen(wanted)]


@_scan_backward.register_fake
def _gradient_shapes(
    grad_y: Tensor | None, grad_state: Tensor | None, wanted: Sequence[bool], *arguments: Any
) -> list[Tensor]:
    tensors, _ = _checked(arguments)
    return [tensors[name].new_empty(tensors[name].shape) for name in _chosen(wanted)]


def _chosen(wanted: Sequence[bool]) -> list[str]:
    return [name for name, want in zip(INPUTS, wanted, strict=True) if want]


def _float32(tensor: Tensor | None) -> Tensor | None:
    return tensor.float() if tensor is not None and tensor.dtype == torch.float16 else tensor


def _loop_gradients(
    tensors: Sequence[Tensor | None],
    options: Sequence[Any],
    grad_y: Tensor | None,
    grad_state: Tensor | None,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """The wanted gradients by running the loop again under autograd."""
    leaves: list[Any] = [
        tensor if tensor is None else tensor.detach().requires_grad_(want)
        for tensor, want in zip(tensors, wanted, strict=True)
    ]
    with torch.enable_grad():
        outputs = scan_loop(*leaves, *options)
    pairs = [
        (output, grad)
        for output, grad in zip(outputs, (grad_y, grad_state), strict=True)
        if grad is not None and output.requires_grad
    ]
    roots = [leaf for leaf, want in zip(leaves, wanted, strict=True) if want]
    return list(
        torch.autograd.grad(
            [output for output, _ in pairs],
            roots,
            [grad for _, grad in pairs],
            materialize_grads=True,
        )
    )


_scan.register_autograd(_backward, setup_context=_save)


def onnx_translation_table() -> dict[Any, Callable[..., Any]]:
    """The ``custom_translation_table`` with which torch.onnx.export writes one scan node per call.

    The node names both outputs always, because a model-local function with two outputs cannot be
    called with one, and carries the two attributes by which TensorRT finds the plugin.
    """
    node = _onnx_operator()

    def translate(
        u: Any, dt: Any, A: Any, B: Any, C: Any, D: Any = None, z: Any = None,
        dt_bias: Any = None, order: Any = None, initial_state: Any = None,
        directions: int = 1, groups: int = 1, reverse: Sequence[int] = (0,),
        delta_softplus: bool = True, segment: int = 0, merge: str = "none", gate: str = "silu",
    ) -> Any:  # fmt: skip
        return node(
            u, dt, A, B, C, D, z, dt_bias, order, initial_state,
            directions=directions, groups=groups, reverse=list(reverse),
            delta_softplus=int(delta_softplus), segment=segment, merge=merge, gate=gate,
            plugin_version="1", plugin_namespace="",
        )  # fmt: skip

    return {torch.ops.mambapose.selective_scan.default: translate}


@functools.cache
def _onnx_operator() -> Any:
    """The node as an onnxscript operator (``Opset(...).SelectiveScan`` would need a registry)."""
    import onnx
    import onnxscript

    schema = onnx.defs.OpSchema
    kinds, single = schema.AttrType, schema.FormalParameterOption.Single
    optional = schema.FormalParameterOption.Optional
    types = {"order": "tensor(int32)", "u": "T", "dt": "T", "B": "R", "C": "R", "z": "T"}
    inputs = [
        schema.FormalParameter(
            name,
            types.get(name, "tensor(float)"),
            param_option=single if index < 5 else optional,
        )
        for index, name in enumerate(INPUTS)
    ]
    outputs = [
        schema.FormalParameter("y", "T"),
        schema.FormalParameter("final_state", "tensor(float)"),
    ]
    floats = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
    attributes = {
        "directions": kinds.INT, "groups": kinds.INT, "reverse": kinds.INTS,
        "delta_softplus": kinds.INT, "segment": kinds.INT, "merge": kinds.STRING,
        "gate": kinds.STRING, "plugin_version": kinds.STRING, "plugin_namespace": kinds.STRING,
    }  # fmt: skip
    described = schema(
        OPERATOR,
        DOMAIN,
        SPEC,
        inputs=inputs,
        outputs=outputs,
        type_constraints=[("T", floats, ""), ("R", floats, "")],
        attributes=[schema.Attribute(n, kind, required=False) for n, kind in attributes.items()],
    )
    return onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, SPEC), OPERATOR, described)
