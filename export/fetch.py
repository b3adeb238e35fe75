"""One file over HTTP, written to a partial file that a later call continues.

Beside the partial file lies ``<name>.json``: the address it came from, the server's mark of that
version (a strong ETag or the date) and the full length. A server that no longer has that version,
or that cannot send a part of a file, sends the whole file, and the partial one is dropped.
"""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mambapose.runtime.errors import ExportError
from mambapose.runtime.progress import Progress

PIECE = 1 << 16
MIB = 1 << 20
TIMEOUT_S = 30
ATTEMPTS = 4  # at a connection that breaks half-way
WAIT_S = 2.0  # before each further attempt


@dataclass(frozen=True)
class Version:
    """Which version of a file the partial file is the start of.

    mark, total: None when the server did not say.
    """

    url: str
    mark: str | None = None
    total: int | None = None


class _BrokenConnection(Exception):
    """The server's answer ended early."""


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but none from encrypted to plain, and none to anything but the web."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = newurl.partition(":")[0].lower()
        if scheme != "https" and (scheme != "http" or req.type == "https"):
            raise ExportError(
                f"{req.full_url} redirects to {newurl}, which is not encrypted: refused"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def receive(
    url: str, partial: Path, *, label: str, advice: str, tell: Callable[[str], None]
) -> None:
    """Complete the partial file from ``url``, continuing where an earlier call stopped.

    The proxies of the environment are used. Returns at once when the partial file is complete.
    label: begins the lines that ``tell`` receives; advice: ends the error about a server that
    refuses. ExportError: no connection, or the server refuses; OSError: the disk. What has arrived
    is kept, except when the server has another version by now.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _receive_once(url, partial, label, advice, tell)
        except _BrokenConnection as err:
            if attempt == ATTEMPTS:
                raise ExportError(
                    f"{url} broke off ({err}) at {partial.stat().st_size / MIB:.0f} MiB; run the "
                    "same command again: it goes on where it stopped"
                ) from err
            tell(f"{label}: the connection broke ({err}), going on")
            time.sleep(WAIT_S)


def forget(partial: Path) -> None:
    """Remove a partial file together with the notes about it."""
    partial.unlink(missing_ok=True)
    _notes(partial).unlink(missing_ok=True)


def _receive_once(
    url: str, partial: Path, label: str, advice: str, tell: Callable[[str], None]
) -> None:
    version = _read_version(partial, url)
    start = partial.stat().st_size if version is not None and partial.is_file() else 0
    if version is not None and start and start == version.total:
        return
    mark = version.mark if version is not None else None
    with _answer(url, start, mark, advice) as answer:
        if answer.status == http.client.PARTIAL_CONTENT:
            total = _whole_length(answer, partial, start)
        else:
            start, mark, total = 0, _mark(answer), _length(answer)
            forget(partial)
        _notes(partial).write_text(json.dumps(asdict(Version(url, mark, total))))
        if start:
            tell(f"{label}: going on at {start / MIB:.0f} of {(total or start) / MIB:.0f} MiB")
        size = _copy(answer, partial, start, total, label)
    if total is not None and size < total:
        raise _BrokenConnection("the server closed it")
    if total is not None and size > total:
        forget(partial)
        raise ExportError(f"{url} sent {size} bytes, {total} were announced; {advice}")


def _copy(answer: Any, partial: Path, start: int, total: int | None, label: str) -> int:
    """The size of the partial file after the answer was appended to its first ``start`` bytes."""
    left = total // MIB - start // MIB if total is not None else None
    with partial.open("r+b" if start else "wb") as file, Progress(left, f"{label} MiB") as bar:
        file.seek(start)
        while piece := _read(answer):
            before = file.tell() // MIB
            file.write(piece)
            if (count := file.tell() // MIB - before) > 0:
                bar.step(count)
        return file.tell()


def _read(answer: Any) -> bytes:
    try:
        return bytes(answer.read(PIECE))
    except http.client.IncompleteRead as err:
        raise _BrokenConnection("the server closed it") from err
    except (http.client.HTTPException, OSError) as err:  # reset, timeout, TLS
        raise _BrokenConnection(str(err) or type(err).__name__) from err


def _answer(url: str, start: int, mark: str | None, advice: str) -> Any:
    """The server's answer: from ``start`` on if it still has that version, else the whole file."""
    headers = {"User-Agent": "mambapose", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if mark is not None:
            headers["If-Range"] = mark
    opener = urllib.request.build_opener(_SafeRedirects)
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as err:
        err.close()
        if start and err.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _answer(url, 0, None, advice)
        raise ExportError(f"{url} answered {err.code} {err.reason}; {advice}") from err
    except (OSError, http.client.HTTPException) as err:  # URLError is an OSError
        reason = getattr(err, "reason", None) or err
        raise ExportError(
            f"{url} could not be reached ({reason}); check the connection (https_proxy, "
            "SSL_CERT_FILE) and run the same command again"
        ) from err


def _whole_length(answer: Any, partial: Path, start: int) -> int | None:
    """The length of the whole file, from an answer with a part; None when the server did not say.

    ExportError when the part does not begin at ``start``.
    """
    text = answer.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)", text.strip())
    if found is None or int(found[1]) != start:
        forget(partial)
        raise ExportError(
            f"{answer.url} was asked for byte {start} on, it sent {text!r}; run the same command "
            "again: it starts anew"
        )
    return None if found[2] == "*" else int(found[2])


def _length(answer: Any) -> int | None:
    text = answer.headers.get("Content-Length")
    return int(text) if text is not None and re.fullmatch("[0-9]{1,18}", text) else None


def _mark(answer: Any) -> str | None:
    """The value for the ``If-Range`` header: a strong ETag, else the date of the last change."""
    etag: str | None = answer.headers.get("ETag")
    if etag is not None and not etag.startswith("W/"):
        return etag
    date: str | None = answer.headers.get("Last-Modified")
    return date


def _notes(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _read_version(partial: Path, url: str) -> Version | None:
    """The version the partial file belongs to; None when unknown or from another address."""
    try:
        version = Version(**json.loads(_notes(partial).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return version if version.url == url else None
