"""The CUDA kernels on the host: where tensors lie, values at the edges, and what is refused."""

from __future__ import annotations

import ctypes
import dataclasses

import numpy as np
import pytest

from mambapose.plugins import native_cuda
from mambapose.plugins.native_scan import address_of
from mambapose.plugins.reference import selective_scan_reference
from mambapose.plugins.scan_abi import Params
from mambapose.runtime.errors import EngineError

from .views import placed_at, placed_inside

FULL = ("D", "z", "dt_bias", "initial_state")
ROWS = ("u", "dt", "B", "C", "z")
TYPES = ("float32", "float16", "bfloat16")
OUT, STATE = 2e-6, 5e-6


def _same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("before", "after"), [(0, 5), (3, 0), (1, 1), (2, 2), (4, 4), (8, 16)])
def test_slices_of_wider_tensors_are_read_in_place(scans, cuda, half, before, after):
    case = scans.case(1, L=37, D=24, N=8, K=2, reverse=(0, 1), optional=FULL, half=half)
    views = {name: placed_inside(case.arguments[name], before, after) for name in ROWS}
    for form in cuda.forms(case):
        _same(cuda.run(case, form, **views), cuda.run(case, form))


def test_reversed_batches_and_repeated_rows_are_read_in_place(scans, cuda):
    case = scans.case(2, B=3, L=20, D=18)
    flipped = {name: case.arguments[name][::-1] for name in ("u", "dt", "B", "C")}
    row = case.arguments["dt"][:, :1]
    repeated = np.broadcast_to(row, case.arguments["dt"].shape)
    for form in cuda.forms(case):
        y, _ = cuda.run(case, form)
        np.testing.assert_array_equal(cuda.run(case, form, **flipped)[0], y[::-1])
        copied = cuda.run(case, form, dt=repeated.copy())[0]
        np.testing.assert_array_equal(cuda.run(case, form, dt=repeated)[0], copied)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("offset", [2, 4, 8, 12, 20, 36])
def test_tensors_that_begin_anywhere(scans, cuda, half, offset):
    case = scans.case(3, L=33, D=32, N=16, optional=FULL, half=half)
    names = [n for n, a in case.arguments.items() if offset % a.itemsize == 0]
    moved = {name: placed_at(case.arguments[name], offset) for name in names}
    for form in cuda.forms(case):
        _same(cuda.run(case, form, **moved), cuda.run(case, form))


@pytest.mark.parametrize("dtype", TYPES)
def test_a_result_in_strided_memory(scans, cuda, dtype):
    """y as a slice of a wider tensor that begins one element late: nothing else is touched."""
    case = scans.case(4, L=21, D=18, K=2, reverse=(0, 1), half=dtype == "float16")
    for form in cuda.forms(case, dtype):
        wanted, _ = cuda.run(case, form, dtype)
        params, (_ready, y, _state) = cuda.params(case, dtype)
        wide = np.full((2, 23, 41), 0x7BCD, np.uint16).astype(y.dtype)
        before, view = wide.copy(), wide[:, 1:22, 1:37]
        params.y.data = address_of(view)
        params.y.batchStride, params.y.rowStride = 23 * 41, 41
        plan = cuda.plan(case, *form, dtype)
        memory = scans.memory()
        workspace = memory.allocate((plan.workspaceBytes,), np.dtype(np.uint8))
        native_cuda.launch(
            params, plan, workspace.ctypes.data, workspace.nbytes, None, library=cuda.library
        )
        memory.check()
        np.testing.assert_array_equal(view, wanted)
        view[...] = before[:, 1:22, 1:37]
        np.testing.assert_array_equal(wide, before)


def _values(scans, **changes):
    """A call whose arguments are replaced; dt_bias is absent so that dt is what is given."""
    case = scans.case(6, B=1, L=24, D=33, N=4, optional=("D",))
    for name, value in changes.items():
        array = case.arguments[name]
        array[...] = np.resize(np.asarray(value, array.dtype), array.shape)
    return case


EDGES = (-100.0, -20.0, -9.0, 0.0, 19.99, 20.0, 20.01, 88.0, 1e4)


@pytest.mark.parametrize("decay", [-1e-6, -1.0, -16.0, -1e4])
@pytest.mark.parametrize("dt", EDGES)
def test_edges_of_step_size_and_decay(scans, cuda, dt, decay):
    """Each edge alone, so that small step sizes are compared with small results."""
    cuda.check(_values(scans, dt=dt, A=decay, D=0.0))


@pytest.mark.parametrize(
    "changes",
    [{"u": 1e4}, {"u": [1.0, -1e4, 0.5]}, {"u": 0.0}, {"B": 0.0}, {"C": 0.0}, {"u": 1e-30}],
)
def test_outliers_and_zeros(scans, cuda, changes):
    cuda.check(_values(scans, **changes))


def test_denormals_may_become_zero(scans, cuda):
    case = _values(scans, u=1e-40)
    for form in cuda.forms(case):
        for array in cuda.run(case, form):
            assert np.abs(array).max() < 1e-36


def test_the_largest_halves(scans, cuda):
    case = scans.case(8, B=1, L=9, D=17, half=True, optional=("D",))
    case.arguments["u"][:] = np.finfo(np.float16).max
    case.arguments["C"][:] = 0
    for form in cuda.forms(case):
        half = np.full(17, 0.5, np.float32)
        np.testing.assert_array_equal(
            cuda.run(case, form, D=half)[0], np.float16(np.finfo(np.float16).max / 2)
        )
        assert np.isposinf(cuda.run(case, form, D=4 * half)[0]).all()


def test_slow_decay(scans, cuda):
    """Thousands of factors just below 1: an exponential that is biased near 0 would show."""
    case = scans.case(7, B=1, L=4131, D=17, N=2)
    case.arguments["A"][:] = -np.logspace(-6, -1, 34).reshape(17, 2)
    cuda.check(case, limit=2e-5)


@pytest.mark.parametrize(("L", "D", "N"), [(197, 20, 16), (1024, 20, 16), (4131, 8, 1)])
def test_the_fast_exponential_may_be_as_wrong_as_documented(scans, cuda, L, D, N):
    """ex2.approx is off by up to 2^-22; here by as much as that, in a way that looks random."""
    cuda.library.mambapose_shim_set_exp2_error(2.0**-22)
    try:
        cuda.check(scans.case(3, B=1, L=L, D=D, N=N, optional=("D", "z")))
    finally:
        cuda.library.mambapose_shim_set_exp2_error(0.0)


@pytest.mark.parametrize("name", ["u", "dt", "z"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("half", [False, True])
def test_what_is_no_number_stays_in_its_channel(scans, cuda, name, value, half):
    case = scans.case(9, B=1, L=70, D=35, N=5, optional=FULL, half=half)
    bad = case.arguments[name].copy()
    bad[0, 31, 20] = value
    others = np.arange(35) != 20
    wanted, _ = selective_scan_reference(**{**case.arguments, name: bad}, **case.attributes)
    for form in cuda.forms(case):
        good, good_state = cuda.run(case, form)
        y, state = cuda.run(case, form, **{name: bad})
        np.testing.assert_array_equal(y[..., others], good[..., others])
        np.testing.assert_array_equal(state[:, others], good_state[:, others])
        np.testing.assert_array_equal(y[:, :31], good[:, :31])
        if np.isnan(value):
            np.testing.assert_array_equal(np.isnan(y), np.isnan(wanted), err_msg=str(form))


@pytest.mark.parametrize("wrong", [-1, 9, 2**31 - 1, -(2**31)])
def test_a_token_outside_the_length_is_skipped(scans, cuda, wrong):
    """An order is not read back from a GPU: no memory around is touched, all else is right."""
    case = scans.case(10, L=9, D=20, order="shared", optional=("z", "D"))
    order = case.arguments["order"].copy()
    last = order[-1]
    order[-1] = wrong
    for form in cuda.forms(case):
        y, _ = cuda.run(case, form, order=order)
        whole, _ = cuda.run(case, form)
        others = np.arange(9) != last
        np.testing.assert_array_equal(y[:, others], whole[:, others])
        assert np.isnan(y[:, last]).all()


def test_the_state_may_be_updated_in_place(scans, cuda):
    case = scans.case(15, B=2, L=40, D=35, K=2, reverse=(0, 1), optional=FULL)
    for form in cuda.forms(case):
        _, state = cuda.run(case, form)
        params, (ready, _y, _state) = cuda.params(case)
        held = ready["initial_state"] = ready["initial_state"].copy()
        params.initialState = params.finalState = address_of(held)
        plan = cuda.plan(case, *form)
        workspace = native_cuda.aligned_empty((plan.workspaceBytes,), np.dtype(np.uint8))
        native_cuda.launch(
            params, plan, workspace.ctypes.data, workspace.nbytes, None, library=cuda.library
        )
        np.testing.assert_array_equal(held, state)


def _refused(cuda, case, match, field, value):
    """Both steps refuse a call with this field; a plan for the good call is at hand."""
    params, _alive = cuda.params(case)
    plan = cuda.plan(case, "auto", 8)
    setattr(params, field, value)
    with pytest.raises(EngineError, match=match):
        native_cuda.make_plan(params, 0, 8, library=cuda.library)
    with pytest.raises(EngineError, match=match):
        native_cuda.launch(params, plan, None, 0, None, library=cuda.library)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("structSize", 8),
        ("dtype", 3),
        ("batch", -1),
        ("length", 2**31),
        ("channels", 0),
        ("states", 257),
        ("directions", 65),
        ("groups", 4),
        ("segment", -1),
        ("orderRows", 2),
    ],
)
def test_the_library_names_what_it_refuses(scans, cuda, field, value):
    _refused(cuda, scans.case(11), rf"^selective scan: {field}: ", field, value)


@pytest.mark.parametrize("name", ["u", "dt", "A", "B", "C", "y"])
def test_an_absent_tensor_is_named(scans, cuda, name):
    """By the launch: a plan needs sizes only."""
    case = scans.case(11)
    params, _alive = cuda.params(case)
    if name == "A":
        params.A = None
    else:
        getattr(params, name).data = None
    with pytest.raises(EngineError, match=rf"^selective scan: {name}: a tensor was wanted"):
        native_cuda.launch(params, cuda.plan(case, "auto", 8), None, 0, None, library=cuda.library)


def test_a_state_and_segments_exclude_each_other(scans, cuda):
    case = scans.case(11, optional=("initial_state",))
    _refused(cuda, case, r"initialState: segment 0", "segment", 3)


@pytest.mark.parametrize(("tactic", "count"), [(-1, 8), (4, 8), (0, 0), (0, -3)])
def test_no_such_tactic_or_device(scans, cuda, tactic, count):
    params, _alive = cuda.params(scans.case(11))
    name = "tactic" if count > 0 else "multiprocessors"
    with pytest.raises(EngineError, match=rf"^selective scan: {name}: "):
        native_cuda.make_plan(params, tactic, count, library=cuda.library)


def test_a_plan_of_another_version_is_refused(scans, cuda):
    params, _alive = cuda.params(scans.case(11))
    old = native_cuda.LaunchPlan(structSize=8)
    function = cuda.library.mambapose_scan_cuda_plan
    with pytest.raises(EngineError, match="structSize"):
        native_cuda.call_library(function, ctypes.byref(params), 0, 8, ctypes.byref(old))
    plan = cuda.plan(scans.case(11), "auto", 8)
    plan.structSize = 8
    with pytest.raises(EngineError, match="structSize"):
        native_cuda.launch(params, plan, None, 0, None, library=cuda.library)


@pytest.mark.parametrize(
    "field",
    ["lanes", "statesPerLane", "threads", "tileSteps", "chunks", "chunkSteps", "sharedBytes"],
)
def test_a_plan_that_was_changed_is_refused(scans, cuda, field):
    """It would index memory: numbers that do not belong together must not reach a kernel."""
    case = scans.case(11, L=400, D=32, N=16)
    params, _alive = cuda.params(case)
    for value in (0, -1, 3, 10**6):
        plan = cuda.plan(case, "chunked", 132)
        workspace = native_cuda.aligned_empty((plan.workspaceBytes,), np.dtype(np.uint8))
        setattr(plan, field, value)
        with pytest.raises(EngineError, match=r"^selective scan: "):
            native_cuda.launch(
                params, plan, workspace.ctypes.data, workspace.nbytes, None, library=cuda.library
            )


def test_a_plan_for_another_call_is_refused(scans, cuda):
    small, large = scans.case(11, L=400, D=8, N=4), scans.case(11, L=4000, D=64, N=64)
    params, _alive = cuda.params(large)
    plan = cuda.plan(small, "chunked", 132)
    workspace = native_cuda.aligned_empty((plan.workspaceBytes,), np.dtype(np.uint8))
    with pytest.raises(EngineError, match=r"^selective scan: "):
        native_cuda.launch(
            params, plan, workspace.ctypes.data, workspace.nbytes, None, library=cuda.library
        )


def test_a_workspace_that_is_too_small_absent_or_unaligned_is_refused(scans, cuda):
    case = scans.case(11, L=400, D=8, N=4)
    params, _alive = cuda.params(case)
    plan = cuda.plan(case, "chunked", 132)
    size = plan.workspaceBytes
    assert size > 0
    memory = native_cuda.aligned_empty((size + 256,), np.dtype(np.uint8))
    address = memory.ctypes.data
    for workspace, found in ((address, size - 1), (None, size), (address + 128, size)):
        with pytest.raises(EngineError, match=r"^selective scan: workspace: "):
            native_cuda.launch(params, plan, workspace, found, None, library=cuda.library)
    native_cuda.launch(params, plan, address + 256, size, None, library=cuda.library)


@pytest.mark.parametrize("name", ["u", "dt", "B", "C", "z", "A", "D", "initial_state"])
@pytest.mark.parametrize("end", ["first", "last"])
def test_a_result_that_overlaps_an_argument_is_refused(scans, cuda, name, end):
    """One element is enough, at either end; memory that only touches is good."""
    case = scans.case(13, L=11, D=20, optional=FULL)
    size, wide = case.arguments[name].size, 2 * 11 * 20
    buffer = np.zeros(2 * wide + size, np.float32)
    argument = buffer[wide : wide + size].reshape(case.arguments[name].shape)
    argument[...] = case.arguments[name]
    params, _alive = cuda.params(
        dataclasses.replace(case, arguments={**case.arguments, name: argument})
    )
    plan = cuda.plan(case, "sequential", 8)

    def run(begin):
        params.y.data = buffer.ctypes.data + 4 * begin
        native_cuda.launch(params, plan, None, 0, None, library=cuda.library)

    apart, overlapping = (0, 1) if end == "first" else (wide + size, wide + size - 1)
    run(apart)
    named = {"initial_state": "initialState"}.get(name, name)
    with pytest.raises(EngineError, match=rf"y: memory of its own was wanted.* {named}$"):
        run(overlapping)


def test_gradients_of_halves_are_refused(scans, cuda):
    params, _alive = cuda.params(scans.case(11, half=True))
    grads = native_cuda.Grads(ctypes.sizeof(native_cuda.Grads))
    with pytest.raises(EngineError, match=r"^selective scan: dtype: "):
        native_cuda.backward_workspace(params, grads, 8, library=cuda.library)


def test_other_types_are_refused(scans, cuda):
    case = scans.case(12)
    with pytest.raises(ValueError, match=r"^dt: float32, float16 or uint16 was wanted, found"):
        cuda.run(case, ("auto", 8), dt=case.arguments["dt"].astype(float))


def test_a_file_that_is_no_library_is_refused(tmp_path):
    path = tmp_path / "libnothing.so"
    path.write_bytes(b"not a library")
    with pytest.raises(EngineError, match=r"a library of the CUDA kernels was wanted at"):
        native_cuda.load_library(path)


def test_the_guards_of_these_tests_notice_a_write_beside(scans):
    for at, said in ((-1, "before"), (12, "after")):
        memory = scans.memory()
        array = memory.allocate((3, 4), np.dtype(np.float32))
        assert np.isnan(array).all()
        memory.check()
        beside = (ctypes.c_float * 1).from_address(array.ctypes.data + 4 * at)
        beside[0] = 1.0
        with pytest.raises(AssertionError, match=f"bytes {said} an output were written"):
            memory.check()


def test_the_library_is_found_by_its_variable(cuda, monkeypatch, tmp_path):
    monkeypatch.setenv(native_cuda.VARIABLE, cuda.library._name)
    assert str(native_cuda.find_library()) == cuda.library._name
    monkeypatch.setenv(native_cuda.VARIABLE, str(tmp_path / "none.so"))
    with pytest.raises(EngineError, match="by MAMBAPOSE_CUDA_LIBRARY"):
        native_cuda.find_library()


def test_the_structures_have_the_sizes_of_the_header():
    assert ctypes.sizeof(native_cuda.LaunchPlan) == 64
    assert ctypes.sizeof(Params) % 8 == 0
