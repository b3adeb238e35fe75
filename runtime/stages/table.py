"""What a stage is: one row for each, read by every part that has to know.

A stage is one network of the pipeline with a fixed contract. What differs between stages stands
here and nowhere else: export plans, sizes, bundles, loading, gates, sample inputs, networks of the
user's own and the benchmark read these rows. A new stage, or another limit, is an edit here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mambapose.runtime.stages import gate_limits
from mambapose.runtime.stages.gate_limits import Measure
from mambapose.runtime.types import GraphSpec, Size, TensorSpec

DETECT = "detect"  # the stage whose network is always a file of somebody else
MODEL = "model"  # a network of the user's that takes no place in the pipeline
MAX_SIDE = 4096  # px of any input
# What sample inputs are made of (export/samples.py makes them).
PICTURE, PICTURE_BEFORE, FLAGS, WALK = "picture", "picture before", "flags", "walk"
MOTION_MAP, UNIT_MAP, BYTE_MAP = "map of motion", "map of 0 to 1", "map of 0 to 255"
UNIT_NOISE, SLIGHT_NOISE, ANYTHING = "noise of 0 to 1", "noise of 0 to 0.02", "anything"


@dataclass(frozen=True)
class SizeRule:
    """Sizes a network takes: both sides multiples of ``step`` from ``least`` to MAX_SIDE px."""

    least: int
    step: int

    def fits(self, size: Size) -> bool:
        """Whether a network of the stage takes that size."""
        return all(self.least <= side <= MAX_SIDE and side % self.step == 0 for side in size)

    def nearest(self, size: Size) -> Size:
        """The nearest size that fits."""
        return Size(*(self._nearest(side) for side in size))

    def _nearest(self, side: int) -> int:
        first = -(-self.least // self.step) * self.step
        last = MAX_SIDE // self.step * self.step
        return min(max(round(side / self.step) * self.step, first), last)


@dataclass(frozen=True)
class Stage:
    """One stage.

    graphs: the names of its graphs, once for each form that a network may have (RAFT's loop or one
        graph, for example). ``main`` is a whole network.
    inputs, outputs: the tensors that ``main`` of a network of the user's own must have; H, W, h, w,
        T stand for any numbers, N for a free side. Empty where there is no such contract.
    may_lack: inputs that a network may do without.
    network: the one that is exported unless another is named; None where a file has to be given.
    optional: an export without weights for it leaves it out and says so.
    size_rule, size_field: which sizes it takes, and the field of Schedule that holds its size.
    both_orientations: exported for landscape and portrait pictures.
    rhythm: how often it runs, in words for the user; fields of Schedule in braces.
    whole_frame: it sees the whole frame; its output is an input of other networks, which has the
        name of this stage.
    clip: it sees a clip of T frames of joints instead of pictures.
    samples: input -> what its sample is made of; ``*`` stands for any other input.
    gate: output -> how its error is measured; other tensors by their largest value.
    by_hand: the option of mp-export that gives its weights as a file.
    """

    name: str
    graphs: tuple[tuple[str, ...], ...] = (("main",),)
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    may_lack: tuple[str, ...] = ()
    network: str | None = None
    optional: bool = False
    size_rule: SizeRule | None = None
    size_field: str | None = None
    both_orientations: bool = False
    rhythm: str = ""
    whole_frame: bool = False
    clip: bool = False
    samples: Mapping[str, str] = field(default_factory=dict)
    gate: Mapping[str, Measure] = field(default_factory=dict)
    by_hand: str = ""

    def measure(self, output: str) -> Measure:
        """How the error of an output is measured."""
        return self.gate.get(output, gate_limits.RELATIVE)

    def form(self, present: set[str]) -> tuple[str, ...]:
        """The graphs of the form that a network with the graphs ``present`` has: the first one that
        is complete, or else the one of which most is there.
        """
        lacking = [len(set(names) - present) for names in self.graphs]
        if 0 in lacking:
            return self.graphs[lacking.index(0)]
        return max(self.graphs, key=lambda names: len(present & set(names)))


def _rows(*stages: Stage) -> dict[str, Stage]:
    return {stage.name: stage for stage in stages}


# In the order in which a bundle lists them.
STAGES: Mapping[str, Stage] = _rows(
    Stage(
        "flow",
        graphs=(("main",), ("encode", "corr", "step", "upsample")),  # one graph, or RAFT's loop
        inputs=(
            TensorSpec("image1", "uint8", (1, "H", "W", 3)),
            TensorSpec("image2", "uint8", (1, "H", "W", 3)),
        ),
        outputs=(TensorSpec("flow", "float32", (1, 2, "H", "W")),),
        network="raft-small",
        optional=True,
        # Below 128 px the coarsest level of RAFT's pyramid is one cell wide and its normalisation
        # divides by zero.
        size_rule=SizeRule(128, 8),
        size_field="flow_size",
        both_orientations=True,
        rhythm="{flow_iters} iterations",
        whole_frame=True,
        samples={"image1": PICTURE, "image2": PICTURE_BEFORE},
        gate={"flow": gate_limits.FLOW_PX, "coords_next": gate_limits.FLOW_PX_OF_CELLS},
        by_hand="--weights flow=FILE",
    ),
    Stage(
        "depth",
        inputs=(TensorSpec("image", "uint8", (1, "H", "W", 3)),),
        outputs=(TensorSpec("depth", "float32", (1, 1, "H", "W")),),
        network="depth-anything-v2-small",
        optional=True,
        size_rule=SizeRule(14, 14),  # patches of 14 px
        size_field="depth_size",
        both_orientations=True,
        rhythm="every {depth_every}",
        whole_frame=True,
        samples={"image": PICTURE},
        gate={"depth": gate_limits.DEPTH_RELATIVE},
        by_hand="--weights depth=FILE",
    ),
    # Always the user's own file, whose layout stages/detect.py recognises.
    Stage(DETECT, samples={"*": BYTE_MAP}, by_hand="--detect FILE"),
    Stage(
        "pose2d",
        graphs=(("encode", "main"), ("main",)),  # several frames at once, or one
        inputs=(
            TensorSpec("rgb", "uint8", ("N", "H", "W", 3)),
            TensorSpec("flow", "float32", ("N", 2, "H", "W")),
            TensorSpec("depth", "float32", ("N", 1, "H", "W")),
            TensorSpec("present", "float32", ("N", 2)),
        ),
        outputs=(TensorSpec("heatmaps", "float32", ("N", 17, "h", "w")),),
        may_lack=("flow", "depth", "present"),
        network="mambapose-nano",
        size_rule=SizeRule(32, 16),  # patches of 16 px
        size_field="pose_size",
        samples={"rgb": PICTURE, "flow": MOTION_MAP, "depth": UNIT_MAP, "present": FLAGS},
        gate={"heatmaps": gate_limits.JOINT_PX},
        by_hand="--weights pose2d=FILE",
    ),
    Stage(
        "lift3d",
        graphs=(("step",), ("main",)),  # frame by frame, or a window
        inputs=(
            TensorSpec("keypoints", "float32", ("N", "T", 17, 2)),
            TensorSpec("score", "float32", ("N", "T", 17)),
            TensorSpec("depth", "float32", ("N", "T", 17)),
            TensorSpec("flow", "float32", ("N", "T", 17, 2)),
            TensorSpec("present", "float32", ("N", 3)),
        ),
        outputs=(TensorSpec("xyz", "float32", ("N", "T", 17, 3)),),
        may_lack=("score", "depth", "flow", "present"),
        network="mambapose3d-nano",
        clip=True,
        samples={
            "keypoints": WALK,
            "score": UNIT_NOISE,
            "depth": UNIT_NOISE,
            "flow": SLIGHT_NOISE,
            "present": FLAGS,
        },
        gate={"xyz": gate_limits.JOINT_MM},
        by_hand="--weights lift3d=FILE",
    ),
    Stage(MODEL, samples={"present": FLAGS, "*": ANYTHING}),
)


def own_network_stages() -> list[Stage]:
    """The stages for which a network of the user's own may be given."""
    return [stage for stage in STAGES.values() if stage.inputs]


def whole_frame_inputs(*specs: GraphSpec) -> set[str]:
    """Which whole-frame stages (flow, depth) give an input of these graphs."""
    taken = {tensor.name for spec in specs for tensor in spec.inputs}
    return {stage.name for stage in STAGES.values() if stage.whole_frame} & taken


def limits(precision: str) -> dict[str, float]:
    """Unit -> the largest error that an engine of this precision may have."""
    every = [gate_limits.RELATIVE, *(m for stage in STAGES.values() for m in stage.gate.values())]
    return {measure.unit: measure.limits[precision] for measure in every}
