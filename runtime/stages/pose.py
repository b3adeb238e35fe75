"""The 2D pose stage as the pipeline uses it: people of a frame in, heatmaps out, now or later."""

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
    """A 2D pose network, which may give the heatmaps of a frame some frames later.

    spec: inputs and outputs of the graph that takes the crops. lookahead: how many later frames the
    heatmaps of a frame wait for.
    """

    spec: GraphSpec
    lookahead: int

    def add(self, watched: Watched, inputs: Mapping[str, Array]) -> list[Answer]:
        """Take in the next frame; returns the frames whose heatmaps are now known, in order.

        inputs: the pose network's inputs for the crops of this frame, empty when nobody is in it.
        """
        ...

    def finish(self) -> list[Answer]:
        """The frames that still wait, with their heatmaps; the next frame begins a new clip."""
        ...

    def still(self, inputs: Mapping[str, Array]) -> Array:
        """Heatmaps (N, 17, h, w) of crops without other frames; nothing is remembered or timed."""
        ...


class FramePose:
    """A network that needs one frame: its heatmaps are there at once."""

    lookahead = 0

    def __init__(self, engine: Engine, times: StageTimes) -> None:
        self.spec = engine.spec
        self._engine = engine
        self._times = times

    def add(self, watched: Watched, inputs: Mapping[str, Array]) -> list[Answer]:
        """This frame with its heatmaps."""
        if not watched.subjects.ids:
            return [(watched, None)]
        with self._times.measure("pose2d"):
            return [(watched, self.still(inputs))]

    def finish(self) -> list[Answer]:
        """An empty list: no frame waits."""
        return []

    def still(self, inputs: Mapping[str, Array]) -> Array:
        """Heatmaps of the crops."""
        return self._engine.run(inputs)["heatmaps"]
