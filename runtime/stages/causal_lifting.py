"""2D joints of COCO-17 to 3D joints of Human3.6M-17 by a lifter that works frame by frame.

The graph ``step`` takes the joints of one frame and a state that sums up the frames before, and
gives the 3D joints of that frame at once. The state of a person begins as zeros, has a constant
size and is kept under the person's id:

    seen      the state advances by one step; everyone in the picture runs in one batch
    not seen  the state stays as it is: no joints are invented for the gap, and the next frame in
              which the person is seen continues from it, if that is within GAP_FRAMES
    gone      not seen for longer than that: the state is dropped, and a person who comes back
              begins anew. So does everybody after a scene cut, which gives new ids
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mambapose.runtime.backends.engine import Engine
from mambapose.runtime.stages.lifting import Seen
from mambapose.runtime.timing import StageTimes
from mambapose.runtime.types import Array, FloatArray

STEP = "step"  # name of the graph of a causal lifter
# Half a second at 30 Hz: a motion that goes on where it was. The tracker knows a person again for
# longer (KEEP_FRAMES), but who was away for two seconds stands in another way by then.
GAP_FRAMES = 15


def next_name(state: str) -> str:
    """The output of a step that becomes the input ``state`` of the next step."""
    return f"{state}_next"


@dataclass
class _Person:
    """What is remembered of one person.

    last_seen: index of a frame; state: arrays by name, without the axis of people.
    """

    last_seen: int
    state: dict[str, Array]


class CausalLifter:
    """Lifts one frame per step; it remembers only the state of people seen lately.

    The graph's 3D joints are in body heights. height: the person's height in metres, for results in
    metres; None leaves them in body heights. times: receives the duration of every run.
    """

    frames = hop = 1
    lookahead = 0

    def __init__(
        self, engine: Engine, height: float | None = None, times: StageTimes | None = None
    ) -> None:
        self._engine = engine
        self._height = height
        self._times = times or StageTimes()
        outputs = {item.name for item in engine.spec.outputs}
        states = [item for item in engine.spec.inputs if next_name(item.name) in outputs]
        self._start: dict[str, Array] = {
            item.name: np.zeros([int(side) for side in item.shape[1:]], item.dtype)
            for item in states
        }
        self._people: dict[int, _Person] = {}

    @property
    def state_bytes(self) -> int:
        """Memory that one person's state takes."""
        return sum(array.nbytes for array in self._start.values())

    def add(self, frame: int, seen: Seen) -> list[tuple[int, dict[int, FloatArray]]]:
        """[(frame, id -> (17, 3))]: the 3D joints of everyone in this frame."""
        gone = [id_ for id_, known in self._people.items() if frame - known.last_seen > GAP_FRAMES]
        for id_ in gone:
            del self._people[id_]
        if not seen.ids:
            return [(frame, {})]
        with self._times.measure("lift3d"):
            xyz = self._step(frame, seen)
        return [(frame, dict(zip(seen.ids, xyz, strict=True)))]

    def finish(self) -> list[tuple[int, dict[int, FloatArray]]]:
        """An empty list: no frame waits."""
        return []

    def _step(self, frame: int, seen: Seen) -> FloatArray:
        """(N, 17, 3) 3D joints of the people in the frame; their states advance by one step."""
        known = [
            self._people[id_].state if id_ in self._people else self._start for id_ in seen.ids
        ]
        inputs: dict[str, Array] = {
            "keypoints": np.ascontiguousarray(seen.keypoints, np.float32),
            "score": np.ascontiguousarray(seen.score, np.float32),
            **{name: _batch([state[name] for state in known]) for name in self._start},
        }
        names = [item.name for item in self._engine.spec.inputs]
        found = self._engine.run({name: inputs[name] for name in names})
        for place, id_ in enumerate(seen.ids):
            state = {name: _row(found[next_name(name)], place) for name in self._start}
            self._people[id_] = _Person(frame, state)
        xyz = found["xyz"].astype(np.float32)
        xyz[:, 0] = 0.0  # root-relative, as the official evaluation does
        return xyz if self._height is None else xyz * np.float32(self._height)


def _row(batch: Array, place: int) -> Array:
    """One person's part of a batch, copied so that the other people's memory can be freed."""
    row: Array = batch[place]
    return row if len(batch) == 1 else row.copy()


def _batch(rows: list[Array]) -> Array:
    """(N, ...) N arrays stacked; a single one is not copied."""
    return rows[0][None] if len(rows) == 1 else np.stack(rows)
