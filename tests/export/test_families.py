"""Small modules in the style of each public family of Mamba networks, through ``--model``.

Written for these tests; the families themselves are in test_public_code.py, where present.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from mambapose.export.own_model.build import OwnModel, build_own_model
from mambapose.export.own_model.network import inputs_from_texts
from mambapose.export.rewrites import kinds
from mambapose.runtime.bundle.bundle import read_bundle
from mambapose.runtime.stages.table import MODEL
from mambapose.runtime.targets import TARGETS

# Autograd functions around the compiled extension, four routes over an image, N states.
CROSS_SCAN = """
import torch
from torch import nn
import selective_scan_cuda_core

class Routes(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        batch, channels, height, width = x.shape
        routes = x.new_empty((batch, 4, channels, height * width))
        routes[:, 0] = x.flatten(2)
        routes[:, 1] = x.transpose(2, 3).flatten(2)
        routes[:, 2:] = routes[:, :2].flip(-1)
        return routes

class Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, bias):
        out, x, *rest = selective_scan_cuda_core.fwd(u, delta, A, B, C, D, bias, True, 1)
        return out

class Net(nn.Module):
    def __init__(self, width=8, states={states}, rank=2):
        super().__init__()
        self.project = nn.Parameter(torch.randn(4, rank + 2 * states, width) * 0.2)
        self.steps = nn.Parameter(torch.randn(4, width, rank))
        self.bias = nn.Parameter(torch.randn(4 * width))
        self.logs = nn.Parameter(torch.rand(4 * width, states))
        self.skip = nn.Parameter(torch.ones(4 * width))
        self.parts = [rank, states, states]

    def forward(self, x):
        batch, channels, height, width = x.shape
        routes = Routes.apply(x)
        parts = torch.einsum("bkdl,kcd->bkcl", routes, self.project)
        dt, B, C = parts.split(self.parts, 2)
        dt = torch.einsum("bkrl,kdr->bkdl", dt, self.steps)
        y = Scan.apply(
            routes.flatten(1, 2), dt.flatten(1, 2).contiguous(), -self.logs.exp(),
            B.contiguous(), C.contiguous(), self.skip, self.bias)
        y = y.view(batch, 4, channels, -1)
        y = y[:, :2] + y[:, 2:].flip(-1)
        columns = y[:, 1].view(batch, channels, width, height).transpose(2, 3).flatten(2)
        return (y[:, 0] + columns).view(batch, channels, height, width)
"""
# Bidirectional with the fused inner function and flips, fused add and norm between the layers.
INNER = """
import torch
from torch import nn
from torch.nn import functional as F
from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn_no_out_proj
from mamba_ssm.ops.triton.layer_norm import RMSNorm, rms_norm_fn

class Way(nn.Module):
    def __init__(self, inner, rank, states):
        super().__init__()
        self.conv = nn.Conv1d(inner, inner, 4, groups=inner)
        self.x_proj = nn.Linear(inner, rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.logs = nn.Parameter(torch.rand(inner, states))
        self.D = nn.Parameter(torch.ones(inner))

    def forward(self, xz):
        return mamba_inner_fn_no_out_proj(
            xz, self.conv.weight, self.conv.bias, self.x_proj.weight, self.dt_proj.weight,
            -torch.exp(self.logs.float()), None, None, self.D.float(),
            delta_bias=self.dt_proj.bias.float(), delta_softplus=True)

class Layer(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.norm, self.into = RMSNorm(width), nn.Linear(width, 4 * width, bias=False)
        self.ahead, self.back = Way(2 * width, 2, 4), Way(2 * width, 2, 4)
        self.out = nn.Linear(2 * width, width, bias=False)

    def forward(self, hidden, residual):
        hidden, residual = rms_norm_fn(
            hidden, self.norm.weight, self.norm.bias, residual=residual, prenorm=True,
            residual_in_fp32=True, eps=self.norm.eps)
        xz = self.into(hidden).transpose(1, 2)
        y = self.ahead(xz) + self.back(xz.flip([-1])).flip([-1])
        return F.linear(y.transpose(1, 2) / 2, self.out.weight), residual

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, x):
        residual = None
        for layer in self.layers:
            x, residual = layer(x, residual)
        return x + residual
"""
# Half the channels scanned, half convolved; the scan function called with B and C per step.
MIXED = """
import torch
from torch import nn
from torch.nn import functional as F
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

class Net(nn.Module):
    def __init__(self, width=8, states=4, rank=2):
        super().__init__()
        half = width // 2
        self.into, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.x_proj = nn.Linear(half, rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(rank, half)
        self.logs, self.D = nn.Parameter(torch.rand(half, states)), nn.Parameter(torch.ones(half))
        self.conv = nn.Conv1d(half, half, 3, padding="same", groups=half)
        self.parts = [rank, states, states]

    def forward(self, x):
        u, z = self.into(x).transpose(1, 2).chunk(2, dim=1)
        u = F.silu(self.conv(u))
        batch, half, length = u.shape
        dt, B, C = self.x_proj(u.transpose(1, 2).reshape(-1, half)).split(self.parts, -1)
        dt = self.dt_proj(dt).reshape(batch, length, half).transpose(1, 2)
        B, C = (p.reshape(batch, length, -1).transpose(1, 2).contiguous() for p in (B, C))
        y = selective_scan_fn(
            u, dt, -torch.exp(self.logs), B, C, self.D, z=None, delta_softplus=True,
            delta_bias=self.dt_proj.bias.float(), return_last_state=None)
        return self.out(torch.cat([y, z], 1).transpose(1, 2))
"""
# Points: centers sampled, their neighbours pooled, then both ways over the channels, not the steps;
# the compiled gated scan and convolution inside an autograd function.
POINTS = """
import causal_conv1d_cuda
import chamfer
import selective_scan_cuda
import torch
from knn_cuda import KNN
from pointnet2_ops import pointnet2_utils
from torch import nn

class Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, xz, conv, conv_bias, project, step, A, D, bias):
        x, z = xz.chunk(2, dim=1)
        u = causal_conv1d_cuda.causal_conv1d_fwd(x, conv[:, 0], conv_bias, None, True)
        parts = u.transpose(1, 2) @ project.t()
        rank, states = step.shape[1], A.shape[1]
        dt, B, C = parts.split([rank, states, states], -1)
        dt = (dt @ step.t()).transpose(1, 2).contiguous()
        B, C = (part.transpose(1, 2)[:, None].contiguous() for part in (B, C))
        out, chunks, gated = selective_scan_cuda.fwd(u, dt, A, B, C, D, z, bias, True)
        ctx.save_for_backward(chunks, out)
        return gated

class Way(nn.Module):
    def __init__(self, inner, rank, states):
        super().__init__()
        self.conv = nn.Conv1d(inner, inner, 4, groups=inner)
        self.project = nn.Parameter(torch.randn(rank + 2 * states, inner) * 0.2)
        self.step = nn.Linear(rank, inner)
        self.logs = nn.Parameter(torch.rand(inner, states))
        self.D = nn.Parameter(torch.ones(inner))

    def forward(self, xz):
        return Gated.apply(
            xz, self.conv.weight, self.conv.bias, self.project, self.step.weight,
            -torch.exp(self.logs), self.D, self.step.bias)

class Net(nn.Module):
    def __init__(self, centers=6, near=4, width=8):
        super().__init__()
        self.centers, self.near = centers, KNN(k=near, transpose_mode=True)
        self.embed = nn.Sequential(nn.Conv1d(3, width, 1), nn.BatchNorm1d(width), nn.ReLU(True))
        self.into, self.out = nn.Linear(width, 4 * width), nn.Linear(2 * width, width)
        self.ahead, self.back = Way(2 * width, 2, 4), Way(2 * width, 2, 4)
        self.head = nn.Linear(2 * width, 5)

    def forward(self, points):
        batch, count, _ = points.shape
        index = pointnet2_utils.furthest_point_sample(points, self.centers)
        centers = pointnet2_utils.gather_operation(points.transpose(1, 2).contiguous(), index)
        centers = centers.transpose(1, 2).contiguous()
        _, near = self.near(points, centers)
        near = (near + torch.arange(batch).view(-1, 1, 1) * count).view(-1)
        groups = points.view(batch * count, -1)[near].view(batch * self.centers, -1, 3)
        hidden = self.embed(groups.transpose(1, 2) - centers.reshape(-1, 3, 1)).max(2)[0]
        xz = self.into(hidden.view(batch, self.centers, -1)).transpose(1, 2)
        y = self.ahead(xz) + self.back(xz.flip([-2])).flip([-2])
        y = self.out(y.transpose(1, 2))
        return self.head(torch.cat([y[:, 0], y.max(1)[0] + y.mean(1)], -1))
"""
# A forward layer for each direction, with flips around the whole of the second one.
AROUND = """
import torch
from torch import nn
from mamba_ssm import Mamba

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.norm, self.ahead, self.back = nn.LayerNorm(width), Mamba(width), Mamba(width)

    def forward(self, x):
        y = self.norm(x)
        return x + self.ahead(y) + self.back(y.flip(1)).flip(1)
"""
FAMILIES = {
    "vmamba, 16 states": (CROSS_SCAN.replace("{states}", "16"), "x:float32:1,8,6,4", 1),
    "vmamba, 1 state": (CROSS_SCAN.replace("{states}", "1"), "x:float32:1,8,6,4", 1),
    "vmamba, any batch": (CROSS_SCAN.replace("{states}", "4"), "x:float32:N,8,5,3", 1),
    "vim": (INNER, "x:float32:N,11,8", 2),
    "flips around layers": (AROUND, "x:float32:N,9,8", 2),
    "mambavision": (MIXED, "x:float32:2,9,8", 1),
    "mamba3d": (POINTS, "points:float32:2,40,3", 2),
}

CHANNEL_FLIPS = {"mamba3d": 2}  # not of tokens, so they stay


QUICK = ("vmamba, any batch", "flips around layers")  # the others take the same way


@pytest.mark.parametrize(
    "family",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_family(family: str, tmp_path: Path) -> None:
    code, inputs, scans = FAMILIES[family]
    (tmp_path / "family_net.py").write_text(code)
    said: list[str] = []
    model = exported(tmp_path, inputs, said)
    assert [scan.op_type for scan in model.graph.node].count("SelectiveScan") == scans
    removed = kinds(model)
    assert removed["flips"] == CHANNEL_FLIPS.get(family, 0)
    (line,) = [line for line in said if line.startswith("rewrites:")]
    assert line.endswith(f"-> {removed['all']} nodes)")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "scans", "flips"),
    [("vim", 4, 4), ("flips around layers", 2, 2), ("vmamba, 1 state", 1, 2)],
)
def test_as_written(family: str, scans: int, flips: int, tmp_path: Path) -> None:
    code, inputs, _ = FAMILIES[family]
    (tmp_path / "family_net.py").write_text(code)
    said: list[str] = []
    model = exported(tmp_path, inputs, said, rewrite=False)
    assert [node.op_type for node in model.graph.node].count("SelectiveScan") == scans
    assert kinds(model)["flips"] == flips
    assert not [line for line in said if line.startswith("rewrites:")]


def exported(
    folder: Path, inputs: str, said: list[str], *, rewrite: bool = True
) -> onnx.ModelProto:
    """The graph of family_net.py, which agreed with torch in both forms."""
    out = folder / "bundle"
    build_own_model(
        OwnModel("family_net:Net", inputs_from_texts([inputs]), rewrite=rewrite), TARGETS["cpu"],
        out, folder=folder, overwrite=False, tell=said.append,
    )  # fmt: skip
    bundle = read_bundle(out)
    entry = bundle.stage(MODEL)
    assert entry.gate["relative"] < 1e-4
    assert entry.gate.get("native_vs_function", 0.0) < 1e-4
    return onnx.load(bundle.file(entry.graphs["main"].onnx), load_external_data=False)
