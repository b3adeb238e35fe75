"""ONNX Runtime engines: what is loaded, refused, shared and said once."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mambapose.plugins.onnx_function import attach_functions
from mambapose.plugins.reference import selective_scan_reference
from mambapose.runtime.backends import onnxruntime as backend
from mambapose.runtime.backends.fake import FakeEngine
from mambapose.runtime.backends.loader import backend_from_name, load_engine, load_file
from mambapose.runtime.backends.native import find_library, slow_notice
from mambapose.runtime.bundle.bundle import file_entry, write_bundle
from mambapose.runtime.bundle.entries import Bundle, GraphEntry, StageEntry, WeightsEntry
from mambapose.runtime.errors import EngineError, LoadError
from mambapose.runtime.targets import Schedule
from mambapose.runtime.types import GraphSpec, TensorSpec, Where

WEIGHT = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
SPEC = GraphSpec(
    "main", (TensorSpec("x", "float32", ("N", 64)),), (TensorSpec("y", "float32", ("N", 32)),)
)


def product_model():
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 32])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def scan_model():
    """y of one scan over (1, L, D) with everything but u and dt constant."""
    rng = np.random.default_rng(1)
    arrays = {
        "A": -rng.uniform(0.5, 2, (6, 4)),
        "B": rng.normal(size=(1, 20, 4)),
        "C": rng.normal(size=(1, 20, 4)),
    }
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 20, 6]) for n in ("u", "dt")]
    node = helper.make_node(
        "SelectiveScan", ["u", "dt", "A", "B", "C"], ["y", "state"], domain="mambapose",
        directions=1, groups=1, reverse=[0], delta_softplus=1, segment=0, merge="none",
        gate="silu", plugin_version="1", plugin_namespace="",
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "scan",
        sides,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 20, 6])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
        value_info=[helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, 6, 4])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mambapose", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    attach_functions(model)
    return model, arrays


SCAN_SPEC = GraphSpec(
    "main",
    (TensorSpec("u", "float32", (1, 20, 6)), TensorSpec("dt", "float32", (1, 20, 6))),
    (TensorSpec("y", "float32", (1, 20, 6)),),
)


def make_bundle(path, model, spec=SPEC, scan_spec=None, external=False):
    def fill(folder):
        (folder / "stages").mkdir()
        file, data = folder / "stages" / "pose2d.onnx", None
        if external:
            onnx.save(model, file, save_as_external_data=True, location="pose2d.data",
                      size_threshold=0)  # fmt: skip
            data = "stages/pose2d.data"
        else:
            onnx.save(model, file)
        forms = {"onnx": file_entry(folder, "stages/pose2d.onnx")}
        entry = GraphEntry(spec, forms, file_entry(folder, data) if data else None)
        weights = WeightsEntry(None, None, False)
        stage = StageEntry("n", "fp32", 1, weights, {"main": entry}, scan_spec=scan_spec)
        return Bundle(folder, "0", "2026-01-01T00:00:00Z", "cpu", Schedule(), {"pose2d": stage})

    return write_bundle(path, fill)


def test_a_graph_runs_for_any_number_of_people(tmp_path):
    bundle = make_bundle(tmp_path / "b", product_model())
    with load_engine(bundle, "pose2d", "main", Where(threads=1)) as engine:
        assert engine.spec == SPEC
        for people in (1, 3):
            x = np.random.default_rng(people).normal(size=(people, 64)).astype(np.float32)
            assert np.allclose(engine.run({"x": x})["y"], x @ WEIGHT, atol=1e-5)


def test_outputs_belong_to_the_caller(tmp_path):
    engine = load_engine(make_bundle(tmp_path / "b", product_model()), "pose2d", "main")
    x = np.ones((1, 64), np.float32)
    first = engine.run({"x": x})["y"]
    kept = first.copy()
    engine.run({"x": 5 * x})
    assert np.array_equal(first, kept)
    first[:] = 0
    assert np.array_equal(engine.run({"x": x})["y"], kept)


def test_weights_are_mapped_from_their_file(tmp_path):
    bundle = make_bundle(tmp_path / "b", product_model(), external=True)
    with load_engine(bundle, "pose2d", "main") as engine:
        x = np.eye(64, dtype=np.float32)
        assert np.allclose(engine.run({"x": x})["y"], WEIGHT)
        assert engine.memory() == {"weights": bundle.file("stages/pose2d.data").stat().st_size}
        assert engine.memory()["weights"] >= WEIGHT.nbytes


def test_names_that_are_no_text_are_refused_in_one_line(tmp_path):
    model = product_model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "QQQQ"
    path = tmp_path / "product.onnx"
    path.write_bytes(model.SerializeToString().replace(b"QQQQ", b"\xffQQQ"))
    with pytest.raises(LoadError, match="names of its tensors cannot be read") as caught:
        load_file(path, Where("onnxruntime"))
    assert "\n" not in str(caught.value)


def test_wrong_tensors_are_refused_by_name(tmp_path):
    engine = load_engine(make_bundle(tmp_path / "b", product_model()), "pose2d", "main")
    with pytest.raises(EngineError, match=r"x: float32 \(N, 64\) was wanted"):
        engine.run({"x": np.ones((1, 63), np.float32)})
    with pytest.raises(EngineError, match="float64"):
        engine.run({"x": np.ones((1, 64))})
    with pytest.raises(EngineError, match="inputs"):
        engine.run({"image": np.ones((1, 64), np.float32)})
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run({"x": np.ones((1, 64), np.float32)})


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (GraphSpec("main", SPEC.inputs, (TensorSpec("z", "float32", ("N", 32)),)), "output z"),
        (GraphSpec("main", (TensorSpec("x", "float32", ("N", 65)),), SPEC.outputs), "input x"),
        (GraphSpec("main", (TensorSpec("x", "uint8", ("N", 64)),), SPEC.outputs), "input x"),
        (GraphSpec("main", SPEC.inputs, ()), "extra output y"),
    ],
)
def test_a_file_that_is_not_what_the_manifest_says_is_refused(tmp_path, spec, text):
    bundle = make_bundle(tmp_path / "b", product_model(), spec)
    with pytest.raises(EngineError, match=text):
        load_engine(bundle, "pose2d", "main")


def test_devices_and_backends_are_never_replaced_silently(tmp_path):
    bundle = make_bundle(tmp_path / "b", product_model())
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(EngineError, match=r"device cuda was wanted.*--device cpu"):
            load_engine(bundle, "pose2d", "main", Where(device="cuda"))
    with pytest.raises(EngineError, match="cpu, cuda"):
        load_engine(bundle, "pose2d", "main", Where(device="tpu"))
    with pytest.raises(EngineError, match="auto, onnxruntime"):
        load_engine(bundle, "pose2d", "main", Where("tensorrt"))
    assert backend_from_name("auto") == "onnxruntime"
    with pytest.raises(EngineError, match="found none"):
        load_file(tmp_path / "none.onnx")


def scan_inputs():
    rng = np.random.default_rng(2)
    return {name: rng.normal(size=(1, 20, 6)).astype(np.float32) for name in ("u", "dt")}


def check_scan(engine, arrays):
    inputs = scan_inputs()
    want, _ = selective_scan_reference(**inputs, **arrays, delta_softplus=True)
    assert np.allclose(engine.run(inputs)["y"], want, atol=1e-5)


def test_the_compiled_operator_is_used_when_it_is_there(tmp_path):
    if find_library() is None:
        pytest.skip("the native library is not built")
    model, arrays = scan_model()
    bundle = make_bundle(tmp_path / "b", model, SCAN_SPEC, scan_spec=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with load_engine(bundle, "pose2d", "main") as engine:
            check_scan(engine, arrays)


def test_without_it_the_function_runs_and_says_so_once(monkeypatch, tmp_path):
    monkeypatch.setattr(backend, "find_library", lambda *given: None)
    backend._warn_slow.cache_clear()
    model, arrays = scan_model()
    bundle = make_bundle(tmp_path / "b", model, SCAN_SPEC, scan_spec=1)
    with pytest.warns(backend.SlowOperatorWarning) as said:
        engines = [load_engine(bundle, "pose2d", "main") for _ in range(2)]
    check_scan(engines[1], arrays)
    assert [str(item.message) for item in said] == [slow_notice()]


def test_a_graph_without_scans_says_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(backend, "find_library", lambda *given: None)
    backend._warn_slow.cache_clear()
    load_engine(make_bundle(tmp_path / "b", product_model()), "pose2d", "main").close()


def test_other_sessions_of_the_process_are_left_alone(tmp_path):
    import onnxruntime

    bundle = make_bundle(tmp_path / "b", product_model())
    x = np.eye(64, dtype=np.float32)
    with load_engine(bundle, "pose2d", "main", Where(threads=1)) as one:
        with load_engine(bundle, "pose2d", "main", Where(threads=2)) as two:
            assert np.allclose(one.run({"x": x})["y"], two.run({"x": x})["y"])
        path = str(bundle.file("stages/pose2d.onnx"))
        plain = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert np.allclose(plain.run(None, {"x": x})[0], WEIGHT)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"mambapose\[cpu\]"):
        backend._import()


def test_the_fake_engine_is_as_strict_as_a_real_one():
    answers = {"y": np.zeros((1, 32), np.float32)}
    engine = FakeEngine(SPEC, lambda inputs: answers)
    x = np.zeros((1, 64), np.float32)
    assert engine.run({"x": x}) is answers
    assert engine.calls == 1
    with pytest.raises(EngineError, match="was wanted"):
        engine.run({"x": x[:, :3]})
    answers["y"] = np.zeros((1, 32))
    with pytest.raises(EngineError, match="float64"):
        engine.run({"x": x})
    answers["more"] = x
    with pytest.raises(EngineError, match="more"):
        engine.run({"x": x})
    with engine:
        pass
    with pytest.raises(EngineError, match="closed"):
        engine.run({"x": x})
