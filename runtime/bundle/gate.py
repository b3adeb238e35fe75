"""Whether the outputs of an engine are those stored in the bundle, each stage in its own unit.

The same code judges the export (against torch) and a device (against the bundle's arrays). Units
and limits are in ``stages/gate_limits.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mambapose.runtime.stages.gate_limits import RELATIVE
from mambapose.runtime.stages.table import STAGES, limits
from mambapose.runtime.types import Array

FP32_LIMITS: Mapping[str, float] = limits("fp32")


def graph_errors(
    stage: str | None,
    inputs: Mapping[str, Array],
    found: Mapping[str, Array],
    wanted: Mapping[str, Array],
) -> dict[str, float]:
    """Unit -> largest error over the outputs of one graph.

    The error is infinite when an output has another shape or a value that is not finite. stage:
    which row of the stage table says how each output is measured; with None every error is a share
    of the output's largest value.
    """
    errors: dict[str, float] = {}
    for name, reference in wanted.items():
        measure = RELATIVE if stage is None else STAGES[stage].measure(name)
        have, want = found[name].astype(np.float64), reference.astype(np.float64)
        fits = have.shape == want.shape and bool(np.isfinite(have).all())
        error = measure.error(inputs, have, want) if fits else float("inf")
        errors[measure.unit] = max(errors.get(measure.unit, 0.0), error)
    return errors


def exceeded(errors: Mapping[str, float], limits: Mapping[str, float]) -> str | None:
    """``joint_px 0.3 > 0.05`` for the first error above its limit (or not a number), else None."""
    for unit, error in errors.items():
        if not error <= limits[unit]:
            return f"{unit} {error:.3g} > {limits[unit]:g}"
    return None
