"""Whatever the world outside raises, at whatever edge, is one line and exit 1."""

from __future__ import annotations

import errno
import os

import pytest

from mambapose.runtime.edges import FAULTS, edge, reason
from mambapose.runtime.errors import OutputError, VideoError

from .test_cli import bundle, clip, mp_run, refusal

__all__ = ["bundle", "clip"]  # fixtures

ERRORS = (
    OSError(errno.EIO, os.strerror(errno.EIO)),
    PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
    UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"),
    ValueError("embedded null byte"),
    OverflowError("too large"),
    MemoryError(),
    RecursionError("maximum recursion depth exceeded"),
    EOFError(),
)
RESULTS = "mambapose.runtime.results"
EDGES = (
    f"{RESULTS}.destination.locked_folder",
    f"{RESULTS}.destination.tempfile.TemporaryFile",
    f"{RESULTS}.journal.os.open",
    f"{RESULTS}.journal.os.write",
    f"{RESULTS}.overlay.Overlay._add_stream",
    f"{RESULTS}.overlay.Overlay._encode_until_closed",
    f"{RESULTS}.overlay.durable.replace",
    "mambapose.runtime.bundle.bundle.file_sha256",
    f"{RESULTS}.files.JsonWriter.__init__",
    f"{RESULTS}.files.JsonWriter.add",
    f"{RESULTS}.files.JsonWriter.finish",
    f"{RESULTS}.formats.npz.zipfile.ZipFile",
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", EDGES)
def test_every_fault_at_every_edge_is_one_line(
    capsys, monkeypatch, tmp_path, bundle, clip, place, error
):
    def failing(*args, **options):
        raise error

    monkeypatch.setattr(place, failing)
    args = ("--engine", bundle, clip, "--range", "0:3", "--overlay", "-o", tmp_path / "out")
    line = refusal(capsys, *args)
    assert reason(error) in line
    monkeypatch.undo()


def test_every_kind_of_fault_is_tried():
    assert all(any(isinstance(error, kind) for error in ERRORS) for kind in FAULTS)


def test_an_edge_lets_our_own_errors_and_bugs_pass():
    with pytest.raises(VideoError, match="mine"), edge(OutputError, "wanted", "do"):
        raise VideoError("mine")
    with pytest.raises(KeyError), edge(OutputError, "wanted", "do"):
        raise KeyError("a bug")


def test_a_reason_is_one_line_in_words():
    assert reason(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) == "No space left on device"
    assert reason(ValueError("two\n  lines")) == "two lines"
    assert reason(MemoryError()) == "not enough memory"
    assert reason(EOFError()) == "EOFError"


def test_without_a_fault_the_run_goes_well(tmp_path, bundle, clip):
    args = ("--engine", bundle, clip, "--range", "0:3", "--overlay", "-o", tmp_path / "out")
    assert mp_run(*args, "--quiet") == 0
