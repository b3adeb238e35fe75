"""The selective scan in standard ONNX operators, as a model-local function of every scan node.

A graph with these functions runs anywhere; a runtime that has the compiled operator prefers it.
A function body cannot test whether an optional input is there, so it is made for the signature
of its node (`Signature`) and told apart by the ``overload`` field, which needs IR version 10 and,
where a model has several signatures, ONNX Runtime 1.27 (`check_function_form` of the runtime).

Shape of the body, measured on two cores with ONNX Runtime 1.31.1: one ``Scan`` over the steps
for all directions, channels innermost, the decay computed inside the loop. At L 4131, D 128, N 16
it takes 14 ms, against 28 ms with decay and input products hoisted out of the loop (they no
longer fit the cache, and need 68 MB more); at L 197, D 384 the two are equal. Letters: B batch,
L length, K directions, G groups, D channels, E = D/G channels of a group, N states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mambapose.plugins.onnx_scan_body import function_from_signature
from mambapose.plugins.reference import check_decay
from mambapose.plugins.scan_node import DOMAIN, INPUTS, OPERATOR, Signature
from mambapose.runtime.backends.native import SIGNATURES_KEY, SPEC
from mambapose.runtime.errors import ExportError

if TYPE_CHECKING:
    import onnx

PRESENCE_BITS = {"D": 1, "z": 2, "dt_bias": 4, "order": 8, "initial_state": 16}
ValueTypes = dict[str, tuple[int, tuple[int | None, ...]]]  # element type, shape (None: free)
OLDEST_OPSET = 18
OVERLOAD_IR_VERSION = 10


def attach_functions(model: onnx.ModelProto) -> None:
    """Give every scan node of the model, in place, a function body in standard operators.

    Raises ExportError when the model's opset is below 18, the types of a node's inputs cannot be
    inferred, or a constant A is not finite and negative.
    """
    from onnx import shape_inference

    _drop_functions(model)
    pending = [node for node in model.graph.node if _is_scan(node)]
    if not pending:
        return
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        raise ExportError(f"ONNX opset {OLDEST_OPSET} or newer was wanted, found {opset}")
    model.ir_version = max(model.ir_version, OVERLOAD_IR_VERSION)
    if not any(entry.domain == DOMAIN for entry in model.opset_import):
        model.opset_import.add(domain=DOMAIN, version=SPEC)

    _check_decays(model.graph)
    known = _value_types(model.graph)
    attached: set[str] = set()
    while pending:
        ready = [node for node in pending if _is_typed(node, known)]
        if not ready:
            raise ExportError(
                f"node {pending[0].name or pending[0].output[0]}: inputs of known type and rank "
                "were wanted, found none after shape inference; give the graph input shapes"
            )
        for node in ready:
            signature = signature_from_node(node, known)
            _describe_outputs(model.graph, node, known, signature)
            node.overload = signature.overload
            del node.input[signature.input_count :]
            if signature.overload not in attached:
                attached.add(signature.overload)
                model.functions.append(function_from_signature(signature, opset))
        pending = [node for node in pending if not _is_typed(node, known)]
        if pending:  # results of the nodes above type the nodes below
            known = _value_types(shape_inference.infer_shapes(model).graph)
    _set_metadata(model, SIGNATURES_KEY, str(len(attached)))


def strip_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in the form that TensorRT's plugin takes: no functions, and only inputs that exist.

    Plugins have positional inputs and none may be empty, so the attribute ``presence`` says which
    optional inputs there are (D 1, z 2, dt_bias 4, order 8, initial_state 16).
    """
    import onnx

    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    _drop_functions(stripped)
    for node in stripped.graph.node:
        if not _is_scan(node):
            continue
        given = present_inputs(node)
        kept = [name for name in node.input if name]
        del node.input[:]
        node.input.extend(kept)
        presence = sum(bit for name, bit in PRESENCE_BITS.items() if name in given)
        unchanged = [entry for entry in node.attribute if entry.name != "presence"]
        del node.attribute[:]
        node.attribute.extend([*unchanged, onnx.helper.make_attribute("presence", presence)])
    return stripped


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every function body in place of its call: standard operators only.

    For runtimes that neither take functions with absent inputs nor know overloads, such as
    NVIDIA's parser (tensorrt-rtx 1.7.1 takes the first function of a name for all of its calls).
    """
    from onnx import inliner

    return inliner.inline_local_functions(model)


def present_inputs(node: onnx.NodeProto) -> dict[str, str]:
    """Input -> name of the value that a scan node reads there; absent inputs are left out."""
    return {name: value for name, value in zip(INPUTS, node.input, strict=False) if value}


def signature_from_node(node: onnx.NodeProto, known: ValueTypes) -> Signature:
    """The signature of a scan node, given (element type, shape) of the values it reads."""
    from onnx import TensorProto, helper

    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    given = present_inputs(node)
    shapes = {name: known[value][1] for name, value in given.items() if value in known}
    directions = int(attributes.get("directions", 1))
    element = known[given["u"]][0]
    if element not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        kind = TensorProto.DataType.Name(element)
        raise ExportError(f"node {node.name}: float32 or float16 rows were wanted, found {kind}")
    return Signature(
        directions=directions,
        groups=int(attributes.get("groups", 1)),
        reverse=tuple(int(flag) for flag in attributes.get("reverse", (0,) * directions)),
        delta_softplus=bool(attributes.get("delta_softplus", 1)),
        segment=int(attributes.get("segment", 0)),
        merge=attributes.get("merge", b"none").decode(),
        optional=frozenset(given) & frozenset(PRESENCE_BITS),
        u_shared=directions == 1 or shapes["u"][2] != shapes["dt"][2],
        b_constant=len(shapes["B"]) == 2,
        c_constant=len(shapes["C"]) == 2,
        order_rows="order" in given and len(shapes["order"]) == 2,
        half=element == TensorProto.FLOAT16,
    )


def _check_decays(graph: onnx.GraphProto) -> None:
    """ExportError unless each A that is a constant of the model is finite and negative.

    With any other A the state of a scan would grow.
    """
    from onnx import TensorProto, numpy_helper

    inside = {i.name: i for i in graph.initializer if i.data_location != TensorProto.EXTERNAL}
    for node in filter(_is_scan, graph.node):
        tensor = inside.get(present_inputs(node)["A"])
        if tensor is not None:
            try:
                check_decay(numpy_helper.to_array(tensor))
            except ValueError as err:
                name = node.name or node.output[0]
                raise ExportError(f"node {name}: {err}; the weights are damaged") from err


def _set_metadata(model: onnx.ModelProto, key: str, value: str) -> None:
    entry = next((entry for entry in model.metadata_props if entry.key == key), None)
    entry = entry or model.metadata_props.add(key=key)
    entry.value = value


def _describe_outputs(
    graph: onnx.GraphProto, node: onnx.NodeProto, known: ValueTypes, signature: Signature
) -> None:
    """Write the types and shapes of the node's outputs where the graph does not have them."""
    from onnx import TensorProto, helper

    given = present_inputs(node)
    batch, length, width = known[given["dt"]][1]
    states = known[given["A"]][1][1] if given["A"] in known else None
    assert width is not None  # `_is_typed` saw to it
    columns = width // signature.directions if signature.merge == "sum" else width
    rows = TensorProto.FLOAT16 if signature.half else TensorProto.FLOAT
    described = ((rows, (batch, length, columns)), (TensorProto.FLOAT, (batch, width, states)))
    for name, (kind, shape) in zip(node.output, described, strict=False):
        if name and name not in known:
            graph.value_info.append(helper.make_tensor_value_info(name, kind, shape))


def _is_scan(node: onnx.NodeProto) -> bool:
    return bool(node.domain == DOMAIN and node.op_type == OPERATOR)


def _is_typed(node: onnx.NodeProto, known: ValueTypes) -> bool:
    """Whether everything that `signature_from_node` reads is known."""
    given = present_inputs(node)
    named = [given[name] for name in ("u", "dt", "B", "C", "order") if name in given]
    widths = [known[given[name]][1][2:] for name in ("u", "dt") if given[name] in known]
    return all(name in known for name in named) and all(w and w[0] is not None for w in widths)


def _drop_functions(model: onnx.ModelProto) -> None:
    others = [f for f in model.functions if (f.domain, f.name) != (DOMAIN, OPERATOR)]
    del model.functions[:]
    model.functions.extend(others)
    for node in model.graph.node:
        if _is_scan(node):
            node.ClearField("overload")


def _value_types(graph: onnx.GraphProto) -> ValueTypes:
    """(element type, shape) of every value whose rank is known; None is a free dimension."""
    found: ValueTypes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.elem_type and tensor.HasField("shape"):
            sizes = (d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
            found[value.name] = (tensor.elem_type, tuple(sizes))
    for initializer in graph.initializer:
        found[initializer.name] = (initializer.data_type, tuple(initializer.dims))
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            tensor = node.attribute[0].t
            found[node.output[0]] = (tensor.data_type, tuple(tensor.dims))
    return found
