"""ONNX Runtime's operator with the CUDA kernels beside it, built for the host.

A GPU is not needed: sessions on the CPU run as without the kernels, and a build that registers the
CUDA form for the CPU provider runs it there, on ONNX Runtime's own tensors and allocator.
"""

from __future__ import annotations

import os
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from mambapose.plugins import native_cuda
from mambapose.plugins.reference import selective_scan_reference

from .cached_build import CSRC, Compiler

pytestmark = pytest.mark.slow

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
SOURCES = ("ort/ort_op.cpp", "ort/ort_kernel.cpp", "ort/ort_cuda.cpp", "core/scan_check.cpp")
FLAGS = ("-std=c++17", "-O0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")


@pytest.fixture(autouse=True)
def no_named_library(monkeypatch):
    monkeypatch.delenv(native_cuda.VARIABLE, raising=False)


@pytest.fixture(scope="session")
def headers() -> Path:
    """The folder of ONNX Runtime's headers that the last build used, or skip."""
    finder = runpy.run_path(str(PLUGINS / "cmake" / "onnxruntime_headers.py"))
    named = os.environ.get("ONNXRUNTIME_INCLUDE_DIR")
    found = finder["headers_below"](Path(named) if named else finder["default_cache"]())
    if found is None:
        pytest.skip("ONNX Runtime's headers are not in the cache of the build")
    return found


@pytest.fixture(scope="session")
def cuda_form(headers, ort_library) -> Path:
    """A library that registers the CUDA form, and only it, for the CPU provider."""
    provider = '-DMAMBAPOSE_CUDA_ON_PROVIDER="CPUExecutionProvider"'
    compiler = Compiler((*FLAGS, provider), system=(headers,))
    sources = [CSRC / name for name in SOURCES]
    return compiler.build("libcuda_form.so", sources, "-shared", str(ort_library.resolve()), "-ldl")


@pytest.fixture
def on_host_kernels(cuda_form, cuda_shim, monkeypatch):
    """The library above on the host build of the kernels, which must have been launched."""
    monkeypatch.setenv(native_cuda.VARIABLE, cuda_shim._name)
    before = cuda_shim.mambapose_shim_launches()
    yield cuda_form
    assert cuda_shim.mambapose_shim_launches() > before, "no kernel was launched"


def test_cuda_form_agrees_with_the_oracle(scan_case, limit, scans, on_host_kernels):
    session = scans.session(scans.model(scan_case, free_batch=True), on_host_kernels)
    y, state = scans.run(session, scan_case)
    wanted = selective_scan_reference(**scan_case.arguments, **scan_case.attributes)
    scans.close("y", y, wanted[0], limit)
    scans.close("final_state", state, wanted[1], 5e-6)
    assert y.dtype == scan_case.arguments["u"].dtype


def test_cuda_form_takes_a_workspace(scans, on_host_kernels, cuda_shim):
    """Directions with orders of their own are summed in memory that ONNX Runtime lends."""
    case = scans.case(K=3, L=40, order="rows", merge="sum", optional=("D", "z"))
    y, _ = scans.run(scans.session(scans.model(case), on_host_kernels), case)
    wanted, _ = selective_scan_reference(**case.arguments, **case.attributes)
    scans.close("y", y, wanted, 2e-6)
    params = _sizes(case)
    assert native_cuda.make_plan(params, 0, 8, library=cuda_shim).workspaceBytes > 0


def test_one_session_takes_several_sizes_in_turn(scans, on_host_kernels):
    """The plan that is kept is only used for the sizes it was made for."""
    cases = [scans.case(B=batch, K=2, order="rows", merge="sum") for batch in (1, 3, 3, 1)]
    for case in cases:
        case.arguments["A"], case.arguments["order"] = (
            cases[0].arguments[n] for n in ("A", "order")
        )
    session = scans.session(scans.model(cases[0], free_batch=True), on_host_kernels)
    for case in cases:
        wanted, _ = selective_scan_reference(**case.arguments, **case.attributes)
        scans.close("y", scans.run(session, case)[0], wanted, 2e-6)


def _sizes(case):
    from mambapose.plugins.native_scan import address_of, prepare_arrays, rows_of
    from mambapose.plugins.scan_abi import FP32, scan_attributes, scan_params

    absent = dict.fromkeys(("D", "z", "dt_bias", "order", "initial_state"))
    ready = prepare_arrays({**absent, **case.arguments}, np.dtype(np.float32))
    y = np.zeros_like(ready["u"])
    settings = scan_attributes(**case.attributes)
    return scan_params(ready, y, None, settings, FP32, rows_of, address_of)


def test_cuda_form_takes_bfloat16(scans, on_host_kernels):
    """NumPy has no bfloat16, so the graph casts."""
    case = scans.case(optional=("D", "z"))
    model = scans.model(case, constants=("A",))
    node, rows = model.graph.node[0], ("u", "dt", "B", "C", "z")
    casts = []
    for index, name in enumerate(node.input):
        if name.removeprefix("in_") in rows:
            node.input[index] = f"bf16_{name}"
            casts.append(
                helper.make_node("Cast", [name], [f"bf16_{name}"], to=TensorProto.BFLOAT16)
            )
    node.output[0] = "bf16_y"
    back = helper.make_node("Cast", ["bf16_y"], ["y"], to=TensorProto.FLOAT)
    nodes = [*casts, *model.graph.node, back]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    y, _ = scans.run(scans.session(model, on_host_kernels), case)
    wanted, _ = selective_scan_reference(**case.arguments, **case.attributes)
    error = np.abs(y - wanted).max() / np.abs(wanted).max()
    assert 1e-4 < error < 3e-2  # the inputs were rounded as well


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("u", np.zeros((2, 9, 5), np.float32), r"u: shape \(2, 9, 6\) was wanted"),
        ("A", -np.ones((6, 300), np.float32), r"states|B: shape"),
    ],
)
def test_cuda_form_refuses_misfits_by_name(name, array, message, scans, cuda_form, cuda_shim,
                                           monkeypatch):  # fmt: skip
    monkeypatch.setenv(native_cuda.VARIABLE, cuda_shim._name)
    case = scans.case()
    case.arguments[name] = array
    session = scans.session(scans.model(case, constants=()), cuda_form)
    with pytest.raises(Exception, match=message):
        scans.run(session, case)


@pytest.fixture
def installed(ort_library, tmp_path):
    """A copy of the operator's library in a folder of its own."""
    return Path(shutil.copy(ort_library, tmp_path / ort_library.name))


def test_cpu_sessions_run_as_before_with_the_kernels_beside(scan_case, scans, installed, cuda_shim,
                                                            ort_library):  # fmt: skip
    shutil.copy(cuda_shim._name, installed.parent / native_cuda.LIBRARY_NAME)
    model = scans.model(scan_case)
    found = scans.run(scans.session(model, installed), scan_case)
    wanted = scans.run(scans.session(model, ort_library), scan_case)
    for result, expected in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(result, expected)


def test_a_file_that_is_no_library_of_kernels_is_refused(scans, installed):
    (installed.parent / native_cuda.LIBRARY_NAME).write_text("not a library")
    with pytest.raises(Exception, match="the CUDA kernels cannot be loaded, build them anew"):
        scans.session(scans.model(scans.case()), installed)


def test_another_library_under_that_name_is_refused(scans, installed, ort_library):
    shutil.copy(ort_library, installed.parent / native_cuda.LIBRARY_NAME)
    with pytest.raises(Exception, match="lack mambapose_scan_cuda_plan"):
        scans.session(scans.model(scans.case()), installed)


def test_a_named_library_must_exist(scans, installed, monkeypatch):
    monkeypatch.setenv(native_cuda.VARIABLE, "/nowhere/libmambapose_cuda.so")
    with pytest.raises(Exception, match=r"MAMBAPOSE_CUDA_LIBRARY: the path of .* found /nowhere"):
        scans.session(scans.model(scans.case()), installed)
