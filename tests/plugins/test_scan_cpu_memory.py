"""What the CPU kernels read and write: strides, alignment, threads, odd values, refusals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mambapose.plugins import native_scan
from mambapose.plugins.reference import selective_scan_reference, softplus
from mambapose.runtime.errors import EngineError

from .views import placed_at, placed_inside

ROWS = ("u", "dt", "B", "C", "z")
FULL = ("D", "z", "dt_bias", "initial_state")

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("best_isa")]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("before", "after"), [(0, 5), (3, 0), (1, 1)])
def test_slices_of_wider_tensors_are_read_in_place(scans, half, before, after):
    case = scans.case(1, L=37, D=19, N=5, K=2, reverse=(0, 1), optional=FULL, half=half)
    views = {name: placed_inside(case.arguments[name], before, after) for name in ROWS}
    for view in views.values():
        assert native_scan._lined_up(view, view.dtype) is view
    for _ in scans.each_isa():
        for found, wanted in zip(scans.native(case, **views), scans.native(case), strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_reversed_batches_and_repeated_rows_are_read_in_place(scans):
    case = scans.case(2, B=3, L=20, D=18)
    flipped = {name: case.arguments[name][::-1] for name in ROWS if name in case.arguments}
    row = case.arguments["dt"][:, :1]
    repeated = np.broadcast_to(row, case.arguments["dt"].shape)
    for _ in scans.each_isa():
        y, _ = scans.native(case)
        np.testing.assert_array_equal(scans.native(case, **flipped)[0], y[::-1])
        np.testing.assert_array_equal(
            scans.native(case, dt=repeated)[0], scans.native(case, dt=repeated.copy())[0]
        )


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("offset", [1, 2, 4, 20, 36])
def test_unaligned_memory(scans, half, offset):
    case = scans.case(3, L=33, D=33, N=16, optional=FULL, half=half)
    moved = {name: placed_at(value, offset) for name, value in case.arguments.items()}
    for _ in scans.each_isa():
        for found, wanted in zip(scans.native(case, **moved), scans.native(case), strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("merge", ["none", "sum"])
@pytest.mark.parametrize("half", [False, True])
def test_every_number_of_threads_gives_the_same_bits(scans, merge, half):
    case = scans.case(
        4, B=2, L=700, D=89, N=16, K=2, reverse=(0, 1), merge=merge, half=half, order="rows",
        optional=FULL,
    )  # fmt: skip
    one = scans.native(case)

    def pool(context, task, argument, count):
        for index in reversed(range(count)):
            task(argument, index)

    for threads in (2, 3, 5, 16):
        own = scans.native(case, threads=threads)
        pooled = native_scan.scan(
            **case.arguments, **case.attributes, threads=threads, parallel_for=pool
        )
        for wanted, found, other in zip(one, own, pooled, strict=True):
            np.testing.assert_array_equal(found, wanted)
            np.testing.assert_array_equal(other, wanted)


def test_the_pool_gets_all_the_tasks(scans):
    case = scans.case(5, B=1, L=600, D=128, N=16, K=2, reverse=(0, 1))
    counts = []

    def pool(context, task, argument, count):
        counts.append(count)
        for index in range(count):
            task(argument, index)

    native_scan.scan(**case.arguments, **case.attributes, threads=4, parallel_for=pool)
    assert counts == [4]


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
def test_edges_of_step_size_and_decay(scans, dt, decay):
    """Each edge alone, so that small step sizes are compared with small results."""
    case = _values(scans, dt=dt, A=decay, D=0.0)
    wanted, state = selective_scan_reference(**case.arguments, **case.attributes)
    for isa in scans.each_isa():
        y, found = scans.native(case)
        scans.close(f"{isa} y", y, wanted, 2e-6)
        scans.close(f"{isa} state", found, state, 5e-6)


def _rounded_scan(case):
    """y of one batch element with exact exponentials and states rounded to float32 once a step."""
    dt, u, B, C = (case.arguments[n][0].astype(float) for n in ("dt", "u", "B", "C"))
    s = softplus(dt).astype(np.float32)
    h = np.zeros(case.arguments["A"].shape, np.float32)
    y = np.zeros(u.shape)
    for t in range(len(u)):
        factor = np.exp(s[t][:, None] * case.arguments["A"].astype(float)).astype(np.float32)
        h = (factor.astype(float) * h + (s[t] * u[t])[:, None] * B[t]).astype(np.float32)
        y[t] = (h * C[t]).sum(axis=1)
    return y[None]


def test_slow_decay_is_as_exact_as_float32_allows(scans):
    """Thousands of factors just below 1: an exponential that is biased near 0 would show."""
    case = scans.case(7, B=1, L=4131, D=17, N=2)
    case.arguments["A"][:] = -np.logspace(-6, -1, 34).reshape(17, 2)
    wanted, _ = selective_scan_reference(**case.arguments, **case.attributes)
    least = np.abs(_rounded_scan(case) - wanted).max() / np.abs(wanted).max()
    for isa in scans.each_isa():
        # Without a fused multiply-add a factor within a rounding of 1 is lost.
        limit = 2e-5 if isa == "scalar" else 1.5 * least
        scans.close(isa, scans.native(case)[0], wanted, limit)


@pytest.mark.parametrize(
    "changes",
    [
        {"u": 1e4},
        {"u": [1.0, -1e4, 0.5]},
        {"u": 0.0},
        {"B": 0.0},
        {"C": 0.0},
        {"u": 1e-30},
    ],
)
def test_outliers_and_zeros(scans, changes):
    case = _values(scans, **changes)
    wanted, _ = selective_scan_reference(**case.arguments, **case.attributes)
    for isa in scans.each_isa():
        scans.close(isa, scans.native(case)[0], wanted, 2e-6)


def test_denormals_may_become_zero(scans):
    case = _values(scans, u=1e-40)
    for _ in scans.each_isa():
        y, state = scans.native(case)
        assert np.abs(y).max() < 1e-36
        assert np.abs(state).max() < 1e-36


def test_the_largest_halves(scans):
    case = scans.case(8, B=1, L=9, D=17, half=True, optional=("D",))
    case.arguments["u"][:] = np.finfo(np.float16).max
    case.arguments["D"][:] = 0.5
    case.arguments["C"][:] = 0
    for _ in scans.each_isa():
        np.testing.assert_array_equal(
            scans.native(case)[0], np.float16(np.finfo(np.float16).max / 2)
        )
    case.arguments["D"][:] = 2.0
    for _ in scans.each_isa():
        assert np.isposinf(scans.native(case)[0]).all()


@pytest.mark.parametrize("name", ["u", "dt", "z"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("half", [False, True])
def test_what_is_no_number_stays_in_its_channel(scans, name, value, half):
    case = scans.case(9, B=1, L=70, D=35, N=5, optional=FULL, half=half)
    bad = case.arguments[name].copy()
    bad[0, 31, 20] = value
    others = np.arange(35) != 20
    with np.errstate(all="ignore"):
        wanted, _ = selective_scan_reference(**{**case.arguments, name: bad}, **case.attributes)
    for isa in scans.each_isa():
        good, good_state = scans.native(case)
        y, state = scans.native(case, **{name: bad})
        np.testing.assert_array_equal(y[..., others], good[..., others])
        np.testing.assert_array_equal(state[:, others], good_state[:, others])
        np.testing.assert_array_equal(y[:, :31], good[:, :31])
        if np.isnan(value):
            np.testing.assert_array_equal(np.isnan(y), np.isnan(wanted), err_msg=isa)


@pytest.mark.parametrize("value", [-1, 9])
def test_an_order_outside_the_tokens_is_refused(scans, value):
    case = scans.case(10, order="shared")
    order = case.arguments["order"].copy()
    order[3] = value
    with pytest.raises(EngineError, match=r"order: a token from 0 to 8 was wanted, found"):
        scans.native(case, order=order)
    order[3] = order[4]
    with pytest.raises(EngineError, match=r"order: every token once was wanted"):
        scans.native(case, order=order)


def _params(scans):
    case = scans.case(11)
    arguments = dict.fromkeys(("D", "z", "dt_bias", "order", "initial_state"))
    ready = native_scan.prepare_arrays({**arguments, **case.arguments}, np.dtype(np.float32))
    y = np.zeros((2, 9, 6), np.float32)
    settings = {**case.attributes}
    params = native_scan._params(ready, y, None, settings, 1, None)
    return params, (ready, y)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("structSize", 8, "structSize"),
        ("dtype", 2, "dtype"),
        ("batch", -1, "batch"),
        ("length", 2**31, "length"),
        ("channels", 0, "channels"),
        ("states", 257, "states"),
        ("directions", 65, "directions"),
        ("groups", 4, "groups"),
        ("segment", -1, "segment"),
        ("orderRows", 2, "orderRows"),
        ("numThreads", -1, "numThreads"),
        ("A", None, "A"),
    ],
)
def test_the_library_names_what_it_refuses(scans, field, value, named):
    params, _alive = _params(scans)
    setattr(params, field, value)
    with pytest.raises(EngineError, match=rf"^selective scan: {named}: "):
        native_scan.call_library(native_scan.load_library().mambapose_scan_cpu, params)


@pytest.mark.parametrize("name", ["u", "dt", "B", "C", "y"])
def test_an_absent_tensor_is_named(scans, name):
    params, _alive = _params(scans)
    getattr(params, name).data = None
    with pytest.raises(EngineError, match=rf"^selective scan: {name}: a tensor was wanted"):
        native_scan.call_library(native_scan.load_library().mambapose_scan_cpu, params)


def test_a_state_and_segments_exclude_each_other(scans):
    params, (ready, _) = _params(scans)
    params.segment = 3
    params.initialState = ready["A"].ctypes.data
    with pytest.raises(EngineError, match=r"initialState: segment 0"):
        native_scan.call_library(native_scan.load_library().mambapose_scan_cpu, params)


@pytest.mark.parametrize(
    ("field", "value"), [("batch", 2**31), ("channels", 2**31), ("batch", 2**31 - 1)]
)
def test_sizes_whose_products_overflow_are_refused(scans, field, value):
    params, _alive = _params(scans)
    params.length, params.channels, params.directions = 2**31 - 1, 2**20, 64
    params.orderRows = 1
    setattr(params, field, value)
    with pytest.raises(EngineError, match=rf"^selective scan: {field}: "):
        native_scan.call_library(native_scan.load_library().mambapose_scan_cpu, params)


@pytest.mark.parametrize("name", ["u", "dt", "B", "C", "z", "A", "D", "initial_state"])
@pytest.mark.parametrize("end", ["first", "last"])
def test_a_result_that_overlaps_an_argument_is_refused(scans, name, end):
    """One float is enough, at either end; memory that only touches is good."""
    case = scans.case(13, L=11, D=20, optional=FULL)
    size, wide = case.arguments[name].size, 2 * 11 * 20
    buffer = np.zeros(2 * wide + size, np.float32)
    argument = buffer[wide : wide + size].reshape(case.arguments[name].shape)
    argument[...] = case.arguments[name]

    def run(begin):
        y = buffer[begin : begin + wide].reshape(2, 11, 20)
        native_scan.bind_scan({**case.arguments, name: argument}, case.attributes, y=y).run()
        return y

    apart, overlapping = (0, 1) if end == "first" else (wide + size, wide + size - 1)
    np.testing.assert_array_equal(run(apart), scans.native(case)[0])
    argument[...] = case.arguments[name]
    named = {"initial_state": "initialState"}.get(name, name)
    with pytest.raises(EngineError, match=rf"y: memory of its own was wanted.* {named}$"):
        run(overlapping)


def test_a_backwards_view_that_overlaps_is_refused(scans):
    case = scans.case(14, B=1, L=11, D=20)
    buffer = np.zeros(11 * 20 + 20, np.float32)
    backwards = buffer[:220].reshape(1, 11, 20)[:, ::-1]
    y = buffer[20:].reshape(1, 11, 20)
    with pytest.raises(EngineError, match="y: memory of its own was wanted"):
        native_scan.bind_scan({**case.arguments, "u": backwards}, case.attributes, y=y).run()


def test_the_state_may_be_updated_in_place(scans):
    case = scans.case(15, B=2, L=40, D=35, K=2, reverse=(0, 1), optional=FULL)
    for _ in scans.each_isa():
        y, state = scans.native(case)
        held = case.arguments["initial_state"].copy()
        bound = native_scan.bind_scan({**case.arguments, "initial_state": held}, case.attributes)
        bound.params.finalState = held.ctypes.data
        bound.run()
        np.testing.assert_array_equal(bound.y, y)
        np.testing.assert_array_equal(held, state)
        bound.params.finalState = held.ctypes.data + 4
        with pytest.raises(EngineError, match=r"finalState: memory of its own.* initialState"):
            bound.run()


def test_memory_for_y_must_be_writable_and_dense(scans):
    case = scans.case(16)
    y = np.zeros((2, 9, 6), np.float32)
    y.flags.writeable = False
    for wrong in (y, np.zeros((2, 9, 12), np.float32)[..., ::2], np.zeros((2, 9, 6))):
        with pytest.raises(ValueError, match=r"^y: dense writable float32 \(2, 9, 6\)"):
            native_scan.bind_scan(case.arguments, case.attributes, y=wrong)


def test_other_types_are_refused(scans):
    case = scans.case(12)
    with pytest.raises(ValueError, match=r"^dt: float32 or float16 was wanted, found float64"):
        scans.native(case, dt=case.arguments["dt"].astype(float))
    wrong = dataclasses.replace(case, attributes={**case.attributes, "segment": -1})
    with pytest.raises(ValueError, match=r"^segment: "):
        scans.native(wrong)


def test_a_file_that_is_no_library_is_refused(tmp_path):
    path = tmp_path / "libnothing.so"
    path.write_bytes(b"not a library")
    with pytest.raises(EngineError, match=r"a mambapose operator library was wanted"):
        native_scan.load_library(path)
