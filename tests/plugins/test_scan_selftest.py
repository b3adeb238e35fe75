"""The kernels without Python: emulated aarch64, and this machine under the sanitizers."""

from __future__ import annotations

import os
import platform
import shutil

import pytest

from .cached_build import CSRC, Compiler, kept_run, need_sanitizer
from .cuda_cases import SHIM_FLAGS, shim_objects

pytestmark = pytest.mark.slow

KERNELS = [*sorted(CSRC.glob("core/*.cpp")), *sorted(CSRC.glob("cpu/*.cpp"))]
SELFTEST = CSRC / "tests" / "scan_selftest.cpp"
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
OF_THEIR_OWN = {"scan_avx2": AVX2, "scan_avx512": AVX512}
ADDRESSES = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREADS = ("-fsanitize=thread",)
SANITIZERS = pytest.mark.parametrize(
    "sanitizer", [ADDRESSES, THREADS], ids=["addresses", "threads"]
)


def test_neon_agrees_under_emulation():
    compiler = os.environ.get("AARCH64_CXX", "aarch64-linux-gnu-g++")
    if shutil.which(compiler) is None:
        pytest.skip(f"no aarch64 compiler ({compiler}); install g++-aarch64-linux-gnu")
    named = [os.environ.get("AARCH64_RUN", ""), "qemu-aarch64-static", "qemu-aarch64"]
    emulator = next(filter(None, map(shutil.which, filter(None, named))), None)
    if emulator is None:
        pytest.skip("no aarch64 emulator; install qemu-user-static")
    flags = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-static")
    program = Compiler(flags, program=compiler).build("neon_selftest", [*KERNELS, SELFTEST])
    done = kept_run(program, wrapper=[emulator])
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "neon: " in done.stdout, "the NEON kernels were not offered"


@SANITIZERS
def test_the_sanitizers_find_nothing(sanitizer):
    """Every instruction set of this machine with those for addresses and undefined behaviour, the
    plain kernels with the one for threads: all share the code that splits the work.
    """
    need_sanitizer(*sanitizer)
    flags = ("-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-pthread", *sanitizer)
    own = OF_THEIR_OWN if sanitizer == ADDRESSES and platform.machine() == "x86_64" else {}
    compiler = Compiler(flags)
    objects = compiler.objects([*KERNELS, SELFTEST], own)
    done = kept_run(compiler.link("scan_selftest", objects))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "scalar: " in done.stdout


@SANITIZERS
def test_the_sanitizers_find_nothing_in_the_cuda_kernels(sanitizer):
    """Addresses and undefined behaviour, then races of the threads of a GPU, to which the threads
    of a block are threads.
    """
    need_sanitizer(*sanitizer)
    flags = ("-g1", *sanitizer)
    compiler = Compiler((*SHIM_FLAGS, *flags))
    objects = [*shim_objects(*flags), compiler.object(CSRC / "tests" / "cuda_selftest.cpp")]
    program = compiler.link("cuda_selftest", objects)
    done = kept_run(program, TSAN_OPTIONS="halt_on_error=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("agree") == 1
