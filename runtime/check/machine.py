"""What this machine can do, each claim proved by running something."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from mambapose.runtime.backends.loader import BACKENDS, load_engine, load_file
from mambapose.runtime.backends.native import find_library, library_info, slow_notice
from mambapose.runtime.bundle.bundle import (
    ignored_code,
    read_bundle,
    short_list,
    unlisted_files,
)
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.bundle.gate import FP32_LIMITS, exceeded, graph_errors
from mambapose.runtime.bundle.gate_file import MAX_ARRAY_MIB, read_gate
from mambapose.runtime.bundle.onnx_file import check_graph_files
from mambapose.runtime.check.finding import Finding
from mambapose.runtime.check.plugin import plugin_findings
from mambapose.runtime.errors import BundleError, EngineError
from mambapose.runtime.loading import check_contracts, clip_graphs, shipped_bundle
from mambapose.runtime.stages.table import MODEL
from mambapose.runtime.text import printable
from mambapose.runtime.types import Array, Where
from mambapose.runtime.version import tool_version

PROBE = Path(__file__).parent.parent / "data" / "probe.onnx"
PROBE_LENGTH, PROBE_CHANNELS, PROBE_SKIP = 8, 4, 0.5
# Of values around 1 in float32: ten roundings. A kernel that is wrong is wrong by far more, so the
# exact value is free.
PROBE_LIMIT = 1e-6
CPU_FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "asimd", "neon", "sve")


def machine_findings(
    operator: Path | None = None, *, compile_plugin: bool = False
) -> Iterator[Finding]:
    """Versions, processor, operator library, backends with one kernel run on each, plugin, video.

    operator: the compiled operator to load, as for `find_library`. compile_plugin: compile the
    TensorRT plugin even where no NVIDIA device is.
    """
    yield Finding("mambapose", tool_version())
    yield Finding("python", f"{platform.python_version()}, numpy {np.__version__}")
    yield Finding("system", f"{platform.system()} {platform.release()}, {platform.machine()}")
    yield Finding("processor", f"{_processor()}, {os.cpu_count()} cores")
    yield Finding("memory", f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') >> 20} MiB")
    yield from _library_findings(operator)
    for backend in BACKENDS:
        yield from _backend_findings(backend, operator)
    yield _tensorrt_finding()
    yield from plugin_findings(compile_plugin)
    yield Finding("jetson", "not run: no Jetson board has been tried with this version")
    yield _video_finding()
    yield _export_finding()
    yield _shipped_finding()


def bundle_findings(
    path: Path, operator: Path | None = None, *, gate_mib: int = MAX_ARRAY_MIB
) -> Iterator[Finding]:
    """Whether the bundle's files match their hashes; then every graph's gate on every backend.

    operator: the compiled operator to load, as for `find_library`. gate_mib: the largest stored
    array that is read.
    """
    try:
        bundle = read_bundle(path)
    except BundleError as err:
        yield Finding("bundle", str(err), False)
        return
    yield Finding("bundle", f"{path}, {bundle.hash[:12]}, all files match their hashes", True)
    if (ignored := ignored_code(bundle)) is not None:
        yield Finding("bundle", ignored)
    if unlisted := unlisted_files(bundle):
        yield Finding("bundle", f"not in bundle.json, so not used: {short_list(unlisted)}")
    yield from _weights_findings(bundle)
    for backend in BACKENDS:
        for stage in bundle.stages:
            yield stage_finding(bundle, stage, Where(backend, operator=operator), gate_mib)


def _weights_findings(bundle: Bundle) -> Iterator[Finding]:
    """What is known about the weights of each stage: random, labelled, measured."""
    if random := bundle.untrained_stages:
        yield Finding("weights", f"random in {', '.join(random)}: results are meaningless")
    for name, stage in bundle.stages.items():
        weights = stage.weights
        said = [f"{what} {number:g}" for what, number in weights.measured.items()]
        if text := ", ".join([*filter(None, [weights.label]), *said]):
            yield Finding("weights", f"{name}, {weights.file or 'no file'}: {text}")


def stage_finding(
    bundle: Bundle, stage: str, where: Where, gate_mib: int = MAX_ARRAY_MIB
) -> Finding:
    """Every graph of the stage run on its stored inputs and compared with its stored outputs.

    Before that the graphs are held against the stage's contract, and each of their files must name
    no file but its own weights.
    """
    errors: dict[str, float] = {}
    entry, backend = bundle.stage(stage), where.backend
    try:
        if stage != MODEL:
            for portrait in (False, True):
                graphs = clip_graphs(bundle, stage, portrait=portrait).values()
                check_contracts(bundle, [(stage, graph) for graph in graphs])
        for graph in entry.graphs.values():
            for form in graph.forms:
                check_graph_files(bundle.path, graph, form)
            inputs, wanted = read_gate(bundle, graph, max_mib=gate_mib)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the operator has a line of its own
                engine = load_engine(bundle, stage, graph.spec.name, where)
            with engine:
                found = engine.run(inputs)
            for unit, error in graph_errors(stage, inputs, found, wanted).items():
                errors[unit] = max(errors.get(unit, 0.0), error)
    except (BundleError, EngineError) as err:
        return Finding(stage, f"{entry.network} on {backend}: {err}", False)
    problem = exceeded(errors, FP32_LIMITS)
    text = problem or ", ".join(f"{unit} {error:.2g}" for unit, error in errors.items())
    return Finding(stage, f"{entry.network} on {backend}: {text}", problem is None)


def write_report(path: Path, findings: Sequence[Finding], verdict: str) -> None:
    """Write the findings, the time and our environment variables to one text file to paste."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    ours = {key: value for key, value in os.environ.items() if key.startswith("MAMBAPOSE_")}
    lines = [f"mp-check, {now}", *map(str, findings), verdict]
    lines += [printable(f"{key}={value}") for key, value in sorted(ours.items())]
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as err:
        raise EngineError(
            f"the report could not be written to {path} ({err.strerror}); choose another --report"
        ) from err


def run_probe(backend: str = "onnxruntime", library: Path | None = None) -> float:
    """The largest error of one selective scan on the backend against its closed form.

    ``library``: the compiled operator; without it the function inside the graph runs.
    EngineError when the backend is absent or cannot run it.
    """
    inputs, wanted = probe_case()
    with load_file(PROBE, Where(backend), library) as engine:
        found = engine.run(inputs)["y"]
    gap = found.astype(np.float64) - wanted.astype(np.float64)
    return float(np.abs(gap).max() / wanted.max())


def probe_case() -> tuple[dict[str, Array], Array]:
    """Inputs of the probe graph and its output in closed form.

    Two directions over 8 tokens, decay exp(-ln 2) = 1/2, input 1 in channel 0, 2 in channel 1 and
    so on: after t steps the state is (2 - 2^(1-t)) times the input. y adds both directions and
    twice the skip.
    """
    length, channels = PROBE_LENGTH, PROBE_CHANNELS
    scale = np.arange(1, channels + 1, dtype=np.float32)
    steps = 2 - 2.0 ** (1 - np.arange(1, length + 1))
    ones = np.ones((1, length, 2), np.float32)
    inputs: dict[str, Array] = {
        "u": np.broadcast_to(scale, (1, length, channels)).copy(),
        "dt": np.ones((1, length, 2 * channels), np.float32),
        "b": ones,
        "c": ones.copy(),
    }
    y = (steps + steps[::-1] + 2 * PROBE_SKIP)[None, :, None] * scale
    return inputs, y.astype(np.float32)


def _library_findings(operator: Path | None) -> Iterator[Finding]:
    try:
        library = find_library(operator)
        if library is None:
            yield Finding("operator", slow_notice())
            return
        info = library_info(library)
    except EngineError as err:
        yield Finding("operator", str(err), False)
        return
    yield Finding(
        "operator",
        f"{library}, specification {info.spec}, ABI {info.abi}, {info.isa}"
        + ("" if info.onnxruntime else "; built without ONNX Runtime's headers: networks run slow"),
        True,
    )


def _backend_findings(name: str, operator: Path | None) -> Iterator[Finding]:
    backend = BACKENDS[name]
    installed = backend.version()
    if installed is None:
        yield Finding(name, "absent, so nothing can run; pip install 'mambapose[cpu]'", False)
        return
    yield Finding(name, f"{installed}, runs on {', '.join(backend.devices())}")
    if backend.load_file is None:
        return
    yield _probe_finding(name, "function form", None)
    try:
        library = find_library(operator)
        if library is not None and library_info(library).onnxruntime:
            yield _probe_finding(name, "compiled operator", library)
    except EngineError:
        return  # said by the operator's own line


def _probe_finding(backend: str, form: str, library: Path | None) -> Finding:
    try:
        error = run_probe(backend, library)
    except EngineError as err:
        return Finding(backend, f"{form}: {err}", False)
    return Finding(backend, f"selective scan, {form}: error {error:.1e}", error <= PROBE_LIMIT)


def _tensorrt_finding() -> Finding:
    if importlib.util.find_spec("tensorrt") is None:
        return Finding("tensorrt", "absent (it comes with JetPack); not run")
    return Finding(
        "tensorrt",
        f"{_version('tensorrt') or 'present'}; this version has no backend for it: not run",
    )


def _video_finding() -> Finding:
    found = _version("av")
    if found is None:
        return Finding("video", "PyAV absent: no video files; pip install 'mambapose[cpu]'")
    try:
        import av

        codecs = [name for name in ("h264", "hevc", "vp9", "av1") if name in av.codecs_available]
    except ImportError as err:
        return Finding("video", f"PyAV {found} does not load: {err}", False)
    return Finding("video", f"PyAV {found}, reads {', '.join(codecs)} and more", True)


def _export_finding() -> Finding:
    parts = {name: _version(name) for name in ("torch", "onnx")}
    text = ", ".join(f"{name} {found}" for name, found in parts.items() if found)
    absent = "absent: mp-export does not run here; pip install 'mambapose[export]'"
    return Finding("export", text if all(parts.values()) else absent)


def _shipped_finding() -> Finding:
    """Whether the bundle that mp-run uses without --engine is there and all its hashes match."""
    try:
        folder = shipped_bundle()
    except BundleError as err:
        return Finding("default", str(err))
    try:
        bundle = read_bundle(folder)
    except BundleError as err:
        return Finding("default", str(err), False)
    labels = dict.fromkeys(filter(None, (s.weights.label for s in bundle.stages.values())))
    stages = ", ".join(f"{name} {stage.network}" for name, stage in bundle.stages.items())
    text = " ".join([stages, *(f"({label})" for label in labels)])
    return Finding("default", f"{bundle.path}, {text}, all files match their hashes", True)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor_model() -> str:
    """The processor's name (x86) or the board's (Arm), from /proc/cpuinfo where there is one."""
    fields = _cpuinfo()
    return fields.get("model name") or fields.get("Model") or platform.processor() or "unknown"


def _processor() -> str:
    """The processor's model and which of CPU_FEATURES it has."""
    fields, model = _cpuinfo(), processor_model()
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    features = [name for name in CPU_FEATURES if name in flags]
    return f"{model} ({' '.join(features) or 'features unknown'})"


def _cpuinfo() -> Mapping[str, str]:
    path = Path("/proc/cpuinfo")
    if not (sys.platform.startswith("linux") and path.is_file()):
        return {}
    fields: dict[str, str] = {}
    for line in path.read_text().splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields
