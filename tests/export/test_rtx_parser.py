"""Every exported graph parses and builds with TensorRT's own code, on the CPU.

tensorrt-rtx shares its ONNX parser with TensorRT and builds without a GPU. It has no plugins, so
every scan is replaced by its function body; nothing is run. Sizes and depths are reduced: what
is checked is that every operator of a network is accepted with the types and shapes we give it. A
process of its own per network, because the parser aborts its process over some mistakes.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from mambapose.export.models import (
    depth_anything,
    glsmamba,
    mambapose,
    mambapose3d,
    posemamba,
    raft,
    vitpose,
)
from mambapose.export.onnx_export import export_graph
from mambapose.export.rewrites import rewritten
from mambapose.plugins.adapters import CrossMerge, CrossScan, SelectiveScanCore
from mambapose.plugins.onnx_function import inline_functions, strip_functions
from mambapose.runtime.types import GraphSpec, TensorSpec

from ..export_cache import cached_graph

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx_bindings") is None,
        reason="tensorrt-rtx is not installed",
    ),
]

BUILD = """
import sys
import tensorrt_rtx_libs  # loads the libraries the bindings are linked against
import tensorrt_rtx_bindings as trt

logger = trt.Logger(trt.Logger.ERROR)
for path in sys.argv[1:]:
    builder = trt.Builder(logger)
    strongly = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly)
    parser = trt.OnnxParser(network, logger)
    with open(path, "rb") as file:
        if not parser.parse(file.read()):
            sys.exit("\\n".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if -1 in tuple(tensor.shape):
            sizes = [tuple(n if d < 0 else d for d in tensor.shape) for n in (1, 2, 4)]
            profile.set_shape(tensor.name, *sizes)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None or plan.nbytes == 0:
        sys.exit("no engine was built")
    print("built", network.num_layers, "layers", plan.nbytes, "bytes")
"""

Graphs = dict[str, tuple[Any, Any]]


def vitpose_graphs(head: str) -> Graphs:
    variant = dataclasses.replace(vitpose.VARIANTS["s"], depth=1)
    return vitpose.graphs(vitpose.VitPose(variant, head))


def depth_graphs() -> Graphs:
    variant = depth_anything.VARIANTS["small", 2]
    variant = dataclasses.replace(variant, depth=4, taps=(0, 1, 2, 3))
    return depth_anything.graphs(depth_anything.DepthAnything(variant), (70, 84))


def glsmamba_graphs() -> Graphs:
    small = vitpose.Variant(32, 1, 2)
    model = glsmamba.build(encoder=small, width=32, global_blocks=1, local_blocks=2)
    return glsmamba.graphs(model, (64, 48))


NETWORKS: dict[str, Callable[[], Graphs]] = {
    "raft-small": lambda: raft.graphs(raft.build(variant="small"), (128, 128)),
    "raft-large": lambda: raft.graphs(raft.build(variant="large"), (128, 128)),
    "depth-anything": depth_graphs,
    "vitpose-classic": lambda: vitpose_graphs("classic"),
    "vitpose-simple": lambda: vitpose_graphs("simple"),
    "mambapose": lambda: mambapose.graphs(mambapose.build(depth=1), (256, 192)),
    "glsmamba": glsmamba_graphs,
    "posemamba": lambda: posemamba.graphs(posemamba.build(depth=1), 9),
    "mambapose3d-flip": lambda: mambapose3d.graphs(mambapose3d.build(depth=1), 9, flip=True),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_graph_builds(name: str, tmp_path: Path) -> None:
    graphs = NETWORKS[name]()
    paths = []
    for number, graph in enumerate(graphs.values()):
        paths.append(tmp_path / f"{number}.onnx")
        paths[-1].write_bytes(inline_functions(cached_graph(*graph)).SerializeToString())
    check_builds(paths)


def check_builds(paths: list[Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BUILD, *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{paths}: {done.stdout[-500:]} {done.stderr[-2000:]}"
    assert done.stdout.count("built") == len(paths)


class Routed(nn.Module):
    """Four routes over an image in the style of VMamba, whose copies the rewrites remove."""

    def __init__(self, width: int = 8, states: int = 4, rank: int = 2) -> None:
        super().__init__()
        self.parts = [rank, states, states]
        self.project = nn.Parameter(0.2 * torch.randn(4, rank + 2 * states, width))
        self.steps = nn.Parameter(torch.randn(4, width, rank))
        self.logs = nn.Parameter(torch.rand(4 * width, states))
        self.skip, self.bias = (
            nn.Parameter(torch.ones(4 * width)),
            nn.Parameter(torch.randn(4 * width)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        routes = CrossScan.apply(x)
        dt, b, c = torch.einsum("bkdl,kcd->bkcl", routes, self.project).split(self.parts, 2)
        dt = torch.einsum("bkrl,kdr->bkdl", dt, self.steps)
        y = SelectiveScanCore.apply(
            routes.flatten(1, 2), dt.flatten(1, 2), -self.logs.exp(), b, c, self.skip, self.bias,
            True,
        )  # fmt: skip
        return CrossMerge.apply(y.reshape(-1, 4, *x.shape[1:]))


def test_rewritten_graphs_build(tmp_path: Path) -> None:
    """Orders, reverse flags and a summed merge, from copies; and the form with plugin nodes."""
    torch.manual_seed(0)
    spec = GraphSpec(
        "main",
        (TensorSpec("x", "float32", ("N", 8, 6, 5)),),
        (TensorSpec("y", "float32", ("N", 8, 30)),),
    )
    model = export_graph(Routed(), spec, rewrite=lambda model: rewritten(model)[0])
    (scan,) = (node for node in strip_functions(model).graph.node if node.domain == "mambapose")
    found = {entry.name: onnx.helper.get_attribute_value(entry) for entry in scan.attribute}
    assert (found["directions"], found["presence"]) == (4, 1 | 4 | 8)  # D, dt_bias and order
    assert all(scan.input)
    path = tmp_path / "routed.onnx"
    path.write_bytes(inline_functions(model).SerializeToString())
    check_builds([path])
