"""Stand-ins for the compiled packages that public Mamba code imports: CPU machines lack them.

Inside ``with install_standins():`` an import of such a package finds our adapters; packages that
are really installed are left alone. Code keeps what it imported there after the block ends.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor

from mambapose.plugins import adapters

Gradients = tuple[Tensor | None, ...]


def _gradients(
    function: Callable[..., Tensor], tensors: tuple[Tensor | None, ...], dout: Tensor
) -> Gradients:
    """The output's gradients with respect to each tensor, None where there is no tensor."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    with torch.enable_grad():
        out = function(*leaves)
    given = [leaf for leaf in leaves if leaf is not None]
    found = iter(torch.autograd.grad(out, given, dout.to(out.dtype), allow_unused=True))
    return tuple(None if leaf is None else next(found) for leaf in leaves)


def _scan_forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    z: Tensor | None, delta_bias: Tensor | None, delta_softplus: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """selective_scan_cuda.fwd: (out, x[, out_z]); x (B, D, 1, 2N) ends with the last state."""
    out, state = adapters.selective_scan_fn(
        u, delta, A, B, C, D, None, delta_bias, delta_softplus, return_last_state=True
    )
    chunks = torch.stack([torch.ones_like(state), state], dim=-1).flatten(2)[:, :, None]
    return (out, chunks) if z is None else (out, chunks, out * torch.nn.functional.silu(z))


def _scan_backward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    z: Tensor | None, delta_bias: Tensor | None, dout: Tensor, x: Tensor | None,
    out: Tensor | None, dz: Tensor | None, delta_softplus: bool, recompute_out_z: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """selective_scan_cuda.bwd: du, ddelta, dA, dB, dC, dD, ddelta_bias[, dz[, out_z]]."""

    def scan(*leaves: Any) -> Tensor:
        arguments = (*leaves, delta_softplus)
        return cast("Tensor", adapters.selective_scan_fn(*arguments))

    *found, grad_bias = _gradients(scan, (u, delta, A, B, C, D, z, delta_bias), dout)
    grad_z = found.pop()
    if z is None:
        return (*found, grad_bias)
    assert grad_z is not None
    grad_z = grad_z if dz is None else dz.copy_(grad_z)
    out_z = scan(u, delta, A, B, C, D, z, delta_bias) if recompute_out_z else None
    return (*found, grad_bias, grad_z, *([out_z] if recompute_out_z else []))


def _core_forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    delta_bias: Tensor | None, delta_softplus: bool, nrows: int = 1, oflex: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    """selective_scan_cuda_core.fwd and _oflex.fwd: (out, x)."""
    wide = u.float() if oflex and u.dtype != torch.float64 else u
    return _scan_forward(wide, delta, A, B, C, D, None, delta_bias, delta_softplus)


def _core_backward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    delta_bias: Tensor | None, dout: Tensor, x: Tensor | None, delta_softplus: bool,
    nrows: int = 1,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """selective_scan_cuda_core.bwd and _oflex.bwd: du, ddelta, dA, dB, dC, dD, ddelta_bias."""
    return _scan_backward(
        u, delta, A, B, C, D, None, delta_bias, dout, x, None, None, delta_softplus, False
    )


def _conv_forward(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    """causal_conv1d_cuda.causal_conv1d_fwd; the last argument says whether SiLU follows."""
    out = adapters.causal_conv1d_fn(x, weight, bias, activation="silu" if rest[-1] else None)
    return cast("Tensor", out)


def _conv_backward(
    x: Tensor, weight: Tensor, bias: Tensor | None, dout: Tensor, *rest: Any
) -> Gradients:
    """causal_conv1d_cuda.causal_conv1d_bwd: dx, dweight, dbias; a given dx is filled."""

    def convolve(*leaves: Any) -> Tensor:
        return _conv_forward(*leaves, rest[-1])

    dx, dweight, dbias = _gradients(convolve, (x, weight, bias), dout)
    given = next((value for value in rest if isinstance(value, Tensor)), None)
    assert dx is not None
    return (dx if given is None else given.copy_(dx)), dweight, dbias


_INTERFACE = {
    name: getattr(adapters, name)
    for name in (
        "selective_scan_fn", "selective_scan_ref", "mamba_inner_fn", "mamba_inner_ref",
        "mamba_inner_fn_no_out_proj", "bimamba_inner_fn", "bimamba_inner_ref",
    )
}  # fmt: skip
_CONVOLUTION = {
    "causal_conv1d_fn": adapters.causal_conv1d_fn,
    "causal_conv1d_update": adapters.causal_conv1d_update,
}
STANDINS: Mapping[str, Mapping[str, Any]] = {
    "mamba_ssm": {},
    "mamba_ssm.ops": {},
    "mamba_ssm.ops.selective_scan_interface": _INTERFACE,
    "causal_conv1d": _CONVOLUTION,
    "causal_conv1d_cuda": {
        "causal_conv1d_fwd": _conv_forward,
        "causal_conv1d_bwd": _conv_backward,
    },
    "selective_scan_cuda": {"fwd": _scan_forward, "bwd": _scan_backward},
    "selective_scan_cuda_core": {"fwd": _core_forward, "bwd": _core_backward},
    "selective_scan_cuda_oflex": {"fwd": _core_forward, "bwd": _core_backward},
}


def _is_missing(package: str) -> bool:
    return package not in sys.modules and importlib.util.find_spec(package) is None


@contextlib.contextmanager
def install_standins() -> Iterator[tuple[str, ...]]:
    """Names of the modules that are stood in for while the block runs."""
    packages = {name.partition(".")[0] for name in STANDINS}
    missing = {package for package in packages if _is_missing(package)}
    used = tuple(name for name in STANDINS if name.partition(".")[0] in missing)
    for name in used:
        module = ModuleType(name, f"Stand-in of mambapose for {name}.")
        module.__dict__.update(STANDINS[name])
        if any(other.startswith(f"{name}.") for other in STANDINS):
            module.__path__ = []  # a package: its submodules are looked up in sys.modules
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    try:
        yield used
    finally:
        for name in used:
            sys.modules.pop(name, None)
