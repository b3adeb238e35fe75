"""Result files made from the journal, each format by its writer.

One pass over the journal feeds every writer; memory does not grow with the number of frames.
Files are written beside their names and renamed when all of them are complete. xyz is null, NaN or
empty without a lifter, and where a killed run had not come to it yet. A new format is a module of
``formats`` and a row of WRITERS.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from mambapose.runtime import durable
from mambapose.runtime.edges import edge
from mambapose.runtime.errors import OutputError
from mambapose.runtime.results.formats.csv import CsvWriter
from mambapose.runtime.results.formats.json import JsonWriter
from mambapose.runtime.results.formats.npz import NpzWriter
from mambapose.runtime.results.formats.writer import Writer
from mambapose.runtime.results.journal import JOURNAL
from mambapose.runtime.results.journal_reader import Damage, JournalReader
from mambapose.runtime.skeleton import COCO17, H36M17, Skeleton

WRITERS: Mapping[str, Callable[[Path, Mapping[str, object]], Writer]] = {
    "json": JsonWriter,
    "npz": NpzWriter,
    "csv": CsvWriter,
}
DEFAULT_FORMATS = ("json", "npz", "csv")
FORMAT_VERSION = 1
PART = ".part"  # ends the name of a file that is not complete yet


def conventions(unit: str = "body heights") -> dict[str, object]:
    """The part of every run's meta that says what the numbers mean; unit: of the 3D joints."""
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
            "xyz": unit,
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
    """Result files and what they hold.

    complete: whether the run had reached its end. damage: the lines of the journal left out.
    unlifted: the frames whose 3D joints were still waited for when the run was killed.
    """

    paths: list[Path]
    frames: int
    complete: bool
    damage: Damage
    unlifted: int = 0


def write_results(
    outdir: Path, formats: Sequence[str] = DEFAULT_FORMATS, file: Path | None = None
) -> Written:
    """The result files made from OUTDIR/poses.ndjson, in the order of formats.

    file: where the result goes when there is a single format; otherwise they are OUTDIR/poses.*.
    The meta gains ``complete`` (the run reached its end and no line is damaged), the facts of the
    end line and, when there are any, ``damaged_lines``. Raises OutputError; then no result file has
    been touched.
    """
    unknown = sorted(set(formats) - set(WRITERS))
    if unknown:
        raise OutputError(
            f"result formats {', '.join(WRITERS)} can be written, found {', '.join(unknown)}"
        )
    paths = [file] if file is not None else [outdir / f"poses.{name}" for name in formats]
    parts = [path.with_name(path.name + PART) for path in paths]
    reader = JournalReader(outdir / JOURNAL)
    try:
        with edge(
            OutputError,
            f"results in {outdir} cannot be written",
            f"every frame is safe in {JOURNAL}: free some space, then make the results with mp-run "
            "--recover",
        ):
            presumed = _meta(reader)
            frames = _write_parts(reader, parts, formats, presumed)
            if (found := _meta(reader)) != presumed:  # damage that nobody could know of before
                frames = _write_parts(reader, parts, formats, found)
            for part, path in zip(parts, paths, strict=True):
                durable.replace(part, path)
    finally:
        for part in parts:
            with suppress(OSError):
                part.unlink(missing_ok=True)
    return Written(paths, frames, bool(found["complete"]), reader.damage, reader.unlifted)


def _meta(reader: JournalReader) -> dict[str, object]:
    """The meta of results, by what the reader knows of the journal so far."""
    meta = reader.meta
    if meta is None:
        meta = conventions(unit="unknown: the first line of the journal is damaged")
    lines = reader.damage.lines
    complete = reader.end is not None and lines == 0
    damaged = {"damaged_lines": lines} if lines else {}
    return {**meta, **(reader.end or {}), "complete": complete, **damaged}


def _write_parts(
    reader: JournalReader,
    parts: Sequence[Path],
    formats: Sequence[str],
    meta: Mapping[str, object],
) -> int:
    """Write every format into its part; returns the number of frames."""
    frames = 0
    with ExitStack() as stack:
        writers = [
            stack.enter_context(WRITERS[name](part, meta))
            for name, part in zip(formats, parts, strict=True)
        ]
        for record in reader:
            frames += 1
            for writer in writers:
                writer.add(record)
        for writer in writers:
            writer.finish()
    return frames


def names_a_file(out: Path) -> bool:
    """Whether ``out`` names an overlay or a result file by its suffix, and is no folder."""
    named = out.suffix.lower() in (".mp4", *(f".{name}" for name in WRITERS))
    return named and not os.path.isdir(out)
