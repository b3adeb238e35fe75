"""The oracle: official vectors, algebra of the scan, and what it refuses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mambapose.plugins.reference import (
    check_arguments,
    check_decay,
    selective_scan_reference,
    softplus,
)


def _run(case, **changes):
    arguments = {**case.arguments, **changes}
    return selective_scan_reference(**arguments, **case.attributes)


def test_official_vectors(golden, scans, golden_scan):
    case = golden(golden_scan)
    arguments, attributes = scans.official(case)
    y, state = selective_scan_reference(**arguments, **attributes)
    scans.close("out", np.swapaxes(y, 1, 2), case.arrays["output.out_f64"], 1e-12)
    if "output.last_state_f64" in case.arrays:
        scans.close("last_state", state, case.arrays["output.last_state_f64"], 1e-12)


def test_linear_in_u(scans):
    case = scans.case(1, K=2, reverse=(0, 1), merge="sum", optional=("D", "z", "dt_bias"))
    u, v = case.arguments["u"].astype(float), np.cos(case.arguments["u"].astype(float))
    mixed = _run(case, u=2 * u - 3 * v)[0]
    np.testing.assert_allclose(mixed, 2 * _run(case, u=u)[0] - 3 * _run(case, u=v)[0], atol=1e-12)


def test_zero_B_leaves_the_skip(scans):
    case = scans.case(2, optional=("D",))
    y, state = _run(case, B=np.zeros_like(case.arguments["B"]))
    np.testing.assert_allclose(y, case.arguments["D"] * case.arguments["u"].astype(float))
    assert not state.any()


def test_zero_A_sums_up(scans):
    case = scans.case(3, L=30)
    ones = {name: np.ones_like(case.arguments[name]) for name in ("B", "C")}
    y, _ = _run(case, A=np.zeros_like(case.arguments["A"]), **ones)
    u, dt = (case.arguments[name].astype(float) for name in ("u", "dt"))
    states = case.arguments["A"].shape[1]
    np.testing.assert_allclose(y, states * np.cumsum(softplus(dt) * u, axis=1), rtol=1e-12)


def test_order_is_gather_scan_scatter(scans):
    case = scans.case(4, L=23, order="shared", optional=("z", "D"))
    order = case.arguments["order"]
    gathered = {
        name: value[:, order] if value.ndim == 3 and name != "initial_state" else value
        for name, value in case.arguments.items()
        if name != "order"
    }
    y, state = selective_scan_reference(**gathered, **case.attributes)
    found, found_state = _run(case)
    np.testing.assert_array_equal(found[:, order], y)
    np.testing.assert_array_equal(found_state, state)


def test_reverse_is_flip_scan_flip(scans):
    case = scans.case(5, optional=("z", "D"), reverse=(1,))
    flipped = {n: v[:, ::-1] if v.ndim == 3 else v for n, v in case.arguments.items()}
    y, state = selective_scan_reference(**flipped, **{**case.attributes, "reverse": (0,)})
    np.testing.assert_array_equal(_run(case)[0], y[:, ::-1])
    np.testing.assert_array_equal(_run(case)[1], state)


def test_merge_adds_the_directions_before_the_gate(scans):
    case = scans.case(6, K=3, reverse=(0, 1, 0), optional=("z", "D"), wide_u=True)
    apart = _run(case)[0].reshape(2, 9, 3, 6).sum(axis=2)
    merged = selective_scan_reference(**case.arguments, **{**case.attributes, "merge": "sum"})[0]
    np.testing.assert_allclose(merged, apart, atol=1e-12)


def test_segments_are_scans_of_their_own(scans):
    case = scans.case(7, L=11)
    segmented = selective_scan_reference(**case.arguments, **{**case.attributes, "segment": 4})[0]
    for begin in (0, 4, 8):
        piece = {
            n: v[:, begin : begin + 4] if v.ndim == 3 else v for n, v in case.arguments.items()
        }
        y = selective_scan_reference(**piece, **case.attributes)[0]
        np.testing.assert_array_equal(segmented[:, begin : begin + 4], y)


@pytest.mark.parametrize("at", [0, 1, 5, 9])
def test_state_carries_a_scan_on(scans, at):
    case = scans.case(8, optional=("initial_state",))
    whole, last = _run(case)
    parts, state = [], case.arguments["initial_state"]
    for piece in (slice(0, at), slice(at, None)):
        rows = {n: v[:, piece] for n, v in case.arguments.items() if n in ("u", "dt", "B", "C")}
        y, state = _run(case, **rows, initial_state=state)
        parts.append(y)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    np.testing.assert_array_equal(state, last)


BAD = {
    "u": {"u": np.zeros((2, 9, 5))},
    "dt": {"dt": np.zeros((2, 9))},
    "A": {"A": np.zeros((5, 3))},
    "B": {"B": np.zeros((2, 9, 4))},
    "C": {"C": np.zeros((2, 8, 3))},
    "D": {"D": np.zeros(5)},
    "z": {"z": np.zeros((2, 8, 6))},
    "dt_bias": {"dt_bias": np.zeros((6, 1))},
    "order": {"order": np.arange(9)},
    "initial_state": {"initial_state": np.zeros((2, 6, 4))},
}


@pytest.mark.parametrize("name", BAD)
def test_a_misfit_is_named(scans, name):
    case = scans.case(9)
    with pytest.raises(ValueError, match=f"^{name}: "):
        check_arguments(**{**case.arguments, **BAD[name]}, **case.attributes)


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("directions", {"directions": 0}),
        ("dt", {"directions": 4, "reverse": (0,) * 4}),
        ("groups", {"groups": 4}),
        ("reverse", {"reverse": (0, 1)}),
        ("reverse", {"reverse": (2,)}),
        ("segment", {"segment": -1}),
        ("merge", {"merge": "mean"}),
        ("gate", {"gate": "relu"}),
        ("z", {"gate": "none"}),
        ("initial_state", {"segment": 3}),
    ],
)
def test_a_wrong_attribute_is_named(scans, argument, changes):
    case = scans.case(9, optional=("z", "initial_state"))
    case = dataclasses.replace(case, attributes={**case.attributes, **changes})
    with pytest.raises(ValueError, match=f"^{argument}: "):
        check_arguments(**case.arguments, **case.attributes)


@pytest.mark.parametrize("order", [[0, 1, 1], [0, 1, 3], [-1, 0, 1]])
def test_an_order_names_every_token_once(scans, order):
    case = scans.case(10, L=3)
    with pytest.raises(ValueError, match=r"^order: "):
        _run(case, order=np.array(order, np.int32))


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan, -np.inf])
def test_decay_must_be_finite_and_negative(value):
    with pytest.raises(
        ValueError, match=rf"^A: finite values below 0 were wanted, found {value:g}"
    ):
        check_decay(np.array([[-1.0, value]]))
    check_decay(np.array([[-1.0, -1e-6]]))
