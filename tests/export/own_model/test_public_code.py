"""Public Mamba networks, unmodified: one command each, compared with their own reference scan.

Checkouts are looked for in the folder MAMBAPOSE_PUBLIC, named as their repositories (PoseMamba,
Vim, VMamba, MambaVision, Mamba3D); what they import (timm, einops, ...) has to be installed.
Nothing of their code is in this repository. Weights are drawn from a seed, moved from where they
start, and saved as the repository's training saves them; the command reads that file.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from mambapose.export.build import Loaded, errors_text, facts_of_weights, written_stage
from mambapose.export.checkpoints import load_weights
from mambapose.export.models import vim
from mambapose.export.models.folding import freeze
from mambapose.export.rewrites import kinds
from mambapose.export.verify import open_graph
from mambapose.runtime.bundle.bundle import read_bundle
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.stages.table import MODEL
from mambapose.runtime.types import Array, GraphSpec, TensorSpec

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def _cases() -> Any:
    """The file beside this one, which tests cannot import."""
    file = Path(__file__).with_name("public_cases.py")
    spec = importlib.util.spec_from_file_location("public_cases", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["public_cases"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


PUBLIC = _cases()


@dataclass(frozen=True)
class Answered:
    """A public network's answer with its own scan, the file of its weights, and its bundle.

    without_state: how far the answer moves, as a share, when the recurrence is left out.
    """

    name: str
    case: Any
    x: Array
    wanted: Array
    calls: int
    without_state: float
    weights: Path
    bundle: Bundle
    said: str


def command(words: list[str], folder: Path, *paths: Path) -> str:
    """What a command of ours printed, run in the folder as a user would."""
    found = os.pathsep.join([*map(str, paths), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *words], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": found, "PYTHONDONTWRITEBYTECODE": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def checkouts(case: Any) -> Path:
    folder = os.environ.get("MAMBAPOSE_PUBLIC")
    if not folder:
        pytest.skip("MAMBAPOSE_PUBLIC names no folder of public checkouts")
    wanted = {case.repository, *(path.partition("/")[0] for path in case.own_paths)}
    if case.repository == "MambaVision":
        wanted.add("Vim")  # which holds mamba-ssm's reference scan
    for name in sorted(wanted):
        if not (Path(folder) / name).is_dir():
            pytest.skip(f"no checkout of {name} in {folder}")
    for package in case.packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package}, which public code imports, is not installed")
    return Path(folder).resolve()


@pytest.fixture(scope="module", params=PUBLIC.CASES)
def answered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Answered:
    case = PUBLIC.CASES[request.param]
    folder = checkouts(case)
    work = tmp_path_factory.mktemp(request.param)
    (work / "public_factory.py").write_text(case.code)
    sides = case.inputs.rpartition(":")[2].split(",")
    with PUBLIC.network(case, folder, work) as (model, scan), torch.no_grad():
        PUBLIC.move(model, case.spread)
        x = torch.randn([int(side) if side.isdigit() else 2 for side in sides])
        wanted = model(x)
        calls, scan.without_state = scan.calls, True
        moved = float((model(x) - wanted).abs().max() / wanted.abs().max())
        torch.save(case.wrapped(model.state_dict()), work / "best.pth")
    root = folder / case.repository / case.root
    said = command(
        ["mambapose.export.cli", "--model", "public_factory:make", "--inputs", case.inputs,
         "--weights", str(work / "best.pth"), "--target", "cpu", "--out", str(work / "bundle")],
        root, work,
    )  # fmt: skip
    bundle = read_bundle(work / "bundle")
    return Answered(
        request.param,
        case,
        x.numpy(),
        wanted.numpy(),
        calls,
        moved,
        work / "best.pth",
        bundle,
        said,
    )


def outputs_of(bundle: Bundle, stage: str, x: Array, library: Path | None) -> Array:
    graph = bundle.stage(stage).graphs["main"]
    (given,) = graph.spec.inputs
    (asked,) = graph.spec.outputs
    return open_graph(bundle.file(graph.onnx), library).run({given.name: x})[asked.name]


def check_graph(bundle: Bundle, scans: int, flips: int = 0) -> None:
    """So many flips, and scans of one signature (docs/decisions/0003)."""
    path = bundle.file(bundle.stage(MODEL).graphs["main"].onnx)
    model = onnx.load(path, load_external_data=False)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["mambapose.scan_signatures"] == "1"
    assert sum(node.op_type == "SelectiveScan" for node in model.graph.node) == scans
    assert kinds(model)["flips"] == flips


def test_exports_with_one_command(answered: Answered) -> None:
    entry = answered.bundle.stage(MODEL)
    assert entry.weights.file == "best.pth"
    assert entry.gate["relative"] <= answered.case.limit
    assert entry.gate.get("native_vs_function", 0.0) <= answered.case.limit
    check_graph(answered.bundle, answered.case.scans, answered.case.flips)
    assert answered.case.rewrites in answered.said
    print(f"{answered.name}: {entry.params / 1e6:.2f} M parameters, {errors_text(entry.gate)}")
    checked = command(["mambapose.runtime.check.cli", str(answered.bundle.path)], Path.cwd())
    assert "public_factory:make on onnxruntime" in checked


def test_agrees_with_its_own_scan(answered: Answered, scan_form: Path | None) -> None:
    assert answered.calls == answered.case.calls
    assert answered.without_state > 100 * answered.case.limit
    found = outputs_of(answered.bundle, MODEL, answered.x, scan_form)
    assert found.shape == answered.wanted.shape
    error = np.abs(found - answered.wanted).max() / np.abs(answered.wanted).max()
    print(f"{answered.name}: {error:.2g} of {answered.case.limit:g}")
    assert error <= answered.case.limit


@pytest.mark.parametrize("answered", ["posemamba"], indirect=True)
def test_posemamba_equals_our_own(answered: Answered, tmp_path: Path) -> None:
    """The file of their weights in our network, by our command; ours puts joint 0 at the origin."""
    command(
        ["mambapose.export.cli", "--only", "lift3d", "--lift3d", "posemamba-s", "--weights",
         f"lift3d={answered.weights}", "--clip-frames", "27", "--out", str(tmp_path / "ours")],
        tmp_path,
    )  # fmt: skip
    ours = outputs_of(read_bundle(tmp_path / "ours"), "lift3d", answered.x, None)
    theirs = outputs_of(answered.bundle, MODEL, answered.x, None)
    assert np.abs(theirs[:, :, 0]).max() > 0
    error = np.abs(ours - theirs)[:, :, 1:].max() / np.abs(theirs).max()
    print(f"ours: {error:.2g}")
    assert error <= answered.case.limit


@pytest.mark.parametrize("answered", ["vim"], indirect=True)
def test_vim_equals_our_own(answered: Answered, tmp_path: Path) -> None:
    """The file of their weights in our network, where both directions are one scan."""
    network = vim.build()
    load_weights(network, answered.weights, network="vim-tiny")
    spec = GraphSpec(
        "main", (TensorSpec("x", "float32", (1, 3, 224, 224)),),
        (TensorSpec("y", "float32", (1, 1000)),),
    )  # fmt: skip

    class Classes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = freeze(network)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model.classify(self.model(x))

    entry = written_stage(
        MODEL, "vim-tiny", Loaded(network, facts_of_weights(answered.weights)[1]),
        {"main": (Classes(), spec)}, tmp_path, precision="fp32", options={}, flow_iters=1, seed=0,
    )  # fmt: skip
    ours = open_graph(tmp_path / entry.graphs["main"].onnx).run({"x": answered.x})["y"]
    theirs = outputs_of(answered.bundle, MODEL, answered.x, None)
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"ours: {error:.2g}")
    assert error <= answered.case.limit


@pytest.mark.parametrize(
    ("kind", "rewrites"),
    [("v1", "6 flips, 11 copies removed (49 -> 22 nodes)"),
     ("v2", "2 flips, 12 copies removed (55 -> 33 nodes)")],
)  # fmt: skip
def test_vims_own_layer_is_one_scan(kind: str, rewrites: str, tmp_path: Path) -> None:
    folder = checkouts(PUBLIC.CASES["vim"])
    (tmp_path / "public_factory.py").write_text(PUBLIC.VIM_LAYERS[kind])
    said = command(
        ["mambapose.export.cli", "--model", "public_factory:make", "--inputs",
         "x:float32:1,197,192", "--target", "cpu", "--out", str(tmp_path / "bundle")],
        folder / "Vim/mamba-1p1p1/mamba_ssm/modules", tmp_path,
    )  # fmt: skip
    check_graph(read_bundle(tmp_path / "bundle"), 1)
    assert rewrites in said
