"""Every error the project raises on purpose.

    MambaPoseError
    +-- BundleError   a bundle folder is incomplete, altered, or from another version
    +-- TargetError   an unknown device preset
    +-- ExportError   a checkpoint or a network cannot be exported as asked
    +-- EngineError   a backend or a stage cannot do what was asked
    |   +-- LoadError      a graph, a library or a device cannot be loaded
    |   +-- RunError       a loaded graph cannot run what it was given
    |   +-- MismatchError  what was loaded is not what the bundle, the stage or this version wants
    +-- VideoError    a video, stream or image folder cannot be read or written
    |   +-- IncompleteError  it broke off; everything up to there was written
    +-- OutputError   results cannot be written or read back: disk full, damaged journal

A message says what was wanted, what was found and what to do, in one line. Commands print it
after ``error:`` and exit with 1; anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

from typing import Any


class MambaPoseError(Exception):
    """Base of all errors a user can act on."""


class BundleError(MambaPoseError):
    """A bundle is incomplete, altered, or of an unknown version."""


class TargetError(MambaPoseError):
    """A device preset is unknown or cannot do what was asked."""


class ExportError(MambaPoseError):
    """A checkpoint or a network cannot be exported as asked."""


class EngineError(MambaPoseError):
    """A backend or a stage cannot do what was asked."""


class LoadError(EngineError):
    """A graph, a library or a device cannot be loaded."""


class RunError(EngineError):
    """A loaded graph cannot run what it was given."""


class MismatchError(EngineError):
    """What was loaded is not what the bundle, the stage or this version wants."""


class VideoError(MambaPoseError):
    """A video, stream or image folder cannot be read or written."""


class IncompleteError(VideoError):
    """A video broke off, after everything up to there was written.

    result: the poses up to there, a ``Result`` when the error comes from ``mambapose.runtime.run``.
    """

    result: Any = None


class OutputError(MambaPoseError):
    """Results cannot be written or read back: a full disk, a damaged journal."""
