"""``check.sh``: builds the CUDA kernels for this GPU, compares, times and judges them."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambapose.benchmarks.gpu_check import build
from mambapose.runtime.check.plugin import find_compiler
from mambapose.runtime.errors import EngineError, MambaPoseError

if TYPE_CHECKING:
    from mambapose.benchmarks.gpu_check.bars import Row
    from mambapose.benchmarks.gpu_check.floor import Device
    from mambapose.benchmarks.gpu_check.parity import Result

ROOT = Path(__file__).resolve().parents[2]
STEPS = ("parity", "sanitizer", "time")


def parser() -> argparse.ArgumentParser:
    """The options of check.sh."""
    made = argparse.ArgumentParser("check.sh", description=__doc__)
    made.add_argument(
        "--mamba-ssm",
        type=Path,
        metavar="SDIST",
        default=os.environ.get("MAMBA_SSM_SDIST"),
        help="source distribution to compare with; default MAMBA_SSM_SDIST",
    )
    made.add_argument("--seed", type=int, default=None, help="of the random inputs; default fresh")
    made.add_argument("--steps", default=",".join(STEPS), help="any of " + ", ".join(STEPS))
    made.add_argument("--quick", action="store_true", help="fewer cases, fewer repeats")
    made.add_argument(
        "--folder", type=Path, default=ROOT / "build" / "gpu", help="where it is compiled"
    )
    made.add_argument(
        "--results",
        type=Path,
        default=ROOT / "benchmarks" / "results",
        help="folder of the JSON lines",
    )
    made.add_argument("--commit", help="to be written beside the numbers; default: of the checkout")
    return made  # fmt: skip


def require_gpu() -> tuple[Path, int]:
    """(nvcc, capability of the GPU). Raises EngineError, one sentence, where one is absent."""
    try:
        import numpy  # noqa: F401
        import torch
    except ImportError as err:
        raise EngineError(f"numpy and torch with CUDA were wanted, found no {err.name}") from err
    if not torch.cuda.is_available():
        raise EngineError(
            f"an NVIDIA GPU and torch with CUDA were wanted, found torch {torch.__version__} "
            "without one; run this on a machine with a GPU"
        )
    nvcc = find_compiler()
    if nvcc is None:
        raise EngineError("nvcc was wanted, found none; install the CUDA toolkit or set CUDACXX")
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        raise EngineError(f"a GPU of compute capability 8.0 was wanted, found {major}.{minor}")
    return nvcc, 10 * major + minor


def compare(seed: int, quick: bool) -> list[Result]:
    """Every comparison with float64 and every property, in all types and tactics."""
    import numpy as np

    from mambapose.benchmarks.gpu_check import cases, parity, shapes

    device = shapes.DEVICE
    rng = np.random.default_rng(seed)
    chosen = list(cases.small_cases()) if quick else list(cases.all_cases(rng))
    results = []
    for name in parity.TYPES:
        results += parity.forward(chosen, name, device, seed)
        results.append(parity.gradients(parity.GRADIENT_CASES, name, device, seed))
    return results + parity.properties(device, seed)


def print_results(results: Sequence[Result]) -> None:
    """A line for each comparison and one for each failure."""
    print(f"{'compared':30} {'cases':>6} {'refused':>8} {'worst':>9} {'limit':>9}")
    for result in results:
        verdict = "ok" if result.ok else "FAIL"
        print(f"{result.check:30} {result.cases:>6} {result.refused:>8} {result.worst:>9.2e} "
              f"{result.limit:>9.1e}  {verdict}")  # fmt: skip
        for failure in result.failures[:5]:
            print(f"  {failure}")


def sanitize(nvcc: Path, library: Path) -> bool:
    """Whether no tool found an error; prints what each tool reports."""
    from mambapose.benchmarks.gpu_check import sanitize as tools

    tool = tools.find_tool(nvcc)
    if tool is None:
        print("compute-sanitizer: not installed here, nothing was checked with it")
        return True
    verdicts = tools.run_tools(tool, library)
    words = {True: "ok", False: "FAIL", None: "does not work here, nothing was checked with it"}
    for verdict in verdicts:
        print(f"{verdict.tool}: {words[verdict.ok]}: {verdict.said}")
    return all(verdict.ok is not False for verdict in verdicts)


def measure(
    device: Device, mamba_ssm: Path | None, folder: Path, nvcc: Path, quick: bool
) -> list[Row]:
    """The times of every candidate on every shape."""
    from mambapose.benchmarks.gpu_check import measure as measured
    from mambapose.benchmarks.gpu_check import yardstick

    theirs = None
    if mamba_ssm is not None:
        print(f"building mamba-ssm's scan from {mamba_ssm}", file=sys.stderr)
        theirs = yardstick.build(Path(mamba_ssm), folder / "mamba_ssm", device.capability, nvcc)
    return measured.all_rows(device, theirs, quick)


def machine(device: Device, nvcc: Path, seed: int, commit: str | None) -> dict[str, Any]:
    """The machine and the versions, which are written beside the numbers."""
    import torch

    from mambapose.benchmarks import report
    from mambapose.plugins import native_cuda

    about: dict[str, Any] = {
        **report.machine(), **device.asdict(), "nvcc": build.nvcc_version(nvcc), "seed": seed,
        "torch": torch.__version__, "kernels": native_cuda.version(),
    }  # fmt: skip
    return {**about, "commit": commit} if commit else about


def run(options: argparse.Namespace) -> bool:
    """Whether everything is right and every bar is kept, after all steps."""
    nvcc, capability = require_gpu()
    from mambapose.benchmarks.gpu_check import bars, timing
    from mambapose.benchmarks.scan import table as bar_table
    from mambapose.plugins.native_cuda import VARIABLE

    seed = secrets.randbelow(10**9) if options.seed is None else options.seed
    steps = options.steps.split(",")
    folder = options.folder / f"sm_{capability}"
    library = build.build_library(nvcc, capability, folder)
    os.environ[VARIABLE] = str(library)
    device = timing.measured_device(build.build_probe(nvcc, capability, folder))
    print(f"{device.name}: {device.multiprocessors} multiprocessors at "
          f"{device.clock_hz / 1e6:.0f} MHz, {device.exponentials_per_s / 1e9:.0f} G exponentials "
          f"per s, copies {device.bandwidth / 1e12:.2f} TB/s; seed {seed}")  # fmt: skip
    results = compare(seed, options.quick) if "parity" in steps else []
    print_results(results)
    clean = sanitize(nvcc, library) if "sanitizer" in steps else True
    rows = (
        measure(device, options.mamba_ssm, folder, nvcc, options.quick) if "time" in steps else []
    )
    print("\n".join(bars.table(rows)))
    errors = {
        name: max(r.worst for r in results if r.check.startswith(f"forward {name}"))
        for name in ("fp32", "fp16", "bf16")
        if results
    }
    judged = bars.judged(rows, errors)
    print("\n".join(bar_table([{**vars(bar), "ok": bar.ok} for bar in judged])))
    for what in bars.unmeasured(judged):
        print(f"not measured: {what}")
    checks = [result.row() for result in results]
    path = bars.results_file(options.results, device.name)
    about = machine(device, nvcc, seed, options.commit)
    bars.write_json_lines(path, rows, judged, checks, about)
    passed = clean and all(r.ok for r in results) and all(bar.ok for bar in judged)
    print(f"{'PASS' if passed else 'FAIL'}, written to {path}")
    return passed


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when all is right and every measured bar is kept."""
    options = parser().parse_args(arguments)
    unknown = set(options.steps.split(",")) - set(STEPS)
    if unknown:
        parser().error(f"--steps: {', '.join(STEPS)} were wanted, found {', '.join(unknown)}")
    try:
        return int(not run(options))
    except MambaPoseError as problem:
        print(f"check.sh: {problem}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
