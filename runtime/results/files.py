"""Result files made from the journal: poses.json, poses.npz and poses.csv.

One pass over the journal feeds every writer; memory does not grow with the number of frames.
Files are written beside their names and renamed when all of them are complete.

    poses.json  {"meta": {...}, "frames": [{"frame", "timestamp", "people"}, one per line]}
    poses.npz   one row per person and frame: frame_index (R,), timestamp (R,), track (R,),
                box (R, 4), xy (R, J, 2), score (R, J), xyz (R, 17, 3); frames (F,) and times (F,)
                of every frame, also those without people; meta (JSON)
    poses.csv   the same rows with a header of joint names

xyz is null, NaN or empty without a lifter, and where a killed run had not come to it yet.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TextIO

import numpy as np

from mambapose.runtime.errors import OutputError
from mambapose.runtime.results.journal import (
    JOURNAL,
    Record,
    journal_state,
    json_text,
    read_journal,
)
from mambapose.runtime.skeleton import COCO17, H36M17, Skeleton

FORMAT_VERSION = 1


def conventions() -> dict[str, object]:
    """The part of every run's meta that says what the numbers mean; merge it into the meta."""
    return {
        "format_version": FORMAT_VERSION,
        "skeletons": {
            "xy": _skeleton_facts(COCO17),
            "xyz": _skeleton_facts(H36M17),
        },
        "units": {
            "timestamp": "seconds from the first frame of the source",
            "box": "pixels of the original frame, x0 y0 x1 y1",
            "xy": "pixels of the original frame",
            "score": "heatmap peak, 0 to 1",
            "xyz": "body heights",
        },
        "axes": {
            "xy": "x right, y down; whole numbers are pixel centres, (0, 0) the top left one",
            "xyz": "relative to the pelvis, as seen by the camera: x right, y down, z away from it",
        },
    }


def _skeleton_facts(skeleton: Skeleton) -> dict[str, object]:
    return {
        "name": skeleton.name,
        "joints": list(skeleton.joints),
        "edges": [list(edge) for edge in skeleton.edges],
    }


@dataclass(frozen=True)
class Written:
    """Result files and what they hold. complete: the run had reached its end."""

    paths: list[Path]
    frames: int
    complete: bool


def write_results(outdir: Path, formats: Sequence[str] = ("json", "npz", "csv")) -> Written:
    """The result files made from OUTDIR/poses.ndjson, in the order of formats.

    The meta gains ``complete`` (the run reached its end) and the facts of the end line. Raises
    OutputError; then no result file has been touched.
    """
    unknown = sorted(set(formats) - set(WRITERS))
    if unknown:
        raise OutputError(
            f"result formats {', '.join(WRITERS)} can be written, found {', '.join(unknown)}"
        )
    journal = outdir / JOURNAL
    state = journal_state(journal)
    complete = state.end is not None
    meta = {**state.meta, **(state.end or {}), "complete": complete}
    paths = [outdir / f"poses.{name}" for name in formats]
    parts = [path.with_name(path.name + ".part") for path in paths]
    frames = 0
    try:
        with ExitStack() as stack:
            writers = [
                stack.enter_context(WRITERS[name](part, meta))
                for name, part in zip(formats, parts, strict=True)
            ]
            for record in read_journal(journal):
                frames += 1
                for writer in writers:
                    writer.add(record)
            for writer in writers:
                writer.finish()
        for part, path in zip(parts, paths, strict=True):
            part.replace(path)
    except OSError as err:
        raise OutputError(
            f"results in {outdir} cannot be written ({err.strerror or err}); every frame is safe "
            f"in {JOURNAL}: free some space, then make the results with mp-run --recover"
        ) from err
    finally:
        for part in parts:
            with suppress(OSError):
                part.unlink(missing_ok=True)
    return Written(paths, frames, complete)


class Writer(Protocol):
    """Takes frames one by one; finish() completes the file; leaving the context frees it."""

    def add(self, record: Record) -> None: ...

    def finish(self) -> None: ...

    def __enter__(self) -> Writer: ...

    def __exit__(self, *exception: object) -> None: ...


class JsonWriter:
    """poses.json: one frame per line."""

    def __init__(self, path: Path, meta: Mapping[str, object]) -> None:
        self._file = path.open("wb")
        self._before = b"\n"
        text = json.dumps(meta, ensure_ascii=False, allow_nan=False)
        self._file.write(b'{"meta": ' + text.encode() + b',\n"frames": [')

    def add(self, record: Record) -> None:
        self._file.write(self._before + json_text(record).encode())
        self._before = b",\n"

    def finish(self) -> None:
        self._file.write(b"\n]}\n")
        self._file.flush()

    def __enter__(self) -> JsonWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        _close(self._file)


class CsvWriter:
    """poses.csv: one row per person and frame; cells without a value stay empty."""

    def __init__(self, path: Path, meta: Mapping[str, object]) -> None:
        self._file: TextIO = path.open("w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file)
        flat = [f"{joint}_{part}" for joint in COCO17.joints for part in ("x", "y", "score")]
        solid = [f"{joint}_3d_{axis}" for joint in H36M17.joints for axis in "xyz"]
        self._no_xyz = [None] * len(solid)
        self._rows.writerow(
            ["frame", "timestamp", "track", "box_x0", "box_y0", "box_x1", "box_y1", *flat, *solid]
        )

    def add(self, record: Record) -> None:
        for person in record["people"]:
            row = [record["frame"], record["timestamp"], person["id"], *person["box"]]
            for (x, y), score in zip(person["xy"], person["score"], strict=True):
                row += [x, y, score]
            xyz = person["xyz"]
            row += self._no_xyz if xyz is None else [value for joint in xyz for value in joint]
            self._rows.writerow(row)

    def finish(self) -> None:
        self._file.flush()

    def __enter__(self) -> CsvWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        _close(self._file)


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


def _close(file: io.IOBase | TextIO) -> None:
    # What could not be flushed was reported by finish(); a second error would hide it.
    with suppress(OSError):
        file.close()


WRITERS: Mapping[str, Callable[[Path, Mapping[str, object]], Writer]] = {
    "json": JsonWriter,
    "npz": NpzWriter,
    "csv": CsvWriter,
}
