"""The torch operator: results, gradients, fake tensors and its ONNX translation."""

from __future__ import annotations

import warnings

import pytest
import torch

from mambapose.plugins import torch_op
from mambapose.plugins.reference import selective_scan_reference
from mambapose.plugins.torch_op import selective_scan
from mambapose.runtime.backends.native import slow_notice

pytestmark = pytest.mark.kernels

DIFFERENTIABLE = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")


def _tensors(case, dtype=None):
    """The arguments as tensors; float ones in ``dtype`` when given."""
    tensors = {name: torch.from_numpy(array) for name, array in case.arguments.items()}
    if dtype is not None:
        tensors = {name: t.to(dtype) if name != "order" else t for name, t in tensors.items()}
    return tensors


@pytest.fixture
def no_library(monkeypatch):
    """A machine on which nothing was compiled."""
    monkeypatch.setattr(torch_op, "find_library", lambda: None)
    torch_op._has_library.cache_clear()
    yield
    torch_op._has_library.cache_clear()


def test_compiled_operator_agrees_with_the_oracle(scan_case, limit, scans, library):
    y, state = selective_scan(**_tensors(scan_case), **scan_case.attributes)
    wanted = selective_scan_reference(**scan_case.arguments, **scan_case.attributes)
    scans.close("y", y, wanted[0], limit)
    scans.close("final_state", state, wanted[1], 5e-6)
    assert y.dtype == torch.from_numpy(scan_case.arguments["u"]).dtype
    assert state.dtype == torch.float32


def test_loop_agrees_with_the_oracle(scan_case, limit, scans, no_library, caplog):
    wanted = selective_scan_reference(**scan_case.arguments, **scan_case.attributes)
    y, state = selective_scan(**_tensors(scan_case), **scan_case.attributes)
    scans.close("y", y, wanted[0], limit)
    scans.close("final_state", state, wanted[1], 5e-6)
    selective_scan(**_tensors(scan_case), **scan_case.attributes)
    assert [record.message for record in caplog.records] == [slow_notice()]


def test_float64_agrees_to_the_last_digits(scan_case, scans):
    y, state = selective_scan(**_tensors(scan_case, torch.float64), **scan_case.attributes)
    wanted = selective_scan_reference(**scan_case.arguments, **scan_case.attributes)
    scans.close("y", y, wanted[0], 1e-12)
    scans.close("final_state", state, wanted[1], 1e-12)


def test_views_are_read_where_they_lie(scans, library):
    """Slices of wider projections, as models make them, give what their copies give."""
    case = scans.case(K=2, N=4, optional=("z",))
    tensors = _tensors(case)
    wide = torch.cat([tensors[name] for name in ("u", "z", "dt", "B", "C")], dim=-1)
    widths = [tensors[name].shape[2] for name in ("u", "z", "dt", "B", "C")]
    views = dict(zip(("u", "z", "dt", "B", "C"), wide.split(widths, dim=-1), strict=True))
    transposed = tensors["u"].transpose(1, 2).contiguous().transpose(1, 2)
    for replaced in (views, {"u": transposed}):
        for found, wanted in zip(
            selective_scan(**{**tensors, **replaced}, **case.attributes),
            selective_scan(**tensors, **case.attributes),
            strict=True,
        ):
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)


SMALL = {
    "everything": {"K": 2, "G": 2, "D": 4, "reverse": (0, 1), "order": "rows", "merge": "sum",
                   "wide_u": True, "optional": ("D", "z", "dt_bias", "initial_state")},
    "windows": {"K": 2, "reverse": (1, 0), "segment": 2, "optional": ("D", "z")},
    "constant": {"constant": "BC", "K": 2, "optional": ("dt_bias",)},
    "no-softplus": {"softplus": False, "optional": ("z",)},
}  # fmt: skip


@pytest.mark.parametrize("name", list(SMALL))
def test_gradcheck_in_float64(name, scans):
    case = scans.case(**{"B": 2, "L": 4, "D": 2, "N": 2, **SMALL[name]})
    tensors = _tensors(case, torch.float64)
    names = [name for name in DIFFERENTIABLE if name in tensors]
    leaves = [tensors[name].requires_grad_() for name in names]

    def scan(*values):
        return selective_scan(
            **{**tensors, **dict(zip(names, values, strict=True))}, **case.attributes
        )

    assert torch.autograd.gradcheck(scan, leaves)


def _gradients(tensors, attributes, weights):
    """Gradients of a weighted sum of both outputs by every float tensor."""
    leaves = {n: t.clone().requires_grad_() for n, t in tensors.items() if n != "order"}
    y, state = selective_scan(**{**tensors, **leaves}, **attributes)
    loss = (y.double() * weights[0]).sum() + (state.double() * weights[1]).sum()
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def test_compiled_gradients_agree_with_float64_autograd(signature, scan_case, scans, library):
    outputs = selective_scan(**_tensors(scan_case), **scan_case.attributes)
    generator = torch.Generator().manual_seed(1)
    weights = [
        torch.randn(output.shape, generator=generator, dtype=torch.float64) for output in outputs
    ]
    found = _gradients(_tensors(scan_case), scan_case.attributes, weights)
    exact = _tensors(scan_case, torch.float64)
    wanted = _gradients(exact, scan_case.attributes, weights)
    for name, gradient in found.items():
        assert gradient.dtype == _tensors(scan_case)[name].dtype
        limit = 2e-3 if signature.startswith("half") else 1e-4
        scans.close(f"gradient of {name}", gradient, wanted[name], limit)


def test_only_wanted_gradients_are_made(scans, library):
    case = scans.case(optional=("D",))
    tensors = _tensors(case)
    tensors["dt"].requires_grad_()
    y, _ = selective_scan(**tensors, **case.attributes)
    y.sum().backward()
    assert tensors["dt"].grad is not None
    assert tensors["u"].grad is None


def test_gradient_of_the_state_alone(scans, library):
    case = scans.case(optional=("initial_state",))
    tensors = _tensors(case)
    tensors["initial_state"].requires_grad_()
    _, state = selective_scan(**tensors, **case.attributes)
    state.sum().backward()
    exact = _tensors(case, torch.float64)
    exact["initial_state"].requires_grad_()
    selective_scan(**exact, **case.attributes)[1].sum().backward()
    scans.close("gradient", tensors["initial_state"].grad, exact["initial_state"].grad, 1e-5)


@pytest.mark.parametrize("name", ["vim", "stateful", "windows"])
def test_operator_is_registered_as_torch_wants(name, scans):
    options = {
        "vim": {"K": 2, "reverse": (0, 1), "merge": "sum", "optional": ("D", "z", "dt_bias")},
        "stateful": {"optional": ("initial_state",), "half": True},
        "windows": {"K": 2, "segment": 4, "order": "shared", "wide_u": True},
    }
    case = scans.case(**options[name])
    tensors = _tensors(case)
    values = [tensors.get(key) for key in torch_op.INPUTS]
    attributes = [case.attributes[key] for key in torch_op.OPTIONS]
    values = [v.requires_grad_() if v is not None and v.is_floating_point() else v for v in values]
    torch.library.opcheck(torch.ops.mambapose.selective_scan.default, (*values, *attributes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_traced_training_step_agrees_with_the_plain_one(dtype, scans):
    """torch.compile's tracing of forward and backward, without code generation."""
    case = scans.case(L=5, K=2, reverse=(0, 1), merge="sum", optional=("D", "z"))
    tensors = _tensors(case, dtype)

    def loss(dt, decay):
        y, state = selective_scan(**{**tensors, "dt": dt, "A": decay}, **case.attributes)
        return y.square().sum() + state.sum()

    gradients = []
    for function in (loss, torch.compile(loss, backend="aot_eager", fullgraph=True)):
        leaves = [tensors[name].clone().requires_grad_() for name in ("dt", "A")]
        function(*leaves).backward()
        gradients.append([leaf.grad for leaf in leaves])
    for plain, traced in zip(*gradients, strict=True):
        scans.close("gradient", traced, plain, 1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dt": torch.zeros(2, 9, 5)}, "u: shape"),
        ({"order": torch.arange(9)}, "order: int32"),
        ({"dt": torch.zeros(2, 9, 6, dtype=torch.float16)}, "dt: torch.float32 was wanted"),
        ({"A": -torch.ones(6, 3, dtype=torch.float64)}, "A: torch.float32 was wanted"),
        ({"initial_state": torch.zeros(2, 6, 2)}, "initial_state: shape"),
    ],
)
def test_misfits_are_refused_by_name(change, message, scans):
    case = scans.case()
    with pytest.raises(ValueError, match=message):
        selective_scan(**{**_tensors(case), **change}, **case.attributes)


@pytest.mark.parametrize("order", [[0, 1, 1], [0, 1, 3], [-1, 0, 1]])
def test_loop_refuses_an_order_that_is_no_permutation(order, scans):
    tensors = _tensors(scans.case(L=3), torch.float64)
    with pytest.raises(ValueError, match="order: each row must name every token once"):
        selective_scan(**tensors, order=torch.tensor(order, dtype=torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_tensor_may_be_several_arguments(dtype, scans, library):
    """Gradients of a tensor's uses add up; results are read through permuted views."""
    base = _tensors(scans.case(L=20, D=6, N=6))
    gradients = []
    for kind in (dtype, torch.float64):
        exact = torch.float64 if kind == torch.float64 else torch.float32
        x = base["u"].to(dtype).to(kind).requires_grad_()
        y, state = selective_scan(x, x, base["A"].to(exact), x, x, z=x)
        loss = (y.transpose(1, 2).double() * torch.linspace(-1, 1, 20)).sum() + state.sum()
        gradients.append(torch.autograd.grad(loss, x)[0])
    scans.close("gradient", gradients[0], gradients[1], 5e-3 if dtype == torch.float16 else 1e-5)


def test_second_derivatives_are_refused(scans, library):
    tensors = _tensors(scans.case())
    tensors["u"].requires_grad_()
    y, _ = selective_scan(**tensors)
    (gradient,) = torch.autograd.grad(y.square().sum(), tensors["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.sum().backward()


class Layer(torch.nn.Module):
    """Two scans as a network uses them: a gated one without state, and a plain one."""

    def __init__(self, case) -> None:
        super().__init__()
        tensors = _tensors(case)
        self.register_buffer("A", tensors["A"])
        self.register_buffer("order", tensors["order"])
        self.attributes = case.attributes

    def forward(self, u, dt, rows_b, rows_c, z):
        first, _ = selective_scan(
            u, dt, self.A, rows_b, rows_c, z=z, order=self.order, **self.attributes
        )
        second, state = selective_scan(
            first, dt, self.A, rows_b, rows_c, order=self.order, **self.attributes
        )
        return second + u, state


def _export(layer, values):
    """The ONNX model of a layer with a free batch size."""
    free = torch.export.Dim("N", min=1, max=64)
    names = ("u", "dt", "rows_b", "rows_c", "z")
    with warnings.catch_warnings():  # the exporter's own deprecations
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            layer,
            values,
            dynamo=True,
            opset_version=18,
            custom_translation_table=torch_op.onnx_translation_table(),
            dynamic_shapes={name: {0: free} for name in names},
            input_names=list(names),
            output_names=["y", "state"],
            verbose=False,
        )
    return program.model_proto


def test_export_writes_one_node_per_scan(scans):
    """A free batch stays free; both outputs are named even where one is not used."""
    from onnx import helper

    from mambapose.plugins.onnx_function import attach_functions

    case = scans.case(K=2, reverse=(0, 1), merge="sum", order="shared", optional=("z",))
    tensors = _tensors(case)
    values = tuple(tensors[name] for name in ("u", "dt", "B", "C", "z"))
    layer = Layer(case).eval()
    model = _export(layer, values)
    nodes = [node for node in model.graph.node if node.domain == "mambapose"]
    assert [node.op_type for node in nodes] == ["SelectiveScan"] * 2
    assert all(len(node.output) == 2 and all(node.output) for node in nodes)
    assert [bool(name) for name in nodes[0].input] == [True] * 5 + [False, True, False, True]
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in nodes[0].attribute}
    assert attributes == {
        "directions": 2, "groups": 1, "reverse": [0, 1], "delta_softplus": 1, "segment": 0,
        "merge": b"sum", "gate": b"silu", "plugin_version": b"1", "plugin_namespace": b"",
    }  # fmt: skip
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"

    attach_functions(model)
    session = scans.session(model)
    wider = [torch.cat([value, value.flip(0), value]) for value in values]
    feed = {
        entry.name: value.numpy() for entry, value in zip(session.get_inputs(), wider, strict=True)
    }
    with torch.no_grad():
        wanted = layer(*wider)
    for name, found, expected in zip(("y", "state"), session.run(None, feed), wanted, strict=True):
        scans.close(name, found, expected.numpy(), 5e-6)


def test_fake_tensors_pass_through(scans):
    """Fake tensors carry shape and type through the operator without running it."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    case = scans.case(half=True, K=2, merge="sum")
    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(tensor) for name, tensor in _tensors(case).items()}
        y, state = selective_scan(**fakes, **case.attributes)
    assert (tuple(y.shape), y.dtype) == ((2, 9, 6), torch.float16)
    assert (tuple(state.shape), state.dtype) == ((2, 12, 3), torch.float32)
