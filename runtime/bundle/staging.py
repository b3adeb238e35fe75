"""A folder that is complete or absent: filled beside its place, synced, then renamed."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mambapose.runtime import durable
from mambapose.runtime.edges import reason
from mambapose.runtime.errors import BundleError
from mambapose.runtime.folder_lock import NO_LOCKS, try_lock

# Of renameat2 in Linux: paths are relative to the working folder; both names stay in use.
AT_FDCWD, RENAME_EXCHANGE = -100, 2


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


def _sync_tree(folder: Path) -> None:
    """Flush every file and folder below ``folder`` to the disk."""
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            durable.sync(Path(root) / name)
        durable.sync(Path(root))


def _exchange(one: Path, other: Path) -> bool:
    """Swap the names of two folders in one step; False where the system cannot do that."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    names = (os.fsencode(one), os.fsencode(other))
    done = libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE)
    return bool(done == 0)


def _replace(folder: Path, out: Path, old: Path) -> None:
    """Move ``folder`` to ``out``, and what was there to ``folder`` or away."""
    if not os.path.lexists(out):
        os.rename(folder, out)
    elif not _exchange(folder, out):
        os.rename(out, old)
        try:
            os.rename(folder, out)
        except BaseException:
            os.rename(old, out)
            raise
        shutil.rmtree(old, ignore_errors=True)


def earlier_copy(out: Path) -> Path:
    """Where the earlier folder is while another takes its place, on systems that cannot swap."""
    return out.parent / f".{out.name}.old"


def _restore(out: Path, marker: str) -> None:
    """Put the earlier folder back that a killed export had moved away; remove one left over."""
    old = earlier_copy(out)
    if old.is_symlink() or not (old / marker).is_file():
        return
    if os.path.lexists(out):
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(old, out)


def _take(out: Path) -> tuple[Path, int | None]:
    """The empty folder to fill for ``out``, and the lock on it (None without locks).

    BundleError when another export has it; one left by a killed process is emptied.
    """
    folder = out.parent / f".{out.name}.partial"
    if folder.is_symlink():
        raise BundleError(f"{folder} is a link; remove it, or choose another --out")
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            lock = try_lock(folder)
        except FileNotFoundError:
            continue  # another export has just ended
        except OSError as err:
            if err.errno not in NO_LOCKS:
                raise
            # Nobody can tell whether the folder is in use, so it is left alone.
            return Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=out.parent)), None
        if lock is None:
            raise BundleError(f"another export to {out} is running; choose another --out")
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return folder, lock


def _check_free(out: Path) -> None:
    """BundleError when a run or another export uses the folder ``out``."""
    if not out.is_dir():
        return
    try:
        handle = try_lock(out)
    except OSError:
        return  # without locks, or gone: replacing it will tell
    if handle is None:
        raise BundleError(f"{out} is in use by a run; wait for it, or choose another --out")
    os.close(handle)


@contextmanager
def staged_folder(out: Path, *, overwrite: bool, marker: str) -> Iterator[Path]:
    """A temporary sibling of ``out`` that becomes ``out`` when the block ends without error.

    Any exception, Ctrl-C included, removes the sibling and leaves ``out`` as it was. With
    ``overwrite`` the two folders swap names in one step, so there is always a whole one, whatever
    kills the process; on systems without that step the next call for the same ``out`` restores it.
    BundleError: ``out`` exists without ``overwrite``, is in use, or the disk cannot take it.
    """
    out = Path(os.path.abspath(out))
    folder = None
    lock = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        check_destination(out, overwrite=overwrite, marker=marker)
        folder, lock = _take(out)
        _restore(out, marker)
        check_destination(out, overwrite=overwrite, marker=marker)
        _check_free(out)
        yield folder
        _sync_tree(folder)
        folder.chmod(0o777 & ~_umask())  # it was private until here
        check_destination(out, overwrite=overwrite, marker=marker)
        _check_free(out)
        _replace(folder, out, earlier_copy(out))
        durable.sync(out.parent)
    except OSError as err:
        raise BundleError(
            f"{out} could not be written: {reason(err)}; nothing was changed, "
            "free the disk or choose another --out"
        ) from err
    finally:
        if folder is not None:
            with suppress(OSError):
                shutil.rmtree(folder)
        if lock is not None:
            os.close(lock)


def _umask() -> int:
    """The process's file creation mask; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
