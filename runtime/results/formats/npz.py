"""poses.npz, one row per person and frame.

frame_index (R,), timestamp (R,), track (R,), box (R, 4), xy (R, J, 2), score (R, J) and
xyz (R, 17, 3); frames (F,), times (F,) and corrupt (F,) of every frame, also those without people,
corrupt where the decoder made parts of the picture up; meta (JSON).
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mambapose.runtime.errors import OutputError
from mambapose.runtime.results.journal import Record
from mambapose.runtime.skeleton import COCO17, H36M17


class NpzWriter:
    """poses.npz: each array grows in an unnamed file of its own, then they are zipped."""

    COLUMNS: Mapping[str, tuple[str, tuple[int, ...]]] = {
        "frame_index": ("<i8", ()),
        "timestamp": ("<f8", ()),
        "track": ("<i8", ()),
        "box": ("<f4", (4,)),
        "xy": ("<f4", (len(COCO17.joints), 2)),
        "score": ("<f4", (len(COCO17.joints),)),
        "xyz": ("<f4", (len(H36M17.joints), 3)),
        "frames": ("<i8", ()),
        "times": ("<f8", ()),
        "corrupt": ("|b1", ()),
    }

    def __init__(self, path: Path, meta: Mapping[str, object]) -> None:
        self._path = path
        self._meta = json.dumps(meta, ensure_ascii=False, allow_nan=False)
        self._stack = ExitStack()
        self._columns: dict[str, BinaryIO] = {}
        for name in self.COLUMNS:
            column = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115
            self._columns[name] = self._stack.enter_context(column)
        self._no_xyz = np.full(self.COLUMNS["xyz"][1], np.nan)

    def add(self, record: Record) -> None:
        self._put("frames", record["frame"])
        self._put("times", record["timestamp"])
        self._put("corrupt", "corrupt" in record)
        for person in record["people"]:
            self._put("frame_index", record["frame"])
            self._put("timestamp", record["timestamp"])
            self._put("track", person["id"])
            self._put("box", person["box"])
            self._put("xy", person["xy"])
            self._put("score", person["score"])
            self._put("xyz", self._no_xyz if person["xyz"] is None else person["xyz"])

    def _put(self, name: str, value: Any) -> None:
        dtype, shape = self.COLUMNS[name]
        array = np.array(value, dtype)
        if array.shape != shape:
            raise OutputError(f"journal: {name} of shape {shape} was wanted, found {array.shape}")
        self._columns[name].write(array.tobytes())

    def finish(self) -> None:
        with zipfile.ZipFile(self._path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, column in self._columns.items():
                self._add_member(archive, name, column)
            with archive.open("meta.npy", "w") as member:
                np.lib.format.write_array(member, np.array(self._meta), allow_pickle=False)

    def _add_member(self, archive: zipfile.ZipFile, name: str, column: BinaryIO) -> None:
        dtype, shape = self.COLUMNS[name]
        rows = column.tell() // (np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64)))
        header = {"descr": dtype, "fortran_order": False, "shape": (rows, *shape)}
        column.seek(0)
        with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            while block := column.read(1 << 20):
                member.write(block)

    def __enter__(self) -> NpzWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
