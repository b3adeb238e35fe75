"""What ``import mambapose.runtime`` offers: poses of a video in one call, and its parts.

docs/api.md shows them in use. Every path may be a string or a Path.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mambapose.runtime import durable, loading
from mambapose.runtime.bundle.bundle import read_bundle
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.edges import edge
from mambapose.runtime.errors import IncompleteError, OutputError
from mambapose.runtime.pipeline import Pipeline
from mambapose.runtime.results.files import DEFAULT_FORMATS, PART, WRITERS, names_a_file
from mambapose.runtime.results.journal import pose_from_record
from mambapose.runtime.run_options import RunOptions
from mambapose.runtime.running import Run, run_video
from mambapose.runtime.types import Pose, Size, Where
from mambapose.runtime.video.pictures import MAX_PIXELS
from mambapose.runtime.video.sources import Source
from mambapose.runtime.video.sources import open_source as source_from_uri

PathLike = str | Path


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The poses of a run.

    poses: every person of every frame, in order. meta: what poses.json says of the run: source,
    bundle, skeletons, units. folder: where the files of the run are, None without ``out``.
    """

    poses: tuple[Pose, ...]
    meta: Mapping[str, Any]
    folder: Path | None
    _frames: tuple[dict[str, Any], ...]

    def __repr__(self) -> str:
        name = self.meta["source"]["name"]
        return f"Result({len(self.poses)} poses in {len(self._frames)} frames of {name})"

    def to_dict(self) -> dict[str, Any]:
        """The document of poses.json: ``meta`` and ``frames``."""
        return {"meta": dict(self.meta), "frames": list(self._frames)}

    def save(self, path: PathLike) -> Path:
        """Write the poses to ``path``, in the format of its suffix, such as .json, .npz or .csv.

        OutputError for another suffix, or where nothing can be written. An older file is replaced.
        """
        path = Path(path)
        form = path.suffix.lower().removeprefix(".")
        if form not in WRITERS:
            known = ", ".join(f".{name}" for name in WRITERS)
            raise OutputError(f"a file with the suffix {known} was wanted, found {path}")
        with (
            edge(OutputError, f"{path} cannot be written", "choose another place"),
            tempfile.TemporaryDirectory(dir=path.parent) as folder,
        ):
            part = Path(folder) / f"result{PART}"
            with WRITERS[form](part, self.meta) as writer:
                for frame in self._frames:
                    writer.add(frame)
                writer.finish()
            durable.replace(part, path)
        return path


def open_bundle(path: PathLike | None = None) -> Bundle:
    """The bundle in the folder ``path``, or the one that ships with the package.

    BundleError when the folder holds no valid bundle.
    """
    return read_bundle(loading.shipped_bundle() if path is None else path)


def open_source(
    source: PathLike, *, frame_range: str | None = None, max_pixels: int = MAX_PIXELS
) -> Source:
    """The frames of a video, a folder of images, a camera or a stream.

    frame_range: ``A:B`` keeps frames A to B-1; max_pixels: larger pictures are refused. Close the
    source, or use it in a ``with`` block. VideoError when it cannot be opened.
    """
    return source_from_uri(str(source), frame_range=frame_range, max_pixels=max_pixels)


def open_pipeline(
    bundle: Bundle | PathLike | None = None,
    size: Size | tuple[int, int] = Size(360, 640),
    options: RunOptions | None = None,
    where: Where | None = None,
    *,
    detector: PathLike | None = None,
) -> Pipeline:
    """The pipeline of a bundle for frames of ``size`` (height, width).

    bundle: an open bundle, the folder of one, or None for the one that ships. options: what the run
    asks for; where: backend, device and threads; detector: an ONNX file of a person detector.
    Close the pipeline, or use it in a ``with`` block. Raises BundleError and EngineError.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    found = None if detector is None else Path(detector)
    return loading.open_pipeline(opened, Size(*size), options, where, detector=found)


def run(
    source: PathLike,
    out: PathLike | None = None,
    *,
    bundle: Bundle | PathLike | None = None,
    where: Where | None = None,
    detect: PathLike | None = None,
    frame_range: str | None = None,
    height: float | None = None,
    lookahead: int | None = None,
    max_people: int | None = None,
    person: str | int | None = None,
    max_pixels: int = MAX_PIXELS,
    flow: bool = True,
    depth: bool = True,
    overlay: bool = False,
    formats: Sequence[str] = DEFAULT_FORMATS,
    overwrite: bool = False,
    quiet: bool = True,
) -> Result:
    """The poses of everybody in ``source``, as mp-run finds them with the options of that name.

    out: a folder that gets what mp-run writes, poses.json always; None writes nothing that stays.
    detect: a detector's file, or "none" to search for one person. quiet: print nothing. Errors are
    those of mp-run, all of them MambaPoseError; for a video that breaks off it is an
    IncompleteError with the poses up to there. KeyboardInterrupt on Ctrl-C, SIGTERM and SIGHUP;
    what was found until then is in ``out``.
    """
    if out is not None and names_a_file(Path(out)):
        raise OutputError(f"a folder was wanted as out, found {out}; save one file with save()")
    if bundle is None:
        engine = loading.shipped_bundle()
    else:
        engine = bundle.path if isinstance(bundle, Bundle) else Path(bundle)
    with tempfile.TemporaryDirectory(prefix="mambapose-") as temporary:
        folder = Path(temporary) / "run" if out is None else Path(out).absolute()
        asked = Run(
            source=str(source),
            bundle=engine,
            out=folder,
            where=where or Where(),
            detect=None if detect is None else str(detect),
            person=None if person is None else str(person),
            flow=flow,
            depth=depth,
            height=height,
            lookahead=lookahead,
            max_people=max_people,
            max_pixels=max_pixels,
            overlay=overlay,
            formats=tuple(dict.fromkeys(("json", *formats))),
            frame_range=frame_range,
            overwrite=overwrite,
            quiet=quiet,
        )
        kept = None if out is None else folder
        try:
            code = run_video(asked)
        except IncompleteError as err:
            err.result = _result(folder, kept)
            raise
        if code != 0:
            raise KeyboardInterrupt
        return _result(folder, kept)


def _result(folder: Path, kept: Path | None) -> Result:
    """What the run in ``folder`` wrote; kept: the folder, if it stays."""
    document = json.loads((folder / "poses.json").read_text(encoding="utf-8"))
    return Result(_poses(document), document["meta"], kept, tuple(document["frames"]))


def _poses(document: Mapping[str, Any]) -> tuple[Pose, ...]:
    """The people of poses.json as Poses."""
    return tuple(
        pose_from_record(frame["frame"], person)
        for frame in document["frames"]
        for person in frame["people"]
    )
