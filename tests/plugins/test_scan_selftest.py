"""The kernels without Python: emulated aarch64, and this machine under the sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "plugins" / "csrc" / "tests"
SKIPPED = 77


def _run(script: str) -> str:
    if shutil.which("sh") is None:
        pytest.skip("no sh")
    run = subprocess.run(
        ["sh", str(FOLDER / script)], capture_output=True, text=True, timeout=600, check=False
    )
    if run.returncode == SKIPPED:
        pytest.skip(run.stdout.strip())
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.slow
def test_neon_agrees_under_emulation():
    assert "neon: " in _run("run_neon.sh")


@pytest.mark.slow
def test_the_sanitizers_find_nothing():
    assert "scalar: " in _run("run_sanitizers.sh")


@pytest.mark.slow
def test_the_sanitizers_find_nothing_in_the_cuda_kernels():
    """Addresses and undefined behaviour, then races of the threads of a GPU."""
    assert _run("run_cuda_sanitizers.sh").count("agree") == 2
