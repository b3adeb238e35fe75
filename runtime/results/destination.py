"""Where a run writes: its folder and the lock on it, and which older files it may replace."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mambapose.runtime.edges import edge, reason
from mambapose.runtime.errors import OutputError
from mambapose.runtime.folder_lock import InUseError, locked_folder
from mambapose.runtime.results.files import PART, WRITERS, Written, names_a_file, write_results
from mambapose.runtime.results.journal import JOURNAL
from mambapose.runtime.results.report import REPORT

OVERLAY = "overlay.mp4"
RESULTS = tuple(f"poses.{name}" for name in WRITERS)


@dataclass(frozen=True)
class Destination:
    """Where results go. file: a single result that the user asked for, outside the folder."""

    folder: Path
    overlay: Path | None
    formats: tuple[str, ...]
    file: Path | None = None

    def files(self) -> list[Path]:
        """Every file that a run may write here."""
        names = (*RESULTS, JOURNAL, REPORT, OVERLAY)
        named = [path for path in (self.overlay, self.file) if path is not None]
        return list(dict.fromkeys([*(self.folder / name for name in names), *named]))

    def parts(self) -> list[Path]:
        """The names that files have until they are complete; a killed run leaves them behind."""
        return [path.with_name(path.name + PART) for path in self.files()]

    @contextmanager
    def locked(self) -> Iterator[list[str]]:
        """Make the folder and keep every other run, recovery and export out of it for the block.

        Yields what to tell about it: a sentence where the filesystem has no locks. A folder that
        was made here and is empty at the end is removed. OutputError: it is taken, or cannot be
        made.
        """
        wanted = f"a folder was wanted at {self.folder}, it cannot be made or opened"
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            raise OutputError(
                f"a folder was wanted at {self.folder}, found a file; choose another --out"
            )
        with ExitStack() as stack:
            with edge(OutputError, wanted, "choose another --out"):
                try:
                    locks = stack.enter_context(locked_folder(self.folder))
                except InUseError as err:
                    raise OutputError(
                        f"{self.folder} is in use by another run or export; wait for it, or "
                        "choose another --out"
                    ) from err
            yield [] if locks else [f"{self.folder} cannot be locked: let no other run use it"]

    def check(self, source: str, *, overwrite: bool) -> None:
        """OutputError when files of an earlier run are there, unless ``overwrite`` is set.

        Also when the source itself would be overwritten, or nothing can be written here.
        """
        with edge(OutputError, f"video {source!r} has no usable name", "rename it"):
            video = Path(source.removeprefix("file://"))
            there = os.path.exists(video)
        for path in filter(os.path.lexists, self.files()):
            if there and path.exists() and path.samefile(video):
                raise OutputError(f"the input {path} would be overwritten; choose another --out")
            if path.is_dir():
                raise OutputError(f"{path} cannot be replaced (a folder); choose another --out")
            if not overwrite:
                raise OutputError(
                    f"a new run was to be written to {self.folder}, found {path}; choose another "
                    "--out, or pass --overwrite (or --recover to keep an interrupted run)"
                )
        self._check_names()

    def _check_names(self) -> None:
        """OutputError for names and folders that would fail at the end of a run."""
        for path in self.parts():
            with edge(OutputError, f"{path.name!r} cannot be a file", "choose another --out"):
                str(path).encode()  # the video writer takes UTF-8 only
                if len(os.fsencode(path.name)) > 255:
                    raise ValueError("its name is longer than 255 bytes")
        for folder in dict.fromkeys(path.parent for path in self.parts()):
            with (
                edge(OutputError, f"nothing can be written to {folder}", "choose another --out"),
                tempfile.TemporaryFile(dir=folder),
            ):
                pass

    def journal_state(self) -> object:
        """What changes when a run has begun its journal here; None without one."""
        try:
            found = os.stat(self.folder / JOURNAL)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def clear(self) -> None:
        """Remove what an earlier run left. OutputError when a file cannot be removed."""
        for path in [*self.files(), *self.parts()]:
            try:
                if os.path.lexists(path):
                    path.unlink()
            except OSError as err:
                raise OutputError(
                    f"{path} cannot be replaced ({reason(err)}); choose another --out"
                ) from err

    def write_results(self) -> Written:
        """Make the result files from the journal, each at its place."""
        return write_results(self.folder, self.formats, self.file)


def destination_of(out: Path, formats: tuple[str, ...], *, overlay: bool = False) -> Destination:
    """The destination that the option ``-o`` means.

    ``-o DIR`` puts everything inside DIR. ``-o X.mp4``, or X with the suffix of a format, names
    that one file; the rest goes into folder X.
    """
    kind = out.suffix.lower()
    if not names_a_file(out):
        return Destination(out, out / OVERLAY if overlay else None, formats)
    folder = out.with_suffix("")
    if kind == ".mp4":
        return Destination(folder, out, formats)
    return Destination(folder, folder / OVERLAY if overlay else None, (kind[1:],), out)
