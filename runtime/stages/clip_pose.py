"""2D pose from a window of frames: each frame is encoded once, and its features wait in the window.

The heatmaps of frame t come when frame t + T // 2 has been encoded; until then the frame waits with
its picture. Where the person was not seen (before the start, after the end, at a cut, when somebody
appears or is lost), the window repeats the nearest frame in which the person was. Every frame's
features are those of its own crop, and joints are decoded with the crop of the key frame.

Memory is constant: T frames of features (3 MiB per person and frame for glsmamba-b) and T // 2 + 1
pictures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from mambapose.runtime.backends.engine import Engine
from mambapose.runtime.errors import MismatchError
from mambapose.runtime.stages.pose import Answer, Watched
from mambapose.runtime.timing import StageTimes
from mambapose.runtime.types import Array


class ClipPose:
    """A pose network of two graphs: ``encode`` for each frame, ``main`` for a window of features.

    frames: T, the length of the window, whose middle is the key frame. EngineError when the two
    graphs do not fit together.
    """

    def __init__(self, encode: Engine, main: Engine, times: StageTimes) -> None:
        self.spec = encode.spec
        self._encode, self._main = encode, main
        self._times = times
        (features,), (window,) = encode.spec.outputs, main.spec.inputs
        frames = window.shape[1] if len(window.shape) > 1 else 0
        if (
            not isinstance(frames, int)
            or frames % 2 == 0
            or features.name != window.name
            or window.shape[2:] != features.shape[1:]
        ):
            raise MismatchError(
                f"graph main of pose2d was wanted to take an odd number of {features}, found "
                f"{window}; export the bundle again with mp-export"
            )
        self.frames = frames
        self.lookahead = frames // 2
        self._waiting: deque[Watched] = deque()
        # Of the last T frames of this scene: person -> features (1, ...).
        self._features: deque[dict[int, Array]] = deque(maxlen=frames)

    def add(self, watched: Watched, inputs: Mapping[str, Array]) -> list[Answer]:
        """The heatmaps of the frame ``lookahead`` before this one; an empty list at the start."""
        self._waiting.append(watched)
        self._features.append(self._encoded(watched, inputs))
        return [self._answer()] if len(self._waiting) > self.lookahead else []

    def finish(self) -> list[Answer]:
        """The heatmaps of the frames that still wait; nothing is remembered afterwards."""
        answers = [self._answer() for _ in range(len(self._waiting))]
        self._features.clear()
        return answers

    def still(self, inputs: Mapping[str, Array]) -> Array:
        """Heatmaps of crops as if nothing moved: the window holds the same frame T times."""
        features = self._encode.run(inputs)["features"]
        return self._heatmaps([[features[n]] * self.frames for n in range(len(features))])

    def _encoded(self, watched: Watched, inputs: Mapping[str, Array]) -> dict[int, Array]:
        if not watched.subjects.ids:
            return {}
        with self._times.measure("encode"):
            features = self._encode.run(inputs)["features"]
        return dict(zip(watched.subjects.ids, features, strict=True))

    def _answer(self) -> Answer:
        """The heatmaps of the frame that has waited longest."""
        key = len(self._features) - len(self._waiting)
        watched = self._waiting.popleft()
        if not watched.subjects.ids:
            return watched, None
        windows = []
        for person in watched.subjects.ids:
            seen = [place for place, people in enumerate(self._features) if person in people]
            places = window_places(seen, key, self.frames)
            windows.append([self._features[place][person] for place in places])
        with self._times.measure("pose2d"):
            return watched, self._heatmaps(windows)

    def _heatmaps(self, windows: Sequence[Sequence[Array]]) -> Array:
        """(N, 17, h, w) from N windows of T features.

        One person after the other: a single window keeps the machine busy, and several at once
        would need the memory of all their scans together.
        """
        return np.concatenate(
            [self._main.run({"features": np.stack(w)[None]})["heatmaps"] for w in windows]
        )


def window_places(seen: Collection[int], key: int, frames: int) -> list[int]:
    """For each of the ``frames`` places around ``key``, the place in ``seen`` nearest to it.

    Of two equally near places the one nearer to the key is taken.
    """
    first = key - frames // 2
    return [
        min(seen, key=lambda place: (abs(place - wanted), abs(place - key)))
        for wanted in range(first, first + frames)
    ]
