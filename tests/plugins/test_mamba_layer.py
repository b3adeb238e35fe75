"""mamba-ssm's layer and norms of our own, against their composition written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mambapose.export.models.vim import Mixer
from mambapose.plugins.adapters import causal_conv1d_fn, selective_scan_ref
from mambapose.plugins.mamba_layer import Mamba, RMSNorm, layer_norm_fn, rms_norm_fn

pytestmark = pytest.mark.kernels


def branch(layer: Mamba, x: Tensor, z: Tensor, end: str, a_log: Tensor) -> Tensor:
    """(B, D, L): conv, projections and scan along the steps, as the layer is published."""
    conv, step = getattr(layer, f"conv1d{end}"), getattr(layer, f"dt_proj{end}")
    u = causal_conv1d_fn(x, conv.weight[:, 0], conv.bias, activation="silu")
    parts = getattr(layer, f"x_proj{end}")(u.transpose(1, 2))
    rank, b, c = parts.split([layer.dt_rank, layer.d_state, layer.d_state], -1)
    dt = (rank @ step.weight.T).transpose(1, 2)
    return selective_scan_ref(
        u, dt, -torch.exp(a_log), b.transpose(1, 2), c.transpose(1, 2), getattr(layer, f"D{end}"),
        z=z, delta_bias=step.bias, delta_softplus=True,
    )  # fmt: skip


def published(layer: Mamba, hidden: Tensor) -> Tensor:
    """The layer with flips and two scans, in the order of mamba_simple.py."""
    x, z = layer.in_proj(hidden).transpose(1, 2).chunk(2, 1)
    y = branch(layer, x, z, "", layer.A_log)
    if layer.bimamba_type == "v2":
        y = y + branch(layer, x.flip(-1), z.flip(-1), "_b", layer.A_b_log).flip(-1)
        y = y / 2 if layer.if_divide_out else y
    if layer.bimamba_type == "v1":  # the convolution is not flipped, only what the scan sees
        conv = causal_conv1d_fn(x, layer.conv1d.weight[:, 0], layer.conv1d.bias, activation="silu")
        parts = layer.x_proj(conv.transpose(1, 2)).flip(1)
        rank, b, c = parts.split([layer.dt_rank, layer.d_state, layer.d_state], -1)
        y = y + selective_scan_ref(
            conv.flip(-1), (rank @ layer.dt_proj.weight.T).transpose(1, 2),
            -torch.exp(layer.A_b_log), b.transpose(1, 2), c.transpose(1, 2), layer.D,
            z=z.flip(-1), delta_bias=layer.dt_proj.bias, delta_softplus=True,
        ).flip(-1)  # fmt: skip
    return layer.out_proj(y.transpose(1, 2))


@pytest.mark.parametrize("kind", ["none", "v1", "v2"])
@pytest.mark.parametrize("options", [{}, {"d_state": 5, "d_conv": 3, "expand": 1, "dt_rank": 4}])
def test_layer_equals_its_composition(kind: str, options: dict[str, int]) -> None:
    torch.manual_seed(3)
    layer = Mamba(24, bimamba_type=kind, **options)
    with torch.no_grad():
        for name in ("A_log", "A_b_log", "D", "D_b"):  # not all the same
            if hasattr(layer, name):
                getattr(layer, name).add_(0.1 * torch.randn_like(getattr(layer, name)))
        hidden = torch.randn(2, 11, 24)
        torch.testing.assert_close(layer(hidden), published(layer, hidden), rtol=1e-4, atol=1e-5)


def test_vims_layer_has_the_keys_and_the_answer_of_our_mixer() -> None:
    torch.manual_seed(4)
    mixer = Mixer(32, 1)
    layer = Mamba(32, bimamba_type="v2", if_divide_out=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in mixer.state_dict().items()}
    layer.load_state_dict(mixer.state_dict())
    hidden = torch.randn(2, 9, 32)
    with torch.no_grad():
        torch.testing.assert_close(layer(hidden), mixer(hidden), rtol=1e-4, atol=1e-5)


def test_layer_scale_and_bias_and_start() -> None:
    torch.manual_seed(5)
    layer = Mamba(16, bias=True, init_layer_scale=0.25)
    hidden = torch.randn(1, 6, 16)
    with torch.no_grad():
        torch.testing.assert_close(layer(hidden), 0.25 * published(layer, hidden))
    step = functional.softplus(layer.dt_proj.bias)
    assert step.min() >= 0.99e-3
    assert step.max() <= 1.01e-1
    assert torch.allclose(layer.A_log.exp()[0], torch.arange(1.0, 17.0))


def test_gradients_reach_every_parameter() -> None:
    layer = Mamba(16, bimamba_type="v2")
    layer(torch.randn(1, 7, 16)).square().mean().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_what_is_not_supported_is_said() -> None:
    with pytest.raises(NotImplementedError, match="bimamba_type of none, v1, v2 was wanted"):
        Mamba(16, bimamba_type="v3")
    with pytest.raises(NotImplementedError, match="whole sequence was wanted"):
        Mamba(16)(torch.zeros(1, 2, 16), inference_params=object())
    with pytest.raises(NotImplementedError, match="dropout_p"):
        layer_norm_fn(torch.ones(1, 4), torch.ones(4), None, dropout_p=0.1)
    with pytest.raises(NotImplementedError, match="RMSNorm"):
        RMSNorm(4, dropout_p=0.5)


@pytest.mark.parametrize("rms", [True, False])
def test_norms_add_the_residual_first(rms: bool) -> None:
    torch.manual_seed(6)
    x, residual = torch.randn(2, 3, 8).half(), torch.randn(2, 3, 8)
    weight, bias = torch.randn(8), torch.randn(8)
    total = x.float() + residual
    if rms:
        function = rms_norm_fn
        wanted = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + 1e-3) * weight + bias
    else:
        function = layer_norm_fn
        centred = total - total.mean(-1, keepdim=True)
        wanted = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-3)
        wanted = wanted * weight + bias
    out, kept = function(
        x, weight, bias, residual=residual, prenorm=True, residual_in_fp32=True, eps=1e-3
    )
    assert (out.dtype, kept.dtype) == (torch.float16, torch.float32)
    torch.testing.assert_close(kept, total)
    torch.testing.assert_close(out.float(), wanted, rtol=2e-3, atol=2e-3)
    alone = function(total, weight, bias, eps=1e-3)
    torch.testing.assert_close(alone, wanted, rtol=1e-4, atol=1e-5)


def test_the_norm_module_has_the_key_of_mamba_ssm() -> None:
    norm = RMSNorm(8)
    assert list(norm.state_dict()) == ["weight"]
    x = torch.randn(2, 8)
    torch.testing.assert_close(norm(x), rms_norm_fn(x, norm.weight, None, eps=1e-5))
