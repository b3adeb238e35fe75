"""An engine: one graph of a stage, loaded on a backend."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol

from mambapose.runtime.bundle.bundle import Bundle
from mambapose.runtime.errors import EngineError
from mambapose.runtime.types import Array, GraphSpec


class Engine(Protocol):
    """A loaded graph. The arrays that ``run`` returns belong to the caller."""

    spec: GraphSpec

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name; EngineError when an input is not as the spec says."""
        ...

    def memory(self) -> dict[str, int]:
        """What is known about this engine's memory, in bytes."""
        ...

    def close(self) -> None:
        """Free what the backend holds; ``run`` may not be called afterwards."""
        ...

    def __enter__(self) -> Engine: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


# A loader: (bundle, stage, graph, device, threads) -> Engine.
Loader = Callable[[Bundle, str, str, str, "int | None"], Engine]


def _onnxruntime(
    bundle: Bundle, stage: str, graph: str, device: str, threads: int | None
) -> Engine:
    from mambapose.runtime.backends.onnxruntime import engine_from_bundle

    return engine_from_bundle(bundle, stage, graph, device=device, threads=threads)


BACKENDS: dict[str, Loader] = {"onnxruntime": _onnxruntime}


def backend_from_name(name: str) -> str:
    """The backend that ``name`` stands for: itself, or the best one present for ``auto``."""
    if name == "auto":
        return "onnxruntime"
    if name not in BACKENDS:
        known = ", ".join(("auto", *BACKENDS))
        raise EngineError(f"backend {name!r} is not known; use one of: {known}")
    return name


def thread_count(asked: int | None) -> int:
    """How many threads an engine uses: those asked for, else the cores this process may use."""
    return asked or len(os.sched_getaffinity(0))


def load_engine(
    bundle: Bundle,
    stage: str,
    graph: str,
    *,
    backend: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
) -> Engine:
    """The named graph of a stage, ready to run. threads: None means all cores."""
    return BACKENDS[backend_from_name(backend)](bundle, stage, graph, device, threads)


def load_detector(
    path: Path, *, backend: str = "auto", device: str = "cpu", threads: int | None = None
) -> Engine:
    """A user's own detector, an ONNX file outside any bundle."""
    name = backend_from_name(backend)
    if name != "onnxruntime":
        raise EngineError(f"a detector runs on backend onnxruntime, found {name}; leave --backend")
    from mambapose.runtime.backends.onnxruntime import engine_from_file

    return engine_from_file(path, device=device, threads=threads)
