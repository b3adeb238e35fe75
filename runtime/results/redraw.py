"""The overlay video of an earlier run, drawn again from its journal and its source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from mambapose.runtime.edges import FAULTS
from mambapose.runtime.errors import OutputError
from mambapose.runtime.results.journal import JOURNAL, Record, pose_from_record
from mambapose.runtime.results.journal_reader import JournalReader
from mambapose.runtime.results.overlay import Overlay
from mambapose.runtime.results.painter import picture_from_array
from mambapose.runtime.types import Frame, Pose, Stretch
from mambapose.runtime.video.sources import Source, open_source


def redraw_overlay(folder: Path, video: Path, source: str | None = None) -> int:
    """Draw the journal in ``folder`` over its source into ``video``; returns the frames drawn.

    source: where the video or image folder is now; None takes the place where it was. Raises
    OutputError for a source that is gone, was a camera or stream, or has pictures of another size,
    and VideoError when it cannot be read.
    """
    reader = JournalReader(folder / JOURNAL)
    meta = reader.meta or {}
    facts = meta.get("source")
    facts = facts if isinstance(facts, dict) else {}
    place = source or facts.get("path")
    # A journal may come from somebody else: what it names is opened only if it is a file here.
    if source is None and not (isinstance(place, str) and _is_local(place)):
        place = None
    if not isinstance(place, str):
        raise OutputError(
            f"the overlay of {folder} was to be drawn again, its journal names no file that it was "
            "made from; give the video: mp-run VIDEO --recover --overlay"
        )
    with open_source(place) as frames:
        size = {"width": frames.stored_size.width, "height": frames.stored_size.height}
        wanted = {name: facts.get(name) for name in size}
        if reader.meta is not None and wanted != size:
            raise OutputError(
                f"the video of this run has {wanted['width']}x{wanted['height']} pixels, {place} "
                f"has {size['width']}x{size['height']}; give the video that the run was made from"
            )
        with Overlay(video, frames.size, frames.fps) as overlay:
            return _draw(overlay, frames, iter(reader), meta)


def _is_local(place: str) -> bool:
    try:
        return Path(place).is_file() or Path(place).is_dir()
    except FAULTS:
        return False


def _draw(overlay: Overlay, frames: Source, records: Iterator[Record], meta: Record) -> int:
    from mambapose.runtime.results.draw import draw_poses

    label = meta.get("label")
    count = 0
    for frame, record in _matched(frames, records):
        picture = picture_from_array(frame.image)
        poses = [
            shown_pose(pose_from_record(frame.index, person), frame.stretch)
            for person in record["people"]
        ]
        untrained = meta.get("trained") is False
        draw_poses(picture, poses, untrained=untrained, label=label and str(label))
        overlay.write(np.asarray(picture), frame.timestamp)
        count += 1
    return count


def shown_pose(pose: Pose, stretch: Stretch) -> Pose:
    """A pose in px of the file's picture, in px of its frame, whose pixels are square."""
    box = stretch.shown(pose.box.reshape(2, 2)).reshape(4)
    return replace(pose, box=box, xy=stretch.shown(pose.xy))


def _matched(frames: Source, records: Iterator[Record]) -> Iterator[tuple[Frame, Record]]:
    """Frames with what the journal says of them; both in order of the frame's number."""
    record = next(records, None)
    for frame in frames:
        while record is not None and record["frame"] < frame.index:
            record = next(records, None)
        if record is None:
            return
        if record["frame"] == frame.index:
            yield frame, record
