"""Random calls over everything the specification allows: all faces of the scan agree.

Oracle, C interface (every instruction set, strided memory, own threads and a caller's pool), torch
in three types, ONNX Runtime operator, function body, and the gradients. A failure names its seed.
MAMBAPOSE_FUZZ=5000 draws that many calls instead of the few of the suite.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from mambapose.plugins import native_scan
from mambapose.plugins.onnx_function import attach_functions
from mambapose.plugins.reference import selective_scan_reference
from mambapose.plugins.torch_op import selective_scan

pytestmark = pytest.mark.kernels

SEEDS = range(int(os.environ.get("MAMBAPOSE_FUZZ", "60")))
ROWS = ("u", "dt", "B", "C", "z")
STATE, EXACT = 5e-6, 1e-12


def _draw(seed: int) -> dict:
    """Arguments of `scans.case`."""
    rng = np.random.default_rng(1000 + seed)

    def pick(*values):
        return values[int(rng.integers(len(values)))]

    K, N = pick(1, 1, 2, 3, 4, 6), pick(1, 2, 3, 5, 8, 15, 16, 17, 40, 256)
    G, width = pick((1, 1), (1, 3), (1, 17), (1, 40), (2, 1), (2, 8), (3, 5), (2, 16), (7, 1))
    segment = pick(0, 0, 0, 1, 2, 5, 16, 64, 1000)
    optional = [name for name in ("D", "z", "dt_bias") if rng.random() < 0.5]
    if segment == 0 and rng.random() < 0.4:
        optional.append("initial_state")
    return {
        "seed": seed,
        "B": pick(1, 1, 2, 3, 0),
        "L": pick(0, 1, 2, 7, 33) if N == 256 else pick(0, 1, 2, 3, 16, 33, 63, 64, 65, 129),
        "D": G * width,
        "N": N,
        "K": K,
        "G": G,
        "reverse": [int(flag) for flag in rng.integers(0, 2, K)],
        "segment": segment,
        "merge": pick("none", "sum"),
        "softplus": bool(rng.random() < 0.7),
        "optional": optional,
        "wide_u": bool(rng.random() < 0.5),
        "constant": pick("", "", "B", "C", "BC"),
        "order": pick("", "shared", "rows"),
        "half": bool(rng.random() < 0.3) and N <= 17,  # sums of more states overflow
    }


def _cancellation(case, y) -> float:
    """How much larger y would be if no terms cancelled: rounding is that of the terms."""
    signed = ("u", "B", "C", "D", "initial_state")
    sizes = {name: np.abs(case.arguments[name]) for name in signed if name in case.arguments}
    terms, _ = selective_scan_reference(**{**case.arguments, **sizes}, **case.attributes)
    return float(np.abs(terms).max(initial=0.0) / max(np.abs(y).max(initial=0.0), 1e-30))


def _moved(rng: np.random.Generator, array: np.ndarray, ways: int) -> np.ndarray:
    """The same values in other memory: channels first, a slice among NaN, backwards."""
    way = int(rng.integers(ways))
    if way == 0:
        return np.ascontiguousarray(array.swapaxes(1, 2)).swapaxes(1, 2)
    if way == 1:
        before, after = rng.integers(0, 4, 2)
        view = np.full((*array.shape[:2], before + array.shape[2] + after), np.nan, array.dtype)
        view = view[..., before : before + array.shape[2]]
        view[...] = array
        return view
    axis = way - 2
    return np.flip(np.flip(array, axis).copy(), axis)


def _all_moved(rng, case, ways):
    return {
        name: _moved(rng, array, ways) if name in ROWS and array.ndim == 3 else array
        for name, array in case.arguments.items()
    }


def _shuffled_pool(rng):
    """A caller's pool that runs the tasks one by one in random order."""

    def run(context, task, argument, count):
        for index in rng.permutation(count):
            task(argument, int(index))

    return run


def _check_kernels(rng, case, check, scans):
    """Every instruction set; the same bits from moved memory and any number of threads."""
    for isa in scans.each_isa():
        plain = scans.native(case)
        check(isa, plain)
        for pool in (None, _shuffled_pool(rng)):
            moved, threads = _all_moved(rng, case, 4), int(rng.integers(0, 9))
            other = scans.native(case, **moved, threads=threads, parallel_for=pool)
            np.testing.assert_array_equal(other[0], plain[0])
            np.testing.assert_array_equal(other[1], plain[1])


def _check_onnx(rng, case, check, scans, library):
    often = [name for name in ("D", "dt_bias", "order") if name in case.arguments]
    constants = ["A", *(name for name in often if rng.random() < 0.5)]
    model = scans.model(case, free_batch=bool(rng.random() < 0.5), constants=constants)
    session = scans.session(model, library, threads=int(rng.integers(1, 4)))
    check("ONNX Runtime operator", scans.run(session, case))
    if case.arguments["dt"].size:  # the function body needs a batch and a step
        attach_functions(model)
        check("function body", scans.run(scans.session(model), case))


def _gradients(tensors, attributes, wanted, seed):
    """Gradients of a weighted sum of y, of the state or of both."""
    leaves = {name: tensors[name].clone().requires_grad_() for name in wanted}
    outputs = selective_scan(**{**tensors, **leaves}, **attributes)
    generator = torch.Generator().manual_seed(seed)
    shares = [
        (torch.randn(output.shape, generator=generator, dtype=torch.float64) * output).sum()
        for output in outputs
    ]
    loss = (shares[0], shares[1], shares[0] + shares[1])[seed % 3]
    return torch.autograd.grad(loss, list(leaves.values()))


def _check_torch(rng, case, check, scans, seed, half):
    tensors = {name: torch.from_numpy(a) for name, a in _all_moved(rng, case, 2).items()}
    exact = {name: t if name == "order" else t.double() for name, t in tensors.items()}
    check("torch operator", selective_scan(**tensors, **case.attributes))
    check("torch in float64", selective_scan(**exact, **case.attributes), EXACT, EXACT)
    names = [name for name in tensors if name != "order" and rng.random() < 0.7] or ["dt"]
    found = _gradients(tensors, case.attributes, names, seed)
    wanted = _gradients(exact, case.attributes, names, seed)
    for name, gradient, slope in zip(names, found, wanted, strict=True):
        assert gradient.dtype == tensors[name].dtype
        scans.close(f"gradient of {name}", gradient, slope, 5e-2 if half else 1e-4)


@pytest.mark.usefixtures("best_isa")
@pytest.mark.parametrize("seed", SEEDS)
def test_all_faces_agree_with_the_oracle(seed, scans, ort_library):
    drawn, rng = _draw(seed), np.random.default_rng(seed)
    case = scans.case(**drawn)
    if not drawn["softplus"] and "dt_bias" in case.arguments:  # steps below 0 make states grow
        case.arguments["dt_bias"] = np.abs(case.arguments["dt_bias"])
    wanted = selective_scan_reference(**case.arguments, **case.attributes)
    rounding = _cancellation(case, wanted[0]) * (1.5e-3 if drawn["half"] else 2e-6)

    def check(face, found, limit=rounding, state_limit=STATE):
        scans.close(f"{face}: y", found[0], wanted[0], limit)
        scans.close(f"{face}: final_state", found[1], wanted[1], state_limit)

    _check_kernels(rng, case, check, scans)
    native_scan.force_instruction_set(None)
    _check_torch(rng, case, check, scans, seed, drawn["half"])
    _check_onnx(rng, case, check, scans, ort_library)
