"""Stand-ins for the packages that public Mamba code imports: machines without CUDA lack them.

Inside ``with install_standins():`` an import of such a package finds our adapters and layers;
packages that are really installed are left alone. Code keeps what it imported there after the
block ends.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from mambapose.plugins import adapters, mamba_layer, points

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
    """selective_scan_cuda_core.fwd and selective_scan_cuda_oflex.fwd: (out, x)."""
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
    """causal_conv1d_cuda.causal_conv1d_bwd: dx, dweight, dbias; a dx that is given is filled."""

    def convolve(*leaves: Any) -> Tensor:
        return _conv_forward(*leaves, rest[-1])

    dx, dweight, dbias = _gradients(convolve, (x, weight, bias), dout)
    given = next((value for value in rest if isinstance(value, Tensor)), None)
    assert dx is not None
    return (dx if given is None else given.copy_(dx)), dweight, dbias


def _refusal(what: str, advice: str) -> type:
    """A class or function that can be imported and named, but raises when it is called."""

    def refuse(self: object, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(f"{what} was found, Mamba-1 was wanted; {advice}")

    return type(what, (), {"__init__": refuse})


class _Kernel:
    """A triton kernel: it can be defined, decorated and indexed by its grid, but not run."""

    def __init__(self, function: Any) -> None:
        self.__name__ = getattr(function, "__name__", "kernel")

    def __getitem__(self, grid: object) -> _Kernel:
        return self

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(
            f"triton kernel {self.__name__}: it runs on a GPU with triton only; take the code's "
            "torch version of it"
        )


def _decorator(*arguments: Any, **_: Any) -> Any:
    """triton's decorators, used with arguments or without."""
    if len(arguments) == 1 and callable(arguments[0]):
        return _Kernel(arguments[0])
    return _Kernel


class _Config:
    """triton.Config: its options can be read, because some code sorts configurations by them."""

    def __init__(self, kwargs: Mapping[str, Any] | None = None, **options: Any) -> None:
        self.kwargs = dict(kwargs or {})
        self.num_warps, self.num_stages, self.num_ctas = 4, 3, 1
        self.__dict__.update(options)


class _Anything:
    """Stands for any name in annotations and defaults of triton kernels (``tl.constexpr``)."""

    def __getattr__(self, name: str) -> _Anything:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> _Anything:
        return self


class GenerationMixin:
    """mamba-ssm's text generation: a base class that adds nothing here."""


def _no_hub(*_: Any, **__: Any) -> NoReturn:
    """Refuses mamba-ssm's downloads from a hub of models."""
    raise NotImplementedError("a file of weights was wanted, found a model of a hub; download it")


def _no_loss(*_: Any, **__: Any) -> NoReturn:
    """Refuses chamfer.forward and backward, which code of networks imports only for training."""
    raise NotImplementedError(
        "a loss of training (chamfer distance) was called, a network was wanted; export the part "
        "that answers"
    )


_SSD = "export the network's Mamba-1 form, the scan of Mamba-2 (SSD) is another operator"
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
_NORMS = {name: getattr(mamba_layer, name) for name in ("RMSNorm", "layer_norm_fn", "rms_norm_fn")}
_POINTS = {
    name: getattr(points, name)
    for name in ("furthest_point_sample", "gather_operation", "grouping_operation")
}
_CORE = {"fwd": _core_forward, "bwd": _core_backward}
_MAMBA2 = {"Mamba2": _refusal("Mamba2", _SSD), "Mamba2Simple": _refusal("Mamba2Simple", _SSD)}
_SSD_SCANS = {
    name: _refusal(name, _SSD)
    for name in ("mamba_chunk_scan_combined", "mamba_split_conv1d_scan_combined")
}
STANDINS: Mapping[str, Mapping[str, Any]] = {
    "mamba_ssm": {
        "Mamba": mamba_layer.Mamba, "selective_scan_fn": adapters.selective_scan_fn,
        "mamba_inner_fn": adapters.mamba_inner_fn, **_MAMBA2,
    },
    "mamba_ssm.ops": {},
    "mamba_ssm.ops.selective_scan_interface": _INTERFACE,
    "mamba_ssm.ops.triton": {},
    "mamba_ssm.ops.triton.layer_norm": _NORMS,
    "mamba_ssm.ops.triton.layernorm": _NORMS,
    "mamba_ssm.ops.triton.layernorm_gated": {"RMSNorm": _refusal("the gated RMSNorm", _SSD)},
    "mamba_ssm.ops.triton.ssd_combined": _SSD_SCANS,
    "mamba_ssm.modules": {},
    "mamba_ssm.modules.mamba_simple": {"Mamba": mamba_layer.Mamba},
    "mamba_ssm.modules.mamba2": _MAMBA2,
    "mamba_ssm.modules.mamba2_simple": _MAMBA2,
    "mamba_ssm.utils": {},
    "mamba_ssm.utils.generation": {"GenerationMixin": GenerationMixin},
    "mamba_ssm.utils.hf": {"load_config_hf": _no_hub, "load_state_dict_hf": _no_hub},
    "causal_conv1d": _CONVOLUTION,
    "causal_conv1d.causal_conv1d_interface": _CONVOLUTION,
    "causal_conv1d_cuda": {
        "causal_conv1d_fwd": _conv_forward,
        "causal_conv1d_bwd": _conv_backward,
    },
    "selective_scan_cuda": {"fwd": _scan_forward, "bwd": _scan_backward},
    "selective_scan_cuda_core": _CORE,
    "selective_scan_cuda_oflex": _CORE,
    "knn_cuda": {"KNN": points.KNN, "knn": points.knn},
    "pointnet2_ops": {},
    "pointnet2_ops.pointnet2_utils": _POINTS,
    "chamfer": {"forward": _no_loss, "backward": _no_loss},
    "triton": {
        "jit": _decorator, "autotune": _decorator, "heuristics": _decorator, "Config": _Config,
        "cdiv": lambda x, y: -(-x // y),
    },
    "triton.language": {"constexpr": _Anything()},
}  # fmt: skip


@dataclass
class StandIns:
    """The stand-ins that are installed.

    offered: the modules that have a stand-in; used: the names that were taken from them, as
    ``module.name``, in the order in which they were first taken.
    """

    offered: tuple[str, ...]
    used: list[str] = field(default_factory=list)


class _StandIn(ModuleType):
    """A stand-in module, which notes each name that is taken from it."""

    def __init__(self, name: str, noted: StandIns) -> None:
        super().__init__(name, f"Stand-in of mambapose for {name}.")
        self.__all__ = list(STANDINS[name])
        self.__spec__ = ModuleSpec(name, None)
        self.__dict__["_noted"] = noted

    def __getattr__(self, name: str) -> Any:
        offered = STANDINS[self.__name__]
        if name in offered:
            whole = f"{self.__name__}.{name}"
            if whole not in (used := self.__dict__["_noted"].used):
                used.append(whole)
            return offered[name]
        if self.__name__ == "triton.language" and not name.startswith("__"):
            return _Anything()
        raise AttributeError(f"module {self.__name__!r} (a stand-in) has no attribute {name!r}")


def is_standin(package: str) -> bool:
    """Whether importing the package now gives one of our stand-ins."""
    return isinstance(sys.modules.get(package), _StandIn)


# What torch decides once, when it first looks: whether triton is there.
_TORCH_LOOKS = ("torch.utils._triton", "torch._inductor.runtime.hints",
                "torch._inductor.runtime.triton_compat")  # fmt: skip


def _let_torch_look() -> None:
    """Make torch find out that there is no triton, before it can see a stand-in for it."""
    for name in _TORCH_LOOKS:
        with contextlib.suppress(ImportError):
            module = importlib.import_module(name)
            getattr(module, "has_triton_package", bool)()


def _is_missing(package: str) -> bool:
    return package not in sys.modules and importlib.util.find_spec(package) is None


@contextlib.contextmanager
def install_standins() -> Iterator[StandIns]:
    """A context in which the stand-ins can be imported; it gives what was offered and used."""
    packages = {name.partition(".")[0] for name in STANDINS}
    missing = {package for package in packages if _is_missing(package)}
    if "triton" in missing:
        _let_torch_look()
    noted = StandIns(tuple(name for name in STANDINS if name.partition(".")[0] in missing))
    for name in noted.offered:
        module = _StandIn(name, noted)
        if any(other.startswith(f"{name}.") for other in STANDINS):
            module.__path__ = []  # a package: its submodules are looked up in sys.modules
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    try:
        yield noted
    finally:
        for name in noted.offered:
            sys.modules.pop(name, None)
