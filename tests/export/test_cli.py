"""``mp-export`` end to end on a small lifter, and every way it is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mambapose.export import build, cli, weights
from mambapose.export.cli import ExportCommand, main
from mambapose.export.models import NETWORKS, posemamba
from mambapose.export.official_files import OfficialFile
from mambapose.export.plan import ExportOptions, make_plan
from mambapose.runtime.backends.loader import load_engine
from mambapose.runtime.bundle.bundle import read_bundle
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.bundle.gate_file import read_gate
from mambapose.runtime.targets import TARGETS
from mambapose.runtime.types import Where

from ..export_cache import reused_stages

SMALL = {"width": 16, "depth": 1}
LIFTER = ("--only", "lift3d", "--lift3d", "posemamba-s", "--clip-frames", "9")
KNOWN = (*LIFTER, "--untrained", "--seed", "3")


@pytest.fixture(scope="module", autouse=True)
def small_lifter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """posemamba-s as a network that exports in seconds; no weights ship."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "FOLDER", tmp_path_factory.mktemp("shipped"))
        small = replace(NETWORKS["posemamba-s"], config=SMALL)
        patch.setitem(NETWORKS, "posemamba-s", small)
        yield


class Outcome:
    """Exit status and what was printed."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def export(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*args: object) -> Outcome:
        status = 0
        try:
            main([str(arg) for arg in args])
        except SystemExit as err:
            status = int(err.code or 0)
        printed = capsys.readouterr()
        return Outcome(status, printed.out, printed.err)

    return run


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One small bundle for the tests that only read it."""
    out = tmp_path_factory.mktemp("export") / "bundle"
    with reused_stages():
        main([*KNOWN, "--out", str(out)])
    return read_bundle(out)


def refused(outcome: Outcome, *parts: str) -> None:
    """One line on stderr, exit 1."""
    assert outcome.status == 1
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


# --- what it makes -------------------------------------------------------------------------------


def test_the_bundle_describes_what_is_in_it(bundle: Bundle) -> None:
    stage = bundle.stage("lift3d")
    assert list(bundle.stages) == ["lift3d"]
    assert (stage.network, stage.precision, stage.opset, stage.scan_spec) == (
        "posemamba-s",
        "fp32",
        18,
        1,
    )
    model = posemamba.build(**SMALL)
    assert stage.params == sum(parameter.numel() for parameter in model.parameters())
    assert not stage.weights.trained
    assert stage.weights.file is None
    assert not bundle.trained
    assert bundle.schedule.clip_frames == 9
    assert bundle.schedule.hop == 3
    assert stage.options == {"unit": "image"}  # of PoseMamba's published weights
    assert 0 <= stage.gate["joint_mm"] < 0.05
    graph = stage.graphs["main"]
    assert graph.spec.inputs[0].shape == ("N", 9, 17, 2)
    assert [graph.forms[form].path for form in ("onnx", "trt")] == [
        "stages/lift3d.onnx",
        "stages/lift3d.trt.onnx",
    ]
    names = {"LICENSE", "NOTICE", "bundle.json", "gate", "stages"}
    assert {path.name for path in bundle.path.iterdir()} == names
    assert [file.path for file in bundle.notices] == ["NOTICE", "LICENSE"]


def test_the_engine_gives_what_the_torch_network_gives(bundle: Bundle) -> None:
    inputs, stored = read_gate(bundle, bundle.graph("lift3d", "main"))
    module, _ = posemamba.graphs(posemamba.build(seed=3, **SMALL), 9)["main"]
    with torch.no_grad():
        wanted = module(torch.from_numpy(inputs["keypoints"])).numpy()
    with load_engine(bundle, "lift3d", "main", Where("onnxruntime")) as engine:
        found = engine.run(inputs)["xyz"]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    np.testing.assert_allclose(stored["xyz"], wanted, atol=1e-4)


def test_checkpoints_are_loaded_and_named(bundle: Bundle, tmp_path: Path, export: Any) -> None:
    state = posemamba.build(seed=3, **SMALL).state_dict()
    file = tmp_path / "PoseMamba_S.bin"
    torch.save({"model_pos": {f"module.{key}": value for key, value in state.items()}}, file)
    done = export(*LIFTER, "--weights", f"lift3d={file}", "--out", tmp_path / "out")
    assert done.status == 0, done.err
    made = read_bundle(tmp_path / "out")
    assert made.trained
    assert made.stage("lift3d").weights.file == "PoseMamba_S.bin"
    # The same numbers under the same seed: the same graph and weights, byte for byte.
    name = "stages/lift3d.data"
    assert (made.path / name).read_bytes() == (bundle.path / name).read_bytes()
    assert "untrained" not in done.out
    assert done.out.splitlines()[-2].startswith(f"wrote {tmp_path / 'out'}: lift3d, ")
    assert done.out.splitlines()[-1].startswith("next: mp-run --engine ")


def test_downloaded_weights_carry_their_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "PoseMamba_S.bin"
    torch.save(posemamba.build(**SMALL).state_dict(), file)
    asked, said = [], []

    def download(source: OfficialFile, tell: Any) -> Path:
        asked.append(source.name)
        tell(f"{source.name}: from a test")
        return file

    monkeypatch.setattr(build, "download", download)
    options = ExportOptions(only=("lift3d",), clip_frames=9, download=("posemamba-s",))
    (stage,) = make_plan(TARGETS["cpu"], options).stages
    loaded = build.load_network(stage, 0, said.append).weights
    assert asked == ["posemamba-s"]
    assert said == ["posemamba-s: from a test"]
    assert loaded.trained
    assert loaded.licence is not None
    assert "Human3.6M" in loaded.licence


def test_random_weights_are_marked_aloud(tmp_path: Path, export: Any) -> None:
    done = export(*LIFTER, "--untrained", "--flip", "--out", tmp_path / "out")
    assert done.status == 0, done.err
    assert "untrained: lift3d (random weights, results are meaningless)" in done.out
    options = read_bundle(tmp_path / "out").stage("lift3d").options
    assert options == {"unit": "image", "flip": True}


# --- a detector ----------------------------------------------------------------------------------


def detector(path: Path, cells: int = 84, **changes: Any) -> Path:
    """An ONNX file of the YOLOX layout for 64 x 64 images that averages the picture."""
    from onnx import TensorProto, helper, save

    image = helper.make_tensor_value_info(
        "images", changes.get("dtype", TensorProto.FLOAT), changes.get("shape", [1, 3, 64, 64])
    )
    rows = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, cells, 85])
    nodes = [
        helper.make_node("Cast", ["images"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["real"], ["mean"], keepdims=0),
        helper.make_node("Expand", ["mean", "shape"], ["output"]),
    ]
    shape = helper.make_tensor("shape", TensorProto.INT64, [3], [1, cells, 85])
    graph = helper.make_graph(nodes, "detector", [image], [rows], [shape])
    opsets = [helper.make_opsetid("", 18)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.mark.usefixtures("kept_stages")
def test_a_detector_is_copied_with_its_contract(tmp_path: Path, export: Any) -> None:
    file = detector(tmp_path / "person.onnx")
    done = export(*KNOWN, "--detect", file, "--out", tmp_path / "out")
    assert done.status == 0, done.err
    made = read_bundle(tmp_path / "out")
    stage = made.stage("detect")
    assert (stage.network, stage.options) == ("person", {"layout": "yolox"})
    graph = made.graph("detect", "main")
    assert made.file(graph.onnx).read_bytes() == file.read_bytes()
    inputs, outputs = read_gate(made, graph)
    np.testing.assert_allclose(outputs["output"], inputs["images"].mean(), rtol=1e-5)


@pytest.mark.usefixtures("kept_stages")
def test_a_downloaded_detector_goes_the_same_way(
    tmp_path: Path, export: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = detector(tmp_path / "yolox_nano.onnx")
    monkeypatch.setattr(build, "download", lambda source, tell: file)
    asked = ("--download", "yolox-nano", "--out", tmp_path / "out")
    done = export(*KNOWN, *asked)
    assert done.status == 0, done.err
    made = read_bundle(tmp_path / "out")
    stage = made.stage("detect")
    assert (stage.network, stage.options) == ("yolox_nano", {"layout": "yolox"})
    assert stage.weights.licence == "Apache-2.0"
    assert (made.path / made.graph("detect", "main").onnx).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    "changes", [{"cells": 85}, {"shape": [1, 64, 64, 3]}, {"shape": [1, 3, 60, 64]}, {"dtype": 2}]
)
def test_another_layout_is_refused(tmp_path: Path, export: Any, changes: dict[str, Any]) -> None:
    file = detector(tmp_path / "person.onnx", **changes)
    done = export(*LIFTER, "--untrained", "--detect", file, "--out", tmp_path / "out")
    refused(done, "person.onnx: ", "its layout is not known", "supported is YOLOX")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["person.onnx"]


def test_a_detector_that_is_no_onnx_file_is_refused(tmp_path: Path, export: Any) -> None:
    file = tmp_path / "person.onnx"
    file.write_text("hello")
    done = export(*LIFTER, "--untrained", "--detect", file, "--out", tmp_path / "out")
    refused(done, "person.onnx: an ONNX model was wanted")


# --- what is refused -----------------------------------------------------------------------------


def test_a_checkpoint_of_another_network_names_the_first_keys(tmp_path: Path, export: Any) -> None:
    state = posemamba.build(width=32, depth=1).state_dict()
    state["extra.weight"] = state.pop("head.1.weight")
    file = tmp_path / "other.pth"
    torch.save(state, file)
    done = export(*LIFTER, "--weights", f"lift3d={file}", "--out", tmp_path / "out")
    refused(done, "posemamba-s", "missing (first: head.1.weight", "unexpected (first: extra.weight")
    assert "misshaped (first: " in done.err
    assert list(tmp_path.iterdir()) == [file]


class Attack:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_a_malicious_pickle_is_refused_and_nothing_runs(tmp_path: Path, export: Any) -> None:
    file = tmp_path / "evil.pth"
    torch.save({"state_dict": Attack(tmp_path / "ran")}, file)
    done = export(*LIFTER, "--weights", f"lift3d={file}", "--out", tmp_path / "out")
    refused(done, "evil.pth")
    assert list(tmp_path.iterdir()) == [file]


def test_a_truncated_safetensors_file_is_refused(tmp_path: Path, export: Any) -> None:
    file = tmp_path / "short.safetensors"
    save_file(posemamba.build(**SMALL).state_dict(), file)
    file.write_bytes(file.read_bytes()[:-100])
    done = export(*LIFTER, "--weights", f"lift3d={file}", "--out", tmp_path / "out")
    refused(done, "short.safetensors", "download it again")
    assert list(tmp_path.iterdir()) == [file]


def test_an_existing_folder_is_refused_before_any_work(
    bundle: Bundle, export: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "build_bundle", lambda *a, **k: pytest.fail("work was done"))
    before = (bundle.path / "bundle.json").read_bytes()
    refused(export(*LIFTER, "--untrained", "--out", bundle.path), "exists already", "--overwrite")
    assert (bundle.path / "bundle.json").read_bytes() == before


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--size", "flow=120x256"), "multiples of 8 from 128"),
        (("--size", "depth=250x336"), "multiples of 14"),
        (("--target", "jetson-nano"), "target 'jetson-nano' is not known; use one of:"),
        (("--pose2d", "hrnet"), "network 'hrnet' is not known"),
        (("--weights", "flow=/no/file.pth"), "found no file at /no/file.pth"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    tmp_path: Path, export: Any, args: tuple[str, ...], sentence: str
) -> None:
    refused(export(*args, "--untrained", "--out", tmp_path / "out"), sentence)
    assert list(tmp_path.iterdir()) == []


def test_weights_are_asked_for(tmp_path: Path, export: Any) -> None:
    done = export("--out", tmp_path / "out")
    refused(done, "weights were wanted for pose2d, lift3d", "--untrained")


@pytest.mark.parametrize(
    "args",
    [
        ("--size", "flow=192"),
        ("--size", "flow"),
        ("--size", "flow=128x128", "--size", "flow=192x192"),
        ("--weights", "x.pth"),
        ("--precision", "fp64"),
        ("--no-such-option",),
        ("stray",),
    ],
)
def test_usage_errors_exit_with_2(export: Any, args: tuple[str, ...]) -> None:
    done = export(*args)
    assert done.status == 2
    assert "Usage: mp-export" in done.err


def test_a_full_disk_leaves_what_was_there(
    bundle: Bundle, export: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    before = {p: p.read_bytes() for p in bundle.path.parent.rglob("*") if p.is_file()}
    monkeypatch.setattr(onnx, "save_model", full)
    done = export(*LIFTER, "--untrained", "--overwrite", "--out", bundle.path)
    refused(done, "No space left on device; nothing was changed")
    after = {p: p.read_bytes() for p in bundle.path.parent.rglob("*") if p.is_file()}
    assert after == before


def test_ctrl_c_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys, time
        from mambapose.export import build, cli, weights
        def slow(plan, stage, network, folder, trt):
            (folder / "half.onnx").write_bytes(b"half")
            time.sleep(60)
        build.export_stage = slow
        cli.main(sys.argv[1:])
        """
    )
    command = [sys.executable, "-c", script, *LIFTER, "--untrained", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True,
        # A shell's background job ignores Ctrl-C, and so does what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("half.onnx")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.strip() == "interrupted: nothing was written"
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_one_line(
    tmp_path: Path, export: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    done = export(*LIFTER, "--untrained", "--out", tmp_path / "out")
    refused(done, "exporting needs onnxscript", "pip install 'mambapose[export]'")


# --- what it prints ------------------------------------------------------------------------------


def test_a_dry_run_prints_the_plan_and_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from mambapose.export.cli import main\n"
        "main(['--dry-run', '--untrained', '--out', sys.argv[1]])\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 7
    assert lines[1].split()[:2] == ["flow", "raft-small"]
    assert lines[-1] == "[]"
    assert list(tmp_path.iterdir()) == []


def test_help_lists_every_option_under_a_heading(export: Any) -> None:
    done = export("--help")
    assert done.status == 0
    assert "Usage: mp-export" in done.out
    listed = {name for _, names in ExportCommand.headings for name in names}
    assert listed == {str(param.name) for param in cli.command.params} - {"version"}
    for heading, _ in ExportCommand.headings:
        assert f"{heading}:" in done.out
