"""One SelectiveScan node per number, most of them malformed, in ONNX Runtime with the compiled
operator: sides, ranks, types, attributes, orders of tokens and values that no export writes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from .worker import serve

LIBRARY = "MAMBAPOSE_FUZZ_LIBRARY"  # variable: the operator under a sanitizer
INPUTS = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias", "order", "initial_state")
ALWAYS = INPUTS[:5]
HUGE = (2**31 - 1, 2**31, 2**62, 2**63 - 1, -(2**31), -(2**63))
Arrays = dict[str, np.ndarray[Any, Any]]


def right_node(rng: Random, draws: np.random.Generator) -> tuple[Arrays, dict[str, Any]]:
    """Inputs and attributes of a node as an export writes it."""
    directions, groups = rng.choice([1, 1, 2, 4, 3]), rng.choice([1, 1, 2])
    channels = rng.choice([1, 2, 4, 8, 6, 17, 33])
    states = rng.choice([1, 2, 4, 8, 16, 17, 64])
    people, length = rng.choice([0, 1, 1, 2, 3]), rng.choice([0, 1, 2, 5, 16, 33, 100])
    if channels % groups:
        groups = 1
    wide = directions * channels
    mixed = [(people, length, directions * groups * states), (wide, states)]
    shapes = {
        "u": rng.choice([(people, length, channels), (people, length, wide)]),
        "dt": (people, length, wide),
        "A": (wide, states),
        "B": rng.choice(mixed),
        "C": rng.choice(mixed),
        "D": (wide,),
        "z": (people, length, channels),
        "dt_bias": (wide,),
        "order": rng.choice([(length,), (directions, length)]),
        "initial_state": (people, wide, states),
    }
    attributes: dict[str, Any] = {
        "directions": directions,
        "groups": groups,
        "merge": rng.choice(["none", "sum"]),
        "reverse": [rng.randint(0, 1) for _ in range(directions)],
        "delta_softplus": rng.randint(0, 1),
    }
    if rng.random() < 0.2:
        attributes["segment"] = rng.choice([0, 1, 2, 5, length or 1])
    if rng.random() < 0.2:
        attributes["gate"] = rng.choice(["silu", "none"])
    half = np.float16 if rng.random() < 0.2 else np.float32
    arrays: Arrays = {}
    chosen = [*ALWAYS, *(name for name in INPUTS[5:] if rng.random() < 0.5)]
    if attributes.get("segment"):  # each segment begins anew
        chosen = [name for name in chosen if name != "initial_state"]
    if attributes.get("gate") == "none":
        chosen = [name for name in chosen if name != "z"]
    for name in chosen:
        shape = shapes[name]
        if name == "order":
            rows = [draws.permutation(length) for _ in range(shape[0] if len(shape) == 2 else 1)]
            arrays[name] = np.stack(rows).astype(np.int32).reshape(shape)
        else:
            narrow = name in ("u", "dt", "z") or (name in ("B", "C") and len(shape) == 3)
            arrays[name] = draws.standard_normal(shape).astype(half if narrow else np.float32)
    return arrays, attributes


def break_node(arrays: Arrays, attributes: dict[str, Any], rng: Random) -> None:
    """One thing about the node made wrong."""
    name = rng.choice(list(arrays))
    array = arrays[name]
    what = rng.choice(["side", "rank", "values", "attribute", "attribute", "order", "order",
                       "absent", "type", "scalar"])  # fmt: skip
    if what == "side" and array.ndim:
        sides = list(array.shape)
        axis = rng.randrange(array.ndim)
        sides[axis] = rng.choice([0, 1, sides[axis] + 1, max(0, sides[axis] - 1), 64])
        arrays[name] = np.zeros(sides, array.dtype)
    elif what == "rank":
        arrays[name] = array.reshape((*array.shape, 1) if rng.random() < 0.5 else -1)
    elif what == "scalar":
        arrays[name] = np.zeros((), array.dtype)
    elif what == "values" and array.size and array.dtype != np.int32:
        odd = rng.choice([np.nan, np.inf, -np.inf, 1e38, -1e38, 6e4, 1e-45])
        with np.errstate(over="ignore"):
            arrays[name] = np.where(draw_mask(array, rng), odd, array).astype(array.dtype)
    elif what == "attribute":
        key = rng.choice(list(ODD_VALUES))
        attributes[key] = ODD_VALUES[key](rng, attributes["directions"])
    elif what == "order" and arrays.get("order", array[:0] if array.ndim else array).size:
        order = arrays.get("order")
        if order is not None and order.dtype == np.int32:
            order = order.copy()
            length = order.shape[-1] if order.ndim else 1
            odd_place = rng.choice([-1, 2**31 - 1, -(2**31), length, 0, length + 1000])
            order.flat[rng.randrange(order.size)] = odd_place
            arrays["order"] = order
    elif what == "absent" and name != "u":
        del arrays[name]
    elif what == "type":
        kinds = [np.float32, np.float16, np.int32, np.int64, np.float64]
        with np.errstate(all="ignore"):
            arrays[name] = array.astype(rng.choice(kinds))


ODD_VALUES: dict[str, Callable[[Random, Any], Any]] = {
    "directions": lambda rng, _: rng.choice([0, -1, 64, 65, 7, *HUGE]),
    "groups": lambda rng, _: rng.choice([0, -1, 3, 1000, *HUGE]),
    "segment": lambda rng, _: rng.choice([-1, 3, *HUGE]),
    "reverse": lambda rng, k: rng.choice(
        [[], [2] * (k if isinstance(k, int) and 0 < k < 9 else 1), [0] * 65, [-1], 1]
    ),
    "merge": lambda rng, _: rng.choice(["", "x" * 10000, "sum\0", "SUM", "\x1b[2J"]),
    "gate": lambda rng, _: rng.choice(["", "relu", "none", 1.5]),
    "delta_softplus": lambda rng, _: rng.choice([2, -1, 2**40, "yes"]),
    "other": lambda rng, _: 5,
}


def draw_mask(array: np.ndarray[Any, Any], rng: Random) -> np.ndarray[Any, Any]:
    """One element, or all of them."""
    mask = np.full(array.shape, rng.random() < 0.3)
    mask.flat[rng.randrange(mask.size)] = True
    return mask


def model_bytes(arrays: Arrays, attributes: dict[str, Any], rng: Random) -> tuple[bytes, Arrays]:
    """The model of one node, and what it is fed: some inputs are constants in it."""
    names = [name if name in arrays else "" for name in INPUTS]
    while names and not names[-1]:
        names.pop()
    kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in arrays.items()}
    fed = {name: array for name, array in arrays.items() if rng.random() < 0.7}
    inputs = [
        helper.make_tensor_value_info(
            name, kinds[name], [f"{name}{axis}" for axis in range(a.ndim)]
        )
        for name, a in fed.items()
    ]
    constants = [
        onnx.numpy_helper.from_array(array, name)
        for name, array in arrays.items()
        if name not in fed
    ]
    outputs = ["y", "s"] if rng.random() < 0.5 else ["y"]
    given = {key: value for key, value in attributes.items() if value != []}
    node = helper.make_node("SelectiveScan", names, outputs, domain="mambapose", **given)
    kind = kinds.get("u", onnx.TensorProto.FLOAT)
    values = [helper.make_tensor_value_info("y", kind, None)]
    if len(outputs) == 2:
        values.append(helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, None))
    graph = helper.make_graph([node], "g", inputs, values, constants)
    sets = [helper.make_opsetid("", 18), helper.make_opsetid("mambapose", 1)]
    return helper.make_model(graph, opset_imports=sets, ir_version=9).SerializeToString(), fed


def session_options() -> Any:
    """Options with the operator of the variable LIBRARY registered."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    options.register_custom_ops_library(os.environ[LIBRARY])
    return options


def case(number: int, folder: Path, options: Any) -> bool:
    """Load and run the node of a number; whether ONNX Runtime accepted the graph.

    What is refused is refused with a message; what is right must run.
    """
    rng, draws = Random(number), np.random.default_rng(number)
    arrays, attributes = right_node(rng, draws)
    hostile = rng.random() < 0.75
    for _ in range(rng.choice([1, 1, 2]) if hostile else 0):
        break_node(arrays, attributes, rng)
    content, fed = model_bytes(arrays, attributes, rng)
    providers = ["CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(content, options, providers, enable_fallback=0)
    except Exception as err:  # ONNX Runtime's exceptions share no base class
        if not hostile or not str(err):
            raise
        return False
    try:
        found = session.run(None, fed)
    except Exception as err:
        if not hostile or not str(err):
            raise
        return True
    assert all(isinstance(output, np.ndarray) for output in found)
    return True


if __name__ == "__main__":
    onnxruntime.set_default_logger_severity(4)
    chosen = session_options()
    for warm in range(20):
        case(warm, Path(), chosen)
    serve(sys.argv[1:], lambda number, folder: case(number, folder, chosen))
