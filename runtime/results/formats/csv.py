"""poses.csv: a row per person and frame, under a header of joint names.

The last column is 1 where the decoder made parts of the picture up.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from mambapose.runtime.results.formats.writer import close_quietly
from mambapose.runtime.results.journal import Record
from mambapose.runtime.skeleton import COCO17, H36M17


class CsvWriter:
    """poses.csv: one row per person and frame; cells without a value stay empty."""

    def __init__(self, path: Path, meta: Mapping[str, object]) -> None:
        self._file: TextIO = path.open("w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file)
        flat = [f"{joint}_{part}" for joint in COCO17.joints for part in ("x", "y", "score")]
        solid = [f"{joint}_3d_{axis}" for joint in H36M17.joints for axis in "xyz"]
        self._no_xyz = [None] * len(solid)
        own = ["frame", "timestamp", "track", "box_x0", "box_y0", "box_x1", "box_y1"]
        self._rows.writerow([*own, *flat, *solid, "corrupt"])

    def add(self, record: Record) -> None:
        for person in record["people"]:
            row = [record["frame"], record["timestamp"], person["id"], *person["box"]]
            for (x, y), score in zip(person["xy"], person["score"], strict=True):
                row += [x, y, score]
            xyz = person["xyz"]
            row += self._no_xyz if xyz is None else [value for joint in xyz for value in joint]
            self._rows.writerow([*row, int("corrupt" in record)])

    def finish(self) -> None:
        self._file.flush()

    def __enter__(self) -> CsvWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        close_quietly(self._file)
