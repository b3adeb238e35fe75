"""The selective scan in torch: one opaque operator with gradients, and its ONNX translation.

``torch.ops.mambapose.selective_scan`` runs the compiled kernels on CPU tensors of float32 and
float16, and the plain loop of ``torch_loop`` for float64, for other devices and where no library
was compiled. Exporters see one node. Semantics: docs/operator.md, version 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mambapose.plugins.torch_loop import scan_loop

DOMAIN = "mambapose"
OPERATOR = "SelectiveScan"
SPEC = 1
FLOAT_INPUTS = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias")
_TENSORS = (*FLOAT_INPUTS, "order", "initial_state")
_OPTIONS = "int directions, int groups, int[] reverse, bool delta_softplus, int segment, "
_SCHEMA = (
    "(Tensor u, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, "
    "Tensor? order, Tensor? initial_state, " + _OPTIONS + "str merge, str gate)"
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
    return scan_loop(*arguments)


@_scan.register_fake
def _scan_shapes(*arguments: Any) -> tuple[Tensor, Tensor]:
    u, dt, A = arguments[:3]
    directions, merge = arguments[10], arguments[15]
    batch, length, width = dt.shape
    y = u.new_empty(batch, length, width // directions if merge == "sum" else width)
    return y, A.new_empty(batch, width, A.shape[1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:10])
    ctx.options = inputs[10:]


def _backward(ctx: Any, grad_y: Tensor | None, grad_state: Tensor | None) -> tuple[Any, ...]:
    wanted = list(ctx.needs_input_grad[:10])
    grads = _loop_gradients(ctx.saved_tensors, ctx.options, grad_y, grad_state, wanted)
    return *grads, *(None for _ in ctx.options)


def _loop_gradients(
    tensors: Sequence[Tensor | None],
    options: Sequence[Any],
    grad_y: Tensor | None,
    grad_state: Tensor | None,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of the ten tensors by running the loop again under autograd."""
    leaves = [
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
    found = iter(
        torch.autograd.grad(
            [output for output, _ in pairs], roots, [grad for _, grad in pairs], allow_unused=True
        )
    )
    return [next(found) if want else None for want in wanted]


_scan.register_autograd(_backward, setup_context=_save)


def onnx_translation_table() -> dict[Any, Callable[..., Any]]:
    """What ``torch.onnx.export(custom_translation_table=...)`` needs to write one scan node.

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
    """The onnxscript operator of the node (``Opset(...).SelectiveScan`` would need a registry)."""
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
        for index, name in enumerate(_TENSORS)
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
