"""The torch operator on the CUDA kernels, built for the host: CPU tensors pass for GPU tensors."""

from __future__ import annotations

import pytest
import torch

from mambapose.plugins import native_cuda, torch_cuda, torch_op
from mambapose.plugins.reference import selective_scan_reference
from mambapose.plugins.torch_op import selective_scan
from mambapose.runtime.errors import EngineError


def _tensors(case, dtype=None):
    """The arguments as tensors; float ones in ``dtype`` when given."""
    tensors = {name: torch.from_numpy(array) for name, array in case.arguments.items()}
    if dtype is not None:
        tensors = {name: t.to(dtype) if name != "order" else t for name, t in tensors.items()}
    return tensors


def _rows_as(tensors, dtype):
    """The rows in this type, everything else as it is."""
    rows = {n: t.to(dtype) for n, t in tensors.items() if n in ("u", "dt", "z")}
    rows |= {n: tensors[n].to(dtype) for n in ("B", "C") if tensors[n].ndim == 3}
    return {**tensors, **rows}


def _forget():
    for cached in (native_cuda.load_library, torch_cuda._has_library, torch_cuda.multiprocessors):
        cached.cache_clear()


@pytest.fixture
def kernels(cuda_shim, monkeypatch):
    """The host build is the library of the kernels, and every tensor seems to be on a GPU."""
    monkeypatch.setenv(native_cuda.VARIABLE, cuda_shim._name)
    monkeypatch.setattr(torch_cuda, "is_on_gpu", lambda tensor: True)
    _forget()
    before = cuda_shim.mambapose_shim_launches()
    yield cuda_shim
    assert cuda_shim.mambapose_shim_launches() > before, "no kernel was launched"
    _forget()


@pytest.fixture
def no_kernels(monkeypatch):
    """A machine with a GPU on which no kernels were compiled."""
    monkeypatch.setattr(native_cuda, "find_library", lambda: None)
    monkeypatch.setattr(torch_cuda, "is_on_gpu", lambda tensor: True)
    _forget()
    yield
    _forget()


def test_operator_agrees_with_the_oracle(scan_case, limit, scans, kernels):
    y, state = selective_scan(**_tensors(scan_case), **scan_case.attributes)
    wanted = selective_scan_reference(**scan_case.arguments, **scan_case.attributes)
    scans.close("y", y, wanted[0], limit)
    scans.close("final_state", state, wanted[1], 5e-6)
    assert y.dtype == torch.from_numpy(scan_case.arguments["u"]).dtype
    assert state.dtype == torch.float32


def test_bfloat16_agrees_with_the_oracle(scans, kernels):
    case = scans.case(K=2, reverse=(0, 1), merge="sum", optional=("D", "z"), constant="B")
    tensors = _rows_as(_tensors(case), torch.bfloat16)
    y, state = selective_scan(**tensors, **case.attributes)
    exact = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    wanted = selective_scan_reference(**exact, **case.attributes)
    assert y.dtype == torch.bfloat16
    scans.close("y", y.double(), wanted[0], 1.2e-2)
    scans.close("final_state", state, wanted[1], 5e-6)


def test_views_are_read_where_they_lie(scans, kernels):
    """Slices of wider projections give what their copies give; a strided last axis is copied."""
    case = scans.case(K=2, N=4, optional=("z",))
    tensors = _tensors(case)
    names = ("u", "z", "dt", "B", "C")
    wide = torch.cat([tensors[name] for name in names], dim=-1)
    parts = wide.split([tensors[name].shape[2] for name in names], dim=-1)
    views = dict(zip(names, parts, strict=True))
    transposed = tensors["u"].transpose(1, 2).contiguous().transpose(1, 2)
    plain = selective_scan(**tensors, **case.attributes)
    for replaced in (views, {"u": transposed}):
        found = selective_scan(**{**tensors, **replaced}, **case.attributes)
        for result, wanted in zip(found, plain, strict=True):
            torch.testing.assert_close(result, wanted, rtol=0, atol=0)
    bound = torch_cuda.bind_scan(_every(views, tensors), case.attributes)
    assert bound.params.u.data == views["u"].data_ptr()
    assert (bound.params.u.rowStride, bound.params.u.batchStride) == views["u"].stride()[1::-1]


def _every(*parts):
    """All inputs by name, None where absent."""
    found = dict.fromkeys(torch_op.INPUTS)
    for part in reversed(parts):
        found |= part
    return found


def _gradients(tensors, attributes, weights):
    """Gradients of a weighted sum of both outputs by every float tensor."""
    leaves = {n: t.clone().requires_grad_() for n, t in tensors.items() if n != "order"}
    y, state = selective_scan(**{**tensors, **leaves}, **attributes)
    loss = (y.double() * weights[0]).sum() + (state.double() * weights[1]).sum()
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def _check_gradients(tensors, attributes, scans, limit):
    generator = torch.Generator().manual_seed(1)
    weights = [
        torch.randn(output.shape, generator=generator, dtype=torch.float64)
        for output in selective_scan(**tensors, **attributes)
    ]
    found = _gradients(tensors, attributes, weights)
    exact = {n: t.double() if n != "order" else t for n, t in tensors.items()}
    wanted = _gradients(exact, attributes, weights)
    for name, gradient in found.items():
        assert gradient.dtype == tensors[name].dtype
        scans.close(f"gradient of {name}", gradient.double(), wanted[name], limit)


def test_gradients_agree_with_float64_autograd(signature, scan_case, scans, kernels):
    limit = 2e-3 if signature.startswith("half") else 1e-4
    _check_gradients(_tensors(scan_case), scan_case.attributes, scans, limit)


def test_gradients_in_bfloat16(scans, kernels):
    case = scans.case(K=2, reverse=(0, 1), merge="sum", optional=("D", "z", "dt_bias"))
    tensors = _rows_as(_tensors(case), torch.bfloat16)
    _check_gradients(tensors, case.attributes, scans, 2e-2)


def test_only_wanted_gradients_are_made(scans, kernels):
    case = scans.case(optional=("D",))
    tensors = _tensors(case)
    tensors["dt"].requires_grad_()
    y, _ = selective_scan(**tensors, **case.attributes)
    y.sum().backward()
    assert tensors["dt"].grad is not None
    assert tensors["u"].grad is None


def test_gradient_of_the_state_alone(scans, kernels):
    case = scans.case(optional=("initial_state",))
    gradients = []
    for dtype in (None, torch.float64):
        tensors = _tensors(case, dtype)
        tensors["initial_state"].requires_grad_()
        selective_scan(**tensors, **case.attributes)[1].sum().backward()
        gradients.append(tensors["initial_state"].grad)
    scans.close("gradient", *gradients, 1e-5)


@pytest.mark.parametrize("tactic", native_cuda.TACTICS)
def test_a_bound_call_gives_the_same_bits_again(tactic, scans, kernels):
    """Its workspace and results are filled with other values between the launches."""
    case = scans.case(B=1, L=300, D=8, N=16, K=2, reverse=(0, 1), merge="sum", order="rows")
    bound = torch_cuda.bind_scan(_every(_tensors(case)), case.attributes, tactic=tactic)
    assert bound.workspace.numel() == bound.plan.workspaceBytes
    assert bound.workspace.data_ptr() % native_cuda.WORKSPACE_ALIGNMENT == 0
    results = []
    for fill in (0, 255):
        bound.workspace.fill_(fill)
        bound.y.fill_(float("nan"))
        bound.launch()
        results.append(bound.y.clone())
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    wanted, _ = selective_scan_reference(**case.arguments, **case.attributes)
    scans.close("y", results[0], wanted, 2e-6)


def test_an_order_is_checked_once_and_again_when_it_changed(scans, kernels, monkeypatch):
    case = scans.case(order="shared")
    tensors = _tensors(case)
    checked = []
    check = torch_cuda.check_order
    monkeypatch.setattr(torch_cuda, "check_order", lambda order: checked.append(1) or check(order))
    for _ in range(3):
        selective_scan(**tensors, **case.attributes)
    assert len(checked) == 1
    selective_scan(**{**tensors, "order": tensors["order"].clone()}, **case.attributes)
    assert len(checked) == 2
    tensors["order"][0] = tensors["order"][1]
    with pytest.raises(ValueError, match="order: each row must name every token once"):
        selective_scan(**tensors, **case.attributes)


def test_an_empty_call_gives_the_initial_state(scans, kernels):
    selective_scan(**_tensors(scans.case()))  # what the fixture counts: nothing is launched below
    tensors = _tensors(scans.case(L=1, optional=("initial_state",)))
    empty = {n: t[:, :0] if n in ("u", "dt", "B", "C") else t for n, t in tensors.items()}
    y, state = selective_scan(**empty)
    assert y.shape == (2, 0, 6)
    torch.testing.assert_close(state, tensors["initial_state"], rtol=0, atol=0)


def test_tensors_of_two_devices_are_refused(scans):
    tensors = _every(_tensors(scans.case(order="shared")))
    tensors["order"] = tensors["order"].to("meta")
    with pytest.raises(ValueError, match="order: a tensor on cpu was wanted, found meta"):
        torch_cuda.scan(tensors, scans.case().attributes)


def test_no_kernels_means_the_loop_and_one_notice(scans, no_kernels, monkeypatch, caplog):
    case = scans.case(optional=("z",))
    monkeypatch.setattr(torch_op, "_runs_native", lambda u: False)
    for _ in range(2):
        y, _ = selective_scan(**_tensors(case), **case.attributes)
    wanted, _ = selective_scan_reference(**case.arguments, **case.attributes)
    scans.close("y", y, wanted, 2e-6)
    assert [record.message for record in caplog.records] == [torch_cuda.NOTICE]


def test_a_named_library_must_exist(monkeypatch, tmp_path):
    monkeypatch.setenv(native_cuda.VARIABLE, str(tmp_path / "absent.so"))
    with pytest.raises(EngineError, match=r"absent\.so"):
        native_cuda.find_library()


def test_cpu_and_float64_tensors_are_not_for_the_kernels():
    assert not torch_cuda.takes(torch.zeros(1))
    assert not torch_cuda.takes(torch.zeros(1, dtype=torch.float64))
