"""Public Mamba code on our scan: the functions it calls, with its signatures, on any device.

Layouts and arguments are those of mamba-ssm (state-spaces/mamba, mamba_ssm/ops/
selective_scan_interface.py), Vision Mamba (hustvl/Vim, its fork of the same file), causal-conv1d
(Dao-AILab/causal-conv1d) and VMamba (MzeroMiko/VMamba, classification/models/csms6s.py):
channels first, u, delta, z: (B, D, L); A: (D, N); B, C: (D, N), (B, N, L) or (B, G, N, L).
`mambapose.plugins.standins` puts them where an import statement finds them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mambapose.plugins.torch_op import NATIVE_TYPES, selective_scan


def _rows(tensor: Tensor, dtype: torch.dtype) -> tuple[Tensor, int]:
    """B or C of mamba-ssm in the operator's layout, and its number of groups (0: constant)."""
    if tensor.ndim == 2:
        return tensor.to(torch.float64 if dtype == torch.float64 else torch.float32), 0
    grouped = tensor if tensor.ndim == 4 else tensor[:, None]
    return grouped.permute(0, 3, 1, 2).flatten(2).to(dtype), grouped.shape[1]


def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """y (B, D, L) of u's type and the last state (B, D, N)."""
    if A.is_complex():
        raise ValueError(
            "A: real values were wanted, found complex ones; build the network with a real A, as "
            "Mamba does, the scan of complex states is another operator"
        )
    kind = u.dtype if u.dtype in (*NATIVE_TYPES, torch.float64) else torch.float32
    exact = torch.float64 if kind == torch.float64 else torch.float32
    (rows_b, groups_b), (rows_c, groups_c) = _rows(B, kind), _rows(C, kind)
    if groups_b and groups_c and groups_b != groups_c:
        raise ValueError(f"C: {groups_b} groups were wanted as in B, found {groups_c}")
    y, last_state = selective_scan(
        u.transpose(1, 2).to(kind),
        delta.transpose(1, 2).to(kind),
        A.to(exact),
        rows_b,
        rows_c,
        None if D is None else D.to(exact),
        None if z is None else z.transpose(1, 2).to(kind),
        None if delta_bias is None else delta_bias.to(exact),
        groups=groups_b or groups_c or 1,
        delta_softplus=delta_softplus,
    )
    return y.transpose(1, 2).to(u.dtype), last_state


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """y (B, D, L) of u's type; with ``return_last_state`` also the last state (B, D, N).

    Raises ValueError for complex A and for B and C with different numbers of groups.
    """
    y, last_state = _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return (y, last_state) if return_last_state else y


selective_scan_ref = selective_scan_fn


def _convolve(padded: Tensor, weight: Tensor, bias: Tensor | None, with_silu: bool) -> Tensor:
    """(B, D, L) the convolution of inputs that begin W - 1 steps early; weight: (D, W)."""
    kernel = weight.to(padded.dtype)[:, None]
    offset = None if bias is None else bias.to(padded.dtype)
    out = functional.conv1d(padded, kernel, offset, groups=padded.shape[1])
    return functional.silu(out) if with_silu else out


def _with_silu(activation: str | None) -> bool:
    if activation not in (None, "silu", "swish"):
        raise NotImplementedError(f"activation: None or 'silu' was wanted, found {activation!r}")
    return activation is not None


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Depthwise convolution (B, D, L) in which each step sees itself and W - 1 earlier steps.

    weight: (D, W); initial_states: (B, D, W - 1), the steps before the first (zero by default);
    activation: None, "silu" or "swish". With ``return_final_states`` also the last W - 1 inputs.
    Raises NotImplementedError for seq_idx (several sequences in one row).
    """
    if seq_idx is not None:
        raise NotImplementedError("causal_conv1d_fn: seq_idx is not supported")
    before = weight.shape[1] - 1
    if initial_states is None:
        padded = functional.pad(x, (before, 0))
    else:
        padded = torch.cat([initial_states.to(x.dtype), x], dim=-1)
    out = _convolve(padded, weight, bias, _with_silu(activation))
    if not return_final_states:
        return out
    final_states = padded[..., padded.shape[-1] - before :]
    if final_states_out is not None:
        final_states = final_states_out.copy_(final_states)
    return out, final_states


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """One step (B, D) of the same convolution; conv_state (B, D, W) is shifted in place."""
    conv_state.copy_(torch.cat([conv_state[..., 1:], x[..., None].to(conv_state.dtype)], dim=-1))
    out = (conv_state.to(x.dtype) * weight.to(x.dtype)).sum(-1)
    out = out if bias is None else out + bias.to(x.dtype)
    return functional.silu(out) if _with_silu(activation) else out


def _projected(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    B: Tensor | None,
    C: Tensor | None,
    B_proj_bias: Tensor | None,
    C_proj_bias: Tensor | None,
    states: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, z, delta, B, C of one Mamba layer, from its input projection xz (B, 2*D, L)."""
    x, z = xz.chunk(2, dim=1)
    weight = conv1d_weight[:, 0]
    padded = functional.pad(x, (weight.shape[1] - 1, 0))
    convolved = _convolve(padded, weight, conv1d_bias, with_silu=True)
    projected = functional.linear(convolved.transpose(1, 2), x_proj_weight)  # (B, L, R + 2N)
    rank = delta_proj_weight.shape[1]
    delta = functional.linear(projected[..., :rank], delta_proj_weight).transpose(1, 2)
    tail = projected[..., rank:]
    if B is None:
        rows = tail[..., :states]
        B = (rows if B_proj_bias is None else rows + B_proj_bias).transpose(1, 2)
    if C is None:
        rows = tail[..., -states:]
        C = (rows if C_proj_bias is None else rows + C_proj_bias).transpose(1, 2)
    return convolved, z, delta, B, C


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
) -> Tensor:
    """Gated y (B, D, L) of a Mamba layer before its output projection.

    xz: (B, 2*D, L); conv1d_weight: (D, 1, W); x_proj_weight: (R + 2N, D) (less where B or C is
    given); delta_proj_weight: (D, R). checkpoint_lvl changes no result and is not used.
    """
    x, z, delta, B, C = _projected(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight,
        B, C, B_proj_bias, C_proj_bias, A.shape[-1],
    )  # fmt: skip
    return _scan(x, delta, A, B, C, D, z, delta_bias, delta_softplus)[0]


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
) -> Tensor:
    """(B, L, E) output of a Mamba layer; out_proj_weight: (E, D).

    The other arguments are those of `mamba_inner_fn_no_out_proj`.
    """
    y = mamba_inner_fn_no_out_proj(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, D,
        delta_bias, B_proj_bias, C_proj_bias, delta_softplus,
    )  # fmt: skip
    return functional.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


mamba_inner_ref = mamba_inner_fn


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
) -> Tensor:
    """(B, L, E) output of Vim's layer of type v1: one convolution, scans in both directions.

    A_b: (D, N) of the backward scan; everything else is shared and the two scans are added.
    """
    x, z, delta, B, C = _projected(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight,
        B, C, B_proj_bias, C_proj_bias, A.shape[-1],
    )  # fmt: skip
    forward, _ = _scan(x, delta, A, B, C, D, z, delta_bias, delta_softplus)
    x, delta, B, C, z = (_flip_steps(tensor) for tensor in (x, delta, B, C, z))
    backward, _ = _scan(x, delta, A_b, B, C, D, z, delta_bias, delta_softplus)
    y = forward + backward.flip(-1)
    return functional.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)


bimamba_inner_ref = bimamba_inner_fn


def _flip_steps(tensor: Tensor) -> Tensor:
    """The tensor with its steps reversed; constant B and C have no steps and stay as they are."""
    return tensor if tensor.ndim == 2 else tensor.flip(-1)


class SelectiveScanCore:
    """VMamba's scan, ``SelectiveScanCore.apply(...)``; its Oflex and Mamba kinds are the same."""

    @staticmethod
    def apply(
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None = None,
        delta_bias: Tensor | None = None,
        delta_softplus: bool = False,
        nrows: int = 1,
        backnrows: int = 1,
        oflex: bool = True,
    ) -> Tensor:
        """y (B, K*D, L) in float32 when ``oflex``, else of u's type; B, C: (B, K, N, L)."""
        wide = u.float() if oflex and u.dtype != torch.float64 else u
        return _scan(wide, delta, A, B, C, D, None, delta_bias, delta_softplus)[0]


SelectiveScanOflex = SelectiveScanCore
SelectiveScanMamba = SelectiveScanCore


class CrossScan:
    """VMamba's four routes over an image: rows, columns, and both backwards."""

    @staticmethod
    def apply(x: Tensor) -> Tensor:
        """(B, C, H, W) as (B, 4, C, H*W)."""
        forward = torch.stack([x.flatten(2), x.transpose(2, 3).flatten(2)], dim=1)
        return torch.cat([forward, forward.flip(-1)], dim=1)


class CrossMerge:
    """Adds the four routes up again, in row-major order: the adjoint of `CrossScan`."""

    @staticmethod
    def apply(ys: Tensor) -> Tensor:
        """(B, 4, D, H, W) as (B, D, H*W)."""
        batch, _, channels, height, width = ys.shape
        routes = ys.flatten(3)
        both = routes[:, :2] + routes[:, 2:].flip(-1)
        columns = both[:, 1].reshape(batch, channels, width, height).transpose(-1, -2)
        return both[:, 0] + columns.flatten(-2)
