"""One run of ``mp-run``: source, pipeline and files put together."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import click

from mambapose.runtime.bundle import Bundle, read_bundle
from mambapose.runtime.errors import MambaPoseError, OutputError, VideoError
from mambapose.runtime.interrupt import Interruptible
from mambapose.runtime.loading import open_pipeline
from mambapose.runtime.painter import Painter
from mambapose.runtime.pipeline import FrameResult, Options, Pipeline
from mambapose.runtime.progress import Progress
from mambapose.runtime.report import (
    REPORT,
    people_rule,
    run_meta,
    untrained_stages,
    used_stages,
    write_report,
)
from mambapose.runtime.results import read_journal, recover, write_results
from mambapose.runtime.sinks import JOURNAL, Journal
from mambapose.runtime.sources import Source, open_source, prefetch
from mambapose.runtime.types import Frame

OVERLAY = "overlay.mp4"
RESULTS = ("poses.json", "poses.npz", "poses.csv")
UNTRAINED = "untrained weights"


@dataclass(frozen=True)
class Run:
    """What the command line asks for. None means the bundle's schedule, or all cores."""

    source: str
    bundle: Path
    out: Path = Path("out")
    backend: str = "auto"
    device: str = "cpu"
    threads: int | None = None
    detect: Path | None = None
    flow: bool = True
    depth: bool = True
    depth_every: int | None = None
    detect_every: int | None = None
    flow_iters: int | None = None
    height: float | None = None
    max_people: int = 10
    overlay: bool = False
    formats: tuple[str, ...] = ("json", "npz", "csv")
    frame_range: str | None = None
    overwrite: bool = False
    quiet: bool = False

    @property
    def options(self) -> Options:
        """The pipeline's share of it."""
        return Options(
            flow=self.flow,
            depth=self.depth,
            depth_every=self.depth_every,
            detect_every=self.detect_every,
            flow_iters=self.flow_iters,
            height=self.height,
            max_people=self.max_people,
        )


@dataclass(frozen=True)
class Destination:
    """Where results go. file: a result that was asked for by name, moved there at the end."""

    folder: Path
    overlay: Path | None
    formats: tuple[str, ...]
    file: Path | None = None

    def files(self) -> list[Path]:
        """Everything a run may leave here."""
        names = (*RESULTS, JOURNAL, REPORT, OVERLAY)
        named = [path for path in (self.overlay, self.file) if path is not None]
        return list(dict.fromkeys([*(self.folder / name for name in names), *named]))


def destination_of(run: Run) -> Destination:
    """``-o DIR``: everything inside. ``-o X.mp4``, ``.json``, ``.npz``, ``.csv``: that file, and
    the rest in folder X.
    """
    kind = run.out.suffix.lower()
    if run.out.is_dir() or kind not in (".mp4", ".json", ".npz", ".csv"):
        return Destination(run.out, run.out / OVERLAY if run.overlay else None, run.formats)
    folder = run.out.with_suffix("")
    if kind == ".mp4":
        return Destination(folder, run.out, run.formats)
    overlay = folder / OVERLAY if run.overlay else None
    return Destination(folder, overlay, (kind[1:],), run.out)


def run_video(run: Run) -> int:
    """Do the run; returns the exit code: 0, or 130 after Ctrl-C.

    A video that breaks off raises VideoError after everything up to there has been written.
    """
    destination = destination_of(run)
    check_destination(destination, overwrite=run.overwrite)
    bundle = read_bundle(run.bundle)
    with ExitStack() as stack:
        source = stack.enter_context(open_source(run.source, frame_range=run.frame_range))
        with noted_warnings() as notes:
            pipeline = stack.enter_context(
                open_pipeline(
                    bundle,
                    source.size,
                    run.options,
                    backend=run.backend,
                    device=run.device,
                    threads=run.threads,
                    detector=run.detect,
                )
            )
        if "detect" not in pipeline.engines:
            notes.append(people_rule(pipeline))
        if untrained := untrained_stages(bundle, pipeline):
            notes.append(f"{UNTRAINED} ({', '.join(untrained)}): the poses mean nothing")
        say(run, notes)
        for path in destination.files():
            path.unlink(missing_ok=True)
        try:
            outcome = record(run, destination, bundle, source, pipeline, notes)
        except MambaPoseError:
            discard_if_empty(destination)
            raise
    paths = write_results(destination.folder, destination.formats)
    if destination.file is not None:
        paths = [paths[0].replace(destination.file)]
    tell_results(run, destination, paths, outcome)
    if outcome.problem is not None:
        raise VideoError(f"{outcome.problem}; the {outcome.frames} frames before it are written")
    return 130 if outcome.interrupted else 0


@dataclass(frozen=True)
class Outcome:
    """How a run ended. problem: what broke the video off, or None."""

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
    """Run every frame into journal, overlay and run.json."""
    meta = run_meta(bundle, pipeline, source, run.source, height=run.height)
    start = time.perf_counter()
    broken: list[VideoError] = []
    people: set[int] = set()
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(destination.folder, meta))
        painter = stack.enter_context(
            Painter(destination.overlay, source, pipeline, untrained=not meta["trained"])
        )
        say(run, painter.notes)
        progress = stack.enter_context(Progress(source.frame_count, quiet=run.quiet))
        stop = stack.enter_context(Interruptible())
        frames = stop.frames(whole_frames(stack.enter_context(prefetch(source)), broken))

        def seen(result: FrameResult) -> None:
            painter.paint_now(result)
            progress.step()

        for result in pipeline.run(frames, seen, keep_images=painter.waits):
            with pipeline.times.measure("journal"):
                journal.append(result.frame.index, result.frame.timestamp, result.poses)
            painter.paint_later(result)
            people.update(pose.track for pose in result.poses)
        problem = str(broken[0]) if broken else source.problem
        seconds = time.perf_counter() - start
        outcome = Outcome(journal.frames, seconds, len(people), stop.asked, problem)
        if not stop.asked:
            journal.finish(frames=outcome.frames, problem=problem)
    notes += painter.notes
    write_report(destination.folder, _report(run, bundle, pipeline, outcome, notes))
    return outcome


def whole_frames(frames: Iterable[Frame], broken: list[VideoError]) -> Iterator[Frame]:
    """The frames up to the first that cannot be read; its error goes into ``broken``."""
    try:
        yield from frames
    except VideoError as err:
        broken.append(err)


def _report(
    run: Run, bundle: Bundle, pipeline: Pipeline, outcome: Outcome, notes: list[str]
) -> dict[str, object]:
    """The facts of run.json."""
    return {
        "source": run.source,
        "bundle_hash": bundle.hash,
        "backend": run.backend,
        "device": run.device,
        "threads": run.threads,
        "frames": outcome.frames,
        "people": outcome.people,
        "seconds": round(outcome.seconds, 3),
        "frames_per_second": round(outcome.frames / max(outcome.seconds, 1e-9), 3),
        "interrupted": outcome.interrupted,
        "problem": outcome.problem,
        "notes": notes,
        "stages": used_stages(pipeline),
        "times": pipeline.times.summary(),
        "memory": pipeline.memory(),
    }


def recover_results(out: Path, formats: tuple[str, ...], *, quiet: bool = False) -> None:
    """``--recover``: the results of an interrupted run, from its journal."""
    found = recover(out, formats)
    if not quiet:
        state = "a complete run" if found.complete else "an interrupted run"
        click.echo(f"{out / JOURNAL}: {found.frames} frames of {state}")
        for path in found.paths:
            click.echo(f"wrote {path}")


def check_destination(destination: Destination, *, overwrite: bool) -> None:
    """OutputError when results of an earlier run are there, unless they may be replaced."""
    if overwrite:
        return
    for path in destination.files():
        if path.exists():
            raise OutputError(
                f"a new run was to be written to {destination.folder}, found {path}; choose "
                "another --out, or pass --overwrite (or --recover to keep an interrupted run)"
            )


def discard_if_empty(destination: Destination) -> None:
    """Remove what a run left that failed before its first frame was recorded."""
    journal = destination.folder / JOURNAL
    if journal.is_file() and any(True for _ in read_journal(journal)):
        return
    for path in destination.files():
        path.unlink(missing_ok=True)
    with suppress(OSError):  # the folder may hold something else
        destination.folder.rmdir()


def say(run: Run, notes: Iterable[str]) -> None:
    """Print notes to stderr, unless the run is quiet; what makes results worthless in red."""
    for note in () if run.quiet else notes:
        click.secho(f"note: {note}", err=True, fg="red" if note.startswith(UNTRAINED) else None)


def tell_results(run: Run, destination: Destination, paths: list[Path], outcome: Outcome) -> None:
    """The last lines: what was written where."""
    if run.quiet:
        return
    overlay = [] if destination.overlay is None else [destination.overlay]
    for path in [*paths, *overlay, destination.folder / REPORT]:
        click.echo(f"wrote {path}")
    people = "1 person" if outcome.people == 1 else f"{outcome.people} people"
    rate = outcome.frames / max(outcome.seconds, 1e-9)
    stopped = ", stopped by Ctrl-C" if outcome.interrupted else ""
    click.echo(f"{outcome.frames} frames, {people}, {rate:.1f} frames per second{stopped}")


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
