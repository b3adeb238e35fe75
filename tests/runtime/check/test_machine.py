"""``mp-check``: true statements, each proved; whatever fails is said and ends with 1."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mambapose.runtime import loading
from mambapose.runtime.backends.loader import BACKENDS
from mambapose.runtime.backends.native import find_library, library_info
from mambapose.runtime.bundle.bundle import file_entry, read_bundle, write_bundle
from mambapose.runtime.bundle.entries import Bundle, GraphEntry, StageEntry, WeightsEntry
from mambapose.runtime.bundle.gate_file import write_gate
from mambapose.runtime.check import machine as check
from mambapose.runtime.check.cli import main
from mambapose.runtime.check.machine import PROBE, PROBE_LIMIT, Finding, probe_case, run_probe
from mambapose.runtime.errors import EngineError
from mambapose.runtime.targets import Schedule
from mambapose.runtime.types import GraphSpec, TensorSpec, Where

SPEC = GraphSpec(
    "main@28x42",
    (TensorSpec("image", "uint8", (1, 28, 42, 3)),),
    (TensorSpec("depth", "float32", (1, 1, 28, 42)),),
)
IMAGE = (np.arange(28 * 42 * 3) % 251).astype(np.uint8).reshape(1, 28, 42, 3)
DEPTH = IMAGE.astype(np.float32).mean(-1)[:, None]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs mp-check; (exit status, lines of output)."""

    def call(*args: object) -> tuple[int, list[str]]:
        status = 0
        try:
            main([str(arg) for arg in args])
        except SystemExit as err:
            status = int(err.code or 0)
        printed = capsys.readouterr()
        assert printed.err == ""
        return status, printed.out.splitlines()

    return call


def make_bundle(
    out: Path, depth: Any = DEPTH, *, trained: bool = True, label: str | None = None
) -> Bundle:
    """A depth stage that averages the colours, with ``depth`` as its stored output."""
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=kinds.FLOAT),
        helper.make_node("ReduceMean", ["real", "last"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "first"], ["depth"]),
    ]
    graph = helper.make_graph(
        nodes,
        "depth",
        [helper.make_tensor_value_info("image", kinds.UINT8, [1, 28, 42, 3])],
        [helper.make_tensor_value_info("depth", kinds.FLOAT, [1, 1, 28, 42])],
        [
            helper.make_tensor("last", kinds.INT64, [1], [-1]),
            helper.make_tensor("first", kinds.INT64, [1], [1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)

    def fill(folder: Path) -> Bundle:
        (folder / "stages").mkdir()
        file, gate = folder / "stages" / "depth.onnx", folder / "gate" / "depth.npz"
        onnx.save(model, file)
        write_gate(gate, {"image": IMAGE}, {"depth": depth})
        entry = GraphEntry(
            SPEC,
            {"onnx": file_entry(folder, "stages/depth.onnx")},
            gate=file_entry(folder, "gate/depth.npz"),
        )
        weights = WeightsEntry(None, None, False)
        if trained:
            numbers = {} if label is None else {"AbsRel": 0.123}
            weights = WeightsEntry("w.pth", "0" * 64, True, label=label, measured=numbers)
        stage = StageEntry("average", "fp32", 0, weights, {SPEC.name: entry})
        return Bundle(folder, "0.1.0", "2026-01-01", "cpu", Schedule(), {"depth": stage})

    return write_bundle(out, fill)


# --- the probe -----------------------------------------------------------------------------------


def test_the_closed_form_is_what_the_oracle_gives() -> None:
    from mambapose.plugins.reference import selective_scan_reference

    inputs, wanted = probe_case()
    both = 2 * check.PROBE_CHANNELS
    found, _ = selective_scan_reference(
        inputs["u"],
        inputs["dt"],
        np.full((both, 1), -np.log(2)),
        inputs["b"],
        inputs["c"],
        np.full(both, check.PROBE_SKIP),
        directions=2,
        reverse=(0, 1),
        delta_softplus=False,
        merge="sum",
    )
    np.testing.assert_allclose(wanted, found, rtol=1e-7)
    assert wanted[0, 0, 0] == pytest.approx(1 + 2 - 2**-7 + 1)  # first step, last step, two skips


def test_the_shipped_probe_is_what_its_script_makes() -> None:
    onnx = pytest.importorskip("onnx")
    from mambapose.export.probe import probe_model

    shipped = onnx.load(str(PROBE))
    made = probe_model()
    onnx.checker.check_model(shipped)
    assert made == shipped, "run: python -m mambapose.export.probe runtime/data/probe.onnx"


def test_the_probe_runs_in_function_form() -> None:
    pytest.importorskip("onnxruntime")
    assert run_probe("onnxruntime") <= PROBE_LIMIT


def test_the_probe_runs_on_the_compiled_operator() -> None:
    pytest.importorskip("onnxruntime")
    library = find_library()
    if library is None or not library_info(library).onnxruntime:
        pytest.skip("the compiled ONNX Runtime operator is not built")
    assert run_probe("onnxruntime", library) <= PROBE_LIMIT


def test_a_backend_that_runs_bundles_alone_has_no_probe(monkeypatch) -> None:
    alone = replace(BACKENDS["onnxruntime"], load_file=None)
    monkeypatch.setitem(BACKENDS, "boards", alone)
    with pytest.raises(EngineError, match=r"single ONNX files was wanted \(onnxruntime\), found b"):
        run_probe("boards")


# --- the machine ---------------------------------------------------------------------------------


def test_this_machine_is_described_and_proved(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    report = tmp_path / "check.txt"
    status, lines = run("--report", report)
    assert status == 0
    text = "\n".join(lines)
    for word in ("mambapose", "python", "numpy", "processor", "operator", "video", "export"):
        assert word in text
    assert "ok   onnxruntime      selective scan, function form: error" in text
    assert "jetson           not run" in text
    assert lines[-2:] == ["all checks passed", f"wrote {report}"]
    written = report.read_text()
    assert written.startswith("mp-check, 20")
    for line in lines[:-1]:
        if "error" not in line:
            assert line in written


def test_a_kernel_that_is_wrong_fails(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    inputs, wanted = probe_case()
    monkeypatch.setattr(check, "probe_case", lambda: (inputs, wanted * np.float32(1.001)))
    status, lines = run()
    assert status == 1
    assert any(line.startswith("FAIL onnxruntime") for line in lines)
    assert lines[-1] == "failed: onnxruntime"


def test_without_a_backend_the_check_fails_and_says_how_to_get_one(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(check, "_version", lambda package: None)
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "onnxruntime" else real(name, *rest),
    )
    status, lines = run()
    assert status == 1
    (line,) = (line for line in lines if line.startswith("FAIL"))
    assert "onnxruntime      absent" in line
    assert "pip install 'mambapose[cpu]'" in line
    assert any("PyAV absent" in line for line in lines)
    assert any("mp-export does not run here" in line for line in lines)


def test_a_library_that_does_not_fit_fails(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = tmp_path / "libmambapose_ort.so"
    library.write_bytes(b"no library")
    monkeypatch.setenv("MAMBAPOSE_LIBRARY", str(library))
    status, lines = run()
    assert status == 1
    assert any(line.startswith("FAIL operator") for line in lines)
    assert lines[-1] == "failed: operator"


def test_no_compiled_operator_is_said_but_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "find_library", lambda operator: None)
    (finding,) = check._library_findings(None)
    assert finding.ok is None
    assert "the slow ONNX form is in use" in finding.text


def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--report", str(tmp_path)])
    assert caught.value.code == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {tmp_path}: a file that can be written was wanted")


def test_findings_line_up() -> None:
    assert str(Finding("flow", "fine", True)) == "ok   flow             fine"
    assert str(Finding("flow", "bad", False)) == "FAIL flow             bad"
    assert str(Finding("flow", "said")) == "     flow             said"


# --- a bundle ------------------------------------------------------------------------------------


def test_a_right_bundle_passes_its_gate(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    made = make_bundle(tmp_path / "bundle", trained=False)
    status, lines = run(made.path)
    assert status == 0
    assert any(line.startswith(f"ok   bundle           {made.path}") for line in lines)
    assert any(line.startswith("ok   depth            average on onnxruntime:") for line in lines)
    assert any("random in depth: results are meaningless" in line for line in lines)


def test_what_is_known_of_the_weights_is_said(run: Any, tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "bundle", label="demonstration")
    _, lines = run(made.path)
    assert any(line.endswith("depth, w.pth: demonstration, AbsRel 0.123") for line in lines)


def test_the_bundle_that_ships_is_looked_at(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "SHIPPED", tmp_path / "cpu")
    assert "default          the bundle that ships" in "\n".join(run()[1])
    make_bundle(tmp_path / "cpu", label="demonstration")
    (line,) = (line for line in run()[1] if " default " in line)
    assert line.startswith("ok   default")
    assert "depth average (demonstration), all files match their hashes" in line
    (tmp_path / "cpu" / "stages" / "depth.onnx").write_bytes(b"something else")
    status, lines = run()
    assert status == 1
    assert lines[-1] == "failed: default"


def test_outputs_that_differ_fail_naming_stage_and_unit(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    made = make_bundle(tmp_path / "bundle", depth=DEPTH * np.float32(1.01))
    status, lines = run(made.path)
    assert status == 1
    (line,) = (line for line in lines if line.startswith("FAIL"))
    assert line == "FAIL depth            average on onnxruntime: depth_relative 0.0099 > 0.001"
    assert lines[-1] == "failed: depth"


def test_a_graph_that_is_not_what_the_bundle_says_fails(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    made = make_bundle(tmp_path / "bundle")
    (made.path / "stages" / "depth.onnx").write_bytes(b"broken")
    finding = check.stage_finding(
        read_bundle(made.path, verify=False), "depth", Where("onnxruntime")
    )
    assert finding.ok is False
    assert "cannot be loaded" in finding.text


@pytest.mark.parametrize("name", ["stages/depth.onnx", "gate/depth.npz"])
def test_a_changed_file_fails_before_anything_runs(run: Any, tmp_path: Path, name: str) -> None:
    made = make_bundle(tmp_path / "bundle")
    data = bytearray((made.path / name).read_bytes())
    data[-20] ^= 1
    (made.path / name).write_bytes(data)
    status, lines = run(made.path)
    assert status == 1
    (line,) = (line for line in lines if line.startswith("FAIL"))
    assert f"file {name} was changed" in line


def test_a_folder_that_is_no_bundle_fails(run: Any, tmp_path: Path) -> None:
    status, lines = run(tmp_path)
    assert status == 1
    assert any("holds no bundle.json" in line for line in lines)
