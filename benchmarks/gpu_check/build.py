"""The CUDA library compiled by nvcc for one GPU architecture, straight from the sources.

CMake's target ``mambapose_cuda`` makes the same library for installation; this way needs nothing
but nvcc and a C++ compiler, and keeps what the assembler reports about registers and spills.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mambapose.runtime.errors import EngineError

CSRC = Path(__file__).resolve().parents[2] / "plugins" / "csrc"
PROBE = Path(__file__).resolve().parent / "probe.cu"
FLAGS = ("-O3", "-std=c++17", f"-I{CSRC}", "-Xcompiler", "-fPIC,-fvisibility=hidden")


def nvcc_version(nvcc: Path) -> str:
    """The version nvcc reports, such as 13.0.88."""
    done = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"\bV(\d+\.\d+\.\d+)", done.stdout)
    if done.returncode or found is None:
        raise EngineError(f"an nvcc was wanted at {nvcc}, found something that names no version")
    return found.group(1)


def kernel_sources() -> list[Path]:
    """The files that hold kernels."""
    return sorted((CSRC / "cuda").glob("*.cu"))


def host_sources() -> list[Path]:
    """The C++ files of the library."""
    return [*sorted((CSRC / "cuda").glob("*.cpp")), CSRC / "core" / "scan_check.cpp"]


def machine_code(architecture: int) -> list[str]:
    """nvcc's options for the code of one architecture, 90 or 120 for example, and no PTX."""
    return ["-gencode", f"arch=compute_{architecture},code=sm_{architecture}"]


def run(command: Sequence[str | Path]) -> str:
    """What the command wrote to stderr. Raises EngineError with its first error line."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        errors = [line for line in lines if "error" in line.lower()] or lines
        raise EngineError(f"{Path(command[0]).name} failed: {errors[0]}")
    return done.stderr


def build_library(nvcc: Path, architecture: int, folder: Path, workers: int = 4) -> Path:
    """The path of a newly compiled libmambapose_cuda.so for one architecture, in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = [*kernel_sources(), *host_sources()]
    objects = [folder / f"{source.name}.o" for source in sources]
    flags = [*FLAGS, *machine_code(architecture)]

    def compile_one(pair: tuple[Path, Path]) -> None:
        run([nvcc, *flags, "-c", pair[0], "-o", pair[1]])

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(compile_one, zip(sources, objects, strict=True)))
    library = folder / "libmambapose_cuda.so"
    exports = ["-Xlinker", f"--version-script={CSRC / 'cuda' / 'exports_cuda.map'}"]
    run([nvcc, *machine_code(architecture), *exports, "-shared", *objects, "-o", library])
    return library


def build_probe(nvcc: Path, architecture: int, folder: Path) -> Path:
    """The path of the program that measures clock and rate of exponentials, built as a library."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "libprobe.so"
    run([nvcc, *FLAGS, *machine_code(architecture), "-shared", PROBE, "-o", library])
    return library
