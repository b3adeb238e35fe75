"""Where a run writes: its folder, which older files it may replace, what it removes on failure."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mambapose.runtime.errors import OutputError
from mambapose.runtime.results.files import WRITERS, Written, write_results
from mambapose.runtime.results.journal import JOURNAL, read_journal
from mambapose.runtime.results.report import REPORT

OVERLAY = "overlay.mp4"
RESULTS = tuple(f"poses.{name}" for name in WRITERS)


@dataclass(frozen=True)
class Destination:
    """Where results go. file: a single result that the user asked for; it is moved there last."""

    folder: Path
    overlay: Path | None
    formats: tuple[str, ...]
    file: Path | None = None

    def files(self) -> list[Path]:
        """Every file that a run may write here."""
        names = (*RESULTS, JOURNAL, REPORT, OVERLAY)
        named = [path for path in (self.overlay, self.file) if path is not None]
        return list(dict.fromkeys([*(self.folder / name for name in names), *named]))

    def check(self, source: str, *, overwrite: bool) -> None:
        """OutputError when files of an earlier run are there, unless ``overwrite`` is set.

        A file that is the source itself is refused in any case.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise OutputError(
                f"a folder was wanted at {self.folder}, found a file; choose another --out"
            )
        video = Path(source.removeprefix("file://"))
        for path in filter(os.path.lexists, self.files()):
            if video.exists() and path.exists() and path.samefile(video):
                raise OutputError(f"the input {path} would be overwritten; choose another --out")
            if not overwrite:
                raise OutputError(
                    f"a new run was to be written to {self.folder}, found {path}; choose another "
                    "--out, or pass --overwrite (or --recover to keep an interrupted run)"
                )

    def clear(self) -> None:
        """Remove what an earlier run left. OutputError when a file cannot be removed."""
        for path in self.files():
            try:
                if os.path.lexists(path):
                    path.unlink()
            except OSError as err:
                raise OutputError(
                    f"{path} cannot be replaced ({err.strerror}); choose another --out"
                ) from err

    def write_results(self) -> Written:
        """Make the result files from the journal, each at its place."""
        written = write_results(self.folder, self.formats)
        if self.file is None:
            return written
        return Written([written.paths[0].replace(self.file)], written.frames, written.complete)

    def discard_if_empty(self) -> bool:
        """Whether the run recorded no frame; then the files it left are removed."""
        journal = self.folder / JOURNAL
        if journal.is_file() and any(True for _ in read_journal(journal)):
            return False
        with suppress(OSError):  # the folder may hold something else, or be read-only
            for path in self.files():
                path.unlink(missing_ok=True)
            self.folder.rmdir()
        return True


def names_a_file(out: Path) -> bool:
    """Whether ``out`` names an overlay or a result file by its suffix, and is no folder."""
    return out.suffix.lower() in (".mp4", *(f".{name}" for name in WRITERS)) and not out.is_dir()


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
