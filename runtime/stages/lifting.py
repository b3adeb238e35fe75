"""2D joints of COCO-17 to 3D joints of Human3.6M-17 by a lifter over a sliding window.

The window has the T frames of the graph. Each run gives the 3D joints of the ``hop`` frames in its
middle or, when less look-ahead is asked for, of frames nearer to its end. Blocks of ``hop`` frames
are counted from frame 0 of the source, so everyone in the picture is lifted in one batch and the
result does not depend on how frames arrived. Where a person was not seen inside a window, joints
are interpolated in a straight line between the frames around the gap; before the first and after
the last frame in which the person was seen they are repeated.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.backends.engine import Engine
from mambapose.runtime.errors import EngineError
from mambapose.runtime.stages.joints import BODY_HEIGHTS, IMAGE_UNITS, body_heights
from mambapose.runtime.timing import StageTimes
from mambapose.runtime.types import Array, FloatArray


@dataclass(frozen=True)
class Seen:
    """The people of one frame as a lifter takes them in, with Human3.6M joints.

    ids: (N,); keypoints: (N, 17, 2) normalised; score: (N, 17); depth: (N, 17) inverse depth at
    the joints, or None; flow: (N, 17, 2) flow at the joints, in the unit of the keypoints per
    frame, or None.
    """

    ids: tuple[int, ...]
    keypoints: NDArray[np.float64]
    score: FloatArray
    depth: FloatArray | None = None
    flow: FloatArray | None = None


@dataclass
class _Track:
    """What is remembered of one person. rows: (17, 6) x, y, score, depth, flow x, flow y."""

    frames: list[int] = field(default_factory=list)
    rows: list[FloatArray] = field(default_factory=list)
    cues: list[tuple[bool, bool]] = field(default_factory=list)  # depth, flow known


class Lifter:
    """Lifts everyone in sliding windows; at most T + hop frames of joints are kept.

    unit: the unit of the graph's 3D joints, BODY_HEIGHTS or IMAGE_UNITS. Joints in IMAGE_UNITS
    are scaled so that the person's bones in the window make one body height. height: the person's
    height in metres, for results in metres; None leaves them in body heights. times: receives the
    duration of every run. lookahead: how many later frames a result may wait for; None for the
    middle of the window. With fewer, each window gives fewer frames. EngineError for more.
    """

    def __init__(
        self,
        engine: Engine,
        hop: int,
        unit: str = BODY_HEIGHTS,
        height: float | None = None,
        times: StageTimes | None = None,
        lookahead: int | None = None,
    ) -> None:
        self._engine = engine
        self._unit = unit
        self._height = height
        self._times = times or StageTimes()
        keypoints = next(item for item in engine.spec.inputs if item.name == "keypoints")
        self.frames = int(keypoints.shape[1])
        self.hop = min(hop, self.frames)
        self._before = (self.frames - self.hop) // 2
        if lookahead is not None:
            self._wait_for(lookahead)
        self._tracks: dict[int, _Track] = {}
        self._pending: deque[int] = deque()

    @property
    def lookahead(self) -> int:
        """How many later frames the 3D joints of a frame wait for, at most."""
        return self.frames - self._before - 1

    def _wait_for(self, lookahead: int) -> None:
        """Place the window so that no result waits for more than ``lookahead`` later frames."""
        if not 0 <= lookahead <= self.lookahead:
            raise EngineError(
                f"a look-ahead of 0 to {self.lookahead} frames was wanted (windows of "
                f"{self.frames}), found {lookahead}; leave --lookahead out for {self.lookahead}"
            )
        self.hop = min(self.hop, lookahead + 1)
        self._before = self.frames - 1 - lookahead

    def add(self, frame: int, seen: Seen) -> list[tuple[int, dict[int, FloatArray]]]:
        """(frame, id -> (17, 3)) of every frame that is complete now that this one is known."""
        self._remember(frame, seen)
        self._pending.append(frame)
        done: list[tuple[int, dict[int, FloatArray]]] = []
        while self._pending and self._window(self._pending[0])[1] <= frame:
            done += self._lift_block()
        return done

    def finish(self) -> list[tuple[int, dict[int, FloatArray]]]:
        """(frame, id -> (17, 3)) of the frames that still wait at the end of the video."""
        done: list[tuple[int, dict[int, FloatArray]]] = []
        while self._pending:
            done += self._lift_block()
        return done

    def _remember(self, frame: int, seen: Seen) -> None:
        count = len(seen.ids)
        rows = np.zeros((count, 17, 6), np.float32)
        rows[..., :2], rows[..., 2] = seen.keypoints, seen.score
        if seen.depth is not None:
            rows[..., 3] = seen.depth
        if seen.flow is not None:
            rows[..., 4:] = seen.flow
        for id_, row in zip(seen.ids, rows, strict=True):
            track = self._tracks.setdefault(id_, _Track())
            track.frames.append(frame)
            track.rows.append(row)
            track.cues.append((seen.depth is not None, seen.flow is not None))

    def _window(self, frame: int) -> tuple[int, int]:
        """First and last frame of the window that gives the 3D joints of ``frame``."""
        first = frame // self.hop * self.hop - self._before
        return first, first + self.frames - 1

    def _lift_block(self) -> list[tuple[int, dict[int, FloatArray]]]:
        """The 3D joints of every waiting frame in the block of the oldest one."""
        first, last = self._window(self._pending[0])
        stop = (self._pending[0] // self.hop + 1) * self.hop
        frames = []
        while self._pending and self._pending[0] < stop:
            frames.append(self._pending.popleft())
        self._forget_before(first)
        wanted = {id_: track for id_, track in self._tracks.items()
                  if any(frames[0] <= frame <= frames[-1] for frame in track.frames)}  # fmt: skip
        answers: dict[int, FloatArray] = {}
        if wanted:
            with self._times.measure("lift3d"):
                xyz = self._run([_clip(track, first, last) for track in wanted.values()])
            answers = dict(zip(wanted, xyz, strict=True))
        seen = {id_: set(track.frames) for id_, track in wanted.items()}
        return [
            (frame, {id_: answers[id_][frame - first] for id_ in wanted if frame in seen[id_]})
            for frame in frames
        ]

    def _forget_before(self, first: int) -> None:
        """Drop the frames before ``first``, which no later window contains."""
        for id_, track in list(self._tracks.items()):
            old = int(np.searchsorted(track.frames, first))
            del track.frames[:old], track.rows[:old], track.cues[:old]
            if not track.frames:
                del self._tracks[id_]

    def _run(self, clips: list[tuple[FloatArray, FloatArray]]) -> FloatArray:
        """(N, T, 17, 3) 3D joints for N clips of (joints (T, 17, 6), present (3,))."""
        joints = np.stack([clip for clip, _ in clips])
        inputs: dict[str, Array] = {
            "keypoints": joints[..., :2],
            "score": joints[..., 2],
            "depth": joints[..., 3],
            "flow": joints[..., 4:],
            "present": np.stack([present for _, present in clips]),
        }
        names = [item.name for item in self._engine.spec.inputs]
        wanted = {name: np.ascontiguousarray(inputs[name]) for name in names}
        xyz = self._engine.run(wanted)["xyz"].astype(np.float32)
        xyz[:, :, 0] = 0.0  # root-relative, as the official evaluation does
        if self._unit == IMAGE_UNITS:
            xyz /= np.maximum(body_heights(xyz), 1e-6)[:, None, None, None]
        return xyz if self._height is None else xyz * np.float32(self._height)


def _clip(track: _Track, first: int, last: int) -> tuple[FloatArray, FloatArray]:
    """(joints (T, 17, 6), present (3,)) of frames first..last; gaps filled, ends repeated."""
    use = slice(int(np.searchsorted(track.frames, first)),
                int(np.searchsorted(track.frames, last, side="right")))  # fmt: skip
    frames, rows = np.array(track.frames[use]), np.stack(track.rows[use])
    present = np.array([(True, *cues) for cues in track.cues[use]]).any(axis=0)
    wanted = np.clip(np.arange(first, last + 1), frames[0], frames[-1])
    right = np.searchsorted(frames, wanted)
    left = np.where(frames[right] == wanted, right, right - 1)
    span = np.maximum(frames[right] - frames[left], 1)
    share = ((wanted - frames[left]) / span).astype(np.float32)[:, None, None]
    joints: FloatArray = rows[left] + (rows[right] - rows[left]) * share
    return joints, np.asarray(present, np.float32)
