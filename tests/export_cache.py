"""What tests export, kept in build/tests between runs: only what changed is exported again.

A folder is named by everything that its content is made of: the sources that an export runs
through, the compiled operator, the packages that write the files, the test file that asks and the
arguments. Two processes that want the same one wait for each other. Tests whose subject is the
export itself take nothing from here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import os
import pickle
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, lru_cache
from importlib import import_module
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
KEPT_SECONDS = 3600  # what other sources made; another run may still read it
GRAPH_BYTES = 64 << 20  # weights of a graph that is kept: the disk is not for those of ViT-B


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

    digest = hashlib.sha256(Path(build.__code__.co_filename).read_bytes())
    for fact in (name, *facts):
        digest.update(f"{fact}\0".encode())
    store = STORE / sources_digest()[:16]
    folder = store / f"{name}-{digest.hexdigest()[:16]}"
    if not folder.is_dir():
        _forget_other_sources(store)
        with FileLock(store / f"{folder.name}.lock"):
            if not folder.is_dir():
                unfinished = store / f"{folder.name}.{os.getpid()}"
                unfinished.mkdir()
                try:
                    build(unfinished)
                    unfinished.rename(folder)
                finally:
                    shutil.rmtree(unfinished, ignore_errors=True)
    os.utime(store)
    return folder


def _forget_other_sources(store: Path) -> None:
    store.mkdir(parents=True, exist_ok=True)
    for path in STORE.iterdir():
        if path != store and time.time() - path.stat().st_mtime > KEPT_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def cached_graph(module: Any, spec: Any) -> Any:
    """What ``export_graph`` makes of a module of the same class, attributes and weights."""
    import onnx

    from mambapose.export.onnx_export import export_graph

    def build(folder: Path) -> None:
        onnx.save_model(export_graph(module, spec), folder / "graph.onnx")

    module.eval()
    weights = sum(tensor.nbytes for tensor in module.state_dict().values())
    if weights > GRAPH_BYTES:
        return export_graph(module, spec)
    facts = (*described_module(module), str(spec))
    name = f"graph-{type(module).__name__}"
    return onnx.load_model(cached_folder(name, build, facts=facts) / "graph.onnx")


def described_module(module: Any) -> Iterable[str]:
    """Every attribute of the module and of those in it, and the files of their classes where they
    are of this repository, so that other modules read otherwise.

    Something whose text holds an address reads otherwise every time, and is never found again.
    """
    for name, part in module.named_modules():
        yield f"{name}: {type(part).__module__}.{type(part).__qualname__} {source_of(type(part))}"
        for key, value in sorted(vars(part).items()):
            if key != "_modules":
                yield f"{name}.{key} = {described(value)}"


def source_of(kind: type) -> str:
    """The hash of the file that defines a class; nothing for one of an installed package."""
    return hash_of_source(inspect.getfile(kind))


@cache
def hash_of_source(name: str) -> str:
    """The hash of a file of this repository; nothing for another."""
    file = Path(name).resolve()
    inside = file.is_relative_to(ROOT) and "site-packages" not in file.parts
    return hashlib.sha256(file.read_bytes()).hexdigest() if inside else ""


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


@contextlib.contextmanager
def reused_stages() -> Iterator[None]:
    """Meanwhile ``build_bundle``, and ``--model`` around a network of one's own, take stages from
    here: files, gate arrays and description of an equal network exported with equal options."""
    from mambapose.export import build

    own_build: Any = import_module("mambapose.export.own_model.build")  # has the name imported
    export_stage = build.export_stage

    def reused(plan: Any, stage: Any, network: Any, folder: Path, *, trt: bool = True) -> Any:
        def fill(kept: Path) -> None:
            entry = export_stage(plan, stage, network, kept, trt=trt)
            (kept / "entry.pickle").write_bytes(pickle.dumps(entry))

        of_plan = (plan.seed, plan.schedule, plan.precision, trt)
        of_weights = (network.weights, network.unit, network.half)
        rest = dataclasses.replace(stage, weights=None)  # a path; what it holds is in the module
        facts = (*described_module(network.model), repr((of_plan, of_weights, rest)))
        kept = cached_folder(f"stage-{stage.network.name}", fill, facts=facts)
        for part in ("stages", "gate"):
            shutil.copytree(kept / part, folder / part, dirs_exist_ok=True)
        return pickle.loads((kept / "entry.pickle").read_bytes())

    build.export_stage = own_build.export_stage = reused
    try:
        yield
    finally:
        build.export_stage = own_build.export_stage = export_stage
