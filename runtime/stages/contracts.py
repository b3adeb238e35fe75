"""Whether the graphs of a stage take and give what the pipeline passes them.

bundle.json says which tensors a graph has, and a backend that a file has those. That the two agree
does not make them fit: a lifter without ``keypoints`` would fail in the middle of a video. So every
stage's graphs are held against what its code in this folder does, before anything runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from mambapose.runtime.errors import MismatchError
from mambapose.runtime.stages.causal_lifting import STEP, next_name
from mambapose.runtime.stages.detect import yolox_size
from mambapose.runtime.stages.flow import GRAPHS as RAFT
from mambapose.runtime.stages.table import DETECT, MAX_SIDE, STAGES
from mambapose.runtime.types import GraphSpec, TensorSpec

Sides = dict[str, int | str]
# Values of one tensor for one person: 1 GiB in FP32, beyond any network that fits a board.
MAX_VALUES = 1 << 28
FLOAT = "float32"


def check_contract(stage: str, graphs: Mapping[str, GraphSpec]) -> None:
    """MismatchError unless the graphs of a stage can do its work.

    graphs: those of one form and orientation, by their base names: ``main``, or RAFT's four. A
    network of the user's that takes no place in the pipeline may have any tensors.
    """
    for name, spec in graphs.items():
        for tensor in (*spec.inputs, *spec.outputs):
            if math.prod(side for side in tensor.shape if isinstance(side, int)) > MAX_VALUES:
                raise _mismatch(stage, name, f"tensors of at most {MAX_VALUES} values", str(tensor))
    if stage == DETECT:
        yolox_size(graphs["main"])
    elif stage == "flow" and "main" not in graphs:
        _check_raft(graphs)
    elif stage == "pose2d" and "encode" in graphs:
        _check_clip_pose(graphs["encode"], graphs["main"])
    elif stage == "lift3d" and STEP in graphs:
        _check_step(graphs[STEP])
    elif STAGES[stage].inputs:
        row = STAGES[stage]
        _check(stage, "main", graphs["main"], row.inputs, row.outputs, {}, row.may_lack)


def fits(found: TensorSpec, wanted: TensorSpec, sides: Sides) -> bool:
    """Whether name, dtype and every side agree: N is free, and any other letter is the same number
    wherever it stands, at most MAX_SIDE.

    sides: the letters known so far; it is filled in.
    """
    same = (found.name, found.dtype) == (wanted.name, wanted.dtype)
    return same and _shape_fits(found, wanted, sides)


def _shape_fits(found: TensorSpec, wanted: TensorSpec, sides: Sides) -> bool:
    if len(found.shape) != len(wanted.shape):
        return False
    for have, want in zip(found.shape, wanted.shape, strict=True):
        if want == "N":
            if not isinstance(have, str):
                return False
        elif isinstance(want, str):
            if isinstance(have, str) or have > MAX_SIDE or sides.setdefault(want, have) != have:
                return False
        elif have != want:
            return False
    return True


def _check(
    stage: str,
    graph: str,
    spec: GraphSpec,
    inputs: Iterable[TensorSpec],
    outputs: Iterable[TensorSpec],
    sides: Sides,
    may_lack: Iterable[str] = (),
) -> None:
    """MismatchError unless a graph has these tensors; inputs in ``may_lack`` may be absent."""
    for kind, have, want, optional in (
        ("input", spec.inputs, inputs, tuple(may_lack)),
        ("output", spec.outputs, outputs, ()),
    ):
        wanted = {tensor.name: tensor for tensor in want}
        text = "; ".join(map(str, wanted.values()))
        for tensor in have:
            if tensor.name not in wanted or not fits(tensor, wanted[tensor.name], sides):
                raise _mismatch(stage, graph, f"{kind}s {text}", str(tensor))
        present = {tensor.name for tensor in have}
        if lacking := [name for name in wanted if name not in present and name not in optional]:
            raise _mismatch(stage, graph, f"{kind} {wanted[lacking[0]]}", "none")


def _mismatch(stage: str, graph: str, wanted: str, found: str) -> MismatchError:
    return MismatchError(
        f"stage {stage}, graph {graph}: {wanted} was wanted for the pipeline, found {found}; "
        "export the bundle again with mp-export"
    )


def _check_raft(graphs: Mapping[str, GraphSpec]) -> None:
    """encode, corr, step and upsample, each of which takes what those before it gave."""
    if missing := [name for name in RAFT if name not in graphs]:
        raise _mismatch("flow", missing[0], f"{', '.join(RAFT)}", ", ".join(graphs))
    sides: Sides = {}

    def cells(name: str, channels: int | str) -> TensorSpec:
        return TensorSpec(name, FLOAT, (1, channels, "h", "w"))

    coords, hidden, context = cells("coords", 2), cells("hidden", "D"), cells("context", "E")
    image = TensorSpec("image", "uint8", (1, "H", "W", 3))
    encoded = (cells("fmap", "C"), hidden, context)
    _check("flow", "encode", graphs["encode"], [image], encoded, sides)
    levels = graphs["corr"].outputs
    if loose := [tensor for tensor in levels if any(isinstance(s, str) for s in tensor.shape)]:
        raise _mismatch("flow", "corr", "outputs of fixed sides", str(loose[0]))
    pair = (cells("fmap1", "C"), cells("fmap2", "C"))
    _check("flow", "corr", graphs["corr"], pair, levels, sides)
    state = (*levels, coords, hidden, context)
    after = (cells("coords_next", 2), cells("hidden_next", "D"))
    _check("flow", "step", graphs["step"], state, after, sides)
    flow = TensorSpec("flow", FLOAT, (1, 2, "H", "W"))
    every = [tensor.name for tensor in state]
    _check("flow", "upsample", graphs["upsample"], state, [flow], sides, every)


def _check_clip_pose(encode: GraphSpec, main: GraphSpec) -> None:
    """encode gives the features of a frame, main takes a window of an odd number of them."""
    row = STAGES["pose2d"]
    shapes = [tensor.shape[1:] for tensor in encode.outputs if tensor.name == "features"]
    rest = shapes[0] if shapes else ("...",)
    features = TensorSpec("features", FLOAT, ("N", *rest))
    _check("pose2d", "encode", encode, row.inputs, [features], {}, row.may_lack)
    sides: Sides = {}
    window = TensorSpec("features", FLOAT, ("N", "T", *rest))
    _check("pose2d", "main", main, [window], row.outputs, sides)
    if any(isinstance(side, str) for side in rest) or int(sides["T"]) % 2 == 0:
        raise _mismatch("pose2d", "main", f"an odd number of {features}", str(main.inputs[0]))


def _check_step(step: GraphSpec) -> None:
    """The joints of one frame and a state, which comes out as ``<name>_next``."""
    given = {tensor.name: tensor for tensor in step.outputs}
    joints = (TensorSpec("keypoints", FLOAT, ("N", 17, 2)), TensorSpec("score", FLOAT, ("N", 17)))
    states = [tensor for tensor in step.inputs if next_name(tensor.name) in given]
    for tensor in states:
        if tensor.shape[:1] == ("N",) and not any(isinstance(s, str) for s in tensor.shape[1:]):
            continue
        raise _mismatch("lift3d", STEP, "a state of N people and fixed sides", str(tensor))
    after = [TensorSpec(next_name(state.name), state.dtype, state.shape) for state in states]
    xyz = TensorSpec("xyz", FLOAT, ("N", 17, 3))
    _check("lift3d", STEP, step, [*joints, *states], [xyz, *after], {}, ["score"])
