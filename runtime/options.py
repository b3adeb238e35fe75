"""Kinds of values that options of the command lines take, and places that they name."""

from __future__ import annotations

import math
import stat
from pathlib import Path
from typing import Any

import click

from mambapose.runtime.errors import OutputError
from mambapose.runtime.text import printable


class FiniteRange(click.FloatRange):
    """A number in a range; infinity and NaN, which pass the comparisons of click's, are refused."""

    name = "finite float range"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number; a usage error for any other text."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class FilePath(click.Path):
    """A file that the command will write, as a Path: refused before the work if it cannot be."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path; OutputError when nothing can be written there."""
        path = Path(value)
        check_writable(path)
        return path


def check_writable(path: Path) -> None:
    """OutputError unless a file can be written or added to at ``path``.

    It is tried: the folders above it are made, and a file that was not there is made and removed.
    What is no regular file (a pipe, ``/dev/stdout``) is left to the write itself.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_dir() and not stat.S_ISREG(path.stat().st_mode):
            return
        new = not path.exists()
        with path.open("ab"):
            pass
        if new:
            path.unlink()
    except (OSError, ValueError) as err:
        reason = (err.strerror if isinstance(err, OSError) else None) or err
        raise OutputError(
            f"{printable(str(path))}: a file that can be written was wanted, found: "
            f"{printable(str(reason))}; choose another place"
        ) from err
