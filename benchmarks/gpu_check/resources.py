"""What each kernel takes of a multiprocessor, on every architecture, as nvcc's assembler says.

    python -m mambapose.benchmarks.gpu_check.resources --write docs/cuda.md

Exit status 1 when a kernel spills registers or keeps an array in local memory. Another toolchain:
``--nvcc PATH --ccbin g++-11``, and ``--ptxas PATH`` for an assembler of its own.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mambapose.benchmarks.gpu_check import build
from mambapose.runtime.check.plugin import find_compiler
from mambapose.runtime.errors import EngineError, MambaPoseError

ARCHITECTURES = (80, 86, 87, 89, 90, 110, 120)
ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)a?'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
MARKS = ("<!-- resources: begin -->", "<!-- resources: end -->")


@dataclass(frozen=True)
class Kernel:
    """One kernel on one architecture; sizes in bytes, shared is the static part."""

    name: str
    architecture: int
    registers: int
    stack: int
    spills: int
    shared: int


def parsed(log: str) -> list[Kernel]:
    """The kernels that an assembler's verbose log describes."""
    found: list[Kernel] = []
    entry: tuple[str, int] | None = None
    stack, spills = 0, 0
    for line in log.splitlines():
        if match := ENTRY.search(line):
            entry = match[1], int(match[2])
        elif match := SPILLS.search(line):
            stack, spills = int(match[1]), int(match[2]) + int(match[3])
        elif (match := USED.search(line)) and entry is not None:
            shared = SHARED.search(line)
            static = int(shared[1]) if shared else 0
            found.append(Kernel(*entry, int(match[1]), stack, spills, static))
            entry = None
    return found


def compiled(
    nvcc: Path, architectures: Sequence[int], ccbin: str | None = None, ptxas: Path | None = None
) -> list[Kernel]:
    """Every kernel for every architecture. Raises EngineError when the compiler fails."""
    host = ["-ccbin", ccbin] if ccbin else []
    jobs = [(source, number) for number in architectures for source in build.kernel_sources()]

    def one(job: tuple[Path, int]) -> list[Kernel]:
        source, number = job
        with tempfile.TemporaryDirectory() as folder:
            flags: list[str | Path] = [*build.FLAGS, *host, source, "-o"]
            if ptxas is None:
                verbose = ["-cubin", "-Xptxas", "-v", f"-arch=sm_{number}"]
                return parsed(build.run([nvcc, *verbose, *flags, f"{folder}/kernels.cubin"]))
            ptx = f"{folder}/kernels.ptx"
            build.run([nvcc, "-ptx", f"-arch=compute_{number}", *flags, ptx])
            options = ["-v", f"-arch=sm_{number}", ptx, "-o", f"{folder}/kernels.cubin"]
            return parsed(build.run([ptxas, *options]))

    with ThreadPoolExecutor(2) as pool:
        found = [kernel for kernels in pool.map(one, jobs) for kernel in kernels]
    if not found:
        raise EngineError("registers of kernels were wanted, found none in the assembler's log")
    return found


def readable(names: Iterable[str]) -> dict[str, str]:
    """Mangled name -> the name as the source writes it, without arguments and namespaces."""
    mangled = sorted(set(names))
    tool = shutil.which("c++filt")
    if tool is None:
        raise EngineError("c++filt was wanted to name the kernels, found none; install binutils")
    done = subprocess.run(
        [tool, *mangled], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return {name: _short(text) for name, text in zip(mangled, done, strict=True)}


def _short(signature: str) -> str:
    """``void a::kernel<(int)4, a::Kind>(P)`` as ``kernel<4, Kind>``."""
    text = re.sub(r"\(anonymous namespace\)::|\b\w+::", "", signature)
    text = re.sub(r"\((?:int|bool|unsigned int)\)", "", text)
    text = text.removeprefix("void ")
    end = text.find("(")
    return text if end < 0 else text[:end]


def table(kernels: Sequence[Kernel]) -> list[str]:
    """Registers per thread: a row for each kernel, a column for each architecture."""
    names = readable(kernel.name for kernel in kernels)
    numbers = sorted({kernel.architecture for kernel in kernels})
    rows: dict[str, dict[int, int]] = {}
    for kernel in kernels:
        rows.setdefault(names[kernel.name], {})[kernel.architecture] = kernel.registers
    lines = ["| kernel | " + " | ".join(f"sm_{number}" for number in numbers) + " |"]
    lines.append("| --- |" + " ---: |" * len(numbers))
    for name, registers in sorted(rows.items(), key=lambda row: _order(row[0])):
        cells = " | ".join(str(registers.get(number, "")) for number in numbers)
        lines.append(f"| `{name}` | {cells} |")
    return lines


def _order(name: str) -> list[tuple[int, str]]:
    """A sort key that compares the numbers in a name as numbers."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.findall(r"\d+|\D+", name)]


def faults(kernels: Iterable[Kernel]) -> list[str]:
    """A sentence for each kernel that spills or has a stack."""
    return [
        f"{kernel.name} for sm_{kernel.architecture}: no stack and no spills were wanted, found "
        f"{kernel.stack} bytes of stack and {kernel.spills} bytes of spills"
        for kernel in kernels
        if kernel.stack or kernel.spills
    ]


def marked(text: str) -> tuple[int, int]:
    """Where the table of a page begins and ends. Raises EngineError without the two marks."""
    places = [text.find(mark) for mark in MARKS]
    if min(places) < 0:
        raise EngineError(f"a page with the lines {' and '.join(MARKS)} was wanted, found none")
    return places[0] + len(MARKS[0]), places[1]


def with_table(text: str, lines: Sequence[str]) -> str:
    """The page with this table in place of the one between its marks."""
    begin, end = marked(text)
    return "\n".join([text[:begin], "", *lines, "", text[end:]])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, or write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--nvcc", type=Path, default=find_compiler())
    parser.add_argument("--ccbin", help="C++ compiler for nvcc, such as g++-11")
    parser.add_argument("--ptxas", type=Path, help="assembler for nvcc's PTX")
    parser.add_argument("--architectures", default=",".join(map(str, ARCHITECTURES)))
    parser.add_argument("--write", type=Path, metavar="PAGE", help="page that holds the table")
    options = parser.parse_args(arguments)
    try:
        if options.nvcc is None:
            raise EngineError("nvcc was wanted, found none; install the CUDA toolkit or name it")
        numbers = [int(number) for number in options.architectures.split(",")]
        kernels = compiled(options.nvcc, numbers, options.ccbin, options.ptxas)
        lines = table(kernels)
        print(f"nvcc {build.nvcc_version(options.nvcc)}, {len(kernels)} kernels")
        print("\n".join(lines))
        if options.write is not None:
            page = options.write.read_text(encoding="utf-8")
            options.write.write_text(with_table(page, lines), encoding="utf-8")
    except MambaPoseError as problem:
        print(f"resources: {problem}", file=sys.stderr)
        return 1
    found = faults(kernels)
    print("\n".join(found), file=sys.stderr) if found else None
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
