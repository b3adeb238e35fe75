"""ONNX Runtime: the embedded default, on any CPU.

Stages run one after another, so every session of the process uses one arena, and its idle threads
sleep instead of spinning: they would spin against the stage that runs and against decoding and
encoding. (A global thread pool is no way out: once it exists, every other session of the process
must use it or fails.) Memory patterns are off: they reserve every session's whole plan. So is the
reuse of tensors by the plan: a dead tensor then waits for the next of its size instead of going
back to the arena (glsmamba-b's window: 930 MiB with it, 490 without, in the same time). Weights
stay mapped from their file: repacked copies of them would be private memory.

Measured, four stages of the cpu target in turn on 640x480 frames, 2 busy x86 cores, ONNX Runtime
1.31: 265 MiB at most, 118 of it private, 2.9 s of CPU for 12 frames; with repacking 223 MiB
private and 2 % less time; with memory patterns 323 MiB; with spinning threads 6.7 s.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

from mambapose.runtime.backends.engine import check_spec
from mambapose.runtime.backends.native import (
    check_function_form,
    find_library,
    library_info,
    slow_notice,
)
from mambapose.runtime.bundle.entries import ONNX, Bundle
from mambapose.runtime.bundle.onnx_file import check_graph_files, check_single_file
from mambapose.runtime.edges import edge
from mambapose.runtime.errors import LoadError, RunError
from mambapose.runtime.text import printable
from mambapose.runtime.types import Array, GraphSpec, TensorSpec, Where

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
MAX_SAID = 1000  # characters of an error of ONNX Runtime that are passed on
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


class SlowOperatorWarning(UserWarning):
    """The selective scan runs as an ONNX function; the message says how to get the fast one."""


class OrtEngine:
    """One InferenceSession that matches its spec. mapped: size of its weight file in bytes."""

    def __init__(self, session: Any, spec: GraphSpec, mapped: int = 0) -> None:
        self.spec = spec
        self._session: Any = session
        self._outputs = [output.name for output in spec.outputs]
        self._mapped = mapped

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name, in new arrays that belong to the caller."""
        if self._session is None:
            raise RunError(f"graph {self.spec.name}: the engine is closed; load it again")
        self.spec.check_inputs(inputs)
        try:
            found = self._session.run(self._outputs, dict(inputs))
        except Exception as err:  # ONNX Runtime's exceptions share no base class
            raise RunError(
                f"graph {self.spec.name} failed in ONNX Runtime: {_first_line(err)}"
            ) from err
        return dict(zip(self._outputs, found, strict=True))

    def memory(self) -> dict[str, int]:
        """The bytes of the mapped weight file, which the graphs of a stage share."""
        return {"weights": self._mapped}

    def close(self) -> None:
        """Drop the session; its memory returns to the shared arena."""
        self._session = None

    def __enter__(self) -> OrtEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def installed_version() -> str | None:
    """The version of the onnxruntime package, None where it is absent."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    return str(_import().__version__)


def devices() -> tuple[str, ...]:
    """The devices on which this ONNX Runtime can run."""
    present = _import().get_available_providers()
    return tuple(name for name, provider in PROVIDERS.items() if provider in present)


def engine_from_bundle(
    bundle: Bundle, stage: str, graph: str, where: Where | None = None
) -> OrtEngine:
    """The engine of a graph of a bundle, after its tensors were compared with the manifest.

    Graphs with selective scans use the compiled operator when there is one, else the function
    inside the graph, with a SlowOperatorWarning once per process.
    """
    where = where or Where()
    entry = bundle.graph(stage, graph)
    check_graph_files(bundle.path, entry, ONNX)
    options = _options(where.thread_count)
    scans = bundle.stage(stage).scan_spec is not None
    library = find_library(where.operator) if scans else None
    fast = library is not None and library_info(library).onnxruntime
    if fast and library is not None:
        _register(options, library)
    session = _session(bundle.file(entry.onnx), options, where.device)
    if scans and not fast:
        with edge(LoadError, f"graph {graph}: its metadata cannot be read", "export it again"):
            metadata = session.get_modelmeta().custom_metadata_map
        check_function_form(metadata, _import().__version__)
        _warn_slow()
    check_spec(_declared(session, graph), entry.spec, f"stage {stage}, graph {graph}")
    mapped = bundle.file(entry.data.path).stat().st_size if entry.data is not None else 0
    return OrtEngine(session, entry.spec, mapped)


def engine_from_file(
    path: Path, where: Where | None = None, library: Path | None = None
) -> OrtEngine:
    """The engine of any ONNX file; its spec is what the file declares.

    library: the compiled operator, for a graph with selective scans.
    """
    where = where or Where()
    if not path.is_file():
        raise LoadError(f"an ONNX file was wanted at {path}, found none; check the path")
    check_single_file(path)
    options = _options(where.thread_count)
    if library is not None:
        _register(options, library)
    session = _session(path, options, where.device)
    return OrtEngine(session, _declared(session, path.stem), path.stat().st_size)


def _declared(session: Any, name: str) -> GraphSpec:
    """The tensors that the file itself declares. LoadError for names that are no text."""
    with edge(
        LoadError, f"graph {name}: the names of its tensors cannot be read", "export it again"
    ):
        return GraphSpec(
            name,
            tuple(_tensor(node) for node in session.get_inputs()),
            tuple(_tensor(node) for node in session.get_outputs()),
        )


def _register(options: Any, library: Path) -> None:
    try:
        options.register_custom_ops_library(str(library))
    except Exception as err:  # ONNX Runtime's exceptions share no base class
        raise LoadError(
            f"operator library {library} was refused by ONNX Runtime: {_first_line(err)}; "
            "install mambapose again, against this version of onnxruntime"
        ) from err


def _tensor(node: Any) -> TensorSpec:
    shape = tuple(
        side if isinstance(side, int) else str(side or f"dim{axis}")
        for axis, side in enumerate(node.shape)
    )
    if node.type not in DTYPES:
        raise LoadError(
            f"tensor {node.name} has type {node.type}, which is not supported; "
            f"supported are {', '.join(DTYPES)}"
        )
    return TensorSpec(node.name, DTYPES[node.type], shape)


def _import() -> Any:
    try:
        return import_module("onnxruntime")
    except ImportError as err:
        raise LoadError(
            "backend onnxruntime was wanted, the onnxruntime package is not installed; "
            "pip install 'mambapose[cpu]'"
        ) from err


@lru_cache(maxsize=1)
def _warn_slow() -> None:
    """Say once per process that the slow form is in use."""
    warnings.warn(slow_notice(), SlowOperatorWarning, stacklevel=3)


@lru_cache(maxsize=1)
def _share_arena() -> None:
    """Register the one arena that every session of the process uses.

    It grows by doubling. Growing by just the size asked for fragments the memory, and its peak was
    20 MiB higher.
    """
    ort = _import()
    info = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    no_limit, doubling, default = 0, 0, -1
    settings = ort.OrtArenaCfg(no_limit, doubling, default, default)
    ort.create_and_register_allocator(info, settings)


def _options(threads: int) -> Any:
    """SessionOptions of the shared arena, with ``threads`` threads that sleep when idle."""
    _share_arena()
    options = _import().SessionOptions()
    # Fatal only: errors come as exceptions, and what it would print holds names from the graph.
    options.log_severity_level = 4
    options.enable_mem_pattern = False
    options.enable_mem_reuse = False
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Whatever a file is named: a name that ends in .ort would choose another, laxer reader.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.use_env_allocators", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.disable_prepacking", "1")
    return options


@lru_cache(maxsize=1)
def _session_class() -> Any:
    """An InferenceSession that never tries again by itself on what it takes for the next best.

    ONNX Runtime would announce that on stdout, with the error's text and the names of the graph in
    it. The attribute is its own, in every version since 1.20; here it cannot be set.
    """
    session: Any = _import().InferenceSession
    never = property(lambda self: False, lambda self, value: None)
    return type("Session", (session,), {"_enable_fallback": never})


def _session(path: Path, options: Any, device: str) -> Any:
    """A session on exactly the asked device."""
    ort = _import()
    if device not in PROVIDERS:
        raise LoadError(f"device {device!r} is not known; use one of: {', '.join(PROVIDERS)}")
    provider = PROVIDERS[device]
    remedy = "use --device cpu, or install onnxruntime-gpu with its CUDA libraries"
    if provider not in ort.get_available_providers():
        raise LoadError(
            f"device {device} was wanted, this ONNX Runtime has no {provider}; {remedy}"
        )
    try:
        session = _session_class()(
            str(path), options, providers=[provider], read_config_from_model=0
        )
    except Exception as err:  # ONNX Runtime's exceptions share no base class
        raise LoadError(f"{path} cannot be loaded by ONNX Runtime: {_first_line(err)}") from err
    if provider not in session.get_providers():
        raise LoadError(f"device {device} was wanted, {provider} did not start; {remedy}")
    return session


def _first_line(err: Exception) -> str:
    """The first line of what ONNX Runtime says; names of the graph are in it."""
    lines = str(err).strip().splitlines() or [type(err).__name__]
    return printable(lines[0] if len(lines[0]) <= MAX_SAID else lines[0][:MAX_SAID] + "...")
