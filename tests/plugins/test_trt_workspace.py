"""The workspace the TensorRT plugin asks for covers every launch of a profile."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "plugins" / "csrc"
SOURCES = (
    "tests/trt_workspace.cpp", "trt/trt_plan.cpp", "trt/trt_shapes.cpp", "trt/trt_log.cpp",
    "cuda/scan_cuda_plan.cpp", "core/scan_check.cpp",
)  # fmt: skip


def compile_check(target: Path, folder: Path) -> Path:
    """The program, of the sources in ``folder``."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    standin = f"-isystem{CSRC / 'tests' / 'tensorrt_standin'}"
    command = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{folder}", standin]
    command += [str(folder / name) for name in SOURCES]
    done = subprocess.run([*command, "-o", target], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def test_workspace_covers_smaller_shapes_and_the_fastest_form(tmp_path):
    program = compile_check(tmp_path / "check", CSRC)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "3840 shapes, 15360 plans" in done.stdout


def test_the_check_sees_a_workspace_that_is_too_small(tmp_path):
    copy = shutil.copytree(CSRC, tmp_path / "csrc")
    path = copy / "trt" / "trt_plan.cpp"
    text = path.read_text()
    changed = text.replace("kMOST_PIECES = 64", "kMOST_PIECES = 8")
    assert changed != text
    path.write_text(changed)
    program = compile_check(tmp_path / "check", copy)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith("the fastest form does not fit: ")
