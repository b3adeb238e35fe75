"""Graphs built by hand, and what a rewrite has to leave unchanged in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from mambapose.export.rewrites import kinds
from mambapose.plugins.onnx_function import attach_functions

LAST = np.iinfo(np.int64).min  # end of a slice that runs backwards through the first element


class Draft:
    """A graph that grows node by node; every method answers the name of a value."""

    def __init__(self, seed: int = 0, **inputs: tuple[int | str, ...]) -> None:
        self.random = np.random.default_rng(seed)
        self.inputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in inputs.items()
        ]
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.described: list[onnx.ValueInfoProto] = []

    def const(self, array: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape: int) -> str:
        return self.const(self.random.normal(0, 0.5, shape).astype(np.float32))

    @overload
    def node(self, kind: str, *inputs: str, outputs: Literal[1] = 1, **attributes: Any) -> str: ...

    @overload
    def node(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]: ...

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str | list[str]:
        names = [f"v{len(self.nodes)}_{number}" for number in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def flip(self, value: str, axis: int = -1) -> str:
        parts = (self.const(np.array([number], np.int64)) for number in (-1, LAST, axis, -1))
        return self.node("Slice", value, *parts)

    def part(self, value: str, axis: int, start: int, end: int) -> str:
        parts = (self.const(np.array([number], np.int64)) for number in (start, end, axis, 1))
        return self.node("Slice", value, *parts)

    def turned(self, value: str) -> str:
        return self.node("Transpose", value, perm=[0, 2, 1])

    def shaped(self, value: str, *shape: int) -> str:
        return self.node("Reshape", value, self.const(np.array(shape, np.int64)))

    def silu(self, value: str) -> str:
        return self.node("Mul", value, self.node("Sigmoid", value))

    def scan(
        self, u: str, dt: str, B: str, C: str, z: str = "", *,
        shape: tuple[int | str, ...], states: int, decay: str = "", **attributes: Any,
    ) -> str:  # fmt: skip
        """y of shape (N, L, width), with weights of its own."""
        batch, _, width = shape
        assert isinstance(width, int)
        rates = self.random.uniform(0.2, 2, (width, states)).astype(np.float32)
        decay = decay or self.const(-rates)
        names = [f"v{len(self.nodes)}_0", f"v{len(self.nodes)}_1"]
        options = {"directions": 1, "groups": 1, "reverse": [0], "delta_softplus": 1,
                   "segment": 0, "merge": "none", "gate": "silu", "plugin_version": "1",
                   "plugin_namespace": "", **attributes}  # fmt: skip
        inputs = [u, dt, decay, B, C, self.weight(width), z, self.weight(width)]
        self.nodes.append(
            helper.make_node("SelectiveScan", inputs, names, domain="mambapose", **options)
        )
        for name, sides in zip(names, (shape, (batch, width, states)), strict=True):
            self.described.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sides))
        return names[0]

    def projected(self, row: str, width: int, states: int, rank: int = 2) -> tuple[str, str, str]:
        """dt, B and C of rows (N, L, width), as a Mamba layer makes them."""
        all_parts = self.node("MatMul", row, self.weight(width, rank + 2 * states))
        ends = (0, rank, rank + states, rank + 2 * states)
        steps, b, c = (self.part(all_parts, 2, *ends[at : at + 2]) for at in range(3))
        return self.node("MatMul", steps, self.weight(rank, width)), b, c

    def model(self, *outputs: str) -> onnx.ModelProto:
        """The model with these outputs, of the shapes that follow."""
        values = [helper.make_empty_tensor_value_info(name) for name in outputs]
        graph = helper.make_graph(
            self.nodes, "draft", self.inputs, values, self.constants, value_info=self.described
        )
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mambapose", 1)]
        model = onnx.shape_inference.infer_shapes(
            helper.make_model(graph, opset_imports=opsets, ir_version=10)
        )
        for value in (*model.graph.value_info, *model.graph.output):
            for side in value.type.tensor_type.shape.dim:
                if side.dim_param.startswith("unk"):  # the only free side, under another name
                    side.dim_param = "N"
        return model


def answers(model: onnx.ModelProto, batch: int = 2) -> list[np.ndarray]:
    """Outputs in ONNX Runtime with the function bodies, for seeded inputs."""
    import onnxruntime

    runnable = onnx.ModelProto()
    runnable.CopyFrom(model)
    attach_functions(runnable)
    onnx.checker.check_model(runnable)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        runnable.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    random = np.random.default_rng(1)
    feeds = {
        value.name: random.standard_normal(
            [side if isinstance(side, int) else batch for side in value.shape]
        ).astype(np.float32)
        for value in session.get_inputs()
    }
    answers: list[np.ndarray] = session.run(None, feeds)
    return answers


def checked(
    rewrite: Callable[[ir.Model], int], model: onnx.ModelProto, batch: int = 2
) -> tuple[onnx.ModelProto, int]:
    """The rewritten model, which has to answer the same, and the number of nodes it lost."""
    graph = ir.from_proto(model)
    removed = rewrite(graph)
    changed = ir.to_proto(graph)
    assert kinds(model)["all"] - kinds(changed)["all"] == removed
    for old, new in zip(model.graph.output, changed.graph.output, strict=True):
        assert old == new
    for one, other in zip(answers(model, batch), answers(changed, batch), strict=True):
        assert np.abs(one).max() > 1e-3
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-6 * np.abs(one).max())
    return changed, removed


def untouched(rewrite: Callable[[ir.Model], int], model: onnx.ModelProto) -> None:
    """The rewrite leaves every node of the model as it is."""
    graph = ir.from_proto(model)
    nodes = list(ir.to_proto(graph).graph.node)
    assert rewrite(graph) == 0
    assert list(ir.to_proto(graph).graph.node) == nodes


def scans_of(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """Attributes of every scan, and under ``inputs`` the names of its inputs."""
    return [
        {
            **{entry.name: helper.get_attribute_value(entry) for entry in node.attribute},
            "inputs": list(node.input),
        }
        for node in model.graph.node
        if node.op_type == "SelectiveScan"
    ]


@pytest.fixture
def new_draft() -> type[Draft]:
    return Draft


@pytest.fixture
def run() -> Callable[..., list[np.ndarray]]:
    return answers


@pytest.fixture
def same() -> Callable[..., tuple[onnx.ModelProto, int]]:
    return checked


@pytest.fixture
def left() -> Callable[..., None]:
    return untouched


@pytest.fixture
def scans() -> Callable[[onnx.ModelProto], list[dict[str, Any]]]:
    return scans_of
