"""Which candidates are timed on which shape, and the check that they compute the same scan."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mambapose.benchmarks.gpu_check import timing, yardstick
from mambapose.benchmarks.gpu_check.bars import MAMBA, Row
from mambapose.benchmarks.gpu_check.floor import Device, floor_us
from mambapose.benchmarks.gpu_check.shapes import SHAPES, TRAINING, Shape
from mambapose.plugins.native_cuda import TACTICS, LaunchPlan
from mambapose.runtime.errors import EngineError

TYPES = {"fp16": torch.float16, "fp32": torch.float32}
SAME_SCAN = {"fp16": 2e-2, "fp32": 1e-3}
LOOP_REPEATS = 3


def all_rows(device: Device, theirs: yardstick.MambaSsm | None, quick: bool) -> list[Row]:
    """The times on every shape in both types, then of the training step."""
    repeats = 5 if quick else timing.REPEATS
    rows = []
    for shape in SHAPES:
        for dtype in TYPES:
            rows += shape_rows(shape, dtype, device, theirs, repeats)
    return rows + training_rows(TRAINING, theirs, repeats)


def shape_rows(
    shape: Shape, dtype: str, device: Device, theirs: yardstick.MambaSsm | None, repeats: int
) -> list[Row]:
    """The times of our tactics, of mamba-ssm and of the torch loop on one shape."""
    kind = TYPES[dtype]
    floor = floor_us(shape, kind, device)

    def row(candidate: str, timed: timing.Timed, form: str = "") -> Row:
        times = timed.graph_us, timed.plain_us, timed.spread
        return Row(shape.name, str(shape), dtype, candidate, *times, floor, form)

    rows = []
    for tactic in TACTICS:
        try:
            calls = timing.our_calls(shape, kind, tactic)
        except EngineError:
            continue  # the plan refuses this tactic for this shape
        timed = timing.time_calls([call.launch for call in calls], repeats=repeats)
        rows.append(row(tactic, timed, plan_text(calls[0].plan)))
    if theirs is not None:
        _same_scan(shape, dtype, yardstick.model_call(theirs, shape, kind))
        for name, make in (
            (MAMBA, yardstick.model_call),
            ("mamba-ssm, scan alone", yardstick.bare_call),
        ):
            their_calls = [make(theirs, shape, kind, seed) for seed in range(timing.INPUT_SETS)]
            rows.append(row(name, timing.time_calls(their_calls, repeats=repeats)))
    loop = timing.time_calls([timing.loop_call(shape, kind)], capture=False, repeats=LOOP_REPEATS)
    return [*rows, row("torch loop", loop)]


def plan_text(plan: LaunchPlan) -> str:
    """The launch plan in words: lanes by states per lane, chunks, whether directions are fused."""
    names = {number: name for name, number in TACTICS.items()}
    fused = ", fused" if plan.fused else ""
    return f"{names[plan.tactic]} {plan.lanes}x{plan.statesPerLane}, {plan.chunks} chunks{fused}"


def _same_scan(shape: Shape, dtype: str, call: Callable[[], Tensor]) -> None:
    """Raise EngineError when the yardstick computes something else than ours."""
    ours = timing.our_calls(shape, TYPES[dtype], "auto")[0]
    ours.launch()
    wanted = ours.y.transpose(1, 2).float()
    error = float((call().float() - wanted).abs().max() / wanted.abs().max())
    if not error <= SAME_SCAN[dtype]:
        raise EngineError(
            f"mamba-ssm was to compute the same scan on {shape} in {dtype}, found an error of "
            f"{error:.1e}"
        )


def training_rows(shape: Shape, theirs: yardstick.MambaSsm | None, repeats: int) -> list[Row]:
    """The times of forward and backward in float32.

    They are not captured in a graph, because autograd allocates memory on the way.
    """
    calls = dict(timing.training_calls(shape))
    if theirs is not None:
        calls["mamba-ssm, scans alone"] = yardstick.training_call(theirs, shape)
    rows = []
    for name, call in calls.items():
        count = LOOP_REPEATS if name == "torch loop" else repeats
        timed = timing.time_calls([call], capture=False, repeats=count)
        candidate = "auto" if name == "mambapose" else name
        times = timed.graph_us, timed.plain_us, timed.spread
        rows.append(Row(shape.name, f"{shape} fwd+bwd", "fp32", candidate, *times, None))
    return rows
