"""What ``import mambapose.runtime`` offers: poses of a video in one call, and its parts.

docs/api.md shows them in use. Every path may be a string or a Path.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mambapose.runtime import loading
from mambapose.runtime.bundle.bundle import read_bundle
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.errors import OutputError
from mambapose.runtime.pipeline import Pipeline, RunOptions
from mambapose.runtime.results.files import WRITERS, write_results
from mambapose.runtime.results.journal import JOURNAL
from mambapose.runtime.running import Run, run_video
from mambapose.runtime.types import Pose, Size, Where
from mambapose.runtime.video.sources import Source
from mambapose.runtime.video.sources import open_source as source_from_uri

PathLike = str | Path


@dataclass(frozen=True)
class Result:
    """The poses of a run.

    poses: every person of every frame, in order. meta: the facts that poses.json records about the
    run: source, bundle, skeletons, units. folder: where the files are; when no ``out`` was given,
    it is a temporary folder that is removed together with the Result.
    """

    poses: tuple[Pose, ...]
    meta: Mapping[str, Any]
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """The document of poses.json: ``meta`` and ``frames``."""
        document: dict[str, Any] = json.loads((self.folder / "poses.json").read_text())
        return document

    def save(self, path: PathLike) -> Path:
        """Write the poses to ``path``, in the format of its suffix: .json, .npz or .csv.

        OutputError for another suffix, or where nothing can be written. An older file is replaced.
        """
        path = Path(path)
        form = path.suffix.lower().removeprefix(".")
        if form not in WRITERS:
            known = ", ".join(f".{name}" for name in WRITERS)
            raise OutputError(f"a file with the suffix {known} was wanted, found {path}")
        try:
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                shutil.copyfile(self.folder / JOURNAL, Path(folder) / JOURNAL)
                write_results(Path(folder), (form,)).paths[0].replace(path)
        except OSError as err:
            raise OutputError(f"{path} cannot be written ({err.strerror or err})") from err
        return path


def open_bundle(path: PathLike | None = None) -> Bundle:
    """The bundle in the folder ``path``, or the one that ships with the package.

    BundleError when the folder holds no valid bundle.
    """
    return read_bundle(loading.shipped_bundle() if path is None else path)


def open_source(source: PathLike, *, frame_range: str | None = None) -> Source:
    """The frames of a video, a folder of images, a camera or a stream.

    frame_range: ``A:B`` keeps frames A to B-1. Close the source, or use it in a ``with`` block.
    VideoError when it cannot be opened.
    """
    return source_from_uri(str(source), frame_range=frame_range)


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
    bundle: PathLike | None = None,
    overwrite: bool = False,
    quiet: bool = True,
    **options: Any,
) -> Result:
    """The poses of everybody in ``source``, as mp-run finds them.

    out: a folder that gets what mp-run writes; None writes nothing that stays. options: the other
    fields of ``mambapose.runtime.running.Run``, such as ``height=1.75``, ``frame_range="0:100"``,
    ``overlay=True``, ``detect=Path("yolox.onnx")``. Errors are those of mp-run, all of them
    MambaPoseError; a video that breaks off raises VideoError after everything was written.
    """
    folder = Path(tempfile.mkdtemp(prefix="mambapose-")) / "run" if out is None else Path(out)
    if folder.suffix.lower() in (".mp4", *(f".{name}" for name in WRITERS)):
        raise OutputError(f"a folder was wanted as out, found {folder}; save one file with save()")
    engine = loading.shipped_bundle() if bundle is None else Path(bundle)
    try:
        run_video(Run(str(source), engine, folder, overwrite=overwrite, quiet=quiet, **options))
        document = json.loads((folder / "poses.json").read_text())
    except BaseException:
        if out is None:
            shutil.rmtree(folder.parent, ignore_errors=True)
        raise
    result = Result(_poses(document), document["meta"], folder)
    if out is None:
        weakref.finalize(result, shutil.rmtree, folder.parent, ignore_errors=True)
    return result


def _poses(document: Mapping[str, Any]) -> tuple[Pose, ...]:
    """The people of poses.json as Poses."""
    return tuple(
        Pose(
            frame["frame"],
            person["id"],
            np.array(person["box"], np.float32),
            np.array(person["xy"], np.float32),
            np.array(person["score"], np.float32),
            None if person["xyz"] is None else np.array(person["xyz"], np.float32),
        )
        for frame in document["frames"]
        for person in frame["people"]
    )
