"""A person detector that the user brings as an ONNX file: recognised, copied, never converted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from mambapose.runtime.errors import ExportError
from mambapose.runtime.types import GraphSpec, TensorSpec

if TYPE_CHECKING:
    import onnx

YOLOX_STRIDES = (8, 16, 32)
YOLOX_CLASSES = 80
_WANTED = (
    "the YOLOX layout was wanted (one float32 input (1, 3, H, W), one output (1, cells, "
    f"{5 + YOLOX_CLASSES}) of strides 8, 16 and 32, undecoded)"
)


def read_detector(path: Path) -> tuple[GraphSpec, str, int, int]:
    """The contract of the detector at ``path``, its layout, parameter count and opset.

    ExportError unless it is a self-contained ONNX model in a layout the runtime decodes.
    """
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
        onnx.checker.check_model(model)
    except Exception as err:  # protobuf raises classes of its own, which differ by its version
        reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
        raise ExportError(
            f"{path}: an ONNX model was wanted, found something else ({reason}); "
            "export the detector to ONNX first"
        ) from err
    if any(onnx.external_data_helper.uses_external_data(t) for t in model.graph.initializer):
        raise ExportError(
            f"{path} keeps its weights in a second file; save it as one file "
            "(onnx.save without external data) and pass that"
        )
    weights = {tensor.name for tensor in model.graph.initializer}
    spec = GraphSpec(
        "main",
        tuple(_spec(value, path) for value in model.graph.input if value.name not in weights),
        tuple(_spec(value, path) for value in model.graph.output),
    )
    layout = _layout(spec, path)
    params = sum(_size(tensor) for tensor in model.graph.initializer if tensor.data_type in (1, 10))
    opset = next((entry.version for entry in model.opset_import if entry.domain == ""), 1)
    return spec, layout, params, opset


def copy_detector(path: Path, folder: Path) -> Path:
    """Copy the file to ``folder/detect.onnx`` and return that."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "detect.onnx"
    shutil.copyfile(path, target)
    return target


def _layout(spec: GraphSpec, path: Path) -> str:
    found = f"found {'; '.join(map(str, (*spec.inputs, *spec.outputs)))}"
    if len(spec.inputs) != 1 or len(spec.outputs) != 1:
        raise ExportError(f"{path}: {_WANTED}, {found}")
    image, rows = spec.inputs[0], spec.outputs[0]
    sides = image.shape[2:] if len(image.shape) == 4 else ()
    if (
        image.dtype != "float32"
        or image.shape[:2] != (1, 3)
        or not all(isinstance(side, int) and side % YOLOX_STRIDES[-1] == 0 for side in sides)
    ):
        raise ExportError(f"{path}: {_WANTED}, {found}")
    height, width = (int(side) for side in sides)
    cells = sum((height // s) * (width // s) for s in YOLOX_STRIDES)
    if rows.shape != (1, cells, 5 + YOLOX_CLASSES):
        raise ExportError(f"{path}: {_WANTED}, {found}")
    return "yolox"


def _size(tensor: onnx.TensorProto) -> int:
    count = 1
    for side in tensor.dims:
        count *= side
    return count


def _spec(value: onnx.ValueInfoProto, path: Path) -> TensorSpec:
    import onnx

    tensor = value.type.tensor_type
    if not tensor.elem_type:
        raise ExportError(f"{path}: {value.name} is not a tensor; {_WANTED}")
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    shape = tuple(side.dim_param or int(side.dim_value) for side in tensor.shape.dim)
    return TensorSpec(value.name, dtype, shape)
