"""The 2D pose stage as the pipeline sees it: people of a frame in, heatmaps out, now or later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from mambapose.runtime.backends.engine import Engine
from mambapose.runtime.stages.crop import Crops
from mambapose.runtime.stages.flow import DenseMap
from mambapose.runtime.timing import StageTimes
from mambapose.runtime.types import Array, Frame, GraphSpec, Subjects


@dataclass(frozen=True)
class Dense:
    """Flow and depth of a whole frame, None where they are absent."""

    flow: DenseMap | None = None
    depth: DenseMap | None = None


@dataclass(frozen=True)
class Watched:
    """A frame, the people to look at in it, and their crops."""

    frame: Frame
    subjects: Subjects
    crops: Crops
    dense: Dense


# A frame with the heatmaps (N, 17, h, w) of its people, None where there is nobody.
Answer = tuple[Watched, "Array | None"]


class PoseStage(Protocol):
    """spec: of the graph that takes the crops. lookahead: later frames that an answer waits for."""

    spec: GraphSpec
    lookahead: int

    def add(self, watched: Watched, inputs: Mapping[str, Array]) -> list[Answer]:
        """The answers that the next frame completes, in order; inputs: of its crops, if any."""
        ...

    def finish(self) -> list[Answer]:
        """The answers that still wait; the next frame begins anew."""
        ...

    def still(self, inputs: Mapping[str, Array]) -> Array:
        """Heatmaps (N, 17, h, w) of crops alone, at once, with nothing remembered or timed."""
        ...


class FramePose:
    """A network that needs one frame: every answer is there at once."""

    lookahead = 0

    def __init__(self, engine: Engine, times: StageTimes) -> None:
        self.spec = engine.spec
        self._engine = engine
        self._times = times

    def add(self, watched: Watched, inputs: Mapping[str, Array]) -> list[Answer]:
        """The answer of this frame."""
        if not watched.subjects.ids:
            return [(watched, None)]
        with self._times.measure("pose2d"):
            return [(watched, self.still(inputs))]

    def finish(self) -> list[Answer]:
        """None: nothing waits."""
        return []

    def still(self, inputs: Mapping[str, Array]) -> Array:
        """Heatmaps of the crops."""
        return self._engine.run(inputs)["heatmaps"]
