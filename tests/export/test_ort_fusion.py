"""What ONNX Runtime makes of an exported graph: patterns it must find, or the network is slow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest

from mambapose.export.models import depth_anything, posemamba, vitpose

from ..export_cache import cached_graph


def optimised_operators(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """Operator -> how often it is in the graph that ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3  # it warns that the saved file suits this machine only
    onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    graph = onnx.load(folder / "optimised.onnx").graph
    return Counter(node.op_type for node in graph.node)


def depth_graphs() -> dict[str, tuple[Any, Any]]:
    variant = depth_anything.Variant(48, 4, 3, 8, (4, 4, 4, 4), (0, 1, 2, 3))
    return depth_anything.graphs(depth_anything.DepthAnything(variant).eval(), (28, 42))


# Network -> (its graphs, how many MLPs they hold).
GRAPHS: dict[str, tuple[Callable[[], dict[str, tuple[Any, Any]]], int]] = {
    "vitpose": (
        lambda: vitpose.graphs(
            vitpose.VitPose(vitpose.Variant(32, 2, 2), "simple").eval(), (64, 48)
        ),
        2,
    ),
    "depth-anything": (depth_graphs, 4),
    "posemamba": (lambda: posemamba.graphs(posemamba.build(width=16, depth=1), 3), 2),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_every_gelu_is_one_node(name: str, tmp_path: Path) -> None:
    make, mlps = GRAPHS[name]
    ((module, spec),) = make().values()
    kinds = optimised_operators(cached_graph(module, spec), tmp_path)
    assert kinds["Gelu"] + kinds["BiasGelu"] == mlps, kinds
    assert "Erf" not in kinds
