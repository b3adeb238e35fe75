"""``mp-bench scan``: the compiled selective scan against its bars.

Every ratio comes from one process and, unless its row says otherwise, one thread, the candidates
taking turns; the best time of each counts, because what else runs on the machine only ever adds
time. Tensors start on 64-byte boundaries, as the tensors of ONNX Runtime and torch do.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambapose.benchmarks.jobs import own_module
from mambapose.plugins import native_scan
from mambapose.plugins.reference import selective_scan_reference
from mambapose.runtime import durable
from mambapose.runtime.errors import EngineError

SHAPES = ((384, 16, 197), (128, 16, 4131))  # D, N, L
PLAIN_BARS = {"avx512": 5.0, "avx2": 3.0}
ORDER_BARS = dict(zip(SHAPES, (1.05, 1.4), strict=True))
PLAIN_SOURCE = Path(__file__).resolve().parent / "csrc" / "plain_scan.cpp"
PLAIN_FLAGS = ("-O3", "-ffast-math", "-march=native", "-shared", "-fPIC")
HALF_ROWS = ("u", "dt", "B", "C", "z")
SECONDS_PER_COMPARISON = 3.0
LEAST_ROUNDS = 3

Array = NDArray[Any]
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """Channels, states and length of a measured scan, batch 1."""

    D: int
    N: int
    L: int

    def __str__(self) -> str:
        return f"D {self.D} N {self.N} L {self.L}"


@dataclass(frozen=True)
class Bar:
    """What was measured and the limit for it; with limit None it is only information."""

    what: str
    shape: str
    measured: float
    limit: float | None
    at_least: bool
    unit: str
    isa: str
    best_ms: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the measured value keeps within the limit."""
        if self.limit is None:
            return True
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


def _aligned(array: Array) -> Array:
    """A copy that starts on a 64-byte boundary."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _inputs(shape: Shape, directions: int = 1, half: bool = False) -> Arguments:
    """Inputs of one layer: step sizes of about 0.001 to 0.5 after softplus, A from -1 to -N."""
    rng = np.random.default_rng(0)
    wide, columns = directions * shape.D, directions * shape.N

    def normal(*size: int) -> Array:
        return rng.standard_normal(size).astype(np.float32)

    arguments = {
        "u": normal(1, shape.L, shape.D),
        "dt": normal(1, shape.L, wide),
        "A": -np.tile(np.arange(1, shape.N + 1, dtype=np.float32), (wide, 1)),
        "B": normal(1, shape.L, columns),
        "C": normal(1, shape.L, columns),
        "D": normal(wide),
        "z": normal(1, shape.L, shape.D),
        "dt_bias": normal(wide) - 3,
    }
    return {
        name: _aligned(value.astype(np.float16) if half and name in HALF_ROWS else value)
        for name, value in arguments.items()
    }


def _call(
    arguments: Arguments, y: Array | None = None, *, threads: int = 1, **attributes: Any
) -> Callable[[], None]:
    """The bound native call; several calls can share y, which is aligned like the inputs."""
    if y is None:
        y = _aligned(np.zeros_like(arguments["u"]))
    bound = native_scan.bind_scan(arguments, attributes, y=y, with_state=False, threads=threads)
    return bound.run


def _best_ms(candidates: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """The best time of each candidate; each runs twice per turn and the second run counts.

    A candidate named after an instruction set runs with it, the others with the best.
    """
    best = dict.fromkeys(candidates, float("inf"))
    rounds, started = 0, time.perf_counter()
    while rounds < LEAST_ROUNDS or time.perf_counter() - started < SECONDS_PER_COMPARISON:
        for name, run in candidates.items():
            native_scan.force_instruction_set(name if name in PLAIN_BARS else None)
            run()
            begin = time.perf_counter()
            run()
            best[name] = min(best[name], (time.perf_counter() - begin) * 1e3)
        rounds += 1
    native_scan.force_instruction_set(None)
    return best


def plain_library() -> ctypes.CDLL:
    """The plain C++ loop, compiled for this machine once and kept in the user's cache folder.

    Raises EngineError when there is no compiler or it fails.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise EngineError(
            "a C++ compiler was wanted for the plain loop the scan is compared with, found none; "
            "install g++ or set CXX"
        )
    command = [compiler, *PLAIN_FLAGS]
    digest = hashlib.sha256(PLAIN_SOURCE.read_bytes() + " ".join(command).encode()).hexdigest()
    path = Path.home() / ".cache" / "mambapose" / "bench" / f"plain_scan-{digest[:16]}.so"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        built = subprocess.run(
            [*command, str(PLAIN_SOURCE), "-o", str(fresh)], capture_output=True, text=True
        )
        if built.returncode:
            raise EngineError(
                f"{compiler} cannot build the plain loop: {built.stderr.strip().splitlines()[-1:]}"
            )
        durable.replace(fresh, path)
    return ctypes.CDLL(str(path))


def _plain(shape: Shape, x: Arguments) -> tuple[Callable[[], None], Array]:
    """A call of the plain loop on these inputs, and the y that it writes."""
    library = plain_library()
    y = _aligned(np.zeros_like(x["u"]))
    names = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias")
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (*(x[n] for n in names), y)]
    sizes = [ctypes.c_int64(size) for size in (shape.L, shape.D, shape.N)]
    return lambda: library.plain_scan(*sizes, *pointers), y


def _graph(model: bytes, x: Arguments, threads: int = 1) -> Callable[[], Any]:
    """A call that runs a graph in ONNX Runtime on a pool of ``threads`` threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.register_custom_ops_library(str(native_scan.library_path()))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(["y"], x)[0]


def _error(found: Array, wanted: Array) -> float:
    return float(np.abs(found.astype(float) - wanted).max() / np.abs(wanted).max())


def _check_yardstick(what: str, y: Array, wanted: Array) -> None:
    """Raise EngineError when a yardstick computes something else."""
    if _error(y, wanted) > 1e-4:
        raise EngineError(f"{what} was to compute the same scan, found an error of 1e-4 or more")


def yardstick_bars(shape: Shape) -> list[Bar]:
    """How many times faster we are than the plain loop, LinearAttention and the ONNX Scan."""
    from mambapose.benchmarks import scan_graphs

    x = _inputs(shape)
    wanted, _ = selective_scan_reference(**x)
    plain, plain_y = _plain(shape, x)
    sizes = (shape.D, shape.L, shape.N)
    graphs = {
        "com.microsoft LinearAttention": scan_graphs.linear_attention_graph(*sizes),
        "lean ONNX Scan": scan_graphs.scan_graph(*sizes),
        "lean ONNX Scan, Log for Softplus": scan_graphs.scan_graph(*sizes, softplus=False),
    }
    runs = {name: _graph(model, x) for name, model in graphs.items()}
    for name, run in runs.items():
        _check_yardstick(name, run(), wanted)
    best = native_scan.instruction_set()
    isas = [isa for isa in PLAIN_BARS if native_scan.force_instruction_set(isa)] or [best]
    native_scan.force_instruction_set(None)
    ms = _best_ms({**dict.fromkeys(isas, _call(x)), "plain C++ loop": plain, **runs})
    _check_yardstick("the plain loop", plain_y, wanted)

    def bar(what: str, limit: float | None, isa: str = best) -> Bar:
        ratio = ms[what] / ms[isa]
        return Bar(f"faster than {what}", str(shape), ratio, limit, True, "x", isa, ms[isa])

    limits = {"com.microsoft LinearAttention": 15.0, "lean ONNX Scan": 12.0}
    return [
        *(bar("plain C++ loop", PLAIN_BARS.get(isa), isa) for isa in isas),
        *(bar(name, limits.get(name)) for name in graphs),
    ]


def walk_bars(shape: Shape) -> list[Bar]:
    """What directions, orders and threads cost, as multiples of the time of one direction."""
    x, both = _inputs(shape), _inputs(shape, directions=2)
    permuted = np.random.default_rng(1).permutation(shape.L).astype(np.int32)
    y = _aligned(np.zeros_like(x["u"]))
    candidates = {
        "one": _call(x, y),
        "reverse": _call(x, y, reverse=(1,)),
        "permuted": _call({**x, "order": permuted}, y),
        "both": _call({**both, "u": x["u"], "z": x["z"]}, y, directions=2, reverse=(0, 1),
                      merge="sum"),
    }  # fmt: skip
    ms = _best_ms(candidates)
    isa = native_scan.instruction_set()
    order_bar = ORDER_BARS.get((shape.D, shape.N, shape.L))

    def bar(what: str, name: str, limit: float | None) -> Bar:
        return Bar(what, str(shape), ms[name] / ms["one"], limit, False, "x", isa, ms[name])

    return [
        bar("both directions in one node", "both", 2.05),
        bar("reverse order", "reverse", order_bar),
        bar("permuted order", "permuted", order_bar),
    ]


def thread_bars(shape: Shape) -> list[Bar]:
    """How many times faster two threads are than one.

    Measured on ONNX Runtime's pool, where a network runs, and on threads started for the call, as
    the torch operator does.
    """
    from mambapose.benchmarks import scan_graphs

    x = _inputs(shape)
    y = _aligned(np.zeros_like(x["u"]))
    model = scan_graphs.operator_graph(shape.D, shape.L, shape.N)
    isa = native_scan.instruction_set()
    pairs = {
        "ONNX Runtime's pool": (_graph(model, x), _graph(model, x, 2), 1.7),
        "started for the call": (_call(x, y), _call(x, y, threads=2), None),
    }
    bars = []
    for name, (one, two, limit) in pairs.items():
        ms = _best_ms({"one": one, "two": two})
        ratio = ms["one"] / ms["two"]
        bars.append(
            Bar(f"two threads, {name}", str(shape), ratio, limit, True, "x", isa, ms["two"])
        )
    return bars


def error_bars(shape: Shape) -> list[Bar]:
    """Largest error relative to the largest value, against the float64 oracle."""
    isa, bars = native_scan.instruction_set(), []
    for half, limit in ((False, 2e-6), (True, 1.5e-3)):
        x = _inputs(shape, half=half)
        error = _error(native_scan.scan(**x)[0], selective_scan_reference(**x)[0])
        name = "error in fp16" if half else "error in fp32"
        bars.append(Bar(name, str(shape), error, limit, False, "", isa))
    return bars


def memory_bars(shape: Shape) -> list[Bar]:
    """MB of memory that a call touches besides its tensors, in a fresh process."""
    cases = {"one direction": (1, False), "both directions in fp16": (2, True)}
    isa, bars = native_scan.instruction_set(), []
    for name, (directions, half) in cases.items():
        command = own_module("mambapose.benchmarks.scan", "--memory")
        numbers = [shape.D, shape.N, shape.L, directions, int(half)]
        run = subprocess.run(
            [*command, *map(str, numbers)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "4096"},
        )
        if run.returncode:
            raise EngineError(f"the memory of a scan cannot be measured: {run.stderr.strip()}")
        megabytes = int(run.stdout) / 1e6
        bars.append(Bar(f"extra memory, {name}", str(shape), megabytes, 1.0, False, "MB", isa))
    return bars


def extra_memory(shape: Shape, directions: int, half: bool) -> int:
    """Bytes of the pages that one call touches for the first time, after its tensors exist.

    Free memory goes back to the system first, so that even a second call faults once for each page
    it uses; MALLOC_MMAP_THRESHOLD_ set to a page keeps it from being reused. Needs glibc.
    """
    import resource

    reverse = [k % 2 for k in range(directions)]
    call = _call(
        _inputs(shape, directions, half), directions=directions, reverse=reverse, merge="sum"
    )
    call()
    ctypes.CDLL(None).malloc_trim(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    call()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return faults * resource.getpagesize()


def run(shapes: Iterable[Sequence[int]] = SHAPES) -> list[dict[str, Any]]:
    """Every bar as a row: what, shape, measured, limit, at_least, unit, isa, best_ms, ok.

    Takes about half a minute. Raises EngineError when the compiled operator, a compiler or
    ONNX Runtime is absent.
    """
    bars: list[Bar] = []
    for sizes in shapes:
        shape = Shape(*sizes)
        bars += [*yardstick_bars(shape), *walk_bars(shape), *memory_bars(shape)]
        bars += error_bars(shape)
        if shape.L > 1000 and (os.cpu_count() or 1) > 1:
            bars += thread_bars(shape)
    return [{**asdict(bar), "ok": bar.ok} for bar in bars]


def table(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Lines of the printed table: bar, measured, ok or MISS."""
    lines = [f"{'what':46} {'shape':18} {'isa':7} {'bar':>10} {'measured':>12} {'ms':>9}"]
    for row in rows:
        sign = ">=" if row["at_least"] else "<="
        limit = "-" if row["limit"] is None else f"{sign} {row['limit']:g}"
        ms = "" if row["best_ms"] is None else f"{row['best_ms']:.3f}"
        verdict = "" if row["limit"] is None else "  ok" if row["ok"] else "  MISS"
        measured = f"{row['measured']:.3g} {row['unit']}".rstrip()
        lines.append(
            f"{row['what']:46} {row['shape']:18} {row['isa']:7} {limit:>10} {measured:>12} "
            f"{ms:>9}{verdict}".rstrip()
        )
    return lines


def write_json_lines(
    rows: Iterable[Mapping[str, Any]], path: Path, machine: Mapping[str, Any]
) -> None:
    """Append one JSON line per row, each with the machine it was measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({"bench": "scan", **row, "machine": dict(machine)}) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 when a bar is missed. ``--memory D N L K half`` prints bytes instead."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["--memory"]:
        D, N, L, directions, half = map(int, words[1:])
        print(extra_memory(Shape(D, N, L), directions, bool(half)))
        return 0
    rows = run()
    print("\n".join(table(rows)))
    return int(not all(row["ok"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
