"""The yardsticks of `mp-bench scan` that run in ONNX Runtime: the same operation, one direction.

Every graph takes u, dt, z (1, L, D), A (D, N), B, C (1, L, N), D, dt_bias (D) and returns
y (1, L, D), in float32. They are frozen: written for speed in ONNX Runtime once, and not changed
when the shipped function body changes, so that figures of different versions can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

MICROSOFT = "com.microsoft"
DOMAIN = "mambapose"


def _model(nodes: list[onnx.NodeProto], constants: dict[str, Any], D: int, L: int, N: int) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    shapes = {
        "u": (1, L, D), "dt": (1, L, D), "A": (D, N), "B": (1, L, N), "C": (1, L, N),
        "D": (D,), "z": (1, L, D), "dt_bias": (D,),
    }  # fmt: skip
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, L, D))
    constants = {**constants, "one": np.ones(1, np.float32)}
    initializers = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    graph = helper.make_graph(nodes, "yardstick", inputs, [output], initializers)
    domains = (("", 18), (MICROSOFT, 1), (DOMAIN, 1))
    opsets = [helper.make_opsetid(domain, version) for domain, version in domains]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


def _around(make: Callable[..., Any], softplus: bool) -> tuple[list[Any], list[Any]]:
    """Nodes before the recurrence (step sizes s, inputs su) and after it (from `scanned`).

    softplus False: log(1 + exp(x)) from three operators, which ONNX Runtime runs several times
    as fast as its Softplus; it overflows above 88.
    """
    steps = [make("Softplus", ["raw"], ["s"])]
    if not softplus:
        steps = [
            make("Exp", ["raw"], ["e"]),
            make("Add", ["e", "one"], ["above_one"]),
            make("Log", ["above_one"], ["s"]),
        ]
    before = [
        make("Add", ["dt", "dt_bias"], ["raw"]),
        *steps,
        make("Mul", ["s", "u"], ["su"]),
    ]
    after = [
        make("Mul", ["u", "D"], ["skip"]),
        make("Add", ["scanned", "skip"], ["summed"]),
        make("Sigmoid", ["z"], ["sigmoid"]),
        make("Mul", ["z", "sigmoid"], ["gate"]),
        make("Mul", ["summed", "gate"], ["y"]),
    ]
    return before, after


def scan_graph(D: int, L: int, N: int, *, softplus: bool = True) -> bytes:
    """An ONNX Scan with six operators per step, states (N, D) so that channels are contiguous."""
    from onnx import TensorProto, helper

    make, FLOAT = helper.make_node, TensorProto.FLOAT
    body = helper.make_graph(
        [
            make("Mul", ["s_t", "A_t"], ["exponent"]),
            make("Exp", ["exponent"], ["factor"]),
            make("Mul", ["factor", "h"], ["kept"]),
            make("Mul", ["B_t", "su_t"], ["added"]),
            make("Add", ["kept", "added"], ["h_next"]),
            make("MatMul", ["C_t", "h_next"], ["y_t"]),
        ],
        "step",
        [
            helper.make_tensor_value_info("h", FLOAT, (N, D)),
            helper.make_tensor_value_info("s_t", FLOAT, (1, D)),
            helper.make_tensor_value_info("su_t", FLOAT, (1, D)),
            helper.make_tensor_value_info("B_t", FLOAT, (N, 1)),
            helper.make_tensor_value_info("C_t", FLOAT, (1, N)),
        ],
        [
            helper.make_tensor_value_info("h_next", FLOAT, (N, D)),
            helper.make_tensor_value_info("y_t", FLOAT, (1, D)),
        ],
    )
    before, after = _around(make, softplus)
    rows = {"s": (L, 1, D), "su": (L, 1, D), "B": (L, N, 1), "C": (L, 1, N)}
    nodes = [
        *before,
        make("Transpose", ["A"], ["A_t"], perm=[1, 0]),
        *(make("Reshape", [name, f"{name}_shape"], [f"{name}_rows"]) for name in rows),
        make(
            "Scan", ["h_start", "s_rows", "su_rows", "B_rows", "C_rows"], ["h_end", "y_rows"],
            body=body, num_scan_inputs=4,
        ),
        make("Reshape", ["y_rows", "y_shape"], ["scanned"]),
        *after,
    ]  # fmt: skip
    constants = {f"{name}_shape": np.array(shape) for name, shape in rows.items()}
    constants |= {"h_start": np.zeros((N, D), np.float32), "y_shape": np.array((1, L, D))}
    return _model(nodes, constants, D, L, N)


def operator_graph(D: int, L: int, N: int) -> bytes:
    """The compiled operator itself, one node: what an exported network asks ONNX Runtime for."""
    from onnx import helper

    inputs = ["u", "dt", "A", "B", "C", "D", "z", "dt_bias"]
    node = helper.make_node(
        "SelectiveScan", inputs, ["y", "final_state"], domain=DOMAIN, directions=1, reverse=[0]
    )
    return _model([node], {}, D, L, N)


def linear_attention_graph(D: int, L: int, N: int) -> bytes:
    """ONNX Runtime's LinearAttention: a head per channel, B and C shared, decay s*A written out."""
    from onnx import helper

    make = helper.make_node
    before, after = _around(make, softplus=False)
    nodes = [
        *before,
        make("Reshape", ["s", "s_shape"], ["s_column"]),
        make("Mul", ["s_column", "A"], ["exponents"]),
        make("Reshape", ["exponents", "decay_shape"], ["decay"]),
        make(
            "LinearAttention", ["C", "B", "su", "", "decay"], ["scanned", "state"],
            domain=MICROSOFT, q_num_heads=1, kv_num_heads=D, update_rule="gated", scale=1.0,
        ),
        *after,
    ]  # fmt: skip
    constants = {"s_shape": np.array((1, L, D, 1)), "decay_shape": np.array((1, L, D * N))}
    return _model(nodes, constants, D, L, N)
