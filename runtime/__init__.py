"""Run an exported pose pipeline on video: numpy, click and one backend, never torch.

    import mambapose.runtime as mp
    result = mp.run("walk.mp4")

The names below are the public API (docs/api.md); they are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mambapose.runtime.api import (
        Result,
        open_bundle,
        open_pipeline,
        open_source,
        run,
    )
    from mambapose.runtime.errors import IncompleteError, MambaPoseError
    from mambapose.runtime.run_options import RunOptions
    from mambapose.runtime.types import Frame, Pose, Size, Where

    __version__: str

_HOMES = {
    "Frame": "types",
    "IncompleteError": "errors",
    "MambaPoseError": "errors",
    "Pose": "types",
    "Result": "api",
    "RunOptions": "run_options",
    "Size": "types",
    "Where": "types",
    "open_bundle": "api",
    "open_pipeline": "api",
    "open_source": "api",
    "run": "api",
}

__all__ = [
    "Frame",
    "IncompleteError",
    "MambaPoseError",
    "Pose",
    "Result",
    "RunOptions",
    "Size",
    "Where",
    "__version__",
    "open_bundle",
    "open_pipeline",
    "open_source",
    "run",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("mambapose.runtime.version").tool_version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"mambapose.runtime.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
