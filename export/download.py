"""Official weights in the user's cache: downloaded once, whole and with the listed hash, or absent.

A download that broke off continues where it stopped; two processes that want the same file share
one download.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mambapose.export.fetch import forget, receive
from mambapose.export.official_files import OfficialFile, way_by_hand
from mambapose.runtime import durable
from mambapose.runtime.bundle.bundle import file_sha256
from mambapose.runtime.errors import ExportError

Tell = Callable[[str], None]


def cache_folder() -> Path:
    """Where downloaded weights stay: MAMBAPOSE_CACHE, else below the user's cache folder."""
    if chosen := os.environ.get("MAMBAPOSE_CACHE"):
        return Path(chosen) / "weights"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mambapose" / "weights"


def download(source: OfficialFile, tell: Tell, folder: Path | None = None) -> Path:
    """The path of the weights of ``source`` in the cache, after a download if they are not there.

    ``tell`` receives the terms the first time, the address if there is a download, and the path.
    ExportError: no connection, a wrong hash, a hash that nobody has vouched for, or a cache that
    cannot be written.
    """
    path = (folder or cache_folder()) / source.name / source.file
    _say_licence(source, path.parent, tell)
    try:
        if not _is_whole(source, path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(path, tell):
                _fetch(source, path, tell)
    except KeyboardInterrupt:
        tell(f"{source.name}: stopped; the same command goes on from what has arrived")
        raise
    except OSError as err:
        raise ExportError(
            f"{path} could not be written ({err.strerror or err}); free the disk or set "
            "MAMBAPOSE_CACHE to another folder"
        ) from err
    tell(f"{source.name}: {path}")
    return path


def _fetch(source: OfficialFile, path: Path, tell: Tell) -> None:
    """Download, check and rename the file, unless another process has just done so."""
    if _is_whole(source, path):
        return
    partial = path.with_name(path.name + ".part")
    tell(f"{source.name}: fetching {source.url} ({source.size})")
    _bring(source, partial, tell)
    found = file_sha256(partial)
    _check(source, partial, found)
    _hash_file(path).write_text(f"{found}  {path.name}\n")
    durable.replace(partial, path)
    forget(partial)


def _bring(source: OfficialFile, partial: Path, tell: Tell) -> None:
    """Write the weights to ``partial``, taken out of their archive if they are in one."""
    url = str(source.url)
    archive = partial.with_name(url.rsplit("/", 1)[-1] + ".part") if source.member else partial
    receive(url, archive, label=source.name, advice=f"try later, or {_by_hand(source)}", tell=tell)
    if source.member is None:
        return
    found = file_sha256(archive)
    if found != source.archive_sha256:
        raise _wrong_file(source, archive, source.archive_sha256, found)
    with (
        zipfile.ZipFile(archive) as opened,
        opened.open(source.member) as packed,
        partial.open("wb") as unpacked,
    ):
        shutil.copyfileobj(packed, unpacked)
    forget(archive)


def _check(source: OfficialFile, partial: Path, found: str) -> None:
    """ExportError unless ``found``, the hash of the complete partial file, is the right one."""
    if source.sha256 is None:
        raise ExportError(
            f"{source.name}: nobody publishes a SHA-256 of {source.file}, found {found}; compare "
            f"it with what {source.page} shows for the file, then run again with "
            f"--download {source.name}={found}"
        )
    if found != source.sha256:
        raise _wrong_file(source, partial, source.sha256, found)


def _wrong_file(source: OfficialFile, partial: Path, wanted: str | None, found: str) -> ExportError:
    """The error to raise for a file with the wrong hash, which is removed."""
    forget(partial)
    return ExportError(
        f"{source.url}: SHA-256 {wanted} was wanted, found {found}; the file was removed. Try "
        f"again, or {_by_hand(source)}"
    )


def _by_hand(source: OfficialFile) -> str:
    return f"get the file from {source.page} and give it with {way_by_hand(source)}"


def _is_whole(source: OfficialFile, path: Path) -> bool:
    """Whether the file is there with the right hash: the listed one, else the one on record."""
    if not path.is_file():
        return False
    wanted = source.sha256
    if wanted is None and _hash_file(path).is_file():
        wanted = _hash_file(path).read_text().split()[0]
    return file_sha256(path) == wanted


def _hash_file(path: Path) -> Path:
    """The path of the record of the file's hash when it entered the cache (sha256sum's format)."""
    return path.with_name(path.name + ".sha256")


def _say_licence(source: OfficialFile, folder: Path, tell: Tell) -> None:
    """Print the terms unless these terms were printed before; the cache remembers them."""
    terms = f"{source.name}: licence {source.licence}; see {source.terms}"
    shown = folder / "licence.txt"
    if not shown.is_file() or shown.read_text() != terms:
        tell(terms)
        with suppress(OSError):  # a cache that is only read: they are printed each time
            folder.mkdir(parents=True, exist_ok=True)
            shown.write_text(terms)


@contextmanager
def _alone(path: Path, tell: Tell) -> Iterator[None]:
    """Wait until no other process fetches this file."""
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        tell(f"waiting for another process that fetches {path.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
