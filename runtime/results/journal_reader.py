"""Reading a journal back, also one that was torn, or damaged on its disk.

Every line is checked by itself. One that is not what a run writes is left out and counted, so it
costs its own frame and no other.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mambapose.runtime.edges import FAULTS, edge
from mambapose.runtime.errors import OutputError
from mambapose.runtime.results.journal import Record, json_text
from mambapose.runtime.skeleton import COCO17, H36M17

# A line of ten people is 20 kB. What is longer is no line of ours, and is not held in memory.
LINE_BYTES = 16 << 20
# The end line is a few hundred bytes; how much more is looked at is free.
END_BYTES = 1 << 16
JOINTS, SOLID_JOINTS = len(COCO17.joints), len(H36M17.joints)
LARGEST = 2**63 - 1  # what the formats can hold


@dataclass
class Damage:
    """Lines that were left out: how many, and the first of them in words."""

    lines: int = 0
    first: str = ""

    def add(self, number: int, problem: str) -> None:
        self.lines += 1
        self.first = self.first or f"line {number} {problem}"


@dataclass
class JournalReader:
    """The frames of a journal in order, and what else it says.

    meta: facts of the first line, None when that line is damaged. end: facts of the last line, None
    when the run was interrupted. damage: what was left out when the frames were read last;
    unlifted: how many of them still waited for their 3D joints. Raises OutputError for a file that
    cannot be read or that is no journal.
    """

    path: Path
    meta: Record | None = None
    end: Record | None = None

    def __post_init__(self) -> None:
        self.damage = Damage()
        self.unlifted = 0
        with self._open() as file:
            first = file.readline(LINE_BYTES)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - END_BYTES))
            last = file.read(END_BYTES).rpartition(b"\n")[0].rpartition(b"\n")[2] + b"\n"
        if not first.endswith(b"\n"):
            raise OutputError(
                f"journal {self.path} ends inside its first line; the run was killed before it "
                "recorded a frame, run it again"
            )
        self.meta = _facts(first, "meta")
        self.end = _facts(last, "end")

    def __iter__(self) -> Iterator[Record]:
        """Every frame: {"frame": i, "timestamp": s, "people": [...]}, each person with xyz.

        3D joints that never came are None. Only frames that wait for their 3D are held.
        """
        self.end, self.damage, self.unlifted = None, Damage(), 0
        count = 0
        for record in self._in_order():
            count += 1
            yield record
        if self.meta is None and count == 0:
            raise OutputError(
                f"journal {self.path} should start with a meta line and holds no frame; pass an "
                "output folder that mp-run wrote"
            )

    def _in_order(self) -> Iterator[Record]:
        """The complete records whose frame numbers rise; of two that do not, the later one stays.

        A damaged number is mostly much too large: taking it for true would cost all the others.
        """
        before = -1
        held: tuple[int, Record] | None = None
        for number, record in self._complete():
            if held is None or record["frame"] > held[1]["frame"]:
                if held is not None:
                    before = held[1]["frame"]
                    yield held[1]
                held = number, record
            elif record["frame"] > before:
                self.damage.add(held[0], "is a frame out of order")
                held = number, record
            else:
                self.damage.add(number, "is a frame out of order")
        if held is not None:
            yield held[1]

    def _complete(self) -> Iterator[tuple[int, Record]]:
        """(line number, frame) with the 3D joints that later lines hold."""
        waiting: deque[tuple[int, Record]] = deque()
        for number, record in self._records():
            if "people" in record:
                waiting.append((number, record))
            elif not _lifted(waiting, record):
                self.damage.add(number, "has the 3D joints of a frame that does not wait for them")
            while waiting and all("xyz" in person for person in waiting[0][1]["people"]):
                yield waiting.popleft()
        for number, record in waiting:
            self.unlifted += any("xyz" not in person for person in record["people"])
            for person in record["people"]:
                person.setdefault("xyz", None)
            yield number, record

    def _records(self) -> Iterator[tuple[int, Record]]:
        """(line number, checked record) of every whole line after the first."""
        if self.meta is None:
            self.damage.add(1, "is no meta line")
        ended = None
        with self._open() as file:
            for number, line in _lines(file):
                if number == 1:
                    continue
                if ended is not None:
                    self.damage.add(ended, "is an end before the end")
                    self.end = ended = None
                if line.startswith(b'{"end":'):
                    self.end = _facts(line, "end")
                    if self.end is None:
                        self.damage.add(number, "is a damaged end")
                    else:
                        ended = number
                elif (record := _parsed(line)) is None:
                    self.damage.add(number, "is damaged")
                elif (problem := _problem(record)) is not None:
                    self.damage.add(number, problem)
                else:
                    yield number, record

    def _open(self) -> BinaryIO:
        with edge(
            OutputError,
            f"journal {self.path} was wanted, it cannot be read",
            "pass an output folder that mp-run wrote",
        ):
            return self.path.open("rb")


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(number, line) of every line that is whole; one that is too long comes in pieces."""
    number = 0
    while line := file.readline(LINE_BYTES):
        if not line.endswith(b"\n") and len(line) < LINE_BYTES:
            return
        number += 1
        yield number, line


def _parsed(line: bytes) -> Any:
    """What a line says, None when that is no JSON."""
    try:
        return json.loads(line)
    except FAULTS:
        return None


def _facts(line: bytes, key: str) -> Record | None:
    """The object of a line {KEY: {...}}; None for any other line."""
    value = _parsed(line)
    if not isinstance(value, dict) or value.keys() != {key} or not isinstance(value[key], dict):
        return None
    facts: Record = value[key]
    try:
        json_text(facts).encode()
    except FAULTS:  # lone surrogates, NaN and infinity are read, but cannot be written again
        return None
    return facts


def _problem(record: Any) -> str | None:
    """Why a record is neither a frame nor the 3D joints of one, None when it is."""
    if not isinstance(record, dict) or not _counts(record.get("frame"), 0):
        return "is not a frame"
    if record.keys() == {"frame", "xyz"}:
        solid = record["xyz"]
        good = isinstance(solid, dict) and all(map(_is_solid, solid.values()))
        return None if good else "has no 3D joints"
    people = record.get("people")
    keys = record.keys() - {"corrupt"}
    if keys != {"frame", "timestamp", "people"} or not isinstance(people, list):
        return "is not a frame"
    if record.get("corrupt", True) is not True:
        return "is not a frame"
    if not _is_number(record["timestamp"]):
        return "has no timestamp"
    return None if all(map(_is_person, people)) else "has a person that is none"


def _is_person(person: Any) -> bool:
    return (
        isinstance(person, dict)
        and person.keys() | {"xyz"} == {"id", "box", "xy", "score", "xyz"}
        and _counts(person["id"], -LARGEST)
        and _is_row(person["box"], 4)
        and _is_table(person["xy"], JOINTS, 2)
        and _is_row(person["score"], JOINTS)
        and _is_solid(person.get("xyz"))
    )


def _is_solid(xyz: Any) -> bool:
    """Whether these are 3D joints, or None where nobody was lifted."""
    return xyz is None or _is_table(xyz, SOLID_JOINTS, 3)


def _counts(value: Any, least: int) -> bool:
    return type(value) is int and least <= value <= LARGEST


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= LARGEST and math.isfinite(value)


def _is_row(values: Any, count: int) -> bool:
    """Whether these are ``count`` numbers, or null where a joint is missing."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(value is None or _is_number(value) for value in values)
    )


def _is_table(rows: Any, count: int, width: int) -> bool:
    return (
        isinstance(rows, list) and len(rows) == count and all(_is_row(row, width) for row in rows)
    )


def _lifted(waiting: deque[tuple[int, Record]], amendment: Record) -> bool:
    """Give the frame of an amendment its 3D joints; False when no such frame waits."""
    for _, record in waiting:
        if record["frame"] == amendment["frame"]:
            for person in record["people"]:
                person.setdefault("xyz", amendment["xyz"].get(str(person["id"])))
            return True
    return False
