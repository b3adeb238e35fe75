"""The CUDA kernels on the host against the oracle: forms of launch, shapes, flags, order, state.

The host build (plugins/csrc/tests/cuda_shim.h) runs the threads of a block in a shuffled order, so
what is shown here holds for the sources, not for what nvcc makes of them.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

TYPES = ("float32", "float16", "bfloat16")
OUT, STATE, CHUNKED = 2e-6, 5e-6, 1e-6
FULL = ("D", "z", "dt_bias", "initial_state")


def test_official_vectors(golden, scans, cuda, golden_scan):
    official = golden(golden_scan)
    arguments, attributes = scans.official(official)
    case = type(scans.case())(arguments, attributes)
    wanted = np.swapaxes(official.arrays["output.out_f64"], 1, 2)
    for form in cuda.forms(case):
        y, state = cuda.run(case, form)
        scans.close(f"{form} out", y, wanted, OUT)
        if "output.last_state_f64" in official.arrays:
            wanted_state = official.arrays["output.last_state_f64"]
            scans.close(f"{form} state", state, wanted_state, STATE)


LENGTHS = (
    0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 127, 128, 129, 196, 197, 392, 784, 1024, 2047, 2048, 2049,
    4131,
)  # fmt: skip


@pytest.mark.parametrize("L", LENGTHS)
def test_lengths(scans, cuda, L):
    cuda.check(scans.case(L, B=1, L=L, D=5, N=3, optional=("D", "dt_bias")))


@pytest.mark.slow
def test_the_longest_scan(scans, cuda):
    cuda.check(scans.case(1, B=1, L=15360, D=128, N=16, K=2, reverse=(0, 1), merge="sum"))


@pytest.mark.parametrize("D", [1, 3, 8, 15, 16, 17, 96, 128, 192, 384, 768])
def test_channels(scans, cuda, D):
    cuda.check(scans.case(D, B=1, L=19, D=D, N=5, K=2, reverse=(0, 1), optional=FULL))


@pytest.mark.parametrize("N", [1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 256])
def test_states(scans, cuda, N):
    cuda.check(scans.case(N, B=1, L=70, D=18, N=N, K=2, reverse=(0, 1), optional=FULL))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=5)))
def test_flags(scans, cuda, flags, dtype):
    softplus, *present = flags
    optional = [name for name, there in zip(FULL, present, strict=True) if there]
    half = dtype == "float16"
    case = scans.case(sum(flags), L=35, D=17, softplus=softplus, optional=optional, half=half)
    if not softplus and "dt_bias" in case.arguments:
        case.arguments["dt_bias"] = np.abs(case.arguments["dt_bias"])
    cuda.check(case, dtype)


AXES = {
    "L": (1, 2, 17, 33, 128, 197, 392),
    "D": (1, 3, 16, 17, 36, 96, 192),
    "N": (1, 2, 3, 8, 16, 17, 64, 256),
    "B": (0, 1, 2, 5),
    "K": (1, 2, 4, 6),
    "G": ("one", "two", "each"),
    "reverse": ("none", "odd", "all"),
    "merge": ("none", "sum"),
    "wide_u": (False, True),
    "order": ("", "shared", "rows"),
    "segment": (0, 1, 5, 16, 64, 1000),
    "constant": ("", "B", "C", "BC"),
    "dtype": TYPES,
    "z": (False, True),
    "initial_state": (False, True),
}


def _groups(row):
    return {"one": 1, "two": 2, "each": row["D"]}[row["G"]]


def _fits(row):
    """Whether a call may be made like this, and is small enough."""
    steps = row["B"] * row["K"] * row["L"]
    groups = _groups(row)
    lanes = groups * -(-row["D"] // groups // 32) * 32 * max(row["N"], 4)  # idle ones cost too
    allowed = not (row["segment"] and row["initial_state"]) and row["D"] % groups == 0
    return allowed and steps <= 1600 and steps * lanes <= 1_600_000


def covering_rows(seed):
    """Calls in which every two values of two axes meet, where a call with both fits."""
    rng = np.random.default_rng(seed)
    names = list(AXES)

    missing = {}
    for one, two in itertools.combinations(names, 2):
        for pair in itertools.product(AXES[one], AXES[two]):
            missing[frozenset(zip((one, two), pair, strict=True))] = dict(
                zip((one, two), pair, strict=True)
            )
    rows = []
    while missing:
        fixed = next(iter(missing.values()))
        best, most = None, 0
        for _ in range(60):
            row = {n: AXES[n][rng.integers(len(AXES[n]))] for n in names} | fixed
            if _fits(row):
                new = sum(frozenset(p) in missing for p in itertools.combinations(row.items(), 2))
                best, most = (row, new) if new > most else (best, most)
        if best is None:
            del missing[frozenset(fixed.items())]
            continue
        rows.append(best)
        for pair in itertools.combinations(best.items(), 2):
            missing.pop(frozenset(pair), None)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_every_two_properties_together(scans, cuda, part):
    rows = covering_rows(0)
    assert len(rows) > 60
    for row in rows[part::4]:
        reverse = [{"none": 0, "odd": k % 2, "all": 1}[row["reverse"]] for k in range(row["K"])]
        optional = ["D", "dt_bias", *(name for name in ("z", "initial_state") if row[name])]
        sizes = {name: row[name] for name in ("L", "D", "N", "B", "K")}
        rest = {name: row[name] for name in ("merge", "wide_u", "order", "segment", "constant")}
        half = row["dtype"] == "float16"
        case = scans.case(
            row["L"] + row["D"], **sizes, **rest, G=_groups(row), reverse=reverse, half=half,
            optional=optional,
        )  # fmt: skip
        cuda.check(case, row["dtype"])


def test_the_forms_of_launch_are_all_reached(scans, cuda):
    """The tests above mean little where one form is planned for everything."""
    plans = [
        cuda.plan(scans.case(0, B=B, L=L, D=D, N=N, K=K, merge=merge), tactic, count)
        for B, L, D, N, K, merge in itertools.product(
            (1, 2), (2, 197, 2048), (5, 128), (1, 16, 256), (1, 4), ("none", "sum")
        )
        if B * L * K * max(D, N) < 10**5
        for tactic, count in cuda.every_form
    ]
    assert {plan.fused for plan in plans} == {0, 1}
    assert {plan.chunks > 1 for plan in plans} == {False, True}
    assert {plan.workspaceBytes > 0 for plan in plans} == {False, True}
    assert len({(plan.lanes, plan.statesPerLane) for plan in plans}) >= 6
    assert all(plan.sharedBytes <= 48 << 10 and plan.threads <= 1024 for plan in plans)
    assert all(plan.tactic != 0 for plan in plans)


def test_a_tactic_is_the_form_that_is_planned(scans, cuda):
    case = scans.case(0, B=1, L=4131, D=16, N=16)
    sequential = cuda.plan(case, "sequential", 132)
    assert sequential.chunks == 1
    assert cuda.plan(case, "lane_split", 132).lanes > sequential.lanes
    assert cuda.plan(case, "chunked", 132).chunks > 1


@pytest.mark.parametrize(("L", "D", "N"), [(392, 20, 16), (1024, 17, 3), (4131, 6, 16)])
@pytest.mark.parametrize("merge", ["none", "sum"])
def test_pieces_of_the_length_change_next_to_nothing(scans, cuda, L, D, N, merge):
    case = scans.case(
        L, B=1, L=L, D=D, N=N, K=2, reverse=(0, 1), merge=merge, order="rows", optional=FULL
    )
    y, state = cuda.run(case, ("sequential", 8))
    pieces = set()
    for form in cuda.forms(case):
        pieces.add(cuda.plan(case, *form).chunks)
        other, other_state = cuda.run(case, form)
        scans.close(f"{form} y", other, y, CHUNKED)
        scans.close(f"{form} final state", other_state, state, CHUNKED)
    assert len(pieces) > 1


def test_one_launch_or_two_or_three(scans, cuda):
    case = scans.case(0, B=1, L=392, D=16, N=16, K=2, merge="sum")
    for form in cuda.forms(case):
        plan = cuda.plan(case, *form)
        before = cuda.library.mambapose_shim_launches()
        cuda.run(case, form)
        wanted = 1 + (plan.chunks > 1) + (not plan.fused)
        assert cuda.library.mambapose_shim_launches() - before == wanted, form


@pytest.mark.parametrize("segment", [1, 3, 16, 64, 75, 150, 1000])
@pytest.mark.parametrize("merge", ["none", "sum"])
def test_segments(scans, cuda, segment, merge):
    case = scans.case(
        segment, B=1, L=150, D=17, K=2, reverse=(0, 1), segment=segment, merge=merge,
        order="shared",
    )  # fmt: skip
    cuda.check(case)


@pytest.mark.parametrize("segment", [240, 256, 17])
def test_windows_in_pieces(scans, cuda, segment):
    case = scans.case(segment, B=1, L=960, D=18, K=2, segment=segment, order="shared")
    cuda.check(case)


@pytest.mark.parametrize("half", [False, True])
def test_order_is_gather_scan_scatter_bit_for_bit(scans, cuda, half):
    case = scans.case(4, B=2, L=131, D=19, N=5, order="shared", optional=FULL, half=half)
    order = case.arguments["order"]
    plain = {name: value for name, value in case.arguments.items() if name != "order"}
    for name in ("u", "dt", "B", "C", "z"):
        plain[name] = np.ascontiguousarray(plain[name][:, order])
    for form in cuda.forms(case):
        y, state = cuda.run(case, form)
        gathered, gathered_state = cuda.run(dataclasses.replace(case, arguments=plain), form)
        np.testing.assert_array_equal(y[:, order], gathered)
        np.testing.assert_array_equal(state, gathered_state)


def test_identity_reverse_and_transpose_orders_bit_for_bit(scans, cuda):
    frames, joints = 9, 17
    case = scans.case(6, B=1, L=frames * joints, D=20, optional=("z", "D"))
    identity = np.arange(frames * joints, dtype=np.int32)
    backwards = dataclasses.replace(case, attributes={**case.attributes, "reverse": [1]})
    transposed = identity.reshape(frames, joints).T.ravel().copy()
    for form in cuda.forms(case):
        if cuda.plan(case, *form).chunks > 1:
            continue  # Pieces are cut in walking order, but from the first token on.
        y = cuda.run(case, form)[0]
        np.testing.assert_array_equal(y, cuda.run(case, form, order=identity)[0])
        y = cuda.run(backwards, form)[0]
        np.testing.assert_array_equal(y, cuda.run(case, form, order=identity[::-1].copy())[0])
        y = cuda.run(case, form, order=transposed)[0]
        y_back = cuda.run(backwards, form, order=transposed[::-1].copy())[0]
        np.testing.assert_array_equal(y, y_back)


def test_merging_adds_directions(scans, cuda):
    case = scans.case(
        7, B=2, L=90, D=21, K=4, reverse=(0, 1, 1, 0), order="rows", optional=("D", "z")
    )
    merged = dataclasses.replace(case, attributes={**case.attributes, "merge": "sum"})
    for form in cuda.forms(case):
        apart = cuda.run(case, form)[0].reshape(2, 90, 4, 21).astype(np.float64)
        scans.close(form, cuda.run(merged, form)[0], apart.sum(axis=2), OUT)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("order", ["shared", "rows"])
def test_directions_are_added_in_float32(scans, cuda, dtype, order):
    """Two directions of about +1000 and -1000: a sum in the type of the rows would be far off."""
    case = scans.case(
        5, B=1, L=40, D=20, K=2, reverse=(0, 1), merge="sum", half=dtype == "float16",
        optional=("D",), order=order,
    )  # fmt: skip
    case.arguments["D"][:20], case.arguments["D"][20:] = 700.0, -700.0
    cuda.check(case, dtype)


@pytest.mark.parametrize("N", [1, 16, 64])
def test_the_state_carries_a_scan_on_from_every_step(scans, cuda, N):
    case = scans.case(8, B=1, L=40, D=18, N=N, optional=FULL)
    for form in (("sequential", 8), ("lane_split", 8)):
        whole, last = cuda.run(case, form)
        for at in range(41):
            parts, state = [], case.arguments["initial_state"]
            for piece in (slice(0, at), slice(at, at), slice(at, None)):
                rows = {n: case.arguments[n][:, piece] for n in ("u", "dt", "B", "C", "z")}
                y, state = cuda.run(case, form, **rows, initial_state=state)
                parts.append(y)
            scans.close(f"{form} y at {at}", np.concatenate(parts, axis=1), whole, CHUNKED)
            scans.close(f"{form} state at {at}", state, last, CHUNKED)


def test_no_steps_hand_the_state_on(scans, cuda):
    for optional, K in (((), 1), (("initial_state",), 2)):
        case = scans.case(3, L=0, D=17, K=K, optional=optional)
        cuda.check(case)


@pytest.mark.parametrize("dtype", TYPES)
def test_every_order_of_threads_and_blocks_gives_the_same_bits(scans, cuda, dtype):
    case = scans.case(
        9, B=2, L=70, D=37, N=16, K=2, reverse=(0, 1), merge="sum", order="rows", optional=FULL,
        half=dtype == "float16",
    )  # fmt: skip
    for form in cuda.forms(case, dtype):
        first = cuda.run(case, form, dtype, seed=1)
        for seed in range(2, 8):
            for wanted, found in zip(first, cuda.run(case, form, dtype, seed=seed), strict=True):
                np.testing.assert_array_equal(found, wanted)


def test_linear_in_u(scans, cuda):
    case = scans.case(12, B=1, L=60, D=20, N=8)
    case.arguments["u"][...] = np.round(case.arguments["u"] * 8)
    for form in cuda.forms(case):
        twice = cuda.run(case, form, u=2 * case.arguments["u"])
        for found, single in zip(twice, cuda.run(case, form), strict=True):
            np.testing.assert_array_equal(found, 2 * single)


def test_no_input_leaves_the_skip_and_no_decay_the_sum(scans, cuda):
    case = scans.case(13, B=1, L=60, D=20, N=1, softplus=False, optional=("D",))
    u, dt, D = (case.arguments[name] for name in ("u", "dt", "D"))
    zero = np.zeros_like(case.arguments["B"])
    ones = np.ones_like(zero)
    still = np.zeros_like(case.arguments["A"])
    total = np.cumsum((u.astype(float) * dt), axis=1)
    for form in cuda.forms(case):
        scans.close(form, cuda.run(case, form, B=zero)[0], D * u, 1e-7)
        y = cuda.run(case, form, A=still, B=ones, C=ones, D=np.zeros_like(D))[0]
        scans.close(form, y, total, OUT)


def test_the_device_and_the_version_are_told(cuda):
    from mambapose.plugins import native_cuda

    assert native_cuda.device(cuda.library) == (8, 87)
    cuda.library.mambapose_shim_set_multiprocessors(132)
    assert native_cuda.device(cuda.library).multiprocessors == 132
    cuda.library.mambapose_shim_set_multiprocessors(8)
    assert native_cuda.version(cuda.library)
