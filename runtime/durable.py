"""Files that a power cut leaves whole: synced to the disk before they take their name."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(part: Path, path: Path) -> None:
    """Give the complete file ``part`` the name ``path``, in place of what had it.

    After a power cut ``path`` holds the old content or the new one, never a mixture. Both names
    must be on one filesystem. Raises OSError; then ``path`` is as it was.
    """
    sync(part)
    os.replace(part, path)
    sync(path.parent)
