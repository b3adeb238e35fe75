"""The workspace the TensorRT plugin asks for covers every launch of a profile."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .cached_build import CSRC, Compiler

pytestmark = pytest.mark.slow

SOURCES = (
    "tests/trt_workspace.cpp", "trt/trt_plan.cpp", "trt/trt_shapes.cpp", "trt/trt_log.cpp",
    "cuda/scan_cuda_plan.cpp", "core/scan_check.cpp",
)  # fmt: skip


def compile_check(*changed: Path) -> Path:
    """The program; changed: a folder with other files of csrc."""
    flags = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror")
    compiler = Compiler(flags, (*changed, CSRC), (CSRC / "tests" / "tensorrt_standin",))
    return compiler.build("trt_workspace", compiler.overlaid(CSRC / name for name in SOURCES))


def test_workspace_covers_smaller_shapes_and_the_fastest_form():
    done = subprocess.run([compile_check()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "3840 shapes, 15360 plans" in done.stdout


def test_the_check_sees_a_workspace_that_is_too_small(tmp_path):
    text = (CSRC / "trt" / "trt_plan.cpp").read_text()
    changed = text.replace("kMOST_PIECES = 64", "kMOST_PIECES = 8")
    assert changed != text
    (tmp_path / "trt").mkdir()
    (tmp_path / "trt" / "trt_plan.cpp").write_text(changed)
    done = subprocess.run([compile_check(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("the fastest form does not fit: ")
