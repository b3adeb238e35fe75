"""The tables at the end of a run, and --strict-skips, in one process and in several."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TESTS = """
import subprocess
import sys
import pytest

def test_quick():
    pass

@pytest.mark.parametrize("n", range(2))
def test_absent(n):
    pytest.skip("nothing here")

def test_busy():
    subprocess.run([sys.executable, "-c", "sum(range(30_000_000))"], check=True)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder of tests with the conftest of ours."""
    tests = tmp_path / "tests"
    tests.mkdir()
    shutil.copy(HERE / "conftest.py", tests)
    (tests / "test_few.py").write_text(TESTS)
    return tmp_path


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """pytest in a process of its own, whose workers are not told that they are workers of ours."""
    ours = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--import-mode=importlib"]
    return subprocess.run(
        [*command, *words, "tests"], cwd=folder, capture_output=True, text=True, env=ours
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [(), ("-n", "2", "--dist", "worksteal")], ids=["one", "two"])
def test_what_ran_what_was_skipped_and_what_took_long(
    checkout: Path, workers: tuple[str, ...]
) -> None:
    done = run(checkout, *workers)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert "tests/test_few.py".ljust(48) + "2".rjust(8) + "0".rjust(8) + "2".rjust(8) in lines
    assert "skipped 2: nothing here" in lines
    slow = next(number for number, line in enumerate(lines) if line.strip("= ") == "slow")
    first, last = lines[slow + 2].split(), lines[slow + 6]
    assert first[2] == "tests/test_few.py::test_busy"
    assert float(first[0]) > 0.1  # of the process it waited for
    assert last.endswith("all 4 tests")
    strict = run(checkout, *workers, "--strict-skips")
    assert strict.returncode == 1
    assert run(checkout, *workers, "--strict-skips", "-k", "quick").returncode == 0
