"""Malformed nodes of the compiled operator under AddressSanitizer: a message, no bad access."""

from __future__ import annotations

import os
import platform
import runpy
import subprocess
from pathlib import Path

import pytest

from ..plugins.cached_build import CSRC, Compiler, need_sanitizer
from .cases import numbers
from .worker import run_cases

PLUGINS = CSRC.parent
SANITIZER = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FLAGS = ("-std=c++17", "-O1", "-g", "-fPIC", "-pthread", "-Wall", "-Wextra", *SANITIZER)
AVX2 = ("-mavx2", "-mfma", "-mf16c")
OF_THEIR_OWN = {
    "scan_avx2": AVX2,
    "scan_avx512": (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
}


def sanitized_library() -> Path:
    """The operator's library as CMake makes it, with the sanitizers; skips where that cannot be."""
    need_sanitizer(*SANITIZER)
    finder = runpy.run_path(str(PLUGINS / "cmake" / "onnxruntime_headers.py"))
    named = os.environ.get("ONNXRUNTIME_INCLUDE_DIR")
    headers = finder["headers_below"](Path(named) if named else finder["default_cache"]())
    if headers is None:
        pytest.skip("ONNX Runtime's headers are not in the cache of the build")
    sources = [*sorted(CSRC.glob("core/*.cpp")), *sorted(CSRC.glob("cpu/*.cpp"))]
    sources += [CSRC / f"ort/{name}.cpp" for name in ("ort_op", "ort_kernel", "ort_cuda")]
    compiler = Compiler(FLAGS, system=(headers,))
    own = OF_THEIR_OWN if platform.machine() == "x86_64" else {}
    return compiler.link("libmambapose_asan.so", compiler.objects(sources, own), "-shared", "-ldl")


def loaded_first() -> str:
    """The sanitizer's library, which must be loaded before all others, and that of C++, in which it
    looks for what throws.
    """
    paths = []
    for name in ("libasan.so", "libstdc++.so.6"):
        command = [Compiler(()).program, f"-print-file-name={name}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        paths.append(str(Path(done.stdout.strip()).resolve()))
    return " ".join(paths)


@pytest.mark.slow
def test_malformed_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("MAMBAPOSE_FUZZ_LIBRARY", str(sanitized_library()))
    monkeypatch.setenv("LD_PRELOAD", loaded_first())
    # Python leaves memory to the system; a tensor of a size that lies must be an error, not an end.
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0:allocator_may_return_null=1")
    outcome = run_cases("tests.fuzz.node_cases", numbers(400), tmp_path)
    print(outcome)
    assert outcome.failures == []
    assert outcome.accepted >= outcome.tried / 5
