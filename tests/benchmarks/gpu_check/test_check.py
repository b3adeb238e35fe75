"""The check for GPU machines, on the host build of the kernels: everything but the times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mambapose.benchmarks.gpu_check import cases, check, parity, sanitize, shapes, timing  # noqa: E402
from mambapose.benchmarks.gpu_check.bars import Row  # noqa: E402
from mambapose.benchmarks.gpu_check.floor import Device  # noqa: E402
from mambapose.plugins import native_cuda  # noqa: E402
from mambapose.runtime.errors import EngineError  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
DEVICE = Device("NVIDIA Test 1", 90, 132, 1.98e9, 4e12, 4.3e12)
FEW = {"fp32": 1, "fp16": 4, "bf16": 6}
GRADIENT_CASES = [case for case in parity.GRADIENT_CASES if case.L <= 70]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", parity.TYPES)
def test_forward_in_every_tactic(dtype, shim):
    chosen = list(cases.small_cases())[:: FEW[dtype]]
    results = parity.forward(chosen, dtype, "cpu", seed=11)
    assert [result.check.split()[-1] for result in results] == list(native_cuda.TACTICS)
    assert [failure for result in results for failure in result.failures] == []
    assert all(result.ok and result.cases == len(chosen) for result in results)


@pytest.mark.parametrize("dtype", parity.TYPES)
def test_gradients(dtype, shim):
    result = parity.gradients(GRADIENT_CASES[:: FEW[dtype]], dtype, "cpu", seed=12)
    assert result.failures == []
    assert result.ok


def test_properties(shim):
    for result in parity.properties("cpu", seed=13):
        assert result.ok, result.failures[:3]


def test_the_torch_operator_runs_the_kernels(shim, monkeypatch):
    monkeypatch.setattr(parity.torch_cuda, "is_on_gpu", lambda tensor: True)
    result = parity.torch_operator("cpu", seed=16)
    assert result.ok, result.failures[:3]
    monkeypatch.setattr(parity.torch_cuda, "is_on_gpu", lambda tensor: False)
    assert "does not run these kernels" in parity.torch_operator("cpu", seed=16).failures[0]


def test_the_list_has_every_axis_and_a_seed_gives_the_same_cases():
    first, second = (list(cases.all_cases(np.random.default_rng(3))) for _ in range(2))
    assert first == second
    assert {case.L for case in first} >= {*cases.LENGTHS, 15360}
    assert {case.N for case in first} >= set(cases.STATES)
    assert {case.D for case in first} >= set(cases.CHANNELS)
    assert {len(case.optional) for case in first} == {0, 1, 2, 3, 4}
    assert {case.layout for case in first} == {"dense", "slices", "offset"}


FAULTS = {
    "nothing is written": lambda bound, count: None,
    "one value is off": lambda bound, count: bound.y[0, 0, 0].add_(0.01),
    "one state is off": lambda bound, count: bound.final_state[0, 0, 0].add_(0.01),
    "bits change": lambda bound, count: bound.y[0, 0, 0].add_(1e-7 * count),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_seeded_fault_is_found(fault, shim, monkeypatch):
    launch, count = parity.torch_cuda.BoundScan.launch, [0]

    def faulty(bound):
        count[0] += 1
        if fault != "nothing is written":
            launch(bound)
        FAULTS[fault](bound, count[0])

    monkeypatch.setattr(parity.torch_cuda.BoundScan, "launch", faulty)
    for result in parity.forward([cases.Case(L=9)], "fp32", "cpu", seed=14):
        assert not result.ok
        assert "seed 14" in result.failures[0]


def test_a_refused_tactic_is_counted_and_the_choice_of_none_fails(shim, monkeypatch):
    def refuse(*_arguments):
        raise EngineError("selective scan: no such form")

    monkeypatch.setattr(native_cuda, "make_plan", refuse)
    auto, *forced = parity.forward([cases.Case(L=9)], "fp32", "cpu", seed=15)
    assert "no such form" in auto.failures[0]
    assert [(result.refused, result.failures) for result in forced] == [(1, [])] * 3
    assert not any(result.ok for result in forced)


class HostMemory:
    """Arrays that stay alive, for the host build."""

    def __init__(self):
        self.arrays = {}

    def allocate(self, size):
        return self.put(np.full(size, 255, np.uint8))

    def put(self, array):
        kept = native_cuda.aligned_empty(array.shape, array.dtype)
        kept[...] = array
        self.arrays[kept.ctypes.data] = kept
        return kept.ctypes.data

    def get(self, address, array):
        array[...] = self.arrays[address]


def test_the_case_for_the_sanitizer_is_right(shim):
    assert sanitize.run_case(HostMemory()) <= 2e-6


def _tool(folder: Path, text: str) -> Path:
    tool = folder / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\n{text}\n")
    tool.chmod(0o755)
    return tool


@pytest.mark.parametrize(
    ("text", "verdicts"),
    [
        ("echo '========= ERROR SUMMARY: 0 errors'", [True] * 4),
        ("echo '========= Device not supported'; exit 1", [None]),
        (
            "echo '=========  Invalid write'; case $* in *memory) exit 0;; esac; "
            "echo '========= ERROR SUMMARY: 3 errors'; exit 86",
            [None],
        ),
        (
            "echo '========= ERROR SUMMARY: 0 errors'; case $* in *racecheck*) exit 86;; esac",
            [True, False, True, True],
        ),
    ],
)
def test_what_the_sanitizer_says(text, verdicts, tmp_path):
    found = sanitize.run_tools(_tool(tmp_path, text), tmp_path / "library.so")
    assert [verdict.ok for verdict in found] == verdicts


def _fake_rows(*_arguments):
    times = {"auto": 10.0, "mamba-ssm with its copies": 25.0}
    return [
        Row(shape.name, str(shape), dtype, candidate, us, us + 5, 0.01, 4.0)
        for shape in shapes.SHAPES
        for dtype in ("fp16", "fp32")
        for candidate, us in times.items()
    ]


@pytest.fixture
def gpu_machine(shim, tmp_path, monkeypatch):
    """A machine with a GPU as far as check.sh can see; compiling and timing are stood in for."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    nvcc.chmod(0o755)
    monkeypatch.setattr(check, "require_gpu", lambda: (nvcc, 90))
    monkeypatch.setattr(check.build, "build_library", lambda *_arguments: shim)
    monkeypatch.setattr(check.build, "build_probe", lambda *_arguments: tmp_path / "probe")
    monkeypatch.setattr(timing, "measured_device", lambda _probe: DEVICE)
    monkeypatch.setattr(check, "measure", _fake_rows)
    monkeypatch.setattr(check, "sanitize", lambda *_arguments: True)
    monkeypatch.setattr(cases, "small_cases", lambda: iter([cases.Case(L=9), cases.PAIR]))
    monkeypatch.setattr(parity, "GRADIENT_CASES", parity.GRADIENT_CASES[:1])
    return tmp_path


def test_a_whole_run_passes_and_leaves_lines(gpu_machine, capsys):
    words = ["--quick", "--seed", "5", "--results", str(gpu_machine), "--commit", "abc1234"]
    assert check.main(words) == 0
    printed = capsys.readouterr().out
    assert "seed 5" in printed
    assert printed.splitlines()[-1].startswith("PASS")
    lines = (gpu_machine / "gpu_nvidia-test-1.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert {line["bench"] for line in found} == {"gpu-time", "gpu-bar", "gpu-check"}
    assert all(line["machine"]["commit"] == "abc1234" for line in found)
    assert all(line["machine"]["nvcc"] == "13.0.88" for line in found)
    assert all(line["ok"] for line in found if line["bench"] == "gpu-bar")


def test_a_missed_bar_and_a_wrong_result_fail_the_run(gpu_machine, monkeypatch, capsys):
    words = ["--quick", "--results", str(gpu_machine)]
    slow = [Row(**{**vars(row), "floor_us": 1.0}) for row in _fake_rows()]
    monkeypatch.setattr(check, "measure", lambda *_arguments: slow)
    assert check.main([*words, "--steps", "time"]) == 1
    assert "MISS" in capsys.readouterr().out
    monkeypatch.setitem(parity.LIMITS, "fp32", 0.0)
    assert check.main([*words, "--steps", "parity"]) == 1
    printed = capsys.readouterr().out
    assert "FAIL" in printed
    assert "not measured: times the floor" in printed


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({}, "an NVIDIA GPU and torch with CUDA were wanted"),
        ({"is_available": True}, "nvcc was wanted, found none"),
        ({"is_available": True, "nvcc": True}, "compute capability 8.0 was wanted, found 7.5"),
    ],
)
def test_what_is_missing_is_one_sentence(state, sentence, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "is_available" in state)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(check, "find_compiler", lambda: tmp_path if "nvcc" in state else None)
    assert check.main([]) == 1
    error = capsys.readouterr().err
    assert error.startswith("check.sh: ")
    assert sentence in error
    assert error.count("\n") == 1


def test_the_script_runs_from_a_tree_that_is_not_installed(tmp_path):
    """A bare interpreter finds the package through the script's links; here it finds no GPU."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU: the script would run all of its steps")
    command = ["sh", str(ROOT / "benchmarks" / "gpu_check" / "check.sh")]
    env = {**os.environ, "PYTHON": sys.executable, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("check.sh: ")
    assert list(tmp_path.iterdir()) == []
