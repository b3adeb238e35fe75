"""The CUDA kernels built for the host, as tests of plugins build them; bundles that run nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mambapose.runtime.bundle.entries import Bundle, FileEntry, GraphEntry, StageEntry, WeightsEntry
from mambapose.runtime.targets import Schedule
from mambapose.runtime.types import GraphSpec, TensorSpec

from ..plugins.cuda_cases import build_shim


@pytest.fixture(scope="session")
def shim_library() -> Path:
    """The library; its device memory is host memory. Skips without a C++ compiler."""
    return build_shim()


@pytest.fixture
def shim(shim_library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The kernels in use are the host build, and everything runs on CPU tensors."""
    from mambapose.benchmarks.gpu_check import shapes
    from mambapose.plugins import native_cuda, torch_cuda

    cached = (native_cuda.load_library, torch_cuda.multiprocessors, torch_cuda._has_library)
    monkeypatch.setenv(native_cuda.VARIABLE, str(shim_library))
    monkeypatch.setattr(shapes, "DEVICE", "cpu")
    for function in cached:
        function.cache_clear()
    yield shim_library
    for function in cached:
        function.cache_clear()


MakeBundle = Callable[..., Bundle]


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    """A function that describes a bundle of one stage, whose graph files are two bytes each."""

    def make(
        stage: str,
        graphs: dict[str, tuple[TensorSpec, ...]],
        *,
        name: str = "net",
        params: int = 1_000_000,
        schedule: Schedule | None = None,
    ) -> Bundle:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        entries = {}
        for graph, inputs in graphs.items():
            file = f"{stage}-{graph}.onnx"
            (folder / file).write_bytes(b"on")
            entries[graph] = GraphEntry(
                GraphSpec(graph, inputs, ()), {"onnx": FileEntry(file, "0" * 64)}
            )
        weights = WeightsEntry(None, None, trained=False)
        entry = StageEntry(name, "fp32", params, weights, entries)
        return Bundle(folder, "0", "2026", "cpu", schedule or Schedule(), {stage: entry})

    return make
