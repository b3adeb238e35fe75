"""One run of ``mp-run``: source, pipeline and files put together."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click

from mambapose.runtime.backends.loader import backend_from_name
from mambapose.runtime.bundle.bundle import read_bundle
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.errors import IncompleteError, VideoError
from mambapose.runtime.interrupt import Interruptible
from mambapose.runtime.loading import open_pipeline
from mambapose.runtime.people.one_person import search_note
from mambapose.runtime.pipeline import FrameResult, Pipeline, RunOptions
from mambapose.runtime.progress import Progress
from mambapose.runtime.results.destination import Destination, destination_of
from mambapose.runtime.results.files import DEFAULT_FORMATS
from mambapose.runtime.results.journal import JOURNAL, Journal
from mambapose.runtime.results.painter import Painter
from mambapose.runtime.results.report import (
    REPORT,
    absent_cues,
    label_text,
    labelled_stages,
    late_poses,
    lift_rule,
    people_rule,
    run_meta,
    untrained_stages,
    used_stages,
    write_report,
)
from mambapose.runtime.types import Frame, Where
from mambapose.runtime.video.edges import masked
from mambapose.runtime.video.pictures import MAX_PIXELS
from mambapose.runtime.video.prefetch import Prefetch
from mambapose.runtime.video.sources import Source, open_source

UNTRAINED = "untrained weights"


@dataclass(frozen=True)
class Run:
    """What the command line asks for.

    A field that is None takes the value of the bundle's schedule; threads None means all cores.
    """

    source: str
    bundle: Path
    out: Path = Path("out")
    where: Where = field(default_factory=Where)
    detect: Path | None = None
    flow: bool = True
    depth: bool = True
    depth_every: int | None = None
    detect_every: int | None = None
    flow_iters: int | None = None
    height: float | None = None
    lookahead: int | None = None
    max_people: int = 10
    max_pixels: int = MAX_PIXELS
    overlay: bool = False
    formats: tuple[str, ...] = DEFAULT_FORMATS
    frame_range: str | None = None
    overwrite: bool = False
    quiet: bool = False

    @property
    def options(self) -> RunOptions:
        """The options among these that the pipeline needs."""
        return RunOptions(
            flow=self.flow,
            depth=self.depth,
            depth_every=self.depth_every,
            detect_every=self.detect_every,
            flow_iters=self.flow_iters,
            height=self.height,
            lookahead=self.lookahead,
            max_people=self.max_people,
        )


def run_video(run: Run) -> int:
    """Do the run; returns the exit code: 0, or 130 after Ctrl-C.

    A video that breaks off raises IncompleteError after everything up to there has been written.
    """
    destination = destination_of(run.out, run.formats, overlay=run.overlay)
    destination.check(run.source, overwrite=run.overwrite)
    bundle = read_bundle(run.bundle)
    with ExitStack() as stack:
        source = stack.enter_context(
            open_source(run.source, frame_range=run.frame_range, max_pixels=run.max_pixels)
        )
        with noted_warnings() as notes:
            notes += source.notes
            pipeline = stack.enter_context(
                open_pipeline(
                    bundle,
                    source.size,
                    run.options,
                    run.where,
                    detector=run.detect,
                )
            )
        if "detect" not in pipeline.engines:
            notes.append(people_rule(pipeline))
            if gaps := search_note(source.size):
                notes.append(gaps)
        if (rule := lift_rule(pipeline)) and not (run.lookahead is None and pipeline.lifts_later):
            notes.append(rule)
        if late := late_poses(pipeline):
            notes.append(late)
        if absent := absent_cues(bundle):
            notes.append(f"without {' and '.join(absent)}: the bundle does not hold them")
        if label := label_text(labelled_stages(bundle, pipeline)):
            notes.append(f"{label}: good enough to look at, not to measure with; see mp-check")
        if untrained := untrained_stages(bundle, pipeline):
            notes.append(f"{UNTRAINED} ({', '.join(untrained)}): the poses mean nothing")
        say(run, notes)
        destination.clear()
        try:
            outcome = record(run, destination, bundle, source, pipeline, notes)
        except BaseException as err:
            if not destination.discard_if_empty() and isinstance(err, KeyboardInterrupt):
                say(run, [f"mp-run --recover --out {run.out} makes the results of what is done"])
            raise
    written = destination.write_results()
    tell_results(run, destination, written.paths, outcome)
    if outcome.problem is not None:
        raise IncompleteError(
            f"{outcome.problem}; the results hold {_count(outcome.frames, 'frame')}"
        )
    return 130 if outcome.interrupted else 0


@dataclass(frozen=True)
class Outcome:
    """How a run ended. problem: why the video broke off, or None."""

    frames: int = 0
    seconds: float = 0.0
    people: int = 0
    interrupted: bool = False
    problem: str | None = None


def record(
    run: Run,
    destination: Destination,
    bundle: Bundle,
    source: Source,
    pipeline: Pipeline,
    notes: list[str],
) -> Outcome:
    """How the run ended, after every frame went into the journal, the overlay and run.json."""
    meta = run_meta(bundle, pipeline, source, masked(run.source), height=run.height)
    start = time.perf_counter()
    broken: list[VideoError] = []
    people: set[int] = set()
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(destination.folder, meta))
        painter = stack.enter_context(
            Painter(
                destination.overlay,
                source,
                pipeline,
                untrained=not meta["trained"],
                label=label_text(labelled_stages(bundle, pipeline)),
            )
        )
        say(run, painter.notes)
        progress = stack.enter_context(Progress(source.frame_count, quiet=run.quiet))
        stop = stack.enter_context(Interruptible())
        frames = stop.frames(whole_frames(stack.enter_context(Prefetch(source)), broken))
        lifts = pipeline.lifts_later

        def seen(result: FrameResult) -> None:
            with pipeline.times.measure("journal"):
                frame = result.frame
                journal.append(frame.index, frame.timestamp, result.stored_poses, waits=lifts)
            painter.paint_now(result)
            people.update(pose.track for pose in result.poses)
            progress.step()

        for result in pipeline.run(frames, seen):
            if lifts:
                with pipeline.times.measure("journal"):
                    journal.lift(result.frame.index, result.poses)
            painter.paint_later(result)
        problem = str(broken[0]) if broken else source.problem
        seconds = time.perf_counter() - start
        outcome = Outcome(journal.frames, seconds, len(people), stop.asked, problem)
        if not stop.asked:
            journal.finish(frames=outcome.frames, problem=problem)
    notes += painter.notes
    late = [note for note in source.notes if note not in notes]
    say(run, late)
    notes += late
    write_report(destination.folder, _report(run, meta, bundle, pipeline, outcome, notes))
    return outcome


def whole_frames(frames: Iterable[Frame], broken: list[VideoError]) -> Iterator[Frame]:
    """The frames up to the first that cannot be read.

    Its error is put into ``broken``, or raised when there is no frame before it.
    """
    count = 0
    try:
        for frame in frames:
            count += 1
            yield frame
    except VideoError as err:
        if count == 0:
            raise
        broken.append(err)


def _report(
    run: Run,
    meta: Mapping[str, object],
    bundle: Bundle,
    pipeline: Pipeline,
    outcome: Outcome,
    notes: list[str],
) -> dict[str, object]:
    """The facts of run.json."""
    return {
        "source": meta["source"],
        "bundle": str(bundle.path),
        "bundle_hash": bundle.hash,
        "backend": backend_from_name(run.where.backend),
        "device": run.where.device,
        "threads": run.where.thread_count,
        "frames": outcome.frames,
        "people": outcome.people,
        "seconds": round(outcome.seconds, 3),
        "frames_per_second": round(outcome.frames / max(outcome.seconds, 1e-9), 3),
        "interrupted": outcome.interrupted,
        "problem": outcome.problem,
        "notes": notes,
        "stages": used_stages(pipeline),
        "lifter": meta["lifter"],
        "label": meta["label"],
        "times": pipeline.times.summary(),
        "memory": pipeline.memory(),
    }


def recover_results(out: Path, formats: tuple[str, ...], *, quiet: bool = False) -> None:
    """Write the results of an interrupted run from its journal, for ``--recover``."""
    destination = destination_of(out, formats)
    written = destination.write_results()
    if not quiet:
        state = "a complete run" if written.complete else "an interrupted run"
        click.echo(f"{destination.folder / JOURNAL}: {_count(written.frames, 'frame')} of {state}")
        for path in written.paths:
            click.echo(f"wrote {path}")


def say(run: Run, notes: Iterable[str]) -> None:
    """Print notes to stderr unless the run is quiet; notes that make results worthless are red."""
    for note in () if run.quiet else notes:
        click.secho(f"note: {note}", err=True, fg="red" if note.startswith(UNTRAINED) else None)


def tell_results(run: Run, destination: Destination, paths: list[Path], outcome: Outcome) -> None:
    """Print the last lines of a run: which results were written where."""
    if run.quiet:
        return
    overlay = [] if destination.overlay is None else [destination.overlay]
    for path in [*paths, *overlay, destination.folder / REPORT]:
        click.echo(f"wrote {path}")
    people = _count(outcome.people, "person", "people")
    rate = outcome.frames / max(outcome.seconds, 1e-9)
    stopped = ", stopped by Ctrl-C" if outcome.interrupted else ""
    frames = _count(outcome.frames, "frame")
    click.echo(f"{frames}, {people}, {rate:.1f} frames per second{stopped}")


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


@contextmanager
def noted_warnings() -> Iterator[list[str]]:
    """A list that receives our own warnings of the block as notes; others pass through."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notes
    for item in caught:
        if item.category.__module__.startswith("mambapose."):
            notes.append(str(item.message))
        else:
            warnings.warn_explicit(item.message, item.category, item.filename, item.lineno)
