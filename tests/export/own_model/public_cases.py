"""Public Mamba networks for test_public_code.py: where each is, and how its own scan is run.

Nothing here is their code: factories of a few lines, and the names under which each repository
keeps its reference scan. The functions ``run_*`` put that scan where the compiled one would be,
while the network's code is imported, and note its calls.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from mambapose.export.own_model.network import built, user_code

Scan = Callable[..., Any]


@dataclass
class OwnScan:
    """A repository's reference scan. calls: so far; without_state: leave the recurrence out."""

    scan: Scan
    calls: int = 0
    without_state: bool = False

    def __call__(self, u, delta, A, B, C, *rest, **options):  # type: ignore[no-untyped-def]
        self.calls += 1
        B = torch.zeros_like(B) if self.without_state else B
        return self.scan(u, delta, A, B, C, *rest, **options)


@dataclass(frozen=True)
class Public:
    """repository: folder name; root: where its imports start; code: a factory called ``make``.

    scans: selective-scan nodes of the graph; calls: of the reference scan, for the same; rewrites:
    what the command says of them; flips: that stay, of channels; limit: of the relative error,
    golden/README's for the family; spread: of what is added to the weights; run_own_scan: given
    the folder of checkouts, puts the scan in its place and returns it; own_paths: folders of
    checkouts whose packages then come before the stand-ins; wrapped: a state dict as the
    repository's training saves it; packages: that the code imports.
    """

    repository: str
    code: str
    inputs: str
    scans: int
    calls: int
    rewrites: str
    limit: float
    run_own_scan: Callable[[Path], OwnScan]
    wrapped: Callable[[dict[str, torch.Tensor]], dict[str, Any]]
    root: str = "."
    flips: int = 0
    own_paths: tuple[str, ...] = ()
    spread: float = 0.02
    packages: tuple[str, ...] = ("timm", "einops")


@contextlib.contextmanager
def network(case: Public, folder: Path, factory: Path) -> Iterator[Any]:
    """(The public network, its own scan in place); everything it imported is forgotten after."""
    before, paths, here = set(sys.modules), list(sys.path), Path.cwd()
    sys.path[:0] = [*(str(folder / path) for path in case.own_paths), str(factory)]
    os.chdir(folder / case.repository / case.root)
    try:
        with user_code(Path.cwd()):
            torch.manual_seed(0)
            model = built("public_factory:make")
            yield model, case.run_own_scan(folder)
    finally:
        os.chdir(here)
        sys.path[:] = paths
        # Mamba3D's utils has no file of its own: a folder without __init__.py.
        for name in set(sys.modules) - before:
            place = str(getattr(sys.modules[name], "__file__", None) or "")
            if place.startswith((str(folder), str(factory))) or name.partition(".")[0] == "utils":
                del sys.modules[name]


def move(model: torch.nn.Module, spread: float) -> None:
    """Weights away from where they start, and larger steps and state: the recurrence counts."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(spread * torch.randn_like(parameter))
            if "x_proj" in name:
                parameter.mul_(4)
            if "dt_proj" in name and "bias" in name:
                parameter.add_(2)


def loaded(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"public_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gated(scan: Scan) -> Scan:
    """selective_scan_cuda.fwd: (y, chunks, gated y), chunks are of use for gradients only."""

    def forward(u, delta, A, B, C, D, z, bias, softplus):  # type: ignore[no-untyped-def]
        return None, None, scan(u, delta, A, B, C, D, z, bias, softplus)

    return forward


def run_posemamba(folder: Path) -> OwnScan:
    """The reference of their kernels' test, for selective_scan_cuda_core.fwd."""
    file = folder / "PoseMamba/kernels/selective_scan/test_selective_scan.py"
    scan = OwnScan(loaded(file).selective_scan_ref)

    def forward(u, delta, A, B, C, D, bias, softplus, rows):  # type: ignore[no-untyped-def]
        return scan(u, delta, A, B, C, D, None, bias, softplus), None

    sys.modules["selective_scan_cuda_core"].fwd = forward  # type: ignore[attr-defined]
    return scan


def run_vim(folder: Path) -> OwnScan:
    """Their mamba-1p1p1 runs as it is; under it their reference scan, convolution and norm."""
    scans = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    norms = importlib.import_module("mamba_ssm.ops.triton.layer_norm")
    convolve = importlib.import_module("causal_conv1d.causal_conv1d_interface").causal_conv1d_ref
    assert Path(scans.__file__ or "").is_relative_to(folder)
    scan = OwnScan(scans.selective_scan_ref)

    def convolution(x, weight, bias, *rest):  # type: ignore[no-untyped-def]
        return convolve(x, weight, bias, activation="silu" if rest[-1] else None)

    def norm(*arguments, residual_in_fp32, **options):  # type: ignore[no-untyped-def]
        return norms.rms_norm_ref(*arguments, **options)

    scans.selective_scan_cuda.fwd = gated(scan)
    scans.causal_conv1d_cuda.causal_conv1d_fwd = convolution
    sys.modules["models_mamba"].rms_norm_fn = norm  # type: ignore[attr-defined]
    return scan


def run_vmamba(folder: Path) -> OwnScan:
    """What their code does itself where no kernel is installed."""
    code: Any = sys.modules["vmamba"]
    code.WITH_SELECTIVESCAN_MAMBA = False
    code.selective_scan_torch = scan = OwnScan(code.selective_scan_torch)
    return scan


def run_mambavision(folder: Path) -> OwnScan:
    """mamba-ssm's reference scan, which Vim's checkout holds."""
    file = folder / "Vim/mamba-1p1p1/mamba_ssm/ops/selective_scan_interface.py"
    scan = OwnScan(loaded(file).selective_scan_ref)
    sys.modules["mambavision.models.mamba_vision"].selective_scan_fn = scan  # type: ignore[attr-defined]
    return scan


def run_mamba3d(folder: Path) -> OwnScan:
    code: Any = sys.modules["ops.selective_scan_interface"]
    scan = OwnScan(code.selective_scan_ref)
    code.selective_scan_cuda.fwd = gated(scan)
    return scan


def vssm(options: str) -> str:
    sizes = "depths=[1, 1, 1, 1], dims=32, ssm_ratio=1.0, imgsize=64"
    kinds = 'downsample_version="v3", patchembed_version="v2"'
    return f"from vmamba import VSSM\ndef make(): return VSSM({sizes}, {kinds}, {options})\n"


def vmamba(options: str, rewrites: str) -> Public:
    return Public(
        "VMamba", vssm(options), "x:float32:1,3,64,64", scans=4, calls=4, limit=1e-5,
        rewrites=rewrites, run_own_scan=run_vmamba, spread=0.1,
        packages=("timm", "einops", "fvcore"),
        wrapped=lambda state: {"model": state, "epoch": 9, "max_accuracy": 0.0},
    )  # fmt: skip


CASES = {
    "posemamba": Public(
        "PoseMamba",
        "from lib.model.PoseMamba import PoseMamba\n"
        "def make(): return PoseMamba(num_frame=243, embed_dim_ratio=64, mlp_ratio=2, depth=10)\n",
        "x:float32:N,27,17,2", scans=40, calls=20, limit=5e-5,
        rewrites="40 flips, 442 copies removed (1658 -> 914 nodes)", run_own_scan=run_posemamba,
        wrapped=lambda state: {
            "epoch": 9, "lr": 2e-4, "min_loss": 1.0,
            "model_pos": {f"module.{key}": value for key, value in state.items()},
        },
    ),
    "vim": Public(
        "Vim",
        "import models_mamba\n"
        "def make():\n"
        "    name = 'vim_tiny_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_'\n"
        "    return getattr(models_mamba, name + 'with_midclstok_div2')()\n",
        "x:float32:1,3,224,224", scans=24, calls=48, limit=2e-5,
        rewrites="(807 -> 759 nodes)", run_own_scan=run_vim,
        wrapped=lambda state: {"model": state, "epoch": 9, "scaler": None},
        root="vim", own_paths=("Vim/mamba-1p1p1", "Vim/causal-conv1d"),
        packages=("timm", "einops", "transformers"),
    ),
    "vmamba-1": vmamba(
        'ssm_d_state=1, ssm_conv_bias=False, forward_type="v05_noz", norm_layer="ln2d"',
        "(305 -> 147 nodes)",
    ),
    "vmamba-16": vmamba('ssm_d_state=16, forward_type="v05"', "(305 -> 157 nodes)"),
    "mambavision": Public(
        "MambaVision",
        "from mambavision.models.mamba_vision import MambaVision\n"
        "def make(): return MambaVision(\n"
        "    depths=[1, 1, 2, 2], num_heads=[2, 4, 8, 16], window_size=[8, 8, 14, 7], dim=32,\n"
        "    in_dim=32, mlp_ratio=4, resolution=224, drop_path_rate=0.0)\n",
        "x:float32:1,3,224,224", scans=2, calls=2, limit=2e-5,
        rewrites="(201 -> 177 nodes)", run_own_scan=run_mambavision,
        wrapped=lambda state: {"state_dict": state, "arch": "mamba_vision", "epoch": 9},
    ),
    "mamba3d": Public(
        "Mamba3D",
        "import sys\n"
        "import utils\n"  # before the folder of the same name inside models/bimamba_ssm
        "sys.path.append('models/bimamba_ssm')\n"
        "from easydict import EasyDict\n"
        "from models.Mamba3D import Mamba3D\n"
        "def make(): return Mamba3D(EasyDict(\n"
        "    trans_dim=96, depth=2, drop_path_rate=0.1, cls_dim=15, num_heads=6, group_size=16,\n"
        "    num_group=32, encoder_dims=96, bimamba_type='v4', center_local_k=4, ordering=False,\n"
        "    label_smooth=0.0))\n",
        "x:float32:1,512,3", scans=4, calls=4, limit=2e-5, rewrites="(563 -> 529 nodes)",
        run_own_scan=run_mamba3d, flips=4,
        wrapped=lambda state: {"base_model": state, "epoch": 9, "metrics": {"acc": 0.0}},
        packages=("timm", "einops", "easydict", "transformers", "matplotlib"),
    ),
}  # fmt: skip
# Vim's own layer in place of ours, with all its flips: factory by type.
VIM_LAYERS = {
    kind: (
        "from mamba_simple import Mamba\n"
        f"def make(): return Mamba(192, expand=2, bimamba_type='{kind}', if_divide_out=True)\n"
    )
    for kind in ("v1", "v2")
}
