"""One process at a time in a folder: runs, recoveries and exports take the same lock.

The lock is one of the folder itself (``flock``), so nothing is left behind, and it ends with the
process that holds it, however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# What a filesystem answers that has no locks, such as some network mounts.
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EINVAL)


class InUseError(OSError):
    """Another process, or another thread of this one, holds the lock of the folder."""


def try_lock(folder: Path) -> int | None:
    """A descriptor that holds the lock of a folder until it is closed; None when another has it.

    Raises OSError: FileNotFoundError without a folder, one of NO_LOCKS where there are no locks.
    """
    while True:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed or replaced the folder before it let go.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(folder)):
                    return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


@contextmanager
def locked_folder(folder: Path) -> Iterator[bool]:
    """Make ``folder`` if it is not there, and hold its lock for the block.

    Yields False where the filesystem has no locks. Folders that were made and are empty at the end
    are removed again. Raises InUseError when another holds the lock, OSError when the folder cannot
    be made or opened.
    """
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    handle: int | None = None
    try:
        locks = True
        while handle is None and locks:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                handle = try_lock(folder)
            except FileNotFoundError:
                continue  # removed since it was made: by a run that ended without results
            except OSError as err:
                if err.errno not in NO_LOCKS:
                    raise
                locks = False
            else:
                if handle is None:
                    raise InUseError(errno.EBUSY, "another run or export uses it", str(folder))
        yield locks
    finally:
        with suppress(OSError):
            for path in made:
                path.rmdir()
        if handle is not None:
            os.close(handle)
