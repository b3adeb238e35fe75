"""The host shim finds the faults it is made for: in a small kernel, in copies of the real ones."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from .cached_build import CSRC, Compiler, kept_run, need_sanitizer
from .cuda_cases import SHIM, SHIM_FLAGS, shim_objects

pytestmark = pytest.mark.slow

SEEDS = {"plain": ("1", "2", "3"), "address": ("1",), "thread": ("1",)}
ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREAD = ("-fsanitize=thread",)
HOW = {"plain": ("-Wall", "-Wextra", "-Werror"), "address": ADDRESS, "thread": THREAD}


@pytest.fixture(scope="session")
def programs():
    """A function: the small kernel with its faults as it is, or under a sanitizer."""

    def program(how: str) -> Path:
        if how != "plain":
            need_sanitizer(*HOW[how])
        own: tuple[str, ...] = () if how == "plain" else ("-DMAMBAPOSE_SHIM_SANITIZED",)
        if how == "thread":
            own += ("-DMAMBAPOSE_SHIM_THREADS", "-fno-sanitize=thread")
        compiler = Compiler(("-std=c++17", "-O1", "-g1", "-pthread", *HOW[how]))
        faults = CSRC / "tests" / "cuda_shim_faults.cpp"
        own_flags = {source.stem: own for source in SHIM}
        if how == "address":
            own_flags[faults.stem] = own
        return compiler.link("shim_faults", compiler.objects([faults, *SHIM], own_flags))

    return functools.cache(program)


def _run(program: Path, fault: str, seed: str) -> tuple[int, str]:
    run = kept_run(program, fault, seed)
    return run.returncode, run.stdout + run.stderr


@pytest.mark.parametrize("how", ["plain", "address", "thread"])
def test_the_good_kernel_passes(programs, how):
    for seed in (*SEEDS[how], "9", "77"):
        code, text = _run(programs(how), "none", seed)
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
        code, text = _run(programs(how), fault, seed)
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


def _faulty_texts() -> tuple[dict[str, str], list[str]]:
    """The files that the copy changes, by their path in csrc, and where barriers are: FAULT 1000
    leaves out the first one.
    """
    texts = {
        str(source.relative_to(CSRC)): source.read_text()
        for part in ("core", "cuda")
        for source in sorted((CSRC / part).iterdir())
    }
    before = dict(texts)
    texts["cuda/scan_cuda.h"] = SWITCH + texts["cuda/scan_cuda.h"]
    for old, new in EDITS:
        places = [name for name, text in texts.items() if old in text]
        assert len(places) == 1, f"the kernels no longer hold this in one file: {old}"
        name = places[0]
        assert texts[name].count(old) == 1, f"{name} no longer holds this once: {old}"
        for number, fault in enumerate(NAMES, start=1):
            new = new.replace(f"FAULTY({fault})", f"(faultNumber() == {number})")
        texts[name] = texts[name].replace(old, new)
    barriers: list[str] = []
    for name, text in sorted(texts.items()):
        first, *rest = text.split(BARRIER) if name.startswith("cuda/scan_cuda") else [text]
        for part in rest:
            first += f"if (faultNumber() != {FIRST_BARRIER + len(barriers)}) {BARRIER}{part}"
            barriers.append(f"{name}, before {part.strip().splitlines()[0]}")
        texts[name] = first
    return {name: text for name, text in texts.items() if text != before[name]}, barriers


def _build_faulty(folder: Path, *flags: str) -> Path:
    """The self test of the copy."""
    if flags:
        need_sanitizer(*flags)
    for name, text in _faulty_texts()[0].items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    compiler = Compiler((*SHIM_FLAGS, *flags), (folder, CSRC))
    selftest = compiler.object(CSRC / "tests" / "cuda_selftest.cpp")
    return compiler.link("faulty_selftest", [*shim_objects(*flags, folder=folder), selftest])


def _run_faulty(program: Path, number: int) -> tuple[int, str]:
    run = kept_run(program, CASES, FAULT=str(number), TSAN_OPTIONS="halt_on_error=1")
    return run.returncode, run.stdout + run.stderr


@pytest.fixture(scope="session")
def faulty_kernels(tmp_path_factory):
    return _build_faulty(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="session")
def racing_kernels(tmp_path_factory):
    return _build_faulty(tmp_path_factory.mktemp("thread"), *THREAD)


@pytest.mark.parametrize("fault", ["", *SAID])
def test_a_fault_of_the_kernels_is_found(faulty_kernels, fault):
    code, text = _run_faulty(faulty_kernels, NAMES.index(fault) + 1 if fault else 0)
    assert (code == 0) == (fault == ""), text
    assert SAID.get(fault, "agree") in text


BARRIERS = sum(
    path.read_text().count(BARRIER) for path in sorted((CSRC / "cuda").glob("scan_cuda*"))
)


def test_the_copy_of_the_kernels_has_no_race(racing_kernels):
    code, text = _run_faulty(racing_kernels, 0)
    assert code == 0, text
    assert BARRIERS > 8


@pytest.mark.parametrize("barrier", range(BARRIERS))
def test_a_missing_barrier_of_the_kernels_is_a_race(racing_kernels, barrier):
    """Each of them, whether or not an order of threads turns it into a wrong result."""
    _, barriers = _faulty_texts()
    assert len(barriers) == BARRIERS
    where = barriers[barrier]
    code, text = _run_faulty(racing_kernels, FIRST_BARRIER + barrier)
    assert code != 0, f"nothing shows that this barrier is needed: {where}"
    assert "ThreadSanitizer: data race" in text or "SEGV" in text, f"{where}: {text}"
