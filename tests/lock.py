"""``make lock``: every package that CI installs, with the SHA-256 of each of its files.

    python tests/lock.py

writes ``requirements-ci.lock`` and ``requirements-ci-tensorrt.lock`` from pyproject.toml and the
versions of constraints.txt, for the Python of CI. torch is not among them: its wheels for the CPU
come from an index of its own or from a folder, and differ from those of the usual index under the
same version. What torch needs on a CPU is.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK, TENSORRT_LOCK = ROOT / "requirements-ci.lock", ROOT / "requirements-ci-tensorrt.lock"
EXTRAS = ("cpu", "export", "train", "bench", "test")
PYTHON = "3.11"
TENSORRT = ("tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu13-bindings")
# torch, and what only its wheels for a GPU need.
LEFT_OUT = re.compile(r"(torch|triton|cuda-.*|nvidia-.*)==")
HEADER = """\
# What CI installs beside torch, with the SHA-256 of every file that may be taken for it:
#   pip install --require-hashes -r requirements-ci.lock
#   pip install -c constraints.txt torch
#   pip install --no-deps .
# torch has no hash here, because its wheel for the CPU is another file in every index. Made for
# Python {python} by `make lock` from pyproject.toml and constraints.txt; do not edit.
"""
TENSORRT_HEADER = """\
# The parser of tensorrt-rtx, which CI installs where its wheels are to be had:
#   pip install --require-hashes -r requirements-ci-tensorrt.lock
# Made for Python {python} by `make lock` from constraints.txt; do not edit.
"""


def entries(text: str) -> dict[str, str]:
    """``name==version`` -> the whole entry with its hashes, of a file of requirements."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line and not line.startswith(("#", " ")):
            name = line.split(" ")[0]
            found[name] = ""
        if name:
            found[name] += f"{line}\n"
    return found


def compiled(*arguments: object) -> dict[str, str]:
    """The entries that uv finds; SystemExit with what it said when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "lock"
        command = [
            sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--generate-hashes",
            "--no-annotate", "--no-header", "--python-version", PYTHON,
            "--constraint", ROOT / "constraints.txt", "--output-file", out, *arguments,
        ]  # fmt: skip
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"failed: {done.stderr}")
        return entries(out.read_text())


def main() -> None:
    """Write both files."""
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    kept = compiled(ROOT / "pyproject.toml", *extras)
    LOCK.write_text(
        HEADER.format(python=PYTHON)
        + "".join(entry for name, entry in kept.items() if not LEFT_OUT.match(name))
    )
    with tempfile.NamedTemporaryFile("w", suffix=".in") as asked:
        asked.write("\n".join(TENSORRT))
        asked.flush()
        kept = compiled(asked.name)
    TENSORRT_LOCK.write_text(TENSORRT_HEADER.format(python=PYTHON) + "".join(kept.values()))


if __name__ == "__main__":
    main()
