"""The journal of a run: every frame is on file as soon as its 2D joints are known.

OUTDIR/poses.ndjson holds one JSON object per line:

    {"meta": {...}}                                  first
    {"frame": i, "timestamp": s, "people": [...]}    each frame in order; a person has id, box, xy,
                                                     score and xyz (null without a lifter), but no
                                                     xyz while their 3D joints wait for later frames
                                                     ("corrupt": true stands before people where the
                                                     decoder made parts of the picture up)
    {"frame": i, "xyz": {"id": [[x, y, z], ...]}}    the 3D joints that were waited for
    {"end": {...}}                                   last, in a run that reached its end

It survives kill -9: at most the line being written is lost. A power cut costs about a second more:
the disk gets the lines once a second. ``journal_reader`` reads it back.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mambapose.runtime import durable
from mambapose.runtime.edges import FAULTS, edge, reason
from mambapose.runtime.errors import OutputError
from mambapose.runtime.types import Array, Pose

JOURNAL = "poses.ndjson"
# Decimals kept: a thousandth of a pixel, of a 1.8 m person's height 0.02 mm.
DECIMALS_PX, DECIMALS_SCORE, DECIMALS_HEIGHT, DECIMALS_S = 3, 4, 5, 6
SYNC_EVERY_S = 1.0  # what a power cut may cost; a sync a second is no load, even for an SD card

Record = dict[str, Any]


class Journal:
    """Appends lines to OUTDIR/poses.ndjson; a line is in the file as soon as it is written.

    A thread of its own hands them to the disk once a second, so that no frame waits for it.
    frames: how many were appended. Raises OutputError, also when the journal exists or is deleted
    while it is written.
    """

    def __init__(self, outdir: Path, meta: Mapping[str, object]) -> None:
        self.path = outdir / JOURNAL
        self.frames = 0
        self._good = 0
        self._file: int | None = None
        self._problem: str | None = None
        self._closing = threading.Event()
        with edge(
            OutputError, f"journal {self.path} cannot be created", "choose another output folder"
        ):
            outdir.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._file = os.open(self.path, flags, 0o666)
            line = json_text({"meta": dict(meta)})
        self._append(line)
        self._thread = threading.Thread(target=self._sync_often, name="mambapose-sync", daemon=True)
        self._thread.start()

    def append(
        self,
        frame: int,
        timestamp: float,
        poses: Sequence[Pose],
        *,
        waits: bool = False,
        corrupt: bool = False,
    ) -> None:
        """Write the people of one frame; frame and timestamp are those of the source.

        waits: the 3D joints are not known yet; ``lift`` adds them later. corrupt: the decoder made
        parts of the picture up.
        """
        people = [record_from_pose(pose) for pose in poses]
        if waits:
            for person in people:
                del person["xyz"]
        time = round(float(timestamp), DECIMALS_S)
        mark = {"corrupt": True} if corrupt else {}
        self._write({"frame": int(frame), "timestamp": time, **mark, "people": people})
        self.frames += 1

    def lift(self, frame: int, poses: Sequence[Pose]) -> None:
        """Write the 3D joints of a frame that waits for them; frames come in order."""
        if poses:
            xyz = {str(int(pose.track)): record_from_pose(pose)["xyz"] for pose in poses}
            self._write({"frame": int(frame), "xyz": xyz})

    def finish(self, **facts: object) -> None:
        """Write the last line, which marks the run as complete, and close. facts join the meta."""
        self._write({"end": facts})
        self.close()

    def close(self) -> None:
        """Sync and close the file; without finish() before, the run counts as interrupted."""
        if self._file is not None:
            self._closing.set()
            self._thread.join()
            file, self._file = self._file, None
            os.close(file)
            self._raise_problem()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            self.close()
        except OutputError:
            if kind is None:  # an earlier error is the cause worth telling
                raise

    def _write(self, record: Mapping[str, object]) -> None:
        with edge(OutputError, f"journal {self.path} takes finite numbers only", "report this"):
            line = json_text(record)
        self._append(line)

    def _append(self, text: str) -> None:
        if self._file is None:
            raise OutputError(f"journal {self.path} is closed; nothing more can be added to it")
        self._raise_problem()
        line = text.encode() + b"\n"
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except FAULTS as err:
            # Best effort: readers ignore a torn last line anyway.
            with suppress(OSError):
                os.ftruncate(self._file, self._good)
            raise OutputError(self._cannot_grow(err)) from err
        self._good += len(line)

    def _cannot_grow(self, err: BaseException) -> str:
        if self.frames == 0:
            return f"journal {self.path} cannot grow ({reason(err)}); free some space, run again"
        return (
            f"journal {self.path} cannot grow ({reason(err)}); {self.frames} frames are safe in "
            "it: free some space, then make their results with mp-run --recover"
        )

    def _raise_problem(self) -> None:
        if self._problem is not None:
            raise OutputError(self._problem)

    def _sync_often(self) -> None:
        """The thread: sync once a second and at the end; see whether the file is still there."""
        synced = 0
        with suppress(OSError):  # some filesystems cannot sync a folder
            durable.sync(self.path.parent)
        while self._problem is None:
            last = self._closing.wait(SYNC_EVERY_S)
            written = self._good
            assert self._file is not None
            try:
                if written > synced:
                    os.fsync(self._file)
                    synced = written
                if os.fstat(self._file).st_nlink == 0:
                    self._problem = (
                        f"journal {self.path} was deleted while the run wrote to it, and its frames"
                        " with it; run again, and leave the output folder alone"
                    )
            except OSError as err:
                self._problem = self._cannot_grow(err)
            if last:
                return


def json_text(record: Mapping[str, object]) -> str:
    """The record on one line."""
    return json.dumps(record, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def record_from_pose(pose: Pose) -> Record:
    """The JSON form of one person; a joint that is not a number becomes null."""
    return {
        "id": int(pose.track),
        "box": _listed(pose.box, DECIMALS_PX),
        "xy": _listed(pose.xy, DECIMALS_PX),
        "score": _listed(pose.score, DECIMALS_SCORE),
        "xyz": None if pose.xyz is None else _listed(pose.xyz, DECIMALS_HEIGHT),
    }


def _listed(array: Array, decimals: int) -> list[Any]:
    values: np.ndarray[Any, Any] = np.round(np.asarray(array, np.float64), decimals)
    missing = ~np.isfinite(values)
    if missing.any():
        values = values.astype(object)
        values[missing] = None
    listed: list[Any] = values.tolist()
    return listed


def pose_from_record(frame: int, person: Record) -> Pose:
    """The Pose of one person of a journal or of poses.json; null becomes NaN."""
    return Pose(
        frame,
        person["id"],
        np.array(person["box"], np.float32),
        np.array(person["xy"], np.float32),
        np.array(person["score"], np.float32),
        None if person["xyz"] is None else np.array(person["xyz"], np.float32),
    )
