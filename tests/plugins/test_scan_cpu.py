"""The CPU kernels of every instruction set against the oracle: shapes, flags, order, state."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from mambapose.plugins import native_scan
from mambapose.plugins.reference import selective_scan_reference

OUT, STATE, HALF = 2e-6, 5e-6, 1.5e-3
FULL = ("D", "z", "dt_bias", "initial_state")

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("best_isa")]


def check(scans, case, limit=OUT):
    wanted, wanted_state = selective_scan_reference(**case.arguments, **case.attributes)
    for isa in scans.each_isa():
        y, state = scans.native(case)
        assert y.dtype == case.arguments["u"].dtype
        scans.close(f"{isa} y", y, wanted, limit)
        scans.close(f"{isa} final state", state, wanted_state, STATE)


def test_an_absent_instruction_set_is_refused(scans):
    best = native_scan.instruction_set()
    assert best in set(scans.each_isa())
    native_scan.force_instruction_set(None)
    assert not native_scan.force_instruction_set("vax")
    assert native_scan.instruction_set() == best
    assert native_scan.force_instruction_set("scalar")
    assert native_scan.instruction_set() == "scalar"


def test_official_vectors(golden, scans, golden_scan):
    case = golden(golden_scan)
    arguments, attributes = scans.official(case)
    wanted = np.swapaxes(case.arrays["output.out_f64"], 1, 2)
    for isa in scans.each_isa():
        y, state = native_scan.scan(**arguments, **attributes)
        scans.close(f"{isa} out", y, wanted, OUT)
        if golden_scan == "scan_09_softplus_edges":
            for c in range(wanted.shape[2]):
                scans.close(f"{isa} channel {c}", y[..., c], wanted[..., c], 2e-5)
        if "output.last_state_f64" in case.arrays:
            scans.close(f"{isa} state", state, case.arrays["output.last_state_f64"], STATE)


LENGTHS = (
    1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 196, 197, 392, 784, 1024, 2047,
    2048, 2049, 4131,
)  # fmt: skip


@pytest.mark.parametrize("L", LENGTHS)
def test_lengths(scans, L):
    check(scans, scans.case(L, B=1, L=L, D=5, N=3, optional=("D", "dt_bias")))


@pytest.mark.slow
def test_the_longest_scan(scans):
    check(scans, scans.case(1, B=1, L=15360, D=128, N=16, K=2, reverse=(0, 1), merge="sum"))


@pytest.mark.parametrize("D", [1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 96, 128, 192, 384, 768])
def test_channels(scans, D):
    check(scans, scans.case(D, B=1, L=19, D=D, N=5, K=2, reverse=(0, 1), optional=FULL))


@pytest.mark.parametrize("N", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 64, 128, 256])
def test_states(scans, N):
    check(scans, scans.case(N, B=2, L=70, D=18, N=N, optional=FULL))


@pytest.mark.parametrize("B", [0, 1, 2, 5])
@pytest.mark.parametrize("K", [1, 2, 4, 6])
@pytest.mark.parametrize("merge", ["none", "sum"])
@pytest.mark.parametrize("wide_u", [False, True])
def test_batches_and_directions(scans, B, K, merge, wide_u):
    reverse = [k % 2 for k in range(K)]
    check(
        scans,
        scans.case(
            B + K, B=B, L=13, D=18, N=4, K=K, reverse=reverse, merge=merge, wide_u=wide_u,
            optional=("D", "z", "dt_bias"), order="rows",
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("D", "G"), [(12, 1), (12, 2), (12, 12), (32, 2), (48, 3), (40, 5), (72, 3), (64, 4)]
)
@pytest.mark.parametrize("constant", ["", "B", "C", "BC"])
def test_groups_and_constants(scans, D, G, constant):
    check(scans, scans.case(D + G, L=21, D=D, N=3, K=2, G=G, constant=constant, optional=FULL))


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=5)))
@pytest.mark.parametrize("half", [False, True])
def test_flags(scans, flags, half):
    softplus, *present = flags
    optional = [name for name, there in zip(FULL, present, strict=True) if there]
    case = scans.case(sum(flags), L=35, D=17, softplus=softplus, optional=optional, half=half)
    if not softplus and "dt_bias" in case.arguments:
        case.arguments["dt_bias"] = np.abs(case.arguments["dt_bias"])
    check(scans, case, HALF if half else OUT)


@pytest.mark.parametrize("segment", [1, 3, 16, 64, 70, 1000])
@pytest.mark.parametrize("merge", ["none", "sum"])
def test_segments(scans, segment, merge):
    case = scans.case(
        segment, L=150, D=17, K=2, reverse=(0, 1), segment=segment, merge=merge, order="shared"
    )
    check(scans, case)


def test_no_steps_hand_the_state_on(scans):
    for optional in ((), ("initial_state",)):
        case = scans.case(3, L=0, D=17, optional=optional)
        check(scans, case)


@pytest.mark.parametrize("order", ["", "shared", "rows"])
@pytest.mark.parametrize("shape", [(197, 40), (300, 8)])
def test_half_precision(scans, order, shape):
    L, D = shape
    case = scans.case(
        L, L=L, D=D, N=16, K=3, reverse=(0, 1, 0), order=order, merge="sum", half=True,
        optional=FULL,
    )  # fmt: skip
    check(scans, case, HALF)


def test_half_precision_adds_directions_in_float32(scans):
    """Two directions of about +1000 and -1000: an fp16 sum would be wrong by up to 0.25."""
    case = scans.case(5, L=40, D=20, K=2, reverse=(0, 1), merge="sum", half=True, optional=("D",))
    case.arguments["D"][:20], case.arguments["D"][20:] = 700.0, -700.0
    wanted, _ = selective_scan_reference(**case.arguments, **case.attributes)
    for isa in scans.each_isa():
        scans.close(isa, scans.native(case)[0], wanted, HALF)


@pytest.mark.parametrize("half", [False, True])
def test_order_is_gather_scan_scatter_bit_for_bit(scans, half):
    case = scans.case(4, L=131, D=19, N=5, order="shared", optional=FULL, half=half)
    order = case.arguments["order"]
    plain = {name: value for name, value in case.arguments.items() if name != "order"}
    for name in ("u", "dt", "B", "C", "z"):
        plain[name] = np.ascontiguousarray(plain[name][:, order])
    for _ in scans.each_isa():
        y, state = scans.native(case)
        gathered, gathered_state = native_scan.scan(**plain, **case.attributes)
        np.testing.assert_array_equal(y[:, order], gathered)
        np.testing.assert_array_equal(state, gathered_state)


def test_identity_reverse_and_transpose_orders_bit_for_bit(scans):
    frames, joints = 9, 17
    case = scans.case(6, L=frames * joints, D=20, optional=("z", "D"))
    identity = np.arange(frames * joints, dtype=np.int32)
    backwards = dataclasses.replace(case, attributes={**case.attributes, "reverse": [1]})
    transposed = identity.reshape(frames, joints).T.ravel().copy()
    for _ in scans.each_isa():
        np.testing.assert_array_equal(scans.native(case)[0], scans.native(case, order=identity)[0])
        np.testing.assert_array_equal(
            scans.native(backwards)[0], scans.native(case, order=identity[::-1].copy())[0]
        )
        y = scans.native(case, order=transposed)[0]
        back = scans.native(backwards, order=transposed[::-1].copy())[0]
        np.testing.assert_array_equal(y, back)


def test_merging_adds_directions(scans):
    case = scans.case(7, L=90, D=21, K=4, reverse=(0, 1, 1, 0), order="rows", optional=("D",))
    merged = dataclasses.replace(case, attributes={**case.attributes, "merge": "sum"})
    for _ in scans.each_isa():
        apart = scans.native(case)[0].reshape(2, 90, 4, 21)
        total = ((apart[:, :, 0] + apart[:, :, 1]) + apart[:, :, 2]) + apart[:, :, 3]
        np.testing.assert_array_equal(scans.native(merged)[0], total)


@pytest.mark.parametrize("N", [1, 16])
def test_the_state_carries_a_scan_on_from_every_step(scans, N):
    case = scans.case(8, B=1, L=70, D=18, N=N, optional=FULL)
    native_scan.force_instruction_set(None)
    whole, last = scans.native(case)
    for at in range(71):
        parts, state = [], case.arguments["initial_state"]
        for piece in (slice(0, at), slice(at, at), slice(at, None)):
            rows = {n: case.arguments[n][:, piece] for n in ("u", "dt", "B", "C", "z")}
            y, state = scans.native(case, **rows, initial_state=state)
            parts.append(y)
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
        np.testing.assert_array_equal(state, last)
