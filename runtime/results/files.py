"""Result files made from the journal, each format by its writer.

One pass over the journal feeds every writer; memory does not grow with the number of frames.
Files are written beside their names and renamed when all of them are complete. xyz is null, NaN or
empty without a lifter, and where a killed run had not come to it yet. A new format is a module of
``formats`` and a row of WRITERS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from mambapose.runtime.errors import OutputError
from mambapose.runtime.results.formats.csv import CsvWriter
from mambapose.runtime.results.formats.json import JsonWriter
from mambapose.runtime.results.formats.npz import NpzWriter
from mambapose.runtime.results.formats.writer import Writer
from mambapose.runtime.results.journal import JOURNAL, journal_state, read_journal
from mambapose.runtime.skeleton import COCO17, H36M17, Skeleton

WRITERS: Mapping[str, Callable[[Path, Mapping[str, object]], Writer]] = {
    "json": JsonWriter,
    "npz": NpzWriter,
    "csv": CsvWriter,
}
DEFAULT_FORMATS = ("json", "npz", "csv")
FORMAT_VERSION = 1


def conventions() -> dict[str, object]:
    """The part of every run's meta that says what the numbers mean."""
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
    """Result files and what they hold. complete: whether the run had reached its end."""

    paths: list[Path]
    frames: int
    complete: bool


def write_results(outdir: Path, formats: Sequence[str] = DEFAULT_FORMATS) -> Written:
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
