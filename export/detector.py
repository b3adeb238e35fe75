"""A person detector that the user gives as an ONNX file: recognised, copied, never converted."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from mambapose.runtime.errors import EngineError, ExportError
from mambapose.runtime.stages.detect import yolox_size
from mambapose.runtime.types import GraphSpec

LAYOUT = "yolox"  # the one the runtime decodes


def read_detector(path: Path) -> tuple[GraphSpec, str, int, int]:
    """The contract of the detector at ``path``, its layout, parameter count and opset.

    ExportError unless it is a self-contained ONNX model in a layout the runtime decodes.
    """
    import onnx

    from mambapose.export.onnx_export import tensor_spec

    try:
        model = onnx.load(str(path), load_external_data=False)
        onnx.checker.check_model(model)
    except Exception as err:  # protobuf raises classes of its own, which differ by its version
        reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise ExportError(
            f"{path}: an ONNX model was wanted, found something else ({reason}); "
            "export the detector to ONNX first"
        ) from err
    graph = model.graph
    if any(onnx.external_data_helper.uses_external_data(tensor) for tensor in graph.initializer):
        raise ExportError(
            f"{path}: one file was wanted, found one that keeps its weights in a second; save it "
            "whole (onnx.save without external data) and pass that"
        )
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    for value in (*inputs, *graph.output):
        if not value.type.tensor_type.elem_type:
            raise ExportError(
                f"{path}: tensors were wanted as inputs and outputs, {value.name} is none; "
                "pass a detector in YOLOX's layout"
            )
    sides = (tuple(map(tensor_spec, values)) for values in (inputs, graph.output))
    spec = GraphSpec("main", *sides)
    try:
        yolox_size(spec)
    except EngineError as err:
        raise ExportError(f"{path}: {err}") from err
    numbers = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    params = sum(math.prod(t.dims) for t in graph.initializer if t.data_type in numbers)
    opset = next((entry.version for entry in model.opset_import if entry.domain == ""), 1)
    return spec, LAYOUT, params, opset


def copy_detector(path: Path, folder: Path) -> Path:
    """Copy the file to ``folder/detect.onnx`` and return that."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "detect.onnx"
    shutil.copyfile(path, target)
    return target
