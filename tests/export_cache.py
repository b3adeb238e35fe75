"""What tests export, kept in build/tests between runs: only what changed is exported again.

A folder is named by everything that its content is made of: the sources that an export runs
through, the compiled operator, the packages that write the files, the test file that asks and the
arguments. Two processes that want the same one wait for each other.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / "build" / "tests" / "exported"
# Of the runtime: what a bundle holds and what its graphs are verified with.
SOURCES = (
    "export/**/*.py", "plugins/**/*.py", "plugins/libmambapose_*", "runtime/*.py",
    "runtime/bundle/*.py", "runtime/backends/*.py", "runtime/stages/*.py", "export/weights/*",
    "benchmarks/yardsticks.py", "tests/export_cache.py",
)  # fmt: skip
PACKAGES = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "numpy", "safetensors")
KEPT_DAYS = 7  # of folders that nothing asks for any more


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


@lru_cache(maxsize=1)
def sources_digest() -> str:
    """Changes with every file and package that an export runs through."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in SOURCES for path in ROOT.glob(pattern)}):
        if path.is_file():
            digest.update(f"{path.relative_to(ROOT)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    for package in PACKAGES:
        digest.update(f"{package}={installed(package)}\0".encode())
    return digest.hexdigest()


def cached_folder(name: str, build: Callable[[Path], object], *, facts: Iterable[str] = ()) -> Path:
    """The folder that ``build`` fills, empty at first; built once for the same sources and facts.

    Nobody may change what lies there: copy it first. name: readable, and unique in the file that
    defines ``build``, whose content counts as well.
    """
    from filelock import FileLock

    digest = hashlib.sha256(sources_digest().encode())
    digest.update(Path(build.__code__.co_filename).read_bytes())
    for fact in (name, *facts):
        digest.update(f"{fact}\0".encode())
    folder = STORE / f"{name}-{digest.hexdigest()[:16]}"
    if not folder.is_dir():
        STORE.mkdir(parents=True, exist_ok=True)
        with FileLock(STORE / f"{folder.name}.lock"):
            if not folder.is_dir():
                _forget_old()
                unfinished = STORE / f"{folder.name}.{os.getpid()}"
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                try:
                    build(unfinished)
                    unfinished.rename(folder)
                finally:
                    shutil.rmtree(unfinished, ignore_errors=True)
    os.utime(folder)
    return folder


def _forget_old() -> None:
    for path in STORE.iterdir():
        if time.time() - path.stat().st_mtime > KEPT_DAYS * 86_400:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def cached_graph(module: Any, spec: Any, **options: Any) -> Any:
    """What ``export_graph`` makes of a module of the same class, attributes and weights."""
    import onnx

    from mambapose.export.onnx_export import export_graph

    def build(folder: Path) -> None:
        onnx.save_model(export_graph(module, spec, **options), folder / "graph.onnx")

    module.eval()
    facts = (*described_module(module), str(spec), repr(sorted(options.items())))
    name = f"graph-{type(module).__name__}"
    return onnx.load_model(cached_folder(name, build, facts=facts) / "graph.onnx")


def described_module(module: Any) -> Iterable[str]:
    """Every attribute of the module and of those in it, so that other modules read otherwise.

    Something whose text holds an address reads otherwise every time, and is never found again.
    """
    for name, part in module.named_modules():
        yield f"{name}: {type(part).__module__}.{type(part).__qualname__}"
        for key, value in sorted(vars(part).items()):
            if key != "_modules":
                yield f"{name}.{key} = {described(value)}"


def described(value: Any) -> str:
    """The value as text; arrays and tensors by their bytes."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"{value.dtype}{value.shape}{content}"
    if isinstance(value, Mapping):
        return repr({key: described(entry) for key, entry in value.items()})
    if isinstance(value, list | tuple):
        return repr([described(entry) for entry in value])
    if isinstance(value, set | frozenset):
        return repr(sorted(map(described, value)))
    return repr(value)
