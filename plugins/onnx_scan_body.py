"""Builds the function body of one scan signature from standard ONNX operators.

Steps: (1) delta and drive = delta * u in token order; (2) rows of every direction laid out as
(L, K, B, ...) in the order the steps visit them; (3) one Scan; (4) back to token order, skip
connection, merge, gate. Letters as in onnx_function.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mambapose.plugins.scan_node import DOMAIN, INPUTS, OPERATOR, OUTPUTS, Signature

if TYPE_CHECKING:
    import onnx

SOFTPLUS_THRESHOLD = 20.0
BACKWARDS_TO_THE_START = np.iinfo(np.int64).min


class Nodes:
    """Collects nodes; calling it appends one node and returns the name of its (first) output."""

    def __init__(self, prefix: str = "") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.prefix = prefix  # names of a subgraph must not repeat those around it

    def __call__(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"{self.prefix}{operator.lower()}_{len(self.nodes)}"
        return self.several(operator, inputs, [output], **attributes)[0]

    def several(
        self, operator: str, inputs: Sequence[str], outputs: list[str], **attributes: Any
    ) -> list[str]:
        """Append a node with these outputs and return their names."""
        from onnx import helper

        self.nodes.append(helper.make_node(operator, list(inputs), outputs, **attributes))
        return outputs

    def constant(self, value: Any, dtype: type[np.generic] = np.int64) -> str:
        """The name of a constant tensor."""
        from onnx import numpy_helper

        return self("Constant", value=numpy_helper.from_array(np.asarray(value, dtype)))

    def reshape(self, value: str, *sizes: int) -> str:
        """The value with these sizes; 0 keeps a size, -1 stands for the rest."""
        return self("Reshape", value, self.constant(sizes))

    def unsqueeze(self, value: str, *axes: int) -> str:
        """The value with new axes of size 1."""
        return self("Unsqueeze", value, self.constant(axes))

    def slice(self, value: str, start: int, end: int, axis: int, step: int = 1) -> str:
        """The value cut along one axis."""
        return self("Slice", value, *(self.constant([n]) for n in (start, end, axis, step)))


def function_from_signature(signature: Signature, opset: int) -> onnx.FunctionProto:
    """The model-local function of this signature, for models of this opset.

    It needs at least one batch element and one step: ONNX Runtime reshapes nothing that is empty.
    """
    from onnx import helper

    function = helper.make_function(
        DOMAIN,
        OPERATOR,
        INPUTS[: signature.input_count],
        OUTPUTS,
        _body(signature),
        [helper.make_opsetid("", opset)],
    )
    function.overload = signature.overload
    function.doc_string = "The selective scan, version 1, in standard operators."
    return function


def _body(signature: Signature) -> list[onnx.NodeProto]:
    add, K, G = Nodes(), signature.directions, signature.groups

    def real(name: str) -> str:
        return add("Cast", name, to=1) if signature.half else name

    delta = add.reshape(_delta(add, signature, real("dt")), 0, 0, K, -1)  # (B, L, K, D)
    u = add.reshape(real("u"), 0, 0, 1 if signature.u_shared else K, -1)
    visits, returns = _maps(add, signature)

    def walked(rows: str, *tail: int) -> str:
        by_step = _gathered(add, add("Transpose", rows, perm=[1, 2, 0, 3]), visits)
        return add.reshape(by_step, 0, 0, 0, *tail)  # (L, K, B, G, ...)

    rows = {
        "delta": walked(delta, G, 1, -1),
        "drive": walked(add("Mul", delta, u), G, 1, -1),
    }
    outer = {"A": _by_state(add, "A", K, G)}
    for name, constant, tail in (
        ("B", signature.b_constant, (G, -1, 1)),
        ("C", signature.c_constant, (G, 1, -1)),
    ):
        if constant:
            outer[name] = _by_state(add, name, K, G)
        else:
            rows[name] = walked(add.reshape(real(name), 0, 0, K, -1), *tail)
    walked_y = _scan(add, signature, rows, outer)
    by_token = _gathered(add, add.reshape(walked_y, 0, 0, 0, -1), returns)
    _finish(add, signature, add("Transpose", by_token, perm=[2, 0, 1, 3]), u, real)
    return add.nodes


def _delta(add: Nodes, signature: Signature, dt: str) -> str:
    """Step sizes (B, L, K*D): bias, then softplus.

    log(1 + e) alone is wrong by 6e-5 at dt = -7, where networks start, so the part that 1 + e
    rounds away is added back. The operator Softplus of ONNX Runtime has the same error.
    """
    raw = add("Add", dt, "dt_bias") if "dt_bias" in signature.optional else dt
    if not signature.delta_softplus:
        return raw
    threshold, one = add.constant(SOFTPLUS_THRESHOLD, np.float32), add.constant(1, np.float32)
    e = add("Exp", add("Min", raw, threshold))
    above_one = add("Add", e, one)
    lost = add("Sub", e, add("Sub", above_one, one))
    log1p = add("Add", add("Log", above_one), add("Div", lost, above_one))
    return add("Where", add("Greater", raw, threshold), raw, log1p)


def _maps(add: Nodes, signature: Signature) -> tuple[str | None, str | None]:
    """Two (L, K) maps over the (L*K) rows: which row to visit, and where each row was visited.

    (None, None) when every direction visits the tokens in their own order.
    """
    K, given = signature.directions, "order" in signature.optional
    if not given and not any(signature.reverse):
        return None, None
    length = add("Squeeze", add("Shape", "dt", start=1, end=2))
    zero, one = add.constant(0), add.constant(1)
    order = add("Cast", "order", to=7) if given else add("Range", zero, length, one)
    rows = order if signature.order_rows else add.unsqueeze(order, 0)
    picked = []
    for k, backwards in enumerate(signature.reverse):
        row = add.slice(rows, k, k + 1, 0) if signature.order_rows else rows
        picked.append(add.slice(row, -1, BACKWARDS_TO_THE_START, 1, -1) if backwards else row)
    tokens = add("Transpose", add("Concat", *picked, axis=0), perm=[1, 0])
    count = add.constant(K)
    visits = add("Add", add("Mul", tokens, count), add.constant(range(K)))
    if not given:
        return visits, visits  # walking backwards twice is walking forwards
    flat, places = add.reshape(visits, -1), add("Range", zero, add("Mul", length, count), one)
    return visits, add.reshape(add("ScatterElements", places, flat, places), -1, K)


def _gathered(add: Nodes, rows: str, places: str | None) -> str:
    """(L, K, B, F) rows picked by the (L, K) row numbers."""
    if places is None:
        return rows
    sizes = add("Concat", add.constant([-1]), add("Shape", rows, start=2), axis=0)
    return add("Gather", add("Reshape", rows, sizes), places, axis=0)


def _by_state(add: Nodes, matrix: str, directions: int, groups: int) -> str:
    """A (K*D, N) matrix as (K, 1, G, N, E), channels innermost as in the state."""
    split = add.reshape(add.unsqueeze(matrix, 0), directions, -1, 0)  # (K, D, N)
    by_group = add.reshape(add("Transpose", split, perm=[0, 2, 1]), 0, 0, groups, -1)
    return add.unsqueeze(add("Transpose", by_group, perm=[0, 2, 1, 3]), 1)


def _start(add: Nodes, signature: Signature, decay_rate: str) -> str:
    """The state (K, B, G, N, E) before the first step."""
    K, G = signature.directions, signature.groups
    if "initial_state" in signature.optional:
        split = add.reshape(add.unsqueeze("initial_state", 1), 0, K, -1, 0)  # (B, K, D, N)
        by_group = add.reshape(add("Transpose", split, perm=[1, 0, 3, 2]), 0, 0, 0, G, -1)
        return add("Transpose", by_group, perm=[0, 1, 3, 2, 4])
    batch = add("Shape", "dt", start=0, end=1)
    sizes = add("Concat", add.constant([K]), batch, add("Shape", decay_rate, start=2), axis=0)
    return add("ConstantOfShape", sizes)


def _scan(add: Nodes, signature: Signature, rows: dict[str, str], outer: dict[str, str]) -> str:
    """The y of every step, (L, K, B, G, 1, E); it also names the final state."""
    from onnx import TensorProto, helper

    start = _start(add, signature, outer["A"])
    kinds = dict.fromkeys(rows, TensorProto.FLOAT)
    if signature.segment > 0:
        rows, kinds = dict(rows), {**kinds, "fresh": TensorProto.BOOL}
        length = add("Squeeze", add("Shape", "dt", start=1, end=2))
        steps = add("Range", add.constant(0), length, add.constant(1))
        within = add("Mod", steps, add.constant(signature.segment))
        rows["fresh"] = add("Equal", within, add.constant(0))

    body, step = Nodes("step_"), {name: f"{name}_t" for name in rows}
    state = "state"
    if signature.segment > 0:
        state = body("Where", step["fresh"], start, state)
    decay = body("Exp", body("Mul", step["delta"], outer["A"]))
    kept = body("Mul", decay, state)
    added = body("Mul", outer.get("B") or step["B"], step["drive"])
    body("Add", kept, added, name="next_state")
    if signature.c_constant:
        products = body("Mul", outer["C"], "next_state")
        body("ReduceSum", products, body.constant([-2]), name="y_t", keepdims=1)
    else:
        body("MatMul", step["C"], "next_state", name="y_t")

    floats = TensorProto.FLOAT
    inputs = [("state", floats), *((step[name], kinds[name]) for name in rows)]
    graph = helper.make_graph(
        body.nodes,
        "selective_scan_step",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in inputs],
        [helper.make_tensor_value_info(name, floats, None) for name in ("next_state", "y_t")],
    )
    end, ys = add.several(
        "Scan", [start, *rows.values()], ["last_state", "walked_y"],
        body=graph, num_scan_inputs=len(rows),
    )  # fmt: skip
    _name_final_state(add, end)
    return ys


def _name_final_state(add: Nodes, state: str) -> None:
    """Writes the (K, B, G, N, E) state as the output (B, K*D, N)."""
    by_channel = add.reshape(add("Transpose", state, perm=[0, 1, 3, 2, 4]), 0, 0, 0, -1)
    split = add("Transpose", by_channel, perm=[1, 0, 3, 2])  # (B, K, D, N)
    sizes = add("Concat", add("Shape", "dt", start=0, end=1), add("Shape", "A"), axis=0)
    add("Reshape", split, sizes, name="final_state")


def _finish(add: Nodes, signature: Signature, y: str, u: str, real: Callable[[str], str]) -> None:
    """Writes the output y from the scan's (B, L, K, D): skip connection, merge, gate."""
    axis = add.constant([2])
    if "D" in signature.optional:
        y = add("Add", y, add("Mul", u, add.reshape("D", signature.directions, -1)))
    if signature.merge == "sum" and signature.directions > 1:
        y = add("ReduceSum", y, axis, keepdims=1)
    if "z" in signature.optional:
        z = real("z")
        y = add("Mul", y, add("Unsqueeze", add("Mul", z, add("Sigmoid", z)), axis))
    sizes = add.constant([0, 0, -1])
    if signature.half:
        add("Cast", add("Reshape", y, sizes), name="y", to=10)
    else:
        add("Reshape", y, sizes, name="y")
