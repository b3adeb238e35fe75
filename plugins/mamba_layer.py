"""The layers that public code imports as they are: mamba-ssm's Mamba, and norms with a residual.

Arguments and state-dict keys are those of mamba-ssm (state-spaces/mamba, mamba_ssm/modules/
mamba_simple.py) and of Vision Mamba's fork of it (hustvl/Vim, mamba-1p1p1), so that a module built
from them takes a published checkpoint. Inside, a layer is one scan: a backward direction is read
backwards by the operator instead of being flipped, and the gate is applied once.
Letters: B batch, L steps, E width of the layer, D inner width, N states, R rank of the step size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mambapose.plugins.torch_op import selective_scan

KINDS = ("none", "v1", "v2")


class Mamba(nn.Module):
    """A Mamba layer: (B, L, E) -> (B, L, E).

    bimamba_type: none (scans along the steps), v1 (also against them; everything but A is shared)
    or v2 (also against them, with a convolution and projections of its own); if_divide_out halves
    the sum of v2's directions. use_fast_path, layer_idx, device and dtype are those of mamba-ssm.
    Raises NotImplementedError for other kinds and for step-by-step generation.
    """

    def __init__(
        self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: float = 2,
        dt_rank: int | str = "auto", dt_min: float = 0.001, dt_max: float = 0.1,
        dt_init: str = "random", dt_scale: float = 1.0, dt_init_floor: float = 1e-4,
        conv_bias: bool = True, bias: bool = False, use_fast_path: bool = True,
        layer_idx: int | None = None, device: Any = None, dtype: Any = None,
        bimamba_type: str = "none", if_divide_out: bool = False,
        init_layer_scale: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if bimamba_type not in KINDS:
            raise NotImplementedError(
                f"bimamba_type of {', '.join(KINDS)} was wanted, found {bimamba_type!r}"
            )
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        self.bimamba_type, self.if_divide_out = bimamba_type, if_divide_out
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx
        where = {"device": device, "dtype": dtype}
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias, **where)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **where)
        if init_layer_scale is not None:
            self.gamma = nn.Parameter(init_layer_scale * torch.ones(d_model, device=device))
        steps = (dt_min, dt_max, dt_init, dt_scale, dt_init_floor)
        for end in ("", "_b") if bimamba_type == "v2" else ("",):
            self._add_direction(end, conv_bias, steps, where)
        self.A_log = nn.Parameter(self._decay_log(device))
        if bimamba_type != "none":
            self.A_b_log = nn.Parameter(self._decay_log(device))

    def _add_direction(
        self, end: str, conv_bias: bool, steps: tuple[Any, ...], where: dict[str, Any]
    ) -> None:
        """Add conv1d, x_proj, dt_proj and D of one direction, under names that end in ``end``."""
        low, high, kind, scale, floor = steps
        inner, rank = self.d_inner, self.dt_rank
        conv = nn.Conv1d(
            inner, inner, self.d_conv, groups=inner, padding=self.d_conv - 1, bias=conv_bias,
            **where,
        )  # fmt: skip
        step = nn.Linear(rank, inner, **where)
        with torch.no_grad():
            spread = scale * rank**-0.5
            if kind == "constant":
                step.weight.fill_(spread)
            else:
                step.weight.uniform_(-spread, spread)
            start = torch.exp(
                torch.empty(inner).uniform_(math.log(low), math.log(high))
            ).clamp(min=floor)  # fmt: skip
            step.bias.copy_(start + torch.log(-torch.expm1(-start)))  # softplus gives start
        setattr(self, f"conv1d{end}", conv)
        setattr(
            self, f"x_proj{end}", nn.Linear(inner, rank + 2 * self.d_state, bias=False, **where)
        )
        setattr(self, f"dt_proj{end}", step)
        setattr(self, f"D{end}", nn.Parameter(torch.ones(inner, device=where["device"])))

    def _decay_log(self, device: Any) -> Tensor:
        rates = torch.arange(1, self.d_state + 1, dtype=torch.float32, device=device)
        return torch.log(rates).repeat(self.d_inner, 1)

    def forward(self, hidden_states: Tensor, inference_params: Any = None) -> Tensor:
        """(B, L, E) the output; inference_params has to be None."""
        if inference_params is not None:
            raise NotImplementedError(
                "Mamba: a whole sequence was wanted, found inference_params for generation; "
                "call the layer without them"
            )
        x, z = self.in_proj(hidden_states).chunk(2, -1)
        ahead = self._branch(x, "", reverse=False)
        decay: Tensor = self.A_log
        if self.bimamba_type == "none":
            parts, directions = ahead, 1
        else:
            back = ahead if self.bimamba_type == "v1" else self._branch(x, "_b", reverse=True)
            shared = self.bimamba_type == "v1"
            parts = tuple(
                one if shared and k == 0 else torch.cat([one, other], -1)
                for k, (one, other) in enumerate(zip(ahead, back, strict=True))
            )
            directions, decay = 2, torch.cat([self.A_log, self.A_b_log])
        u, dt, b, c, skip, dt_bias = parts
        y, _ = selective_scan(
            u, dt, -torch.exp(decay.float()), b, c, skip.float(), z, dt_bias.float(),
            directions=directions, reverse=(0, 1)[:directions],
            merge="sum" if directions == 2 else "none",
        )  # fmt: skip
        if self.bimamba_type == "v2" and self.if_divide_out:
            y = y / 2
        out: Tensor = self.out_proj(y)
        return out * self.gamma if hasattr(self, "gamma") else out

    def _branch(self, x: Tensor, end: str, *, reverse: bool) -> tuple[Tensor, ...]:
        """u, dt (B, L, D), b, c (B, L, N), D and the bias of dt (D) of one direction.

        Against the steps, the causal convolution becomes one with reversed taps, which sees later
        steps.
        """
        conv = getattr(self, f"conv1d{end}")
        taps = conv.weight.flip(-1) if reverse else conv.weight
        pads = (0, self.d_conv - 1) if reverse else (self.d_conv - 1, 0)
        row = functional.pad(x.transpose(1, 2), pads)
        mixed = functional.conv1d(row, taps, conv.bias, groups=self.d_inner).transpose(1, 2)
        u = functional.silu(mixed)
        rank, b, c = getattr(self, f"x_proj{end}")(u).split(
            [self.dt_rank, self.d_state, self.d_state], -1
        )
        step = getattr(self, f"dt_proj{end}")
        return u, functional.linear(rank, step.weight), b, c, getattr(self, f"D{end}"), step.bias


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, with the options of `rms_norm_fn`."""

    bias: nn.Parameter | None

    def __init__(
        self, hidden_size: int, eps: float = 1e-5, dropout_p: float = 0.0,
        zero_centered_weight: bool = False, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if dropout_p or zero_centered_weight:
            raise NotImplementedError(
                "RMSNorm: dropout_p and zero_centered_weight are not supported"
            )
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.register_parameter("bias", None)

    def forward(
        self, x: Tensor, residual: Tensor | None = None, prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        return rms_norm_fn(
            x, self.weight, self.bias, residual=residual, eps=self.eps, prenorm=prenorm,
            residual_in_fp32=residual_in_fp32,
        )  # fmt: skip


def rms_norm_fn(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None, **options: Any
) -> Tensor | tuple[Tensor, Tensor]:
    """`layer_norm_fn` with is_rms_norm."""
    return layer_norm_fn(x, weight, bias, residual, is_rms_norm=True, **options)


def layer_norm_fn(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None, *,
    eps: float = 1e-6, prenorm: bool = False, residual_in_fp32: bool = False,
    is_rms_norm: bool = False, **options: Any,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """The norm of x + residual over the last axis, in x's type; with prenorm also the sum.

    residual_in_fp32: return the sum in float32. Raises NotImplementedError for any other option of
    mamba-ssm that is on (dropout, a second input).
    """
    if used := [name for name, value in options.items() if value]:
        raise NotImplementedError(f"layer_norm_fn: {used[0]} is not supported")
    total = x if residual is None else x + residual
    if residual_in_fp32:
        total = total.float()
    exact = total if total.dtype == torch.float64 else total.float()
    if is_rms_norm:
        normed = exact / torch.sqrt(exact.square().mean(-1, keepdim=True) + eps) * weight
        normed = normed if bias is None else normed + bias
    else:
        normed = functional.layer_norm(exact, (x.shape[-1],), weight.to(exact), bias, eps)
    out = normed.to(x.dtype)
    return (out, total) if prenorm else out
