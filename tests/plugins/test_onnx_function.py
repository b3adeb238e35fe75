"""The function body in standard operators, and the form of a model for TensorRT."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper

from mambapose.plugins.onnx_function import attach_functions, inline_functions, strip_functions
from mambapose.plugins.reference import selective_scan_reference
from mambapose.runtime.backends.native import SIGNATURES_KEY
from mambapose.runtime.errors import ExportError


def test_body_agrees_with_the_oracle(scan_case, limit, scans):
    model = scans.model(scan_case, free_batch=True)
    attach_functions(model)
    onnx.checker.check_model(model, full_check=True)
    y, state = scans.run(scans.session(model), scan_case)
    wanted = selective_scan_reference(**scan_case.arguments, **scan_case.attributes)
    scans.close("y", y, wanted[0], limit)
    scans.close("final_state", state, wanted[1], 5e-6)
    assert y.dtype == scan_case.arguments["u"].dtype


def test_inlined_body_agrees_with_the_function(scan_case, scans):
    model = scans.model(scan_case)
    attach_functions(model)
    inlined = inline_functions(model)
    assert not inlined.functions
    assert all(node.domain == "" for node in inlined.graph.node)
    for found, wanted in zip(
        scans.run(scans.session(inlined), scan_case),
        scans.run(scans.session(model), scan_case),
        strict=True,
    ):
        scans.close("inlined", found, wanted, 1e-6)


def test_small_steps_keep_their_precision(scans):
    """Where networks start, softplus(dt) near 1e-3, log(1 + e) alone would be off by 6e-5."""
    case = scans.case(L=64, D=8, N=4)
    case.arguments["dt"][...] = np.linspace(-9, -5, 64, dtype=np.float32)[None, :, None]
    model = scans.model(case)
    attach_functions(model)
    y, _ = scans.run(scans.session(model), case)
    scans.close("y", y, selective_scan_reference(**case.arguments, **case.attributes)[0], 2e-6)


def _two_layers(scans):
    """Two scans with different signatures, the second fed by the first, no intermediate types."""
    case = scans.case(D=6, N=3, K=1)
    model = scans.model(case)
    second = model.graph.node.add()
    second.CopyFrom(model.graph.node[0])
    second.name, second.input[0] = "scan2", "doubled"
    del second.output[:]
    second.output.extend(["y2", "final_state2"])
    reverse = next(entry for entry in second.attribute if entry.name == "reverse")
    reverse.ints[:] = [1]
    model.graph.node.insert(1, helper.make_node("Add", ["y", "y"], ["doubled"]))
    model.graph.output[0].name = "y2"
    model.graph.output[1].name = "final_state2"
    return case, model


def test_signatures_get_a_body_each(scans):
    case, model = _two_layers(scans)
    attach_functions(model)
    assert model.ir_version >= 10
    assert len({function.overload for function in model.functions}) == 2
    called = [node.overload for node in model.graph.node if node.op_type == "SelectiveScan"]
    assert called == [function.overload for function in model.functions]
    onnx.checker.check_model(model, full_check=True)
    assert [(p.key, p.value) for p in model.metadata_props] == [(SIGNATURES_KEY, "2")]
    scans.need_onnxruntime(27, "overlooks the overload field")
    session = scans.session(model)
    feed = {f"in_{name}": array for name, array in case.arguments.items() if name != "A"}
    y2 = session.run(["y2"], feed)[0]
    first, _ = selective_scan_reference(**case.arguments, **case.attributes)
    attributes = {**case.attributes, "reverse": [1]}
    wanted, _ = selective_scan_reference(**{**case.arguments, "u": 2 * first}, **attributes)
    scans.close("y2", y2, wanted, 2e-6)


def test_attaching_twice_changes_nothing(scans):
    _, model = _two_layers(scans)
    attach_functions(model)
    once = model.SerializeToString(deterministic=True)
    attach_functions(model)
    assert model.SerializeToString(deterministic=True) == once


def test_model_without_scan_is_left_alone():
    node = helper.make_node("Identity", ["a"], ["b"])
    info = [helper.make_tensor_value_info(name, 1, [1]) for name in "ab"]
    model = helper.make_model(helper.make_graph([node], "g", info[:1], info[1:]), ir_version=8)
    before = model.SerializeToString()
    attach_functions(model)
    assert model.SerializeToString() == before


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: setattr(model.opset_import[0], "version", 17), "opset 18"),
        (lambda model: model.graph.input[0].type.tensor_type.ClearField("shape"), "node scan"),
    ],
)
def test_what_cannot_be_specialised_is_refused(spoil, message, scans):
    model = scans.model(scans.case())
    spoil(model)
    with pytest.raises(ExportError, match=message):
        attach_functions(model)


@pytest.mark.parametrize("value", [0.0, np.nan, -np.inf])
def test_a_decay_that_would_grow_is_not_exported(value, scans):
    case = scans.case()
    case.arguments["A"][2, 1] = value
    with pytest.raises(ExportError, match=f"node scan: A: finite values below 0.* found {value:g}"):
        attach_functions(scans.model(case))
    attach_functions(scans.model(case, constants=()))  # an input has no values yet


def test_stripped_form_has_no_function_and_no_empty_input(scans):
    case = scans.case(K=2, order="shared", optional=("D", "dt_bias", "initial_state"))
    model = scans.model(case)
    attach_functions(model)
    before = model.SerializeToString(deterministic=True)
    stripped = strip_functions(model)
    assert model.SerializeToString(deterministic=True) == before
    node = stripped.graph.node[0]
    wanted = ("u", "dt", "A", "B", "C", "D", "dt_bias", "order", "initial_state")
    assert list(node.input) == [f"in_{name}" for name in wanted]
    assert not stripped.functions
    assert not node.overload
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    assert attributes["presence"] == 1 + 4 + 8 + 16
    assert (attributes["plugin_version"], attributes["plugin_namespace"]) == (b"1", b"")


BUILD_SCRIPT = """
import sys
import tensorrt_rtx_libs
import tensorrt_rtx_bindings as trt

for path in sys.argv[1:]:
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    if not parser.parse(open(path, "rb").read()):
        errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        sys.exit(f"{path}: {errors}")
    if builder.build_serialized_network(network, builder.create_builder_config()) is None:
        sys.exit(f"{path}: not built")
print("built", len(sys.argv) - 1)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="the package tensorrt_rtx is not installed",
)
def test_tensorrt_parses_and_builds_the_body(tmp_path, scans):
    """The function itself where all optional inputs are there, the inlined form for the others:

    NVIDIA's parser takes no empty inputs and does not tell overloads apart.
    """
    full = {"K": 2, "reverse": (0, 1), "merge": "sum", "optional": ("D", "z", "dt_bias")}
    model = scans.model(scans.case(**full))
    attach_functions(model)
    onnx.save(model, tmp_path / "function.onnx")
    others = {
        "order": {"K": 4, "N": 1, "reverse": (0, 0, 1, 1), "order": "rows", "merge": "sum"},
        "state": {"optional": ("initial_state",), "wide_u": True},
        "windows": {"K": 2, "segment": 4, "constant": "BC", "G": 2},
        "half": {"half": True, "K": 2, "reverse": (0, 1), "optional": ("z",)},
    }
    for name, signature in others.items():
        model = scans.model(scans.case(**signature))
        attach_functions(model)
        onnx.save(inline_functions(model), tmp_path / f"{name}.onnx")
    files = sorted(str(path) for path in tmp_path.glob("*.onnx"))
    done = subprocess.run(
        [sys.executable, "-c", BUILD_SCRIPT, *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"built {len(files)}" in done.stdout
