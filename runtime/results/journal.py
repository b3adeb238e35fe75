"""The journal of a run: every frame is on file as soon as its 2D joints are known.

OUTDIR/poses.ndjson holds one JSON object per line:

    {"meta": {...}}                                  first
    {"frame": i, "timestamp": s, "people": [...]}    each frame in order; a person has id, box, xy,
                                                     score and xyz (null without a lifter), but no
                                                     xyz while their 3D joints wait for later frames
    {"frame": i, "xyz": {"id": [[x, y, z], ...]}}    the 3D joints that were waited for
    {"end": {...}}                                   last, in a run that reached its end

It survives kill -9: at most the line being written is lost.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mambapose.runtime.errors import OutputError
from mambapose.runtime.types import Array, Pose

JOURNAL = "poses.ndjson"
# Decimals kept: a thousandth of a pixel, of a 1.8 m person's height 0.02 mm.
DECIMALS_PX, DECIMALS_SCORE, DECIMALS_HEIGHT, DECIMALS_S = 3, 4, 5, 6
# From the end of a journal in which its last line begins, if that says how the run ended: a line of
# a few hundred bytes, so the value is free.
END_BYTES = 1 << 16

Record = dict[str, Any]


class Journal:
    """Appends lines to OUTDIR/poses.ndjson; a line is in the file as soon as it is written.

    frames: how many were appended. Raises OutputError, also when the journal exists.
    """

    def __init__(self, outdir: Path, meta: Mapping[str, object]) -> None:
        self.path = outdir / JOURNAL
        self.frames = 0
        self._good = 0
        try:
            outdir.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            self._file: int | None = os.open(self.path, flags, 0o666)
        except OSError as err:
            raise OutputError(
                f"journal {self.path} cannot be created ({err.strerror}); choose another folder"
            ) from err
        self._write({"meta": dict(meta)})

    def append(
        self, frame: int, timestamp: float, poses: Sequence[Pose], *, waits: bool = False
    ) -> None:
        """Write the people of one frame; frame and timestamp are those of the source.

        waits: the 3D joints are not known yet; ``lift`` adds them later.
        """
        people = [record_from_pose(pose) for pose in poses]
        if waits:
            for person in people:
                del person["xyz"]
        time = round(float(timestamp), DECIMALS_S)
        self._write({"frame": int(frame), "timestamp": time, "people": people})
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
        """Close the file; without finish() before, results will say the run was interrupted."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, record: Mapping[str, object]) -> None:
        if self._file is None:
            raise OutputError(f"journal {self.path} is closed; nothing more can be added to it")
        line = json_text(record).encode() + b"\n"
        left = memoryview(line)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as err:
            # Best effort: readers ignore a torn last line anyway.
            with suppress(OSError):
                os.ftruncate(self._file, self._good)
            raise OutputError(
                f"journal {self.path} cannot grow ({err.strerror}); {self.frames} frames are safe "
                "in it: free some space, then make their results with mp-run --recover"
            ) from err
        self._good += len(line)


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


@dataclass(frozen=True)
class JournalState:
    """The first and last line of a journal.

    meta: facts of the first line; end: facts of the last line, None when the run was interrupted.
    """

    meta: Record
    end: Record | None


def journal_state(path: Path) -> JournalState:
    """Meta and end of a journal, read without going through its frames.

    OutputError when the journal is missing or damaged.
    """
    with _open_journal(path) as file:
        first = file.readline()
        file.seek(max(0, os.fstat(file.fileno()).st_size - END_BYTES))
        tail = file.read()
    if not first.endswith(b"\n"):
        raise OutputError(f"journal {path} ends inside its first line; there is no frame to keep")
    meta = _parse(first, path, 1)
    if not isinstance(meta.get("meta"), dict):
        raise OutputError(
            f"journal {path} should start with a meta line, found something else; "
            "pass an output folder that mp-run wrote"
        )
    last = tail.rsplit(b"\n", 2)[-2] if tail.endswith(b"\n") else b""
    end = json.loads(last)["end"] if last.startswith(b'{"end":') else None
    return JournalState(meta["meta"], end)


def read_journal(path: Path) -> Iterator[Record]:
    """Every frame in order: {"frame": i, "timestamp": s, "people": [...]}, each person with xyz.

    A torn last line (kill -9, full disk) is left out, and 3D joints that never came are None.
    OutputError names any other damage. Only frames that wait for their 3D are held.
    """
    waiting: deque[Record] = deque()
    for number, record in _records(path):
        if {"frame", "timestamp", "people"} <= record.keys():
            waiting.append(record)
        elif not _lifted(waiting, record):
            raise OutputError(f"journal {path} line {number} is not a frame; it was altered")
        while waiting and all("xyz" in person for person in waiting[0]["people"]):
            yield waiting.popleft()
    for record in waiting:
        for person in record["people"]:
            person.setdefault("xyz", None)
        yield record


def _lifted(waiting: deque[Record], amendment: Record) -> bool:
    """Give the frame of an amendment its 3D joints; False when no such frame waits."""
    frame, xyz = amendment.get("frame"), amendment.get("xyz")
    for record in waiting:
        if record["frame"] == frame and isinstance(xyz, dict):
            for person in record["people"]:
                person["xyz"] = xyz.get(str(person["id"]))
            return True
    return False


def _records(path: Path) -> Iterator[tuple[int, Record]]:
    """(line number, object) of every whole line between the first and the end."""
    with _open_journal(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            if number > 1 and not line.startswith(b'{"end":'):
                yield number, _parse(line, path, number)


def _open_journal(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as err:
        raise OutputError(
            f"journal {path} was wanted, it cannot be read ({err.strerror}); "
            "pass an output folder that mp-run wrote"
        ) from err


def _parse(line: bytes, path: Path, number: int) -> Record:
    try:
        record = json.loads(line)
    except ValueError as err:
        raise OutputError(
            f"journal {path} line {number} is damaged ({err}); cut the file before that line, "
            "then recover the frames in front of it"
        ) from err
    if not isinstance(record, dict):
        raise OutputError(f"journal {path} line {number} is not an object; it was altered")
    return record
