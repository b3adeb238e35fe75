"""From a torch module and its graph contract to ONNX files.

``export_graph`` makes one checked ModelProto; ``save_graphs`` writes the graphs of a stage beside
one shared weight file. Rules every graph follows (architecture, "ONNX rules"): opset 18 or 19
(TensorRT misreads GridSample from opset 20), names and shapes exactly as the GraphSpec, no traces
of the exporting machine, one ``mambapose::SelectiveScan`` node per scan with a model-local
function as fallback.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mambapose.export.half import cast_from_half, halved, stored_name
from mambapose.export.own_model.refusals import explained
from mambapose.plugins.onnx_function import attach_functions, strip_functions
from mambapose.plugins.scan_node import DOMAIN
from mambapose.runtime.errors import ExportError
from mambapose.runtime.types import GraphSpec, TensorSpec

if TYPE_CHECKING:
    import onnx
    import torch

    Rewrite = Callable[[onnx.ModelProto], onnx.ModelProto]

OPSETS = (18, 19)
EXTERNAL_MIN_BYTES = 1024
ALIGNMENT = 4096  # one page: ONNX Runtime maps weights instead of copying them
UNROLLED_NODES = 3000  # networks of a hundred layers stay below, their scans being one node each
EXAMPLE_SIZE = 2  # of a free dimension; 0 and 1 are special cases to the tracer


def export_graph(
    module: torch.nn.Module,
    spec: GraphSpec,
    *,
    opset: int = 18,
    metadata: Mapping[str, str] | None = None,
    rewrite: Rewrite | None = None,
) -> onnx.ModelProto:
    """The module as a checked ONNX model whose inputs and outputs are exactly those of the spec.

    The module takes the tensors of ``spec.inputs`` by position and returns those of
    ``spec.outputs``, a tuple when there are several. A str dimension stays free. ``metadata`` joins
    the contract in ``metadata_props``. rewrite: changes the graph before its scans get their
    function bodies. ExportError when torch cannot export the module or the graph that comes
    out differs from the spec.
    """
    import torch

    if opset not in OPSETS:
        raise ExportError(
            f"opset {OPSETS[0]} or {OPSETS[1]} was wanted, found {opset}; "
            "TensorRT misreads GridSample from opset 20"
        )
    inputs, shapes = _example_inputs(spec)
    module.eval()
    program = None
    try:
        with _quiet_exporter(), torch.no_grad():
            program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
            table: dict[Any, Any] | None = None
            if _calls_domain(program, DOMAIN):
                from mambapose.plugins.torch_op import onnx_translation_table

                table = onnx_translation_table()
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=[tensor.name for tensor in spec.inputs],
                output_names=[tensor.name for tensor in spec.outputs],
                custom_translation_table=table,
                verbose=False,
            )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as err:
        if (why := explained(err, program)) is not None:
            raise ExportError(f"graph {spec.name}: {why}") from err
        first = (str(err).strip() or type(err).__name__).splitlines()[0]
        raise ExportError(
            f"graph {spec.name} was wanted in ONNX, torch {torch.__version__} could not export it: "
            f"{first}; nothing was written, please report this with the command used"
        ) from err
    if exported is None:
        raise ExportError(
            f"graph {spec.name} was wanted in ONNX, the exporter of torch {torch.__version__} "
            "returned nothing; please report this with the command used"
        )
    model: onnx.ModelProto = exported.model_proto
    _strip_traces(model)
    _name_free_dims(model, spec)
    if rewrite is not None:
        model = rewrite(model)
    attach_functions(model)
    _write_contract(model, spec, metadata or {})
    _check_model(model, spec)
    return model


def unrolled(model: onnx.ModelProto) -> str | None:
    """A sentence about a graph that looks like a loop of Python's, step after step, or None.

    A selective scan in plain torch is such a loop.
    """
    counts = Counter(node.op_type for node in model.graph.node)
    total = sum(counts.values())
    if total < UNROLLED_NODES:
        return None
    listed = ", ".join(f"{count} {kind}" for kind, count in counts.most_common(3))
    return (
        f"the graph has {total} nodes ({listed}), as a loop of Python's leaves, step after step, "
        "which is slow to build and to run; a selective scan is one node when the code calls "
        "selective_scan_fn of mamba_ssm in place of its loop (docs/bring-your-own.md)"
    )


def save_graphs(
    models: Mapping[str, onnx.ModelProto],
    folder: Path,
    stem: str,
    *,
    half: bool = False,
    trt: bool = True,
) -> dict[str, Path]:
    """The file of each graph; the weights of all are in one ``<stem>.data`` beside them.

    A stage of one graph called ``main`` becomes ``<stem>.onnx``, any other ``<stem>-<graph>.onnx``.
    A graph with SelectiveScan nodes also gets its TensorRT form, ``path.with_suffix(".trt.onnx")``,
    unless ``trt`` is False. Tensors of 1 KiB and more go to the weight file, equal ones once, each
    on a page boundary; there is no weight file when no tensor is that large. half: tensors that
    FP16 holds exactly are stored in FP16 and cast when the graph is loaded. The given models are
    not changed.
    """
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{stem}.data"
    paths: dict[str, Path] = {}
    with data.open("wb") as file:
        offsets: dict[tuple[str, int], int] = {}
        for name, model in models.items():
            light = _without_weights(model)
            casts = []
            for tensor, source in zip(
                light.graph.initializer, model.graph.initializer, strict=True
            ):
                if not _is_big(source):
                    continue
                content = _raw_bytes(source)
                array = onnx.numpy_helper.to_array(source) if half else None
                if array is not None and (short := halved(array)) is not None:
                    content = short.tobytes()
                    casts.append(cast_from_half(tensor.name))
                    tensor.name, tensor.data_type = (
                        stored_name(tensor.name),
                        onnx.TensorProto.FLOAT16,
                    )
                offset, length = _append(file, content, offsets)
                _point_outside(tensor, data.name, offset, length)
            _put_first(light.graph, casts)
            path = folder / (f"{stem}.onnx" if name == "main" else f"{stem}-{name}.onnx")
            onnx.save_model(light, path)
            if trt and has_scan(light):
                onnx.save_model(strip_functions(light), path.with_suffix(".trt.onnx"))
            paths[name] = path
    if not data.stat().st_size:
        data.unlink()
    return paths


def _put_first(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Inserts nodes before all others, because any of the others may use their results."""
    if nodes:
        others = list(graph.node)
        del graph.node[:]
        graph.node.extend([*nodes, *others])


def _example_inputs(
    spec: GraphSpec,
) -> tuple[tuple[torch.Tensor, ...], tuple[dict[int, Any], ...] | None]:
    """Zeros for every input, and the free dimensions in the form that torch.export takes."""
    import torch

    dims = {
        dim: torch.export.Dim(dim, min=1)
        for tensor in spec.inputs
        for dim in tensor.shape
        if isinstance(dim, str)
    }
    inputs = tuple(
        torch.zeros(
            [EXAMPLE_SIZE if isinstance(dim, str) else dim for dim in tensor.shape],
            dtype=getattr(torch, tensor.dtype),
        )
        for tensor in spec.inputs
    )
    if not dims:
        return inputs, None
    return inputs, tuple(
        {axis: dims[dim] for axis, dim in enumerate(tensor.shape) if isinstance(dim, str)}
        for tensor in spec.inputs
    )


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hides what the exporter tells its own developers: deprecations, absent torchvision."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


def _calls_domain(program: torch.export.ExportedProgram, namespace: str) -> bool:
    return any(
        getattr(node.target, "namespace", None) == namespace
        for node in program.graph.nodes
        if node.op == "call_function"
    )


def has_scan(model: onnx.ModelProto) -> bool:
    """True when the graph holds selective-scan nodes."""
    return any(node.domain == DOMAIN for node in model.graph.node)


def _strip_traces(model: onnx.ModelProto) -> None:
    """Removes source paths and stack traces, so that equal modules give equal files anywhere."""
    graph = model.graph
    for items in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
        for item in items:
            item.ClearField("metadata_props")
            item.ClearField("doc_string")
    graph.ClearField("metadata_props")
    graph.ClearField("doc_string")
    model.ClearField("metadata_props")


def _name_free_dims(model: onnx.ModelProto, spec: GraphSpec) -> None:
    """Puts the spec's names (``N``) in the place of the tracer's symbols (``s77``)."""
    given = {value.name: value for value in model.graph.input}
    names: dict[str, str] = {}
    for tensor in spec.inputs:
        if tensor.name not in given:
            continue
        for dim, found in zip(
            tensor.shape, given[tensor.name].type.tensor_type.shape.dim, strict=False
        ):
            if isinstance(dim, str) and found.dim_param:
                names[found.dim_param] = dim
    for values in (model.graph.input, model.graph.output, model.graph.value_info):
        for value in values:
            for found in value.type.tensor_type.shape.dim:
                if found.dim_param:
                    found.dim_param = re.sub(
                        r"[A-Za-z_]\w*", lambda m: names.get(m[0], m[0]), found.dim_param
                    )


def _write_contract(model: onnx.ModelProto, spec: GraphSpec, metadata: Mapping[str, str]) -> None:
    contract = {
        "mambapose.graph": spec.name,
        "mambapose.inputs": json.dumps([str(tensor) for tensor in spec.inputs]),
        "mambapose.outputs": json.dumps([str(tensor) for tensor in spec.outputs]),
        **metadata,
    }
    for key, value in contract.items():
        model.metadata_props.add(key=key, value=value)


def _check_model(model: onnx.ModelProto, spec: GraphSpec) -> None:
    """ExportError unless the model is valid ONNX with exactly the spec's inputs and outputs."""
    import onnx

    for side, wanted, found in (
        ("inputs", spec.inputs, model.graph.input),
        ("outputs", spec.outputs, model.graph.output),
    ):
        have = tuple(tensor_spec(value) for value in found)
        if have != wanted:
            raise ExportError(
                f"graph {spec.name}: {side} [{'; '.join(map(str, wanted))}] were wanted, "
                f"the exported graph has [{'; '.join(map(str, have))}]; "
                "make the module return what its spec declares"
            )
    light = _without_weights(model)
    # The checker wants the bytes of every weight, and serialises at most 2 GiB: as plain inputs
    # the big weights need neither.
    kept = [tensor for tensor in light.graph.initializer if not _is_big(tensor)]
    for tensor in light.graph.initializer:
        if _is_big(tensor):
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    del light.graph.initializer[:]
    light.graph.initializer.extend(kept)
    try:
        onnx.checker.check_model(light)
    except onnx.checker.ValidationError as err:
        first = (str(err).strip() or type(err).__name__).splitlines()[0]
        raise ExportError(
            f"graph {spec.name}: valid ONNX was wanted, found: {first}; "
            "please report this with the versions of torch and onnxscript"
        ) from err


def tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    """Name, dtype and shape of a graph's input or output; a free dimension keeps its name."""
    import onnx

    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    shape = tuple(dim.dim_param or int(dim.dim_value) for dim in tensor.shape.dim)
    return TensorSpec(value.name, str(dtype), shape)


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model whose big initializers have a name, a type and a shape but no bytes."""
    import onnx

    light = onnx.ModelProto()
    _copy_fields(model, light, skip="graph")
    _copy_fields(model.graph, light.graph, skip="initializer")
    for tensor in model.graph.initializer:
        copy = light.graph.initializer.add()
        if _is_big(tensor):
            copy.name, copy.data_type = tensor.name, tensor.data_type
            copy.dims.extend(tensor.dims)
        else:
            copy.CopyFrom(tensor)
    return light


def _copy_fields(source: Any, target: Any, skip: str) -> None:
    """Copies every set field of a protobuf message except one; nothing else is duplicated."""
    for field, value in source.ListFields():
        if field.name == skip:
            continue
        if isinstance(value, str | bytes | int | float):
            setattr(target, field.name, value)
        elif hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        else:
            getattr(target, field.name).CopyFrom(value)


def _is_big(tensor: onnx.TensorProto) -> bool:
    import onnx

    item = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return bool(math.prod(tensor.dims) * item >= EXTERNAL_MIN_BYTES)


def _raw_bytes(tensor: onnx.TensorProto) -> bytes:
    import onnx

    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    return bytes(onnx.numpy_helper.to_array(tensor).tobytes())


def _append(file: BinaryIO, content: bytes, offsets: dict[tuple[str, int], int]) -> tuple[int, int]:
    """Offset and length of the content in the file, written unless equal bytes are there."""
    key = (hashlib.sha256(content).hexdigest(), len(content))
    if key not in offsets:
        file.write(b"\0" * (-file.tell() % ALIGNMENT))
        offsets[key] = file.tell()
        file.write(content)
    return offsets[key], len(content)


def _point_outside(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    import onnx

    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
