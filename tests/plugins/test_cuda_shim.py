"""The host shim finds the faults it is made for: in a small kernel, in copies of the real ones."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "plugins" / "csrc"
TESTS = CSRC / "tests"
SHIM = [TESTS / f"cuda_{name}.cpp" for name in ("shim", "block", "fiber")]
SEEDS = {"plain": ("1", "2", "3"), "address": ("1",), "thread": ("1",)}


def _compile(target: Path, *flags: str, sources: list[Path]) -> Path:
    command = ["g++", "-std=c++17", "-O1", "-g1", "-pthread", f"-I{CSRC}", *flags]
    run = subprocess.run(
        [*command, *map(str, sources), "-o", str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "cannot find -l" in run.stderr or "cannot find lib" in run.stderr:
        pytest.skip(f"g++ lacks the libraries of {' '.join(flags)}")
    assert run.returncode == 0, run.stderr
    return target


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The small kernel with its faults: as it is, and under each sanitizer."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("faults")
    faults = TESTS / "cuda_shim_faults.cpp"
    marked = ["-DMAMBAPOSE_SHIM_SANITIZED"]
    plain = _compile(folder / "plain", "-Wall", "-Wextra", "-Werror", sources=[faults, *SHIM])
    address = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", *marked]
    watched = _compile(folder / "address", *address, sources=[faults, *SHIM])
    objects = [
        _compile(
            folder / f"{source.stem}.o", *marked, "-DMAMBAPOSE_SHIM_THREADS", "-c", sources=[source]
        )
        for source in SHIM
    ]
    ordered = _compile(folder / "thread", "-fsanitize=thread", sources=[faults, *objects])
    return {"plain": plain, "address": watched, "thread": ordered}


def _run(program: Path, fault: str, seed: str) -> tuple[int, str]:
    run = subprocess.run(
        [str(program), fault, seed], capture_output=True, text=True, timeout=120, check=False
    )
    return run.returncode, run.stdout + run.stderr


@pytest.mark.parametrize("how", ["plain", "address", "thread"])
def test_the_good_kernel_passes(programs, how):
    for seed in (*SEEDS[how], "9", "77"):
        code, text = _run(programs[how], "none", seed)
        assert (code, text) == (0, "no error\n672 of 672 right\n")


# What each fault leads to; "" is wrong results without a message.
FOUND = {
    ("plain", "no_barrier_before_reading"): "",
    ("plain", "no_barrier_before_writing"): "",
    ("plain", "no_warp_barrier"): "",
    ("plain", "no_wait"): "",
    ("plain", "wait_too_few"): "",
    ("plain", "stage_used_twice"): "",
    ("plain", "tile_too_far"): "",
    ("plain", "unwritten"): "",
    ("plain", "shared_overrun"): "writes outside its 768 bytes of shared memory",
    ("plain", "shared_underrun"): "writes outside its 768 bytes of shared memory",
    ("plain", "copy_overrun"): "copies 4 bytes to offset 768 of 768 bytes of shared memory",
    ("plain", "copy_unaligned"): "copies 4 bytes between addresses that are no multiples of that",
    ("plain", "copies_left"): "returns without waiting for 1 asynchronous copies",
    (
        "plain",
        "returned_early",
    ): "64 threads (first 0) wait in __syncthreads at cuda_shim_faults.cpp",
    ("plain", "barrier_in_branch"): "32 threads (first 0) wait in __syncthreads",
    ("plain", "barriers_of_branches"): "while others wait at that of cuda_shim_faults.cpp",
    ("plain", "lane_missing"): "31 threads (first 32) wait in a shuffle at cuda_shim_faults.cpp",
    ("plain", "lane_outside_mask"): "in a shuffle of the lanes",
    ("plain", "not_in_mask"): "is not among the lanes 7fffffff it waits for",
    ("plain", "too_many_threads"): "invalid configuration argument",
    ("plain", "no_blocks"): "invalid configuration argument",
    ("plain", "too_much_shared"): "invalid argument",
    ("address", "tile_too_far"): "AddressSanitizer: heap-buffer-overflow",
    ("address", "shared_overrun"): "AddressSanitizer: heap-buffer-overflow",
    ("address", "shared_underrun"): "AddressSanitizer: heap-buffer-overflow",
    ("address", "output_overrun"): "AddressSanitizer: heap-buffer-overflow",
    ("thread", "no_barrier_before_reading"): "ThreadSanitizer: data race",
    ("thread", "no_barrier_before_writing"): "ThreadSanitizer: data race",
    ("thread", "no_warp_barrier"): "ThreadSanitizer: data race",
    ("thread", "race_of_blocks"): "ThreadSanitizer: data race",
}


@pytest.mark.parametrize(("how", "fault"), FOUND)
def test_a_fault_is_found(programs, how, fault):
    for seed in SEEDS[how]:
        code, text = _run(programs[how], fault, seed)
        assert code != 0
        assert FOUND[how, fault] in text
        assert "672 of 672 right" not in text or FOUND[how, fault]


# A copy of the kernels in which the variable FAULT chooses a fault: what stands there, and what
# takes its place. FAULTY(name): that fault is chosen; without one the copy is like the kernels.
SWITCH = """
#pragma once
#ifdef __cplusplus
#include <cstdlib>
inline int faultNumber()
{
    static int const number = std::getenv("FAULT") == nullptr ? 0 : std::atoi(std::getenv("FAULT"));
    return number;
}
#endif
"""
EDITS = (
    (
        """        waitCopies<0>();
        __syncthreads();
        Walk const walk""",
        """        if (!FAULTY(no wait)) waitCopies<0>();
        if (!FAULTY(no barrier after the wait)) __syncthreads();
        Walk const walk""",
    ),
    (
        "        __syncthreads();\n        if (tile.resets)",
        "        if (!FAULTY(no barrier before a tile is read)) __syncthreads();\n"
        "        if (tile.resets)",
    ),
    (
        "__syncthreads(); // The direction before is stored.",
        "if (!FAULTY(a barrier for some threads) || threadIdx.x > 0) __syncthreads();",
    ),
    (
        "float const before = __shfl_sync(",
        "float const before = FAULTY(a shuffle without a lane) && threadIdx.x == 7 ? end"
        " : __shfl_sync(",
    ),
    (
        "tile.begin = before.begin + before.count;",
        "tile.begin = before.begin + before.count"
        " + (FAULTY(a tile one step too far) && before.count > 0 ? 1 : 0);",
    ),
    (
        "before.rowOfThree == lastRow ? 0",
        "FAULTY(rows overwritten before they are stored) || before.rowOfThree == lastRow ? 0",
    ),
    (
        "        if (there[q])\n        {\n            setValue(",
        "        if (there[q] && !(FAULTY(an unwritten output) && q == 3))\n"
        "        {\n            setValue(",
    ),
    (
        "p.segment > 0 ? 0 : walk.chunk;",
        "p.segment > 0 ? 0 : walk.chunk"
        " - (FAULTY(a piece that does not count) && walk.chunk > 0 ? 1 : 0);",
    ),
    (
        "size_t const shared = static_cast<size_t>(call.task.at.bytes);",
        "size_t const shared = static_cast<size_t>(call.task.at.bytes)"
        " - (FAULTY(shared memory too small) ? 256 : 0);",
    ),
)
# What the program says: ", limit" is a wrong result, nothing at all a wild address.
SAID = {
    "no wait": ", limit",
    "no barrier after the wait": "",
    "no barrier before a tile is read": ", limit",
    "a barrier for some threads": "is at __syncthreads of scan_cuda_forward.h:",
    "a shuffle without a lane": "wait in a shuffle at scan_cuda_forward.h:",
    "a tile one step too far": ", limit",
    "rows overwritten before they are stored": ", limit",
    "an unwritten output": "error 1e+30, limit",
    "a piece that does not count": ", limit",
    "shared memory too small": "bytes of shared memory",
}
NAMES = sorted(set(re.findall(r"FAULTY\((.*?)\)", " ".join(new for _, new in EDITS))))
BARRIER, FIRST_BARRIER = "__syncthreads();", 1000
CASES = "7"  # Of cuda_selftest.cpp: the longest and the one with the most states.


def _build_faulty(folder: Path, *flags: str) -> tuple[Path, list[str]]:
    """The self test of the copy, and where barriers are: FAULT 1000 leaves out the first one."""
    if shutil.which("sh") is None or shutil.which("g++") is None:
        pytest.skip("no sh and g++")
    texts = {
        str(source.relative_to(CSRC)): source.read_text()
        for part in ("core", "cuda")
        for source in (CSRC / part).iterdir()
    }
    texts["cuda/scan_cuda.h"] = SWITCH + texts["cuda/scan_cuda.h"]
    for old, new in EDITS:
        places = [name for name, text in texts.items() if old in text]
        assert len(places) == 1, f"the kernels no longer hold this in one file: {old}"
        name = places[0]
        assert texts[name].count(old) == 1, f"{name} no longer holds this once: {old}"
        for number, fault in enumerate(NAMES, start=1):
            new = new.replace(f"FAULTY({fault})", f"(faultNumber() == {number})")
        texts[name] = texts[name].replace(old, new)
    barriers = []
    for name, text in sorted(texts.items()):
        first, *rest = text.split(BARRIER) if name.startswith("cuda/scan_cuda") else [text]
        for part in rest:
            first += f"if (faultNumber() != {FIRST_BARRIER + len(barriers)}) {BARRIER}{part}"
            barriers.append(f"{name}, before {part.strip().splitlines()[0]}")
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(first)
    program = folder / "selftest"
    command = ["sh", str(TESTS / "build_shim.sh"), str(program), *flags]
    environment = {**os.environ, "CSRC": str(folder), "MAIN": str(TESTS / "cuda_selftest.cpp")}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "cannot find lib" in run.stderr:
        pytest.skip(f"g++ lacks the libraries of {' '.join(flags)}")
    assert run.returncode == 0, run.stderr
    return program, barriers


def _run_faulty(program: Path, number: int) -> tuple[int, str]:
    environment = {**os.environ, "FAULT": str(number), "TSAN_OPTIONS": "halt_on_error=1"}
    run = subprocess.run(
        [str(program), CASES], env=environment, capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    return run.returncode, run.stdout + run.stderr


@pytest.fixture(scope="module")
def faulty_kernels(tmp_path_factory):
    return _build_faulty(tmp_path_factory.mktemp("plain"))[0]


@pytest.mark.parametrize("fault", ["", *SAID])
def test_a_fault_of_the_kernels_is_found(faulty_kernels, fault):
    code, text = _run_faulty(faulty_kernels, NAMES.index(fault) + 1 if fault else 0)
    assert (code == 0) == (fault == ""), text
    assert SAID.get(fault, "agree") in text


@pytest.mark.slow
def test_a_missing_barrier_of_the_kernels_is_a_race(tmp_path):
    """Each of them, whether or not an order of threads turns it into a wrong result."""
    program, barriers = _build_faulty(tmp_path, "-fsanitize=thread")
    code, text = _run_faulty(program, 0)
    assert code == 0, text
    assert len(barriers) > 8
    for number, where in enumerate(barriers, start=FIRST_BARRIER):
        code, text = _run_faulty(program, number)
        assert code != 0, f"nothing shows that this barrier is needed: {where}"
        assert "ThreadSanitizer: data race" in text or "SEGV" in text, f"{where}: {text}"
