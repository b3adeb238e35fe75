"""Exported graphs in ONNX Runtime, as the tests of the networks want them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..export_cache import cached_graph, reused_stages


class Chain:
    """The graphs of one stage: ``models`` as exported, ``run`` through ONNX Runtime from disk."""

    def __init__(self, graphs: Mapping[str, tuple[Any, Any]], folder: Path) -> None:
        import onnxruntime

        from mambapose.export.onnx_export import save_graphs

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.models = {name: cached_graph(*graph) for name, graph in graphs.items()}
        self.files = save_graphs(self.models, folder, "stage")
        self.sessions = {
            name.partition("@")[0]: onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
            for name, path in self.files.items()
        }

    def run(self, graph: str, *inputs: np.ndarray) -> list[np.ndarray]:
        """The outputs of a graph, inputs in the order of its contract."""
        session = self.sessions[graph]
        names = [value.name for value in session.get_inputs()]
        answers: list[np.ndarray] = session.run(None, dict(zip(names, inputs, strict=True)))
        return answers

    def operators(self) -> set[str]:
        return {node.op_type for model in self.models.values() for node in model.graph.node}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Chain]:
    """A function from graphs (of one orientation) to a Chain; exports under the same key once.

    Per module: networks, graphs and sessions of a whole run would take over 6 GiB.
    """
    made: dict[object, Chain] = {}
    numbers = itertools.count()

    def make(graphs: Mapping[str, tuple[Any, Any]], key: object = None) -> Chain:
        key = key if key is not None else next(numbers)
        if key not in made:
            made[key] = Chain(graphs, tmp_path_factory.mktemp("graphs"))
        return made[key]

    return make


@pytest.fixture
def kept_stages() -> Iterator[None]:
    """Stages that were exported before are not exported again: for tests of what is around them."""
    with reused_stages():
        yield


@pytest.fixture(scope="session")
def relative_error() -> Callable[[Any, Any], float]:
    """Largest |difference| over largest |reference|, the measure of the golden tolerances."""

    def measure(found: Any, reference: Any) -> float:
        found, reference = np.asarray(found, np.float64), np.asarray(reference, np.float64)
        assert found.shape == reference.shape
        return float(np.abs(found - reference).max() / np.abs(reference).max())

    return measure


@pytest.fixture(params=["function", "native"])
def scan_form(request: pytest.FixtureRequest) -> Path | None:
    """None for the scan's function body; the compiled operator's library, or a skip without it."""
    from mambapose.runtime.backends.native import find_library, library_info

    if request.param == "function":
        return None
    library = find_library()
    if library is None:
        pytest.skip("the operator was not compiled")
    if not library_info(library).onnxruntime:
        pytest.skip("the operator was compiled without ONNX Runtime's headers")
    return library


@pytest.fixture(scope="session")
def run_onnx() -> Callable[..., dict[str, np.ndarray]]:
    """A function: model, inputs by name, operator library or None -> outputs by name."""

    def run(
        model: Any, inputs: Mapping[str, np.ndarray], library: Path | None
    ) -> dict[str, np.ndarray]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        if library is not None:
            options.register_custom_ops_library(str(library))
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return run
