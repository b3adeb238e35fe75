"""The tiny graph that ``mp-check`` runs: one selective scan whose result is known in closed form.

    python -m mambapose.export.probe runtime/data/probe.onnx

makes the file of the package again; a test compares the two.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mambapose.runtime.check.machine import PROBE_CHANNELS, PROBE_LENGTH, PROBE_SKIP

if TYPE_CHECKING:
    import onnx


def probe_model() -> onnx.ModelProto:
    """A scan of two directions and one state, decay 1/2, with its function body; opset 18."""
    from onnx import TensorProto, checker, helper, numpy_helper

    from mambapose.plugins.onnx_function import attach_functions

    def rows(name: str, width: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, PROBE_LENGTH, width])

    both = 2 * PROBE_CHANNELS
    decay = np.full((both, 1), -math.log(2), np.float32)
    skip = np.full(both, PROBE_SKIP, np.float32)
    node = helper.make_node(
        "SelectiveScan",
        ["u", "dt", "decay", "b", "c", "skip"],
        ["y", "state"],
        name="scan",
        domain="mambapose",
        directions=2,
        groups=1,
        reverse=[0, 1],
        delta_softplus=0,
        segment=0,
        merge="sum",
        gate="silu",
        plugin_version="1",
        plugin_namespace="",
    )
    graph = helper.make_graph(
        [node],
        "probe",
        [rows("u", PROBE_CHANNELS), rows("dt", both), rows("b", 2), rows("c", 2)],
        [rows("y", PROBE_CHANNELS)],
        [numpy_helper.from_array(decay, "decay"), numpy_helper.from_array(skip, "skip")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mambapose", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    model.producer_name = "mambapose"
    attach_functions(model)
    del model.graph.value_info[:]  # what shape inference adds depends on the version of onnx
    checker.check_model(model)
    return model


def main() -> None:
    """Write the graph to the file named on the command line."""
    Path(sys.argv[1]).write_bytes(probe_model().SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
