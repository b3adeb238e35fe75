"""Seeded scan calls and one-node models, shared by the tests of the operator's faces."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from .cuda_cases import GuardedMemory, build_shim, cuda_functions

INPUTS = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias", "order", "initial_state")
OPTIONAL = ("D", "z", "dt_bias", "initial_state")
GOLDEN_SCANS = (
    "scan_01_single_step_bare", "scan_02_d_bias_softplus", "scan_03_gate_state_b2",
    "scan_04_groups4_state_b2", "scan_05_n1_groups4", "scan_06_gate_rank4_one_group",
    "scan_07_no_softplus_no_bias", "scan_08_softplus_no_bias_groups4", "scan_09_softplus_edges",
    "scan_10_constant_b_c", "scan_11_bias_no_softplus_n1", "scan_12_slow_decay",
    "scan_13_single_step_all",
)  # fmt: skip


@dataclass(frozen=True)
class ScanCase:
    """One call: the arguments by name and the attributes."""

    arguments: dict[str, np.ndarray]
    attributes: dict[str, Any] = field(default_factory=dict)


def make_case(
    seed: int = 0,
    *,
    B: int = 2,
    L: int = 9,
    D: int = 6,
    N: int = 3,
    K: int = 1,
    G: int = 1,
    reverse: Sequence[int] | None = None,
    segment: int = 0,
    merge: str = "none",
    softplus: bool = True,
    optional: Sequence[str] = (),
    wide_u: bool = False,
    constant: str = "",
    order: str = "",
    half: bool = False,
) -> ScanCase:
    """A random call; constant: any of "B", "C", "BC"; order: "", "shared" or "rows"."""
    rng = np.random.default_rng(seed)
    rows = np.float16 if half else np.float32

    def normal(*shape: int, dtype: type[np.floating] = np.float32) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    dt = normal(B, L, K * D, dtype=rows)
    arguments = {
        "u": normal(B, L, K * D if wide_u else D, dtype=rows),
        "dt": (2 * dt - 3 if softplus else np.abs(dt) / 2).astype(rows),
        "A": -np.exp(normal(K * D, N)),
        "B": normal(K * D, N) if "B" in constant else normal(B, L, K * G * N, dtype=rows),
        "C": normal(K * D, N) if "C" in constant else normal(B, L, K * G * N, dtype=rows),
        "D": normal(K * D),
        "z": normal(B, L, D, dtype=rows),
        "dt_bias": normal(K * D) / 10,
        "initial_state": normal(B, K * D, N),
    }
    for name in OPTIONAL:
        if name not in optional:
            del arguments[name]
    if order:
        permutations = [rng.permutation(L) for _ in range(K if order == "rows" else 1)]
        arguments["order"] = np.stack(permutations).astype(np.int32)
        if order == "shared":
            arguments["order"] = arguments["order"][0]
    attributes = {
        "directions": K, "groups": G, "reverse": list(reverse or [0] * K),
        "delta_softplus": softplus, "segment": segment, "merge": merge, "gate": "silu",
    }  # fmt: skip
    return ScanCase(arguments, attributes)


def make_model(
    case: ScanCase, *, free_batch: bool = False, constants: Sequence[str] = ("A", "order")
) -> Any:
    """An ONNX model of one SelectiveScan node named "scan"; no function is attached."""
    from onnx import TensorProto, helper, numpy_helper

    inputs, initializers = [], []
    for name, array in case.arguments.items():
        if name in constants:
            initializers.append(numpy_helper.from_array(array, f"in_{name}"))
            continue
        shape: list[int | str] = list(array.shape)
        if free_batch and array.ndim == 3:
            shape[0] = "N"
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        inputs.append(helper.make_tensor_value_info(f"in_{name}", kind, shape))
    names = [f"in_{name}" if name in case.arguments else "" for name in INPUTS]
    while not names[-1]:
        names.pop()
    attributes = {**case.attributes, "delta_softplus": int(case.attributes["delta_softplus"])}
    node = helper.make_node(
        "SelectiveScan", names, ["y", "final_state"], name="scan", domain="mambapose",
        plugin_version="1", plugin_namespace="", **attributes,
    )  # fmt: skip
    rows = helper.np_dtype_to_tensor_dtype(case.arguments["u"].dtype)
    outputs = [
        helper.make_tensor_value_info("y", rows, [None] * 3),
        helper.make_tensor_value_info("final_state", TensorProto.FLOAT, [None] * 3),
    ]
    graph = helper.make_graph([node], "one_scan", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mambapose", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def make_session(
    model: Any, library: Path | None = None, *, threads: int = 1, profile: Path | None = None
) -> Any:
    """An ONNX Runtime session of the model on the CPU, with the custom-op library or without."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if library is not None:
        options.register_custom_ops_library(str(library))
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run_session(session: Any, case: ScanCase) -> tuple[np.ndarray, np.ndarray]:
    """(y, final_state) of the case."""
    wanted = [entry.name for entry in session.get_inputs()]
    y, state = session.run(
        ["y", "final_state"], {name: case.arguments[name.removeprefix("in_")] for name in wanted}
    )
    return y, state


def make_official(golden_case: SimpleNamespace) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arguments and attributes of a golden scan: official channels-first rows turned to ours."""
    arrays = {
        key.removeprefix("input."): value
        for key, value in golden_case.arrays.items()
        if key.startswith("input.")
    }

    def rows(name: str) -> np.ndarray:
        value: np.ndarray = arrays[name]
        if value.ndim == 2:  # constant B or C
            return value
        return np.moveaxis(value, -1, 1).reshape(value.shape[0], value.shape[-1], -1)

    names = {"u": "u", "delta": "dt", "B": "B", "C": "C", "z": "z"}
    arguments = {ours: rows(theirs) for theirs, ours in names.items() if theirs in arrays}
    arguments["A"] = arrays["A"]
    for theirs, ours in {"D": "D", "delta_bias": "dt_bias"}.items():
        if theirs in arrays:
            arguments[ours] = arrays[theirs]
    groups = arrays["B"].shape[1] if arrays["B"].ndim == 4 else 1
    softplus = golden_case.meta["config"]["delta_softplus"]
    return arguments, {"groups": groups, "delta_softplus": softplus}


def each_isa() -> Iterator[str]:
    """Every instruction set of this machine, in use while its name is out."""
    from mambapose.plugins import native_scan

    for name in native_scan.INSTRUCTION_SETS:
        if native_scan.force_instruction_set(name):
            yield name


def run_native(case: ScanCase, **changes: Any) -> tuple[np.ndarray, np.ndarray]:
    """(y, final_state) of the case with other arguments or threads, through the C interface."""
    from mambapose.plugins import native_scan

    return native_scan.scan(**{**case.arguments, **changes}, **case.attributes)


def check_close(name: str, found: Any, wanted: Any, limit: float) -> None:
    """Fail unless the largest difference is at most ``limit`` times the largest wanted value."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape, f"{name}: shape {found.shape}, wanted {wanted.shape}"
    scale = max(float(np.abs(wanted).max(initial=0.0)), 1e-30)
    error = float(np.abs(found - wanted).max(initial=0.0)) / scale
    assert error <= limit, f"{name}: error {error:.2e} is {error / limit:.1f} times the limit"


@pytest.fixture(scope="session")
def scans() -> SimpleNamespace:
    """The functions above; test modules cannot import from each other."""
    return SimpleNamespace(
        case=make_case,
        model=make_model,
        session=make_session,
        run=run_session,
        native=run_native,
        each_isa=each_isa,
        close=check_close,
        official=make_official,
        need_onnxruntime=need_onnxruntime,
        build_shim=build_shim,
        signatures=SIGNATURES,
        memory=GuardedMemory,
    )


def need_onnxruntime(minor: int, reason: str) -> None:
    """Skip below ONNX Runtime 1.``minor``."""
    import onnxruntime

    if tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) < (1, minor):
        pytest.skip(f"ONNX Runtime {onnxruntime.__version__} {reason}")


@pytest.fixture(scope="session")
def library() -> Path:
    """The compiled library, or skip."""
    from mambapose.runtime.backends.native import find_library

    found = find_library()
    if found is None:
        pytest.skip("no compiled operator library: build plugins/ with CMake")
    return found


@pytest.fixture(scope="session")
def ort_library(library: Path) -> Path:
    """The compiled library if it has the ONNX Runtime operator, or skip."""
    from mambapose.runtime.backends.native import library_info

    if not library_info(library).onnxruntime:
        pytest.skip("the compiled library was built without ONNX Runtime's headers")
    return library


@pytest.fixture(scope="session")
def cuda_shim() -> ctypes.CDLL:
    """The CUDA kernels built for the host, or skip."""
    from mambapose.plugins import native_cuda

    library = native_cuda.load_library(build_shim())
    library.mambapose_shim_set_seed.argtypes = (ctypes.c_uint64,)
    library.mambapose_shim_set_exp2_error.argtypes = (ctypes.c_float,)
    library.mambapose_shim_launches.restype = ctypes.c_int64
    return library


@pytest.fixture(scope="session")
def cuda(cuda_shim: ctypes.CDLL) -> SimpleNamespace:
    """Functions that run a case on the host build of the CUDA kernels (cuda_cases.py)."""
    functions: SimpleNamespace = cuda_functions(cuda_shim, check_close)
    return functions


@pytest.fixture
def best_isa(library: Path) -> Iterator[None]:
    """The instruction set the library chooses is in use again after the test."""
    from mambapose.plugins import native_scan

    yield
    native_scan.force_instruction_set(None)


Signatures = dict[str, dict[str, Any]]
SIGNATURES: Signatures = {
    "plain": {},
    "vim": {"K": 2, "reverse": (0, 1), "wide_u": True, "merge": "sum",
            "optional": ("D", "z", "dt_bias")},
    "vmamba": {"K": 4, "N": 1, "reverse": (0, 0, 1, 1), "order": "rows", "merge": "sum",
               "optional": ("D", "dt_bias")},
    "posemamba": {"K": 2, "reverse": (0, 1), "order": "shared", "merge": "sum",
                  "optional": ("D", "dt_bias")},
    "windows": {"K": 2, "reverse": (0, 1), "order": "shared", "segment": 4},
    "stateful": {"optional": ("initial_state", "z", "D")},
    "stateful-two-ways": {"K": 2, "G": 3, "reverse": (1, 0), "optional": ("initial_state",)},
    "gate-per-direction": {"K": 2, "optional": ("z",)},
    "order-rows-groups": {"K": 3, "G": 2, "reverse": (0, 1, 1), "order": "rows"},
    "group-per-channel": {"G": 6},
    "constant-b": {"constant": "B"},
    "constant-c": {"constant": "C", "K": 2, "G": 2},
    "constant-both": {"constant": "BC", "K": 2, "wide_u": True},
    "no-softplus": {"softplus": False, "optional": ("dt_bias",)},
    "one-step": {"L": 1, "K": 2, "reverse": (0, 1), "segment": 3},
    "wide": {"B": 1, "L": 33, "D": 24, "N": 16, "K": 2, "reverse": (1, 1), "merge": "sum"},
    "half": {"half": True, "K": 2, "reverse": (0, 1), "merge": "sum",
             "optional": ("D", "z", "dt_bias")},
    "half-constant-b": {"half": True, "constant": "B", "optional": ("initial_state",)},
    "half-constant-c": {"half": True, "constant": "C", "segment": 4},
    "half-constant-both": {"half": True, "constant": "BC"},
}  # fmt: skip
ROUNDING = {False: 2e-6, True: 1.5e-3}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that ask for ``signature`` or ``golden_scan`` run once per row of these tables."""
    for argument, rows in (("signature", list(SIGNATURES)), ("golden_scan", GOLDEN_SCANS)):
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, rows)


@pytest.fixture
def scan_case(signature: str) -> ScanCase:
    """The call of this row."""
    return make_case(**SIGNATURES[signature])


@pytest.fixture
def limit(signature: str) -> float:
    """Largest error relative to the largest value: float32 or float16 rows."""
    return ROUNDING[bool(SIGNATURES[signature].get("half"))]
