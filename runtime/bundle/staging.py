"""A folder that is complete or absent: filled beside its place, synced, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mambapose.runtime.errors import BundleError


def check_destination(out: Path, *, overwrite: bool, marker: str) -> None:
    """Raise BundleError unless ``out`` may be written.

    With ``overwrite`` only a folder that holds ``marker`` (one that we wrote) is replaced, so a
    slip such as ``--out ~`` never deletes anything else.
    """
    if not (out.exists() or out.is_symlink()):
        return
    if not overwrite:
        raise BundleError(f"{out} exists already; choose another --out or pass --overwrite")
    if out.is_symlink() or not (out / marker).is_file():
        raise BundleError(
            f"{out} exists and is not a bundle (no {marker}), so it is not replaced; "
            "choose another --out"
        )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(folder: Path) -> None:
    """Flush every file and folder below ``folder`` to the disk."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync(Path(root) / name)
        _sync(Path(root))


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock, or None when a living process holds it."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Delete half-written folders whose process was killed: their lock is free."""
    for folder in parent.glob(f"{prefix}*"):
        handle = _lock(folder) if folder.is_dir() and not folder.is_symlink() else None
        if handle is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def _replace(folder: Path, out: Path) -> None:
    """Move ``folder`` to ``out``; what was there survives until the move has happened."""
    if not out.exists():
        os.rename(folder, out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old-", dir=out.parent))
    try:
        os.rename(out, old)  # onto an empty folder: POSIX replaces it
        os.rename(folder, out)
    except BaseException:
        if not out.exists():
            os.rename(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def staged_folder(out: Path, *, overwrite: bool, marker: str) -> Iterator[Path]:
    """A temporary sibling of ``out`` that becomes ``out`` when the block ends without error.

    Any exception, Ctrl-C included, removes the sibling and leaves ``out`` as it was. A sibling
    left by a killed process is removed by the next call for the same ``out``.
    BundleError: ``out`` exists without ``overwrite``, or the disk cannot take the folder.
    """
    out = Path(os.path.abspath(out))
    check_destination(out, overwrite=overwrite, marker=marker)
    prefix = f".{out.name}.partial-"
    folder = None
    lock = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out.parent, prefix)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
        lock = _lock(folder)
        yield folder
        _sync_tree(folder)
        folder.chmod(0o777 & ~_umask())  # mkdtemp makes it private
        check_destination(out, overwrite=overwrite, marker=marker)
        _replace(folder, out)
        _sync(out.parent)
    except OSError as err:
        raise BundleError(
            f"{out} could not be written: {err.strerror or err}; nothing was changed, "
            "free the disk or choose another --out"
        ) from err
    finally:
        if lock is not None:
            os.close(lock)
        if folder is not None:
            with suppress(OSError):
                shutil.rmtree(folder)


def _umask() -> int:
    """The process's file creation mask; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
