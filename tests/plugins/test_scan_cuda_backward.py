"""Gradients of the CUDA kernels on the host against those of the float64 loop.

Outputs and workspace are not a number at first and have marked bytes around them; the threads of a
block run in an order that changes with a seed.
"""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest

from mambapose.plugins import native_cuda
from mambapose.plugins.native_scan import address_of
from mambapose.plugins.scan_abi import GRADIENTS, Grads, Params
from mambapose.runtime.errors import EngineError

torch = pytest.importorskip("torch")

FULL = ("D", "z", "dt_bias", "initial_state")
ARGUMENTS = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias", "order", "initial_state")
LIMIT = 2e-6


def weights_of(case, seed=1):
    """Random gradients of y and of the final state."""
    rng = np.random.default_rng(seed)
    batch, length, wide = case.arguments["dt"].shape
    if case.attributes["merge"] == "sum":
        wide //= case.attributes["directions"]
    shapes = (batch, length, wide), (batch, *case.arguments["A"].shape)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


def wanted_gradients(case, weights):
    """By argument name, in float64."""
    from mambapose.plugins.torch_loop import scan_loop

    tensors = {
        name: torch.tensor(array)
        if name == "order"
        else torch.tensor(array, dtype=torch.float64, requires_grad=True)
        for name, array in case.arguments.items()
    }
    outputs = scan_loop(**{**dict.fromkeys(ARGUMENTS), **tensors}, **case.attributes)
    pairs = zip(weights, outputs, strict=True)
    loss = sum(
        (torch.tensor(w, dtype=torch.float64) * out).sum() for w, out in pairs if w is not None
    )
    loss.backward()
    return {
        name: (torch.zeros_like(x) if x.grad is None else x.grad).numpy()
        for name, x in tensors.items()
        if name != "order"
    }


@pytest.fixture
def gradients(cuda_shim, scans):
    """Gradients by argument name of a case; the memory around them is checked."""

    def run(case, weights, *, seed=1, arguments=None, **options):
        memory = scans.memory()
        cuda_shim.mambapose_shim_set_seed(seed)
        found = native_cuda.scan_backward(
            cuda_shim, *weights, arguments or case.arguments, case.attributes,
            allocate=memory.allocate, **options,
        )  # fmt: skip
        memory.check()
        return found

    return run


@pytest.fixture
def check(gradients, scans):
    """All gradients of a case agree with the float64 loop."""

    def run(case, limit=LIMIT):
        weights = weights_of(case)
        found = gradients(case, weights)
        for name, wanted in wanted_gradients(case, weights).items():
            scans.close(name, found[name], wanted, limit)
        assert {name for name, array in found.items() if array is not None} == {
            name for name in case.arguments if name != "order"
        }

    return run


CASES = {
    "plain": {},
    "all": {"L": 70, "D": 35, "N": 5, "optional": FULL},
    "one-step": {"L": 1, "D": 1, "N": 1, "optional": FULL},
    "vim": {"L": 33, "D": 18, "N": 16, "K": 2, "reverse": (0, 1), "merge": "sum", "wide_u": True,
            "optional": ("D", "z", "dt_bias")},
    "vmamba": {"L": 40, "D": 20, "N": 1, "K": 4, "reverse": (0, 0, 1, 1), "order": "rows",
               "merge": "sum", "optional": ("D", "dt_bias")},
    "gate-per-direction": {"K": 2, "D": 19, "L": 20, "optional": ("z", "D")},
    "segments": {"L": 75, "D": 18, "K": 2, "reverse": (0, 1), "order": "shared", "segment": 7,
                 "merge": "sum", "optional": ("z", "D")},
    "segments-of-tiles": {"L": 70, "K": 2, "reverse": (0, 1), "segment": 16},
    "segment-of-one": {"L": 9, "segment": 1},
    "segment-beyond-the-end": {"L": 20, "segment": 64},
    "long-segments": {"L": 75, "D": 9, "N": 16, "segment": 40, "reverse": (1,)},
    "groups": {"D": 64, "G": 2, "K": 2, "optional": FULL},
    "small-groups": {"D": 72, "G": 3, "L": 20},
    "group-per-channel": {"G": 6, "L": 18},
    "constant-b": {"D": 35, "L": 20, "constant": "B", "optional": ("initial_state",)},
    "constant-c": {"D": 35, "L": 20, "constant": "C", "K": 2, "G": 5},
    "constant-both": {"D": 19, "L": 40, "constant": "BC", "K": 2, "merge": "sum"},
    "no-softplus": {"softplus": False, "optional": ("z",)},
    "many-parts": {"B": 1, "D": 300, "L": 20, "K": 2, "merge": "sum", "optional": ("D",)},
    "many-batches": {"B": 12, "L": 35, "D": 3},
    "many-tiles": {"B": 30, "L": 300, "D": 2, "constant": "B", "optional": ("D", "dt_bias")},
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_cases(scans, check, name):
    check(scans.case(3, **CASES[name]))


@pytest.mark.parametrize("L", [0, 1, 2, 15, 16, 17, 33, 130])
@pytest.mark.parametrize("N", [1, 2, 3, 5, 16, 17, 64, 256])
def test_lengths_and_states(scans, check, L, N):
    check(scans.case(L + N, B=1, L=L, D=3, N=N, K=2, reverse=(0, 1), optional=FULL))


@pytest.mark.parametrize(("D", "G"), [(32, 1), (33, 1), (96, 1), (128, 1), (129, 1), (200, 2)])
def test_blocks_of_channels(scans, check, D, G):
    check(scans.case(D, B=2, L=19, D=D, G=G, N=4, optional=("D", "z")))


@pytest.mark.parametrize("constant", ["", "B", "C", "BC"])
@pytest.mark.parametrize("merge", ["none", "sum"])
def test_flags(scans, check, merge, constant):
    for softplus, *present in itertools.product([False, True], repeat=5):
        optional = [name for name, there in zip(FULL, present, strict=True) if there]
        case = scans.case(
            sum(present), L=18, D=5, N=3, K=2, reverse=(1, 0), order="rows", merge=merge,
            constant=constant, softplus=softplus, optional=optional, wide_u=present[0],
        )  # fmt: skip
        if not softplus and "dt_bias" in case.arguments:
            case.arguments["dt_bias"] = np.abs(case.arguments["dt_bias"])
        check(case)


def test_a_less_exact_exponential_stays_within_the_limit_of_the_cpu(scans, check, cuda_shim):
    cuda_shim.mambapose_shim_set_exp2_error(2.0**-22)
    try:
        check(scans.case(1, B=1, L=150, D=8, N=16, optional=FULL), limit=1e-5)
    finally:
        cuda_shim.mambapose_shim_set_exp2_error(0.0)


@pytest.mark.parametrize(
    "name", ["all", "vim", "constant-both", "gate-per-direction", "many-parts"]
)
def test_each_gradient_alone_is_the_same(scans, gradients, name):
    case = scans.case(4, **CASES[name])
    weights = weights_of(case)
    everything = gradients(case, weights)
    for argument in case.arguments.keys() & GRADIENTS.keys():
        alone = gradients(case, weights, wanted=(argument,))
        assert [key for key, array in alone.items() if array is not None] == [argument]
        np.testing.assert_array_equal(alone[argument], everything[argument])
    nothing = gradients(case, weights, wanted=())
    assert set(nothing.values()) == {None}


def test_any_order_of_threads_and_any_device_gives_the_same_bits(scans, gradients):
    case = scans.case(5, L=40, D=50, N=9, K=2, reverse=(0, 1), merge="sum", optional=FULL)
    weights = weights_of(case)
    one = gradients(case, weights)
    for seed, multiprocessors in ((2, 8), (3, 1), (4, 132)):
        other = gradients(case, weights, seed=seed, multiprocessors=multiprocessors)
        for name, array in one.items():
            np.testing.assert_array_equal(other[name], array)


def test_no_gradient_of_the_final_state_means_zero(scans, gradients):
    case = scans.case(6, L=20, optional=("initial_state",))
    dy, dstate = weights_of(case)
    zero = gradients(case, (dy, np.zeros_like(dstate)))
    absent = gradients(case, (dy, None))
    for name, array in zero.items():
        np.testing.assert_array_equal(absent[name], array)


@pytest.mark.parametrize("constant", ["", "BC"])
def test_an_empty_batch_gives_zeros(scans, gradients, constant):
    case = scans.case(7, B=0, K=2, constant=constant, optional=FULL)
    for name, array in gradients(case, weights_of(case)).items():
        np.testing.assert_array_equal(array, np.zeros(case.arguments[name].shape))


def _inside(array):
    """The same values as a slice of a wider tensor full of NaN."""
    wide = np.full((*array.shape[:-1], 3 + array.shape[-1] + 2), np.nan, array.dtype)
    view = wide[..., 3:-2]
    view[...] = array
    return view


def test_inputs_are_read_where_they_lie(scans, gradients):
    case = scans.case(8, B=3, L=37, D=24, N=8, K=2, reverse=(0, 1), optional=FULL)
    weights = weights_of(case)
    dense = gradients(case, weights)
    rows = {
        name: array for name, array in case.arguments.items() if name in ("u", "dt", "B", "C", "z")
    }
    moves = (
        _inside,
        lambda array: array[::-1].copy()[::-1],
        lambda array: np.ascontiguousarray(array.swapaxes(0, 1)).swapaxes(0, 1),
    )
    for move in moves:
        moved = {name: move(array) for name, array in rows.items()}
        found = gradients(case, weights, arguments={**case.arguments, **moved})
        for name, array in dense.items():
            np.testing.assert_array_equal(found[name], array)


def test_a_repeated_row_is_read_in_place(scans, gradients):
    case = scans.case(9, L=20, D=18)
    repeated = np.broadcast_to(case.arguments["dt"][:, :1], case.arguments["dt"].shape)
    weights = weights_of(case)
    found = gradients(case, weights, arguments={**case.arguments, "dt": repeated})
    dense = gradients(case, weights, arguments={**case.arguments, "dt": repeated.copy()})
    for name, array in dense.items():
        np.testing.assert_array_equal(found[name], array)


def test_not_a_number_stays_in_its_channel_and_segment(scans, gradients):
    case = scans.case(10, B=1, L=40, D=35, G=5, segment=20, optional=("D", "z"))
    weights = weights_of(case)
    clean = gradients(case, weights)
    channel, group, states = 8, 1, 3
    case.arguments["u"][0, 25, channel] = np.nan
    found = gradients(case, weights)
    others = np.arange(35) != channel
    groups = np.repeat(np.arange(5) != group, states)
    for name in ("u", "dt", "z"):
        np.testing.assert_array_equal(found[name][..., others], clean[name][..., others])
    for name in ("B", "C"):
        np.testing.assert_array_equal(found[name][..., groups], clean[name][..., groups])
    for name in ("u", "dt", "z", "B", "C"):
        np.testing.assert_array_equal(found[name][:, :20], clean[name][:, :20])
    for name in ("A", "D"):
        np.testing.assert_array_equal(found[name][others], clean[name][others])
        assert np.isnan(found[name][channel]).all()


@pytest.mark.parametrize("wrong", [-1, 23, 2**31 - 1, -(2**31)])
def test_a_token_that_does_not_exist_is_skipped(scans, gradients, wrong):
    case = scans.case(11, L=23, D=5, order="shared", optional=("D", "dt_bias", "initial_state"))
    dy, dstate = weights_of(case)
    skipped = case.arguments["order"][9]
    kept = np.arange(23) != skipped
    dy[:, skipped] = 0.0
    case.arguments["dt"][:, skipped] = -200.0  # A step of size zero changes nothing either.
    wanted = gradients(case, (dy, dstate))
    order = case.arguments["order"].copy()
    order[9] = wrong
    found = gradients(case, (dy, dstate), arguments={**case.arguments, "order": order})
    for name, array in wanted.items():
        if array is not None and array.ndim == 3 and name != "initial_state":
            np.testing.assert_array_equal(found[name][:, kept], array[:, kept])
            assert np.isnan(found[name][:, skipped]).all()
        elif array is not None:
            np.testing.assert_allclose(found[name], array, rtol=1e-6)


def _refused(library, params, grads, multiprocessors=8, workspace=None, size=0):
    with pytest.raises(EngineError) as caught:
        native_cuda.launch_backward(
            params, grads, multiprocessors, workspace, size, None, library=library
        )
    return str(caught.value).removeprefix("selective scan: ")


def test_what_does_not_fit_is_refused(cuda_shim, scans, cuda):
    params, _alive = cuda.params(scans.case(12))
    dy = np.zeros(params.batch * params.length * params.channels, np.float32)
    grads = Grads(ctypes.sizeof(Grads), address_of(dy))
    size = native_cuda.backward_workspace(params, grads, 8, library=cuda_shim)
    memory = native_cuda.aligned_empty((size + 256,), np.dtype(np.uint8))
    place = memory.ctypes.data
    launches = cuda_shim.mambapose_shim_launches()

    def changed(**fields):
        other = Params.from_buffer_copy(params)
        for name, value in fields.items():
            setattr(other, name, value)
        return other

    sentences = {
        "grads.structSize: ": (params, Grads(1)),
        "structSize: ": (changed(structSize=1), grads),
        "dtype: gradients need 0": (changed(dtype=1), grads),
        "groups: ": (changed(groups=4), grads),
        "A: a tensor was wanted": (changed(A=None), grads),
        "dY: a tensor was wanted": (params, Grads(ctypes.sizeof(Grads))),
        "multiprocessors: 1 or more": (params, grads, 0),
        f"workspace: {size} bytes were wanted, found 0": (params, grads),
        f"workspace: {size} bytes were wanted, found {size - 1}": (
            params, grads, 8, place, size - 1),
        "workspace: an address divisible by 256": (params, grads, 8, place + 4, size),
        "channels: fewer than 2^30": (changed(channels=2**25, directions=32), grads),
        "batch: fewer than 2^56": (changed(batch=2**31 - 1, length=2**22), grads),
        "batch: fewer than 2^31 blocks": (
            changed(batch=2**20, length=2**16), grads, 8, place, 2**62),
    }  # fmt: skip
    for sentence, arguments in sentences.items():
        assert _refused(cuda_shim, *arguments).startswith(sentence)
    assert cuda_shim.mambapose_shim_launches() == launches
    native_cuda.launch_backward(params, grads, 8, place, size, None, library=cuda_shim)
    assert cuda_shim.mambapose_shim_launches() == launches + 2


def test_the_workspace_holds_two_states_for_every_16_steps(cuda_shim, scans, cuda):
    case = scans.case(13, B=2, L=197, D=96, N=16, K=2, reverse=(0, 1))
    params, _alive = cuda.params(case)
    grads = Grads(ctypes.sizeof(Grads))
    tiles, size = -(-197 // 16), native_cuda.backward_workspace(params, grads, 8, library=cuda_shim)
    assert size == 2 * (2 * tiles * 2 * 96 * 16 * 4)


def test_one_gradient_takes_three_launches(cuda_shim, scans, gradients):
    case = scans.case(14, L=40, K=2, optional=FULL)
    before = cuda_shim.mambapose_shim_launches()
    gradients(case, weights_of(case))
    assert cuda_shim.mambapose_shim_launches() == before + 3
