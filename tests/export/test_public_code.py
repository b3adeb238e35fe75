"""Public Mamba networks, unmodified: each exports with one command and agrees with torch.

Checkouts are looked for in the folder MAMBAPOSE_PUBLIC, named as their repositories (PoseMamba,
Vim, VMamba, MambaVision); what they import (timm, einops, ...) has to be installed. Nothing of
their code is in this repository.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mambapose.export.bring import Brought, build_brought
from mambapose.export.models import posemamba, vim
from mambapose.export.user_model import built, inputs_from_texts, user_code
from mambapose.runtime.bundle import MODEL, Bundle, read_bundle
from mambapose.runtime.targets import TARGETS


@dataclass(frozen=True)
class Public:
    """repository: folder name; root: where its imports start; code: a factory called ``make``;
    scans: selective-scan nodes of the graph; flips: those that the rewrites remove, all there are;
    nodes: of the graph as written, and after the rewrites."""

    repository: str
    root: str
    code: str
    inputs: str
    scans: int
    flips: int
    nodes: tuple[int, int]


def vssm(options: str) -> str:
    sizes = "depths=[1, 1, 1, 1], dims=32, ssm_ratio=1.0, imgsize=64"
    kinds = 'downsample_version="v3", patchembed_version="v2"'
    return f"from vmamba import VSSM\ndef make(): return VSSM({sizes}, {kinds}, {options})\n"


CASES = {
    "posemamba": Public(
        "PoseMamba", ".",
        "from lib.model.PoseMamba import PoseMamba\n"
        "def make(): return PoseMamba(num_frame=243, embed_dim_ratio=64, mlp_ratio=2, depth=2)\n",
        "x:float32:1,27,17,2", 8, 8, (293, 194),
    ),
    "vim": Public(
        "Vim", "vim",
        "import models_mamba\n"
        "def make():\n"
        "    name = 'vim_tiny_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_'\n"
        "    return getattr(models_mamba, name + 'with_midclstok_div2')()\n",
        "x:float32:1,3,224,224", 24, 0, (807, 759),
    ),
    "vmamba-1": Public(
        "VMamba", ".",
        vssm('ssm_d_state=1, ssm_conv_bias=False, forward_type="v05_noz", norm_layer="ln2d"'),
        "x:float32:1,3,64,64", 4, 8, (305, 147),
    ),
    "vmamba-16": Public(
        "VMamba", ".", vssm('ssm_d_state=16, forward_type="v05"'), "x:float32:1,3,64,64", 4, 8,
        (305, 157),
    ),
    "vim layer v1": Public(
        "Vim", "mamba-1p1p1/mamba_ssm/modules",
        "from mamba_simple import Mamba\n"
        "def make(): return Mamba(192, expand=2, bimamba_type='v1')\n",
        "x:float32:1,197,192", 1, 6, (49, 22),
    ),
    "vim layer v2": Public(
        "Vim", "mamba-1p1p1/mamba_ssm/modules",
        "from mamba_simple import Mamba\n"
        "def make(): return Mamba(192, expand=2, bimamba_type='v2', if_divide_out=True)\n",
        "x:float32:1,197,192", 1, 2, (55, 33),
    ),
    "mambavision": Public(
        "MambaVision", ".",
        "from mambavision.models.mamba_vision import MambaVision\n"
        "def make(): return MambaVision(\n"
        "    depths=[1, 1, 2, 2], num_heads=[2, 4, 8, 16], window_size=[8, 8, 14, 7], dim=32,\n"
        "    in_dim=32, mlp_ratio=4, resolution=224, drop_path_rate=0.0)\n",
        "x:float32:1,3,224,224", 2, 0, (201, 177),
    ),
}  # fmt: skip


def checkout(case: Public) -> Path:
    folder = os.environ.get("MAMBAPOSE_PUBLIC")
    if not folder:
        pytest.skip("MAMBAPOSE_PUBLIC names no folder of public checkouts")
    root = Path(folder) / case.repository / case.root
    if not root.is_dir():
        pytest.skip(f"no checkout of {case.repository} in {folder}")
    pytest.importorskip("timm", reason="timm, which public code imports, is not installed")
    return root


def exported(
    case: Public, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> Bundle:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "public_factory.py").write_text(case.code)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    asked = Brought("public_factory:make", inputs_from_texts([case.inputs]))
    out = tmp_path / "bundle"
    monkeypatch.delitem(sys.modules, "public_factory", raising=False)
    build_brought(
        asked, TARGETS["cpu"], out, folder=root, overwrite=False, tell=said.append
    )  # fmt: skip
    return read_bundle(out)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_exports_unmodified(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx
    import onnx_ir as ir

    from mambapose.export.rewrites.movement import is_flip

    case = CASES[name]
    said: list[str] = []
    bundle = exported(case, checkout(case), tmp_path, monkeypatch, said)
    entry = bundle.stage(MODEL)
    assert entry.gate["relative"] < 1e-4
    assert entry.gate.get("native_vs_function", 0.0) < 1e-4
    path = bundle.file(entry.graphs["main"].file)
    model = onnx.load(path, load_external_data=False)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["mambapose.scan_signatures"] == "1"  # docs/decisions/0003
    graph = model.graph
    assert sum(node.op_type == "SelectiveScan" for node in graph.node) == case.scans
    (line,) = [line for line in said if line.startswith("rewrites:")]
    assert line.startswith(f"rewrites: {case.flips} flips, ") or not case.flips
    assert line.endswith(f"removed ({case.nodes[0]} -> {case.nodes[1]} nodes)")
    assert len(graph.node) == case.nodes[1]
    assert not any(is_flip(node) for node in ir.from_proto(graph))


def their_answer(
    case: Public, x: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spread: float
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Weights, moved a little from where they start, and answer of the public code."""
    (tmp_path / "public_factory.py").write_text(case.code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "public_factory", raising=False)
    with user_code(checkout(case)), torch.no_grad():
        theirs = built("public_factory:make")
        for parameter in theirs.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
        return theirs.state_dict(), theirs(x)


@pytest.mark.filterwarnings("ignore")
def test_posemamba_equals_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights in their code and in ours."""
    torch.manual_seed(0)
    x = torch.randn(2, 27, 17, 2)
    weights, wanted = their_answer(CASES["posemamba"], x, tmp_path, monkeypatch, 0.05)
    ours = posemamba.build(depth=2)
    ours.load_state_dict(weights)
    with torch.no_grad():
        found = ours(x)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.filterwarnings("ignore")
def test_vim_equals_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 224, 224)
    weights, wanted = their_answer(CASES["vim"], x, tmp_path, monkeypatch, 0.02)
    ours = vim.build()
    ours.load_state_dict(weights)
    with torch.no_grad():
        found = ours.classify(ours(x))
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
