"""The faces of the scan agree: oracle, C interface, torch, ONNX Runtime and function body."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mambapose.plugins.onnx_function import attach_functions
from mambapose.plugins.reference import selective_scan_reference
from mambapose.plugins.torch_op import selective_scan


def _random_signature(seed: int) -> dict:
    """Arguments of `scans.case`, drawn over everything the specification allows."""
    rng = np.random.default_rng(1000 + seed)
    K, G = int(rng.choice([1, 2, 3, 4])), int(rng.choice([1, 2, 4]))
    segment = int(rng.choice([0, 0, 3]))
    optional = [name for name in ("D", "z", "dt_bias") if rng.random() < 0.5]
    if segment == 0 and rng.random() < 0.4:
        optional.append("initial_state")
    return {
        "seed": seed,
        "B": int(rng.choice([1, 2, 3])),
        "L": int(rng.choice([1, 2, 7, 16, 33])),
        "D": G * int(rng.choice([1, 3, 8])),
        "N": int(rng.choice([1, 2, 5, 16])),
        "K": K,
        "G": G,
        "reverse": [int(flag) for flag in rng.integers(0, 2, K)],
        "segment": segment,
        "merge": str(rng.choice(["none", "sum"])),
        "softplus": bool(rng.random() < 0.7),
        "optional": optional,
        "wide_u": bool(rng.random() < 0.5),
        "constant": str(rng.choice(["", "", "B", "C", "BC"])),
        "order": str(rng.choice(["", "shared", "rows"])),
        "half": bool(rng.random() < 0.2),
    }


@pytest.mark.parametrize("seed", range(40))
def test_all_faces_agree_with_the_oracle(seed, scans, ort_library):
    from mambapose.plugins import native_scan

    drawn = _random_signature(seed)
    case = scans.case(**drawn)
    wanted = selective_scan_reference(**case.arguments, **case.attributes)
    model = scans.model(case)
    native_session = scans.session(model, ort_library, threads=2)
    attach_functions(model)
    tensors = {name: torch.from_numpy(array) for name, array in case.arguments.items()}
    found = {
        "C interface": native_scan.scan(**case.arguments, **case.attributes),
        "torch operator": [t.numpy() for t in selective_scan(**tensors, **case.attributes)],
        "ONNX Runtime operator": scans.run(native_session, case),
        "function body": scans.run(scans.session(model), case),
    }
    for face, (y, state) in found.items():
        scans.close(f"{face}: y", y, wanted[0], 1.5e-3 if drawn["half"] else 2e-6)
        scans.close(f"{face}: final_state", state, wanted[1], 5e-6)
