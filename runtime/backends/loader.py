"""Which backends there are, and the engines they load.

A backend is a row of BACKENDS. Its module is imported when one of its functions is first called,
so a machine needs only the packages of the backend it uses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mambapose.runtime.backends.engine import Engine
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.errors import LoadError
from mambapose.runtime.types import Where


@dataclass(frozen=True)
class Backend:
    """One way of running graphs, such as ONNX Runtime.

    load: loads a graph of a stage of a bundle. load_file: loads any ONNX file, with the compiled
    operator where its path is given; None for a backend that loads nothing but bundles. version:
    the version installed here, None where it is absent. devices: the devices on which it can run
    on this machine.
    """

    load: Callable[[Bundle, str, str, Where], Engine]
    load_file: Callable[[Path, Where, Path | None], Engine] | None
    version: Callable[[], str | None]
    devices: Callable[[], tuple[str, ...]]


def _onnxruntime_load(bundle: Bundle, stage: str, graph: str, where: Where) -> Engine:
    from mambapose.runtime.backends import onnxruntime

    return onnxruntime.engine_from_bundle(bundle, stage, graph, where)


def _onnxruntime_load_file(path: Path, where: Where, library: Path | None) -> Engine:
    from mambapose.runtime.backends import onnxruntime

    return onnxruntime.engine_from_file(path, where, library)


def _onnxruntime_version() -> str | None:
    from mambapose.runtime.backends import onnxruntime

    return onnxruntime.installed_version()


def _onnxruntime_devices() -> tuple[str, ...]:
    from mambapose.runtime.backends import onnxruntime

    return onnxruntime.devices()


# The best first: what ``auto`` takes.
BACKENDS: dict[str, Backend] = {
    "onnxruntime": Backend(
        _onnxruntime_load, _onnxruntime_load_file, _onnxruntime_version, _onnxruntime_devices
    ),
}


def backend_from_name(name: str) -> str:
    """The backend that ``name`` stands for: itself, or the best one present for ``auto``."""
    if name == "auto":
        return next(iter(BACKENDS))
    if name not in BACKENDS:
        known = ", ".join(("auto", *BACKENDS))
        raise LoadError(f"backend {name!r} is not known; use one of: {known}")
    return name


def load_engine(bundle: Bundle, stage: str, graph: str, where: Where | None = None) -> Engine:
    """The named graph of a stage, ready to run; EngineError as the backend raises it."""
    where = where or Where()
    return BACKENDS[backend_from_name(where.backend)].load(bundle, stage, graph, where)


def load_file(path: Path, where: Where | None = None, library: Path | None = None) -> Engine:
    """The engine of an ONNX file outside any bundle: a user's detector, the probe of ``mp-check``.

    library: the compiled operator, for a graph with selective scans. EngineError when the backend
    loads nothing but bundles.
    """
    where = where or Where()
    name = backend_from_name(where.backend)
    load = BACKENDS[name].load_file
    if load is None:
        able = ", ".join(other for other, backend in BACKENDS.items() if backend.load_file)
        raise LoadError(
            f"{path}: a backend that runs single ONNX files was wanted ({able}), found {name}; "
            "leave --backend out"
        )
    return load(path, where, library)
