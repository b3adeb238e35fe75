"""What a run writes while it goes on: its journal and its overlay video.

Both begin with the first result. A run that ends before it has one, because its video or its range
holds no frame, leaves the folder and an earlier run in it as they were.
"""

from __future__ import annotations

from collections.abc import Mapping

from mambapose.runtime.pipeline import FrameResult, Pipeline
from mambapose.runtime.results.destination import Destination
from mambapose.runtime.results.journal import Journal
from mambapose.runtime.results.painter import Painter
from mambapose.runtime.video.sources import Source


class Recording:
    """Takes the results of a run in order; ``seen`` gets all of them, ``lifted`` the complete ones.

    meta: the first line of the journal. frames and people: how many there were; corrupt_frames: of
    which parts were made up by the decoder. Errors while it is entered close both files; the
    journal then tells of an interrupted run.
    """

    def __init__(
        self,
        destination: Destination,
        source: Source,
        pipeline: Pipeline,
        meta: Mapping[str, object],
    ) -> None:
        self._destination, self._pipeline, self._meta = destination, pipeline, meta
        self._journal: Journal | None = None
        self._lifts = pipeline.lifts_later
        self._ids: set[int] = set()
        self.corrupt_frames = 0
        label = meta["label"]
        self._painter = Painter(
            destination.overlay,
            source,
            pipeline,
            untrained=not meta["trained"],
            label=None if label is None else str(label),
        )

    @property
    def notes(self) -> list[str]:
        """What to tell about the overlay."""
        return self._painter.notes

    @property
    def frames(self) -> int:
        return 0 if self._journal is None else self._journal.frames

    @property
    def people(self) -> int:
        return len(self._ids)

    def seen(self, result: FrameResult) -> None:
        """Record a frame and its 2D poses; with its 3D joints unless they come later."""
        journal = self._journal or self._begin()
        with self._pipeline.times.measure("journal"):
            frame = result.frame
            journal.append(
                frame.index,
                frame.timestamp,
                result.stored_poses,
                waits=self._lifts,
                corrupt=frame.corrupt,
            )
        self.corrupt_frames += frame.corrupt
        self._painter.paint_now(result)
        self._ids.update(pose.track for pose in result.poses)

    def lifted(self, result: FrameResult) -> None:
        """Record the 3D joints of a frame that had to wait for them."""
        if self._lifts and self._journal is not None:
            with self._pipeline.times.measure("journal"):
                self._journal.lift(result.frame.index, result.poses)
        self._painter.paint_later(result)

    def finish(self, **facts: object) -> None:
        """Mark the run as complete."""
        if self._journal is not None:
            self._journal.finish(**facts)

    def _begin(self) -> Journal:
        """Replace an earlier run: from here on there is something to replace it with."""
        self._destination.clear()
        self._journal = Journal(self._destination.folder, self._meta)
        self._painter.start()
        return self._journal

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            self._painter.__exit__(kind, *rest)
        finally:
            if self._journal is not None:
                self._journal.__exit__(kind, *rest)
