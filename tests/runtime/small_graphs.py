"""Real ONNX graphs of every stage, tiny, for the chain on a real backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from mambapose.runtime.types import Array, FloatArray

KINDS = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}

# Operator, inputs, outputs, attributes; name, dtype, shape; name, value.
Node = tuple[str, list[str], list[str], dict[str, Any]]
Tensor = tuple[str, str, tuple[int | str, ...]]
Constant = tuple[str, Array]
Sides = tuple[int, int]


def model(
    nodes: Sequence[Node],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    constants: Sequence[Constant] = (),
) -> ModelProto:
    def values(tensors: Sequence[Tensor]) -> list[ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name, KINDS[kind], list(shape))
            for name, kind, shape in tensors
        ]

    graph = helper.make_graph(
        [helper.make_node(kind, ins, outs, **attributes) for kind, ins, outs, attributes in nodes],
        "small",
        values(inputs),
        values(outputs),
        [numpy_helper.from_array(array, name) for name, array in constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def random(*shape: int) -> FloatArray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def planes() -> list[Node]:
    """Nodes from a uint8 picture to float planes (N, 3, H, W) named x."""
    return [
        ("Cast", ["image"], ["f"], {"to": TensorProto.FLOAT}),
        ("Transpose", ["f"], ["x"], {"perm": [0, 3, 1, 2]}),
    ]


def encode(size: Sides, channels: int = 8) -> ModelProto:
    height, width = size
    cell = (1, channels, height // 8, width // 8)
    names = ("fmap", "hidden", "context")
    nodes: list[Node] = [
        *planes(),
        *(("Conv", ["x", f"w_{name}"], [name], {"strides": [8, 8]}) for name in names),
    ]
    constants = [(f"w_{name}", random(channels, 3, 8, 8) * 1e-4) for name in names]
    return model(
        nodes,
        [("image", "uint8", (1, height, width, 3))],
        [(name, "float32", cell) for name in names],
        constants,
    )


def corr(size: Sides, channels: int = 8) -> ModelProto:
    h, w = size[0] // 8, size[1] // 8
    nodes: list[Node] = [
        ("Reshape", ["fmap1", "flat"], ["a"], {}),
        ("Reshape", ["fmap2", "flat"], ["b"], {}),
        ("Transpose", ["a"], ["at"], {"perm": [1, 0]}),
        ("MatMul", ["at", "b"], ["m"], {}),
        ("Reshape", ["m", "grid"], ["corr0"], {}),
    ]
    for level in range(3):
        pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
        nodes.append(("AveragePool", [f"corr{level}"], [f"corr{level + 1}"], pool))
    cell = ("float32", (1, channels, h, w))
    outputs = [(f"corr{i}", "float32", (h * w, 1, h >> i, w >> i)) for i in range(4)]
    constants = [
        ("flat", np.array([channels, h * w], np.int64)),
        ("grid", np.array([h * w, 1, h, w], np.int64)),
    ]
    return model(nodes, [("fmap1", *cell), ("fmap2", *cell)], outputs, constants)


def step(size: Sides, channels: int = 8) -> ModelProto:
    h, w = size[0] // 8, size[1] // 8
    levels = [(f"corr{i}", "float32", (h * w, 1, h >> i, w >> i)) for i in range(4)]
    cell, coords = (1, channels, h, w), (1, 2, h, w)
    nodes: list[Node] = [
        ("ReduceMean", ["corr3"], ["mean"], {"keepdims": 0}),
        ("Tanh", ["mean"], ["small"], {}),
        ("Add", ["coords", "small"], ["coords_next"], {}),
        ("Add", ["hidden", "context"], ["sum"], {}),
        ("Tanh", ["sum"], ["hidden_next"], {}),
        ("ReduceMean", ["corr0"], ["unused0"], {"keepdims": 0}),
    ]
    inputs = [*levels, ("coords", "float32", coords), ("hidden", "float32", cell),
              ("context", "float32", cell)]  # fmt: skip
    outputs = [("coords_next", "float32", coords), ("hidden_next", "float32", cell)]
    return model(nodes, inputs, outputs)


def upsample(size: Sides) -> ModelProto:
    h, w = size[0] // 8, size[1] // 8
    nodes: list[Node] = [("Resize", ["coords", "", "scales"], ["flow"], {"mode": "linear"})]
    scales = ("scales", np.array([1, 1, 8, 8], np.float32))
    coords = ("coords", "float32", (1, 2, h, w))
    return model(nodes, [coords], [("flow", "float32", (1, 2, *size))], [scales])


def depth(size: Sides) -> ModelProto:
    nodes: list[Node] = [*planes(), ("ReduceMean", ["x", "axis"], ["depth"], {"keepdims": 1})]
    axis = ("axis", np.array([1], np.int64))
    image = ("image", "uint8", (1, *size, 3))
    return model(nodes, [image], [("depth", "float32", (1, 1, *size))], [axis])


def pose(crop: Sides, heat: Sides) -> ModelProto:
    nodes: list[Node] = [
        ("Cast", ["rgb"], ["f"], {"to": TensorProto.FLOAT}),
        ("Transpose", ["f"], ["x"], {"perm": [0, 3, 1, 2]}),
        ("Concat", ["x", "flow", "depth"], ["all"], {"axis": 1}),
        ("Conv", ["all", "w"], ["raw"], {"strides": [4, 4]}),
        ("ReduceMax", ["present", "one"], ["flag"], {"keepdims": 1}),
        ("Reshape", ["flag", "four"], ["flag4"], {}),
        ("Mul", ["raw", "flag4"], ["scaled"], {}),
        ("Sigmoid", ["scaled"], ["heatmaps"], {}),
    ]
    inputs = [("rgb", "uint8", ("N", *crop, 3)), ("flow", "float32", ("N", 2, *crop)),
              ("depth", "float32", ("N", 1, *crop)), ("present", "float32", ("N", 2))]  # fmt: skip
    constants = [
        ("w", random(17, 6, 4, 4) * 1e-3),
        ("one", np.array([1], np.int64)),
        ("four", np.array([-1, 1, 1, 1], np.int64)),
    ]
    return model(nodes, inputs, [("heatmaps", "float32", ("N", 17, *heat))], constants)


def lift(frames: int) -> ModelProto:
    nodes: list[Node] = [("MatMul", ["keypoints", "w"], ["xyz"], {})]
    shape = ("N", frames, 17)
    return model(
        nodes,
        [("keypoints", "float32", (*shape, 2))],
        [("xyz", "float32", (*shape, 3))],
        [("w", random(2, 3))],
    )
