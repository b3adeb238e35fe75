"""Stand-ins: what an import finds while they are installed, what is noted, and what is refused."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from mambapose.plugins import adapters, mamba_layer, points
from mambapose.plugins.standins import STANDINS, StandIns, install_standins

PACKAGES = sorted({name.partition(".")[0] for name in STANDINS})


@pytest.fixture
def installed() -> Iterator[StandIns]:
    if found := [name for name in PACKAGES if importlib.util.find_spec(name)]:
        pytest.skip(f"a real {found[0]} is installed")
    with install_standins() as noted:
        yield noted


def test_imports_find_them_and_they_go_away(installed: StandIns) -> None:
    assert set(installed.offered) == set(STANDINS)
    interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    assert interface.mamba_inner_fn is adapters.mamba_inner_fn
    from causal_conv1d import causal_conv1d_fn

    assert causal_conv1d_fn is adapters.causal_conv1d_fn


def test_nothing_is_left_behind() -> None:
    with install_standins() as noted:
        pass
    assert not set(noted.offered) & set(sys.modules)


def test_what_was_used_is_noted_once(installed: StandIns) -> None:
    for _ in range(2):
        code = """
from mamba_ssm.modules.mamba_simple import Mamba
from mamba_ssm.ops.triton.layer_norm import RMSNorm, layer_norm_fn
import mamba_ssm
from causal_conv1d.causal_conv1d_interface import *
scan = mamba_ssm.selective_scan_fn
"""
        names: dict[str, object] = {}
        exec(code, names)
        assert names["Mamba"] is mamba_layer.Mamba
        assert names["causal_conv1d_update"] is adapters.causal_conv1d_update
    assert installed.used == [
        "mamba_ssm.modules.mamba_simple.Mamba",
        "mamba_ssm.ops.triton.layer_norm.RMSNorm",
        "mamba_ssm.ops.triton.layer_norm.layer_norm_fn",
        "causal_conv1d.causal_conv1d_interface.causal_conv1d_fn",
        "causal_conv1d.causal_conv1d_interface.causal_conv1d_update",
        "mamba_ssm.selective_scan_fn",
    ]


def test_code_that_asks_first_is_answered(installed: StandIns) -> None:
    """``find_spec`` of a module that has none raises ValueError; many packages ask so."""
    assert importlib.util.find_spec("mamba_ssm") is not None
    assert hasattr(importlib.import_module("mamba_ssm"), "Mamba")
    with pytest.raises(ImportError):
        exec("from mamba_ssm.ops.selective_scan_interface import something_new")
    assert not any("something_new" in name for name in installed.used)


def test_triton_kernels_can_be_defined_but_not_run(installed: StandIns) -> None:
    code = """
import triton
import triton.language as tl

@triton.autotune(configs=[triton.Config({"BLOCK": n}) for n in (32, 64)], key=["N"])
@triton.heuristics({"EVEN": lambda args: True})
@triton.jit
def add(X, N: tl.constexpr, BLOCK: tl.constexpr = tl.constexpr(3)):
    tl.store(X + tl.arange(0, BLOCK), 1)

@triton.jit
def bare(X):
    pass
"""
    names: dict[str, object] = {}
    exec(code, names)
    for kernel in ("add", "bare"):
        with pytest.raises(NotImplementedError, match="torch version"):
            exec(f"{kernel}[(1,)](None)", names)
    assert names["triton"].cdiv(7, 2) == 4  # type: ignore[attr-defined]


def test_configurations_of_kernels_can_be_read(installed: StandIns) -> None:
    """mamba-ssm 2 leaves some out by their number of warps while it is imported."""
    import triton

    configs = [triton.Config({"BLOCK": 64}, num_warps=number) for number in (2, 32)]
    assert [config.kwargs for config in configs if config.num_warps <= 8] == [{"BLOCK": 64}]
    assert triton.Config({}).num_warps == 4


def test_a_loss_can_be_imported_but_not_called(installed: StandIns) -> None:
    import chamfer

    with pytest.raises(NotImplementedError, match=r"a loss of training .*export the part"):
        chamfer.forward(torch.zeros(1, 4, 3), torch.zeros(1, 4, 3))


def test_operators_on_points_are_found(installed: StandIns) -> None:
    from knn_cuda import KNN
    from pointnet2_ops import pointnet2_utils

    assert KNN is points.KNN
    assert pointnet2_utils.furthest_point_sample is points.furthest_point_sample
    assert installed.used == ["knn_cuda.KNN", "pointnet2_ops.pointnet2_utils.furthest_point_sample"]


def test_mamba_2_is_refused_by_name(installed: StandIns) -> None:
    from mamba_ssm import Mamba2
    from mamba_ssm.modules.mamba2 import Mamba2 as same

    assert Mamba2 is same
    with pytest.raises(NotImplementedError, match=r"Mamba2 was found, Mamba-1 was wanted; .*SSD"):
        Mamba2(d_model=64)


def test_installed_packages_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ModuleType("causal_conv1d")
    monkeypatch.setitem(sys.modules, "causal_conv1d", real)
    with install_standins() as noted:
        assert "causal_conv1d" not in noted.offered
        assert sys.modules["causal_conv1d"] is real
    assert sys.modules["causal_conv1d"] is real


def test_a_public_style_module_runs_on_them(installed: StandIns) -> None:
    """A block as language models write it: fused add and norm, then the layer."""
    code = """
import torch
from mamba_ssm import Mamba
from mamba_ssm.ops.triton.layer_norm import RMSNorm, rms_norm_fn

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mixer = RMSNorm(16), Mamba(16, layer_idx=0)
    def forward(self, hidden, residual=None):
        hidden, residual = rms_norm_fn(
            hidden, self.norm.weight, self.norm.bias, residual=residual, prenorm=True,
            residual_in_fp32=True, eps=self.norm.eps)
        return self.mixer(hidden), residual
"""
    names: dict[str, object] = {}
    exec(code, names)
    torch.manual_seed(0)
    block = names["Block"]()  # type: ignore[operator]
    with torch.no_grad():
        hidden, residual = block(torch.randn(2, 5, 16))
        again, kept = block(hidden, residual)
    assert again.shape == (2, 5, 16)
    torch.testing.assert_close(kept, hidden + residual)
