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
from mambapose.runtime.errors import IncompleteError, OutputError, VideoError
from mambapose.runtime.interrupt import Interruptible, exit_code, signal_name
from mambapose.runtime.loading import open_pipeline
from mambapose.runtime.people.one_person import search_note
from mambapose.runtime.pipeline import FrameResult, Pipeline
from mambapose.runtime.progress import Progress
from mambapose.runtime.recording import Recording
from mambapose.runtime.results.destination import Destination, destination_of
from mambapose.runtime.results.files import DEFAULT_FORMATS
from mambapose.runtime.results.journal import JOURNAL
from mambapose.runtime.results.redraw import redraw_overlay
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
from mambapose.runtime.run_options import RunOptions
from mambapose.runtime.text import printable
from mambapose.runtime.types import Frame, Where
from mambapose.runtime.video.edges import masked
from mambapose.runtime.video.pictures import MAX_PIXELS
from mambapose.runtime.video.prefetch import Prefetch
from mambapose.runtime.video.sources import Source, open_source

UNTRAINED = "untrained weights"
NO_DETECTOR = "none"


@dataclass(frozen=True)
class Run:
    """What the command line asks for.

    A field that is None takes the value of the bundle's schedule; threads None means all cores.
    detect: the file of a detector, or NO_DETECTOR to search for one person.
    """

    source: str
    bundle: Path
    out: Path = Path("out")
    where: Where = field(default_factory=Where)
    detect: str | None = None
    person: str | None = None
    flow: bool = True
    depth: bool = True
    depth_every: int | None = None
    detect_every: int | None = None
    flow_iters: int | None = None
    height: float | None = None
    lookahead: int | None = None
    max_people: int | None = None
    max_pixels: int = MAX_PIXELS
    overlay: bool = False
    formats: tuple[str, ...] = DEFAULT_FORMATS
    frame_range: str | None = None
    overwrite: bool = False
    quiet: bool = False

    @property
    def detector(self) -> Path | None:
        """The file of a detector to use instead of the bundle's, if one is given."""
        return None if self.detect in (None, NO_DETECTOR) else Path(str(self.detect))

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
            detect=self.detect != NO_DETECTOR,
            max_people=self.max_people,
            person=self.person,
        )


def run_video(run: Run) -> int:
    """Do the run; returns the exit code: 0, 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.

    A video that breaks off raises IncompleteError after everything up to there has been written.
    """
    destination = destination_of(run.out, run.formats, overlay=run.overlay)
    with destination.locked() as notes:
        destination.check(run.source, overwrite=run.overwrite)
        before, stop = destination.journal_state(), Interruptible()
        try:
            outcome = _run_into(destination, run, notes, stop)
            if outcome.frames:
                written = destination.write_results()
                tell_results(run, destination, written.paths, outcome)
            else:
                say(run, ["stopped before the first frame: nothing was written"])
        except (KeyboardInterrupt, OutputError):
            if destination.journal_state() not in (before, None):
                say(run, [f"mp-run --recover --out {run.out} makes the results of what is done"])
            raise
        finally:
            stop.restore()
    if outcome.problem is not None:
        raise IncompleteError(
            f"{outcome.problem}; the results hold {_count(outcome.frames, 'frame')}"
        )
    return 0 if stop.asked is None else exit_code(stop.asked)


def _run_into(destination: Destination, run: Run, notes: list[str], stop: Interruptible) -> Outcome:
    """How the run ended, after its journal, overlay and run.json were written.

    stop: from the first frame on it takes signals, until the caller restores them.
    """
    bundle = read_bundle(run.bundle)
    with ExitStack() as stack:
        source = stack.enter_context(
            open_source(run.source, frame_range=run.frame_range, max_pixels=run.max_pixels)
        )
        notes += source.notes
        with noted_warnings(notes):
            pipeline = stack.enter_context(
                open_pipeline(
                    bundle,
                    source.size,
                    run.options,
                    run.where,
                    detector=run.detector,
                )
            )
        notes += _opening_notes(run, bundle, source, pipeline)
        say(run, notes)
        return record(run, destination, bundle, source, pipeline, notes, stop)


def _opening_notes(run: Run, bundle: Bundle, source: Source, pipeline: Pipeline) -> list[str]:
    """What a person should know before the first frame."""
    notes = []
    if "detect" not in pipeline.engines:
        notes.append(people_rule(pipeline))
        if gaps := search_note(source.size):
            notes.append(gaps)
        if run.max_people is not None:
            notes.append("--max-people has no effect without a detector")
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
    return notes


@dataclass(frozen=True)
class Outcome:
    """How a run ended. signal: which one stopped it; problem: why the video broke off; or None.

    others: the numbers of people who were not reported, as another person was asked for.
    """

    frames: int = 0
    seconds: float = 0.0
    people: int = 0
    corrupt_frames: int = 0
    signal: int | None = None
    problem: str | None = None
    others: tuple[int, ...] = ()


def record(
    run: Run,
    destination: Destination,
    bundle: Bundle,
    source: Source,
    pipeline: Pipeline,
    notes: list[str],
    stop: Interruptible,
) -> Outcome:
    """How the run ended, after every frame went into the journal, the overlay and run.json."""
    meta = run_meta(bundle, pipeline, source, masked(run.source), height=run.height)
    start = time.perf_counter()
    broken: list[VideoError] = []
    with ExitStack() as stack:
        recording = stack.enter_context(Recording(destination, source, pipeline, meta))
        say(run, recording.notes)
        progress = stack.enter_context(Progress(source.frame_count, quiet=run.quiet))
        stop.start()
        ahead = stack.enter_context(Prefetch(source, stop=lambda: stop.asked is not None))

        def seen(result: FrameResult) -> None:
            recording.seen(result)
            progress.step()

        for result in pipeline.run(stop.frames(whole_frames(ahead, broken)), seen):
            recording.lifted(result)
        problem = str(broken[0]) if broken else source.problem
        seconds = time.perf_counter() - start
        outcome = Outcome(
            recording.frames,
            seconds,
            recording.people,
            recording.corrupt_frames,
            stop.asked,
            problem,
            pipeline.passed_over,
        )
        if stop.asked is None:
            if outcome.frames == 0:
                raise VideoError(f"{masked(run.source)} gave no frame; check the source")
            recording.finish(frames=outcome.frames, problem=problem)
    notes += recording.notes
    late = [note for note in source.notes if note not in notes]
    say(run, late)
    notes += late
    if outcome.frames:
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
        "bundle": printable(str(bundle.path)),
        "bundle_hash": bundle.hash,
        "backend": backend_from_name(run.where.backend),
        "device": run.where.device,
        "threads": run.where.thread_count,
        "frames": outcome.frames,
        "corrupt_frames": outcome.corrupt_frames,
        "people": outcome.people,
        "seconds": round(outcome.seconds, 3),
        "frames_per_second": round(outcome.frames / max(outcome.seconds, 1e-9), 3),
        "interrupted": outcome.signal is not None,
        "problem": outcome.problem,
        "notes": notes,
        "stages": used_stages(pipeline),
        "lifter": meta["lifter"],
        "label": meta["label"],
        "times": pipeline.times.summary(),
        "memory": pipeline.memory(),
    }


def recover_results(
    out: Path,
    formats: tuple[str, ...],
    *,
    overlay: bool = False,
    source: str | None = None,
    quiet: bool = False,
) -> None:
    """Write the results of an interrupted run from its journal, for ``--recover``.

    overlay: also draw its video again, from ``source`` or from where the video was. Raises
    OutputError and VideoError.
    """
    destination = destination_of(out, formats, overlay=overlay)
    with destination.locked():
        written = destination.write_results()
        if not quiet:
            state = "a complete run" if written.complete else "an interrupted run"
            journal = destination.folder / JOURNAL
            waited = f", {written.unlifted} of them without 3D, which waited for later frames"
            done = (
                f"{_count(written.frames, 'frame')} of {state}{waited if written.unlifted else ''}"
            )
            click.echo(printable(f"{journal}: {done}"))
            for path in written.paths:
                click.echo(printable(f"wrote {path}"))
        if written.damage.lines:
            click.secho(
                f"note: {_count(written.damage.lines, 'line')} of the journal "
                f"{'is' if written.damage.lines == 1 else 'are'} damaged and left out; "
                f"{written.damage.first}",
                err=True,
            )
        if overlay and destination.overlay is not None:
            drawn = redraw_overlay(destination.folder, destination.overlay, source)
            if not quiet:
                click.echo(printable(f"wrote {destination.overlay}: {_count(drawn, 'frame')}"))


def say(run: Run, notes: Iterable[str]) -> None:
    """Print notes to stderr unless the run is quiet; notes that make results worthless are red."""
    for note in () if run.quiet else notes:
        click.secho(
            f"note: {printable(note)}", err=True, fg="red" if note.startswith(UNTRAINED) else None
        )


def tell_results(run: Run, destination: Destination, paths: list[Path], outcome: Outcome) -> None:
    """Print the last lines of a run: which results were written where."""
    if run.quiet:
        return
    overlay = [] if destination.overlay is None else [destination.overlay]
    own = [destination.folder / name for name in (REPORT, JOURNAL)]
    for path in [*paths, *overlay, *own]:
        click.echo(printable(f"wrote {path}"))
    if outcome.people == 0:
        say(run, [nobody(run, outcome)])
    people = _count(outcome.people, "person", "people")
    rate = outcome.frames / max(outcome.seconds, 1e-9)
    stopped = "" if outcome.signal is None else f", stopped by {signal_name(outcome.signal)}"
    frames = _count(outcome.frames, "frame")
    if outcome.corrupt_frames:
        frames += f" ({outcome.corrupt_frames} corrupt)"
    click.echo(f"{frames}, {people}, {rate:.1f} frames per second{stopped}")


def nobody(run: Run, outcome: Outcome) -> str:
    """What to say of a run in which nobody was reported."""
    if run.person is None or not outcome.others:
        return "nobody was found in any frame"
    others = ", ".join(map(str, outcome.others))
    return f"--person {run.person} was never there; found were {others}"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


@contextmanager
def noted_warnings(notes: list[str]) -> Iterator[None]:
    """Our own warnings of the block are added to ``notes``; others pass through."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for item in caught:
        if item.category.__module__.startswith("mambapose."):
            notes.append(str(item.message))
        else:
            warnings.warn_explicit(item.message, item.category, item.filename, item.lineno)
