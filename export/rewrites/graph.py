"""The few operations on onnx_ir that the rewrites share: shapes, constants, new nodes, values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]
Side = int | str
SCAN = ("mambapose", "SelectiveScan")
PREFIX = "rewritten"  # of the names of new values


@dataclass(frozen=True)
class Builder:
    """Where new nodes are put. memo: what was made already, by keys that the makers choose."""

    graph: ir.Graph
    memo: dict[Any, ir.Value] = field(default_factory=dict)


def is_scan(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == SCAN


def sides(value: ir.Value | None) -> tuple[Side, ...] | None:
    """The shape, free sides by their names; None where the rank or a side is unknown."""
    if value is None or value.shape is None:
        return None
    found: list[Side] = []
    for side in value.shape:
        name = side if isinstance(side, int) else side.value
        if name is None:
            return None
        found.append(name)
    return tuple(found)


def constant(value: ir.Value | None) -> Array | None:
    """The numbers of an initialiser or a Constant node."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def ints(node: ir.Node, name: str, default: Sequence[int] = ()) -> tuple[int, ...]:
    """An attribute of whole numbers as a tuple, also when it is a single number."""
    entry = node.attributes.get(name)
    if entry is None:
        return tuple(default)
    whole = entry.value
    return (int(whole),) if isinstance(whole, int) else tuple(int(item) for item in whole)


def text(node: ir.Node, name: str, default: str = "") -> str:
    entry = node.attributes.get(name)
    return default if entry is None else str(entry.value)


def added(
    build: Builder,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    shape: Sequence[Side],
    dtype: ir.DataType | None,
    attributes: Mapping[str, Any] | None = None,
) -> ir.Value:
    """The output of a new node with one output."""
    node = ir.node(op_type, inputs, attributes)
    build.graph.append(node)
    return described(build, node.outputs[0], shape, dtype)


def described(
    build: Builder, value: ir.Value, shape: Sequence[Side], dtype: ir.DataType | None
) -> ir.Value:
    """The value, after it got a name, a type and a shape."""
    value.name = _free_name(build)
    value.shape = ir.Shape(list(shape))
    value.type = ir.TensorType(dtype if dtype is not None else ir.DataType.FLOAT)
    return value


def stored(build: Builder, array: Array) -> ir.Value:
    """An initialiser with these numbers; equal arrays share one."""
    array = np.array(array)
    key = ("stored", array.dtype.str, array.shape, array.tobytes())
    if key not in build.memo:
        value = ir.Value(name=_free_name(build))
        value.const_value = ir.tensor(array, name=value.name)
        value.shape = ir.Shape(array.shape)
        value.type = ir.TensorType(value.const_value.dtype)
        build.graph.register_initializer(value)
        build.memo[key] = value
    return build.memo[key]


def _free_name(build: Builder) -> str:
    """A name that no value has. A graph with names of this form does not come from torch."""
    count = build.graph.meta.get(PREFIX, 0)
    build.graph.meta[PREFIX] = count + 1
    return f"{PREFIX}_{count}"


def replace(build: Builder, old: ir.Value, new: ir.Value) -> None:
    """Make everything that read the old value read the new one, and the graph's outputs too."""
    if old.is_graph_output():
        if new.is_graph_input() or new.is_graph_output() or new.is_initializer():
            new = added(build, "Identity", [new], sides(new) or (), new.dtype)
        old.name, new.name = _free_name(build), old.name
        outputs = build.graph.outputs
        for at, value in enumerate(outputs):
            if value is old:
                outputs[at] = new
    ir.convenience.replace_all_uses_with(old, new)


def tidy(model: ir.Model) -> None:
    """Sort the nodes and remove those whose outputs nobody reads."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    model.graph.sort()
    RemoveUnusedNodesPass()(model)
