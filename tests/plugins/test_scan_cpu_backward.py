"""Gradients of the CPU kernels against differences of the float64 oracle."""

from __future__ import annotations

import numpy as np
import pytest

from mambapose.plugins import native_scan
from mambapose.plugins.reference import selective_scan_reference
from mambapose.runtime.errors import EngineError

FULL = ("D", "z", "dt_bias", "initial_state")
STEP = 1e-5
LIMIT = 1e-5

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("best_isa")]


CASES = {
    "plain": {},
    "all": {"L": 70, "D": 35, "N": 5, "optional": FULL},
    "one-step": {"L": 1, "D": 1, "N": 1, "optional": FULL},
    "no-steps": {"L": 0, "optional": ("initial_state", "D")},
    "vim": {"L": 33, "D": 18, "N": 16, "K": 2, "reverse": (0, 1), "merge": "sum", "wide_u": True,
            "optional": ("D", "z", "dt_bias")},
    "vmamba": {"L": 40, "D": 20, "N": 1, "K": 4, "reverse": (0, 0, 1, 1), "order": "rows",
               "merge": "sum", "optional": ("D", "dt_bias")},
    "gate-per-direction": {"K": 2, "D": 19, "optional": ("z",)},
    "segments": {"L": 75, "D": 18, "K": 2, "reverse": (0, 1), "order": "shared", "segment": 7,
                 "merge": "sum", "optional": ("z", "D")},
    "long-segments": {"L": 75, "D": 9, "N": 16, "segment": 40, "reverse": (1,)},
    "groups": {"D": 64, "G": 2, "K": 2, "optional": FULL},
    "small-groups": {"D": 72, "G": 3, "L": 20},
    "group-per-channel": {"G": 6},
    "constant-b": {"D": 35, "constant": "B", "optional": ("initial_state",)},
    "constant-c": {"D": 35, "constant": "C", "K": 2},
    "constant-both": {"D": 19, "constant": "BC", "K": 2, "merge": "sum"},
    "no-softplus": {"softplus": False, "optional": ("z",)},
    "many-states": {"D": 4, "N": 256, "L": 12},
    "many-parts": {"B": 1, "D": 300, "L": 20, "K": 2, "merge": "sum", "optional": ("D",)},
}  # fmt: skip


def _weights(case):
    """Random gradients of y and of the final state."""
    rng = np.random.default_rng(1)
    y, state = selective_scan_reference(**case.arguments, **case.attributes)
    return tuple(rng.standard_normal(a.shape).astype(np.float32) for a in (y, state))


def _loss(case, weights, name, change):
    arguments = {n: a if n == "order" else a.astype(float) for n, a in case.arguments.items()}
    arguments[name] = arguments[name] + change
    outputs = selective_scan_reference(**arguments, **case.attributes)
    return sum(float((w * out).sum()) for w, out in zip(weights, outputs, strict=True))


def _directions(array, rng):
    """Random signs everywhere, twice, and a few single elements."""
    yield from rng.choice([-1.0, 1.0], (2, *array.shape))
    for _ in range(3):
        single = np.zeros(array.size)
        single[rng.integers(array.size)] = 1.0
        yield single.reshape(array.shape)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_slopes_of_the_oracle(scans, name):
    case = scans.case(3, **CASES[name])
    weights = _weights(case)
    found = {
        isa: native_scan.scan_backward(*weights, **case.arguments, **case.attributes)
        for isa in scans.each_isa()
    }
    rng = np.random.default_rng(2)
    for argument, array in case.arguments.items():
        if argument == "order" or not array.size:
            continue
        for direction in _directions(array, rng):
            ends = [_loss(case, weights, argument, sign * STEP * direction) for sign in (1, -1)]
            slope = (ends[0] - ends[1]) / (2 * STEP)
            for isa, gradients in found.items():
                gradient = gradients[argument].astype(float)
                scale = max(np.abs(gradient).max(), np.sqrt(((gradient * direction) ** 2).sum()))
                error = abs((gradient * direction).sum() - slope) / max(scale, 1e-6)
                assert error <= LIMIT, f"{isa} {argument}: error {error:.1e}, limit {LIMIT}"


def test_absent_and_unwanted_gradients_are_none(scans):
    case = scans.case(4, optional=("D",))
    weights = _weights(case)
    everything = native_scan.scan_backward(*weights, **case.arguments, **case.attributes)
    absent = {name for name, gradient in everything.items() if gradient is None}
    assert absent == {"z", "dt_bias", "initial_state"}
    for name in case.arguments:
        alone = native_scan.scan_backward(
            *weights, **case.arguments, **case.attributes, wanted=(name,)
        )
        assert [key for key, gradient in alone.items() if gradient is not None] == [name]
        np.testing.assert_array_equal(alone[name], everything[name])


def test_no_gradient_of_the_final_state_means_zero(scans):
    case = scans.case(5, optional=("initial_state",))
    dy, dstate = _weights(case)
    zero = native_scan.scan_backward(dy, np.zeros_like(dstate), **case.arguments, **case.attributes)
    absent = native_scan.scan_backward(dy, None, **case.arguments, **case.attributes)
    for name, gradient in zero.items():
        np.testing.assert_array_equal(absent[name], gradient)


def test_every_number_of_threads_gives_the_same_bits(scans):
    case = scans.case(6, B=2, L=300, D=130, N=16, K=2, reverse=(0, 1), merge="sum", optional=FULL)
    weights = _weights(case)
    one = native_scan.scan_backward(*weights, **case.arguments, **case.attributes)
    for threads in (2, 5, 16):
        more = native_scan.scan_backward(
            *weights, **case.arguments, **case.attributes, threads=threads
        )
        for name, gradient in one.items():
            np.testing.assert_array_equal(more[name], gradient)


def test_strided_inputs_give_the_same_gradients(scans):
    case = scans.case(7, L=20, D=18, optional=("z",))
    weights = _weights(case)
    wide = {
        name: np.concatenate([array, array], axis=2)[..., : array.shape[2]]
        for name, array in case.arguments.items()
        if array.ndim == 3
    }
    dense = native_scan.scan_backward(*weights, **case.arguments, **case.attributes)
    strided = native_scan.scan_backward(*weights, **{**case.arguments, **wide}, **case.attributes)
    for name, gradient in dense.items():
        np.testing.assert_array_equal(strided[name], gradient)


def test_gradients_of_another_shape_are_refused(scans):
    case = scans.case(8)
    dy, dstate = _weights(case)
    for name, wrong in {"dy": (dy[:1], dstate), "dfinal_state": (dy, dstate[..., :1])}.items():
        with pytest.raises(ValueError, match=rf"^{name}: shape"):
            native_scan.scan_backward(*wrong, **case.arguments, **case.attributes)


def test_half_precision_has_no_gradients():
    grads = native_scan.Grads(native_scan.ctypes.sizeof(native_scan.Grads))
    params = native_scan.Params(structSize=native_scan.ctypes.sizeof(native_scan.Params))
    function = native_scan.load_library().mambapose_scan_cpu_backward
    with pytest.raises(EngineError, match=r"grads\.structSize: "):
        native_scan.call_library(function, params, native_scan.Grads(1))
    params.dtype, params.batch, params.channels, params.states = 1, 0, 1, 1
    params.directions, params.groups, params.orderRows = 1, 1, 1
    params.A = np.zeros(1, np.float32).ctypes.data
    with pytest.raises(EngineError, match=r"dtype: gradients need 0"):
        native_scan.call_library(function, params, grads)
