"""Public Mamba signatures on our scan, against golden vectors and against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from mambapose.plugins import adapters
from mambapose.plugins.standins import install_standins

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def _golden_inputs(case, dtype):
    """The inputs by argument name; those that are absent were not given."""
    given = {name: case.arrays.get(f"input.{name}") for name in NAMES}
    return {
        name: None if array is None else torch.from_numpy(array).to(dtype)
        for name, array in given.items()
    }


def _wanted(case, name):
    return case.arrays.get(f"output.{name}_f64", case.arrays.get(f"output.{name}"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_golden_scan(golden_scan, dtype, golden, scans):
    case = golden(golden_scan)
    softplus = bool(case.meta["config"]["delta_softplus"])
    out, state = adapters.selective_scan_fn(
        **_golden_inputs(case, dtype), delta_softplus=softplus, return_last_state=True
    )
    limits = (2e-6, 5e-6) if dtype == torch.float32 else (1e-12, 1e-12)
    scans.close("out", out, _wanted(case, "out"), limits[0])
    if _wanted(case, "last_state") is not None:
        scans.close("last_state", state, _wanted(case, "last_state"), limits[1])


def _layer(seed=0, *, D=6, N=3, R=2, W=4, L=11, batch=2, dtype=torch.float64):
    """Weights and input of a Mamba layer under mamba-ssm's names."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    return {
        "xz": normal(batch, 2 * D, L),
        "conv1d_weight": normal(D, 1, W),
        "conv1d_bias": normal(D),
        "x_proj_weight": normal(R + 2 * N, D) / 2,
        "delta_proj_weight": normal(D, R),
        "out_proj_weight": normal(4, D),
        "out_proj_bias": normal(4),
        "A": -normal(D, N).exp(),
        "D": normal(D),
        "delta_bias": normal(D) - 3,
    }


def _defined_layer(w, x, A, *, with_gate=True):
    """Gated scan of the convolved x (B, D, L), written out step by step in float64."""
    states, rank = A.shape[1], w["delta_proj_weight"].shape[1]
    projected = torch.einsum("bdl,ed->ble", x, w["x_proj_weight"])
    steps = torch.einsum("blr,dr->bld", projected[..., :rank], w["delta_proj_weight"])
    steps = torch.log1p(torch.exp(steps + w["delta_bias"]))
    rows_b, rows_c = projected[..., rank : rank + states], projected[..., rank + states :]
    state, outputs = torch.zeros(x.shape[0], *A.shape, dtype=x.dtype), []
    for t in range(x.shape[2]):
        step = steps[:, t, :, None]
        state = torch.exp(step * A) * state + step * x[:, :, t, None] * rows_b[:, t, None]
        outputs.append((state * rows_c[:, t, None]).sum(-1) + w["D"] * x[:, :, t])
    return torch.stack(outputs, -1)


def _defined_convolution(w):
    """silu of the causal convolution of the x half of xz, tap by tap."""
    x, _ = w["xz"].chunk(2, dim=1)
    weight, taps = w["conv1d_weight"][:, 0], w["conv1d_weight"].shape[2]
    out = w["conv1d_bias"][:, None].expand_as(x).clone()
    for tap in range(taps):
        earlier = taps - 1 - tap
        shifted = torch.zeros_like(x)
        shifted[..., earlier:] = x[..., : x.shape[2] - earlier]
        out = out + weight[:, tap, None] * shifted
    return functional.silu(out)


def test_inner_function_is_the_layer(scans):
    w = _layer()
    convolved, z = _defined_convolution(w), w["xz"].chunk(2, dim=1)[1]
    gated = _defined_layer(w, convolved, w["A"]) * functional.silu(z)
    without = {k: v for k, v in w.items() if not k.startswith("out_proj")}
    scans.close("gated y", adapters.mamba_inner_fn_no_out_proj(**without), gated, 1e-12)
    wanted = torch.einsum("bdl,ed->ble", gated, w["out_proj_weight"]) + w["out_proj_bias"]
    scans.close("layer", adapters.mamba_inner_fn(**w), wanted, 1e-12)


def test_bidirectional_inner_function_adds_both_ways(scans):
    w, A_b = _layer(), -torch.randn(6, 3, dtype=torch.float64).exp()
    convolved, z = _defined_convolution(w), w["xz"].chunk(2, dim=1)[1]
    both = _defined_layer(w, convolved, w["A"])
    both = both + _defined_layer(w, convolved.flip(-1), A_b).flip(-1)
    gated = both * functional.silu(z)
    wanted = torch.einsum("bdl,ed->ble", gated, w["out_proj_weight"]) + w["out_proj_bias"]
    scans.close("layer", adapters.bimamba_inner_fn(**w, A_b=A_b), wanted, 1e-12)


def test_given_b_and_c_replace_the_projected_ones(scans):
    w = _layer()
    rank, states = 2, 3
    convolved = _defined_convolution(w)
    projected = torch.einsum("bdl,ed->bel", convolved, w["x_proj_weight"])
    given = {"B": projected[:, rank : rank + states], "C": projected[:, rank + states :]}
    shorter = {**w, "x_proj_weight": w["x_proj_weight"][:rank]}
    scans.close(
        "layer", adapters.mamba_inner_fn(**shorter, **given), adapters.mamba_inner_fn(**w), 1e-12
    )


def test_projection_biases_are_added(scans):
    w, bias = _layer(), torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    convolved = _defined_convolution(w)
    projected = torch.einsum("bdl,ed->bel", convolved, w["x_proj_weight"])
    given = {"B": projected[:, 2:5] + bias[:, None], "C": projected[:, 5:] - bias[:, None]}
    biases = {"B_proj_bias": bias, "C_proj_bias": -bias}
    scans.close(
        "layer",
        adapters.mamba_inner_fn(**w, **biases),
        adapters.mamba_inner_fn(**w, **given),
        1e-12,
    )


def test_convolution_continues_from_its_state(scans):
    w = _layer()
    x, weight, bias = w["xz"][:, :6], w["conv1d_weight"][:, 0], w["conv1d_bias"]
    whole = adapters.causal_conv1d_fn(x, weight, bias, activation="silu")
    scans.close("whole", whole, _defined_convolution(w), 1e-12)
    first, state = adapters.causal_conv1d_fn(
        x[..., :5], weight, bias, return_final_states=True, activation="silu"
    )
    second = adapters.causal_conv1d_fn(
        x[..., 5:], weight, bias, initial_states=state, activation="swish"
    )
    scans.close("in two parts", torch.cat([first, second], -1), whole, 1e-12)
    window = torch.zeros(2, 6, 4, dtype=torch.float64)
    steps = [
        adapters.causal_conv1d_update(x[..., t], window, weight, bias, "silu") for t in range(11)
    ]
    scans.close("step by step", torch.stack(steps, -1), whole, 1e-12)


def test_unknown_requests_are_refused():
    x, weight = torch.zeros(1, 2, 3), torch.zeros(2, 4)
    with pytest.raises(NotImplementedError, match="activation"):
        adapters.causal_conv1d_fn(x, weight, activation="gelu")
    with pytest.raises(NotImplementedError, match="seq_idx"):
        adapters.causal_conv1d_fn(x, weight, seq_idx=torch.zeros(1, 3))
    rows = torch.zeros(1, 2, 3, 3)
    with pytest.raises(ValueError, match="C: 2 groups"):
        adapters.selective_scan_fn(x, x, -torch.ones(2, 3), rows, rows[:, :1])
    with pytest.raises(ValueError, match="A: real"):
        adapters.selective_scan_fn(x, x, torch.ones(2, 3) * 1j, rows, rows)


def test_other_float_types_come_back_as_they_came(scans):
    w = _layer(dtype=torch.float32)
    arguments = (w["xz"][:, :6], w["xz"][:, 6:], w["A"], w["xz"][:, :3], w["xz"][:, 3:6])
    exact = adapters.selective_scan_fn(*arguments, delta_softplus=True)
    for dtype, limit in ((torch.float16, 3e-3), (torch.bfloat16, 3e-2)):
        low = [value if value is w["A"] else value.to(dtype) for value in arguments]
        out = adapters.selective_scan_fn(*low, delta_softplus=True)
        assert out.dtype == dtype
        scans.close(str(dtype), out.float(), exact, limit)


def test_cross_scan_and_merge_are_adjoint(scans):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    routes = adapters.CrossScan.apply(x)
    tokens = torch.arange(20).reshape(4, 5)
    orders = [
        tokens.flatten(),
        tokens.T.flatten(),
        tokens.flatten().flip(0),
        tokens.T.flatten().flip(0),
    ]
    for k, order in enumerate(orders):
        torch.testing.assert_close(routes[:, k], x.flatten(2)[..., order], rtol=0, atol=0)
    ys = torch.randn(2, 4, 3, 4, 5, dtype=torch.float64)
    merged = adapters.CrossMerge.apply(ys)
    scans.close("adjoint", (merged * x.flatten(2)).sum(), (ys.flatten(3) * routes).sum(), 1e-12)


def _vmamba_operator(x, w, states, scan):
    """SS2D between its convolution and its output norm, as VMamba calls its scan; (B, D, H*W)."""
    batch, channels, height, width = x.shape
    x_proj = w.get("op.x_proj_weight", w.get("op.x_proj.weight")).reshape(4, -1, channels)
    dt_projs = w.get("op.dt_projs_weight", w.get("op.dt_projs.weight")).reshape(4, channels, -1)
    routes = adapters.CrossScan.apply(x)
    rank = dt_projs.shape[2]
    projected = torch.einsum("bkdl,kcd->bkcl", routes, x_proj)
    dts, rows_b, rows_c = torch.split(projected, [rank, states, states], dim=2)
    dts = torch.einsum("bkrl,kdr->bkdl", dts, dt_projs)
    ys = scan(
        routes.flatten(1, 2), dts.flatten(1, 2), -torch.exp(w["op.A_logs"]), rows_b, rows_c,
        w["op.Ds"], w["op.dt_projs_bias"].flatten(), True,
    )  # fmt: skip
    return adapters.CrossMerge.apply(ys.reshape(batch, 4, channels, height, width))


@pytest.mark.parametrize("name", ["vmamba_block_n1_noz_16x12", "vmamba_block_n16_z_14x14"])
def test_golden_vmamba_operator(name, golden, scans):
    """The routes merged, from the block's input: norm, projection, convolution, our scan."""
    case = golden(name)
    w = {key: torch.from_numpy(np.asarray(value)) for key, value in case.weights.items()}
    x = torch.from_numpy(case.arrays["input.x"])
    keys = sorted(key for key in case.arrays if key.startswith(("input", "mid", "output")))
    first = "n1_noz" in name
    if first:  # channels first: 1x1 convolutions and a norm over channels
        x = x.permute(0, 2, 3, 1)
    dim = x.shape[-1]
    x = functional.layer_norm(x, (dim,), w["norm.weight"], w["norm.bias"], 1e-5 if first else 1e-6)
    inner = w["op.in_proj.weight"].flatten(1)
    x = functional.linear(x, inner, w.get("op.in_proj.bias"))
    channels = w["op.A_logs"].shape[0] // 4
    x = x[..., :channels].permute(0, 3, 1, 2)
    kernel = w["op.conv2d.weight"]
    x = functional.conv2d(
        x, kernel, w.get("op.conv2d.bias"), padding=kernel.shape[-1] // 2, groups=channels
    )
    merged = _vmamba_operator(
        functional.silu(x), w, w["op.A_logs"].shape[1], adapters.SelectiveScanCore.apply
    )
    assert "mid.merged" in keys
    scans.close("merged", merged, case.arrays["mid.merged"].reshape(merged.shape), 1e-5)


@pytest.mark.parametrize("with_gate", [False, True])
def test_compiled_stand_in_scan_and_its_gradients(with_gate, scans):
    """fwd and bwd as the extension modules of mamba-ssm and VMamba offer them."""
    w = _layer()
    tensors = {
        "u": w["xz"][:, :6], "delta": w["xz"][:, 6:], "A": w["A"], "B": w["xz"][:, :3],
        "C": w["xz"][:, 3:6], "D": w["D"], "z": w["xz"][:, 6:] if with_gate else None,
        "delta_bias": w["delta_bias"],
    }  # fmt: skip
    leaves = {n: None if t is None else t.clone().requires_grad_() for n, t in tensors.items()}
    wanted, state = adapters.selective_scan_fn(
        **leaves, delta_softplus=True, return_last_state=True
    )
    dout = torch.randn_like(wanted)
    given = [leaf for leaf in leaves.values() if leaf is not None]
    gradients = torch.autograd.grad(wanted, given, dout)
    by_name = dict(zip((n for n, t in leaves.items() if t is not None), gradients, strict=True))
    order = ["u", "delta", "A", "B", "C", "D", "delta_bias", *(["z"] if with_gate else [])]
    with install_standins(), torch.no_grad():
        import selective_scan_cuda

        out, chunks, *gated = selective_scan_cuda.fwd(*tensors.values(), True)
        found = selective_scan_cuda.bwd(*tensors.values(), dout, chunks, out, None, True, with_gate)
    scans.close("out", gated[0] if with_gate else out, wanted.detach(), 1e-12)
    scans.close("last state", chunks[:, :, -1, 1::2], state.detach(), 1e-12)
    for name, gradient in zip(order, found, strict=False):
        scans.close(f"gradient of {name}", gradient, by_name[name], 1e-12)
    assert len(found) == len(order) + with_gate
    if not with_gate:
        with install_standins(), torch.no_grad():
            import selective_scan_cuda_core as core

            values = [tensor for name, tensor in tensors.items() if name != "z"]
            scans.close("core", core.fwd(*values, True, 1)[0], wanted.detach(), 1e-12)
            again = core.bwd(*values, dout, chunks, True, 1)
        for name, gradient in zip(order, again, strict=True):
            scans.close(f"core gradient of {name}", gradient, by_name[name], 1e-12)


def test_compiled_stand_in_convolution_and_its_gradients(scans):
    w = _layer()
    x, weight, bias = w["xz"][:, :6], w["conv1d_weight"][:, 0], w["conv1d_bias"]
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    wanted = adapters.causal_conv1d_fn(*leaves, activation="silu")
    dout = torch.randn_like(wanted)
    gradients = torch.autograd.grad(wanted, leaves, dout)
    with install_standins(), torch.no_grad():
        import causal_conv1d_cuda

        out = causal_conv1d_cuda.causal_conv1d_fwd(x, weight, bias, None, None, None, True)
        dx = torch.empty_like(x)
        found = causal_conv1d_cuda.causal_conv1d_bwd(
            x, weight, bias, dout, None, None, None, dx, False, True
        )
    scans.close("out", out, wanted.detach(), 1e-12)
    assert found[0] is dx
    for gradient, expected in zip(found, gradients, strict=True):
        scans.close("gradient", gradient, expected, 1e-12)
