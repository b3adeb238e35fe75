"""Downloads from a server on this machine: resumed, verified, refused; never a half file."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import threading
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from mambapose.export import fetch
from mambapose.export.download import cache_folder, download
from mambapose.export.official_files import OfficialFile
from mambapose.runtime.errors import ExportError

CONTENT = bytes(range(256)) * 12_000  # about 3 MB: many pieces
DIGEST = hashlib.sha256(CONTENT).hexdigest()
CUT = 1_000_000


class Server(ThreadingHTTPServer):
    """Serves ``content`` under any path, with the faults that are set; keeps the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.etag: str | None = '"v1"'
        self.ranges = True
        self.announced = True
        self.shift = 0  # how far off the parts it sends start
        self.cuts: list[int] = []  # bytes after which the next answers break off
        self.status = 200
        self.move_to: str | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.requests: list[tuple[str, str | None, str | None]] = []  # path, Range, If-Range

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def asked(self) -> list[str | None]:
        """The Range header of each request."""
        return [asked for _, asked, _ in self.requests]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.requests.append((self.path, asked, self.headers.get("If-Range")))
        server.gate.wait(10)
        if server.move_to is not None and not self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", server.move_to)
            self.end_headers()
            return
        if server.status != 200:
            self.send_error(server.status)
            return
        start = 0
        if asked and server.ranges and self.headers.get("If-Range") in (None, server.etag):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(server.content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        body = server.content[start:]
        if start:
            last = len(server.content) - 1
            first = start + server.shift
            self.send_header("Content-Range", f"bytes {first}-{last}/{last + 1}")
        if server.announced:
            self.send_header("Content-Length", str(len(body)))
        if server.etag is not None:
            self.send_header("ETag", server.etag)
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # a client that has seen enough leaves
            self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fetch, "WAIT_S", 0.0)
    found = Server()
    thread = threading.Thread(target=found.serve_forever, args=(0.02,))
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


@pytest.fixture
def source(server: Server) -> OfficialFile:
    terms = "https://example.com/terms"
    page = "https://example.com/page"
    return OfficialFile("net", "flow", "MIT", terms, page, f"{server.url}/net.pth", DIGEST, 3)


def quiet(line: str) -> None:
    """Told to nobody."""


def files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "net").iterdir()} - {"licence.txt", "net.pth.lock"}


COMPLETE = {"net.pth", "net.pth.sha256"}
STARTED = {"net.pth.part", "net.pth.part.json"}


# --- what arrives --------------------------------------------------------------------------------


def test_a_file_is_fetched_once(server: Server, source: OfficialFile, tmp_path: Path) -> None:
    lines: list[str] = []
    path = download(source, lines.append, tmp_path)
    assert path == tmp_path / "net" / "net.pth"
    assert path.read_bytes() == CONTENT
    assert files(tmp_path) == COMPLETE
    assert lines == [
        "net: licence MIT; see https://example.com/terms",
        f"net: fetching {server.url}/net.pth (3 MB)",
        f"net: {path}",
    ]
    server.status = 500
    assert download(source, lines.append, tmp_path) == path
    assert lines[3:] == [f"net: {path}"]  # the terms are printed once, and nothing is fetched
    assert server.asked == [None]


def test_new_terms_are_printed_again(source: OfficialFile, tmp_path: Path) -> None:
    lines: list[str] = []
    download(source, lines.append, tmp_path)
    download(replace(source, licence="CC-BY-NC-4.0"), lines.append, tmp_path)
    assert [line for line in lines if "licence" in line][1].startswith("net: licence CC-BY-NC-4.0")


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("MAMBAPOSE_CACHE", raising=False)
    assert cache_folder() == tmp_path / "xdg" / "mambapose" / "weights"
    monkeypatch.setenv("MAMBAPOSE_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own" / "weights"
    monkeypatch.delenv("MAMBAPOSE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "mambapose" / "weights"


def test_an_unannounced_length_is_no_fault(
    server: Server, source: OfficialFile, tmp_path: Path
) -> None:
    server.announced = False
    assert download(source, quiet, tmp_path).read_bytes() == CONTENT


def test_an_altered_file_in_the_cache_is_replaced(source: OfficialFile, tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "net.pth").write_bytes(b"altered")
    assert download(source, quiet, tmp_path).read_bytes() == CONTENT


def test_one_file_of_an_archive(server: Server, source: OfficialFile, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("models/other.pth", b"other")
        archive.writestr("models/net.pth", CONTENT)
    server.content = packed.getvalue()
    zipped = replace(
        source,
        url=f"{server.url}/models.zip",
        member="models/net.pth",
        archive_sha256=hashlib.sha256(server.content).hexdigest(),
    )
    assert download(zipped, quiet, tmp_path).read_bytes() == CONTENT
    assert files(tmp_path) == COMPLETE  # the archive has gone
    with pytest.raises(ExportError, match=f"SHA-256 {DIGEST} was wanted, found "):
        download(replace(zipped, archive_sha256=DIGEST), quiet, tmp_path / "again")
    assert files(tmp_path / "again") == set()


# --- what breaks off -----------------------------------------------------------------------------


def test_a_cut_connection_goes_on(server: Server, source: OfficialFile, tmp_path: Path) -> None:
    server.cuts = [CUT, CUT]
    lines: list[str] = []
    assert download(source, lines.append, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={CUT}-", f"bytes={2 * CUT}-"]
    assert [mark for _, _, mark in server.requests] == [None, '"v1"', '"v1"']
    assert "net: going on at 1 of 3 MiB" in lines
    assert files(tmp_path) == COMPLETE


def test_a_later_run_goes_on(server: Server, source: OfficialFile, tmp_path: Path) -> None:
    server.cuts = [CUT, 0, 0, 0]
    with pytest.raises(ExportError, match=r"broke off .* at 1 MiB; .*goes on where it stopped"):
        download(source, quiet, tmp_path)
    assert files(tmp_path) == STARTED
    assert (tmp_path / "net" / "net.pth.part").stat().st_size == CUT
    assert download(source, quiet, tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == f"bytes={CUT}-"


def test_a_file_that_changed_is_fetched_from_the_start(
    server: Server, source: OfficialFile, tmp_path: Path
) -> None:
    server.cuts = [CUT, 0, 0, 0]
    with pytest.raises(ExportError):
        download(source, quiet, tmp_path)
    server.content, server.etag = CONTENT[::-1], '"v2"'
    changed = replace(source, sha256=hashlib.sha256(server.content).hexdigest())
    assert download(changed, quiet, tmp_path).read_bytes() == server.content


@pytest.mark.parametrize("etag", ['"v1"', 'W/"weak"', None])
@pytest.mark.parametrize("ranges", [True, False])
def test_any_server_ends_right(
    server: Server, source: OfficialFile, tmp_path: Path, ranges: bool, etag: str | None
) -> None:
    server.ranges, server.etag, server.cuts = ranges, etag, [CUT]
    assert download(source, quiet, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={CUT}-"]


@pytest.mark.parametrize("notes", [None, "{", '{"url": "http://elsewhere/"}', '{"size": 3}'])
def test_a_partial_file_of_unknown_origin_is_dropped(
    server: Server, source: OfficialFile, tmp_path: Path, notes: str | None
) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "net.pth.part").write_bytes(b"of something else")
    if notes is not None:
        (tmp_path / "net" / "net.pth.part.json").write_text(notes)
    assert download(source, quiet, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None]


def test_a_partial_file_beyond_the_end_is_dropped(
    server: Server, source: OfficialFile, tmp_path: Path
) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "net.pth.part").write_bytes(CONTENT + b"more")
    (tmp_path / "net" / "net.pth.part.json").write_text(json.dumps({"url": source.url}))
    assert download(source, quiet, tmp_path).read_bytes() == CONTENT
    assert server.asked == [f"bytes={len(CONTENT) + 4}-", None]


def test_a_server_that_sends_another_part_is_not_believed(
    server: Server, source: OfficialFile, tmp_path: Path
) -> None:
    server.cuts, server.shift = [CUT], 1
    with pytest.raises(ExportError, match=f"asked for byte {CUT} on, .*starts anew"):
        download(source, quiet, tmp_path)
    assert download(source, quiet, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={CUT}-", None]


def test_an_interrupt_leaves_what_has_arrived(
    server: Server, source: OfficialFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = iter([CONTENT[: fetch.PIECE]])

    def read(answer: object) -> bytes:
        for piece in pieces:
            return piece
        raise KeyboardInterrupt

    lines: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(fetch, "_read", read)
        with pytest.raises(KeyboardInterrupt):
            download(source, lines.append, tmp_path)
    assert lines[-1] == "net: stopped; the same command goes on from what has arrived"
    assert files(tmp_path) == STARTED
    assert download(source, quiet, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={fetch.PIECE}-"]


def test_two_at_once_share_one_download(
    server: Server, source: OfficialFile, tmp_path: Path
) -> None:
    server.gate.clear()
    waiting = threading.Event()
    found: list[bytes] = []

    def run() -> None:
        def tell(line: str) -> None:
            if line.startswith("waiting for another process"):
                waiting.set()

        found.append(download(source, tell, tmp_path).read_bytes())

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert waiting.wait(10)
    server.gate.set()
    for thread in threads:
        thread.join()
    assert found == [CONTENT, CONTENT]
    assert server.asked == [None]


# --- what is refused -----------------------------------------------------------------------------


def test_a_wrong_hash_leaves_nothing(source: OfficialFile, tmp_path: Path) -> None:
    wrong = replace(source, sha256="0" * 64)
    with pytest.raises(ExportError, match=f"SHA-256 {'0' * 64} was wanted, found {DIGEST}") as err:
        download(wrong, quiet, tmp_path)
    assert "https://example.com/page and give it with --weights flow=FILE" in str(err.value)
    assert files(tmp_path) == set()


def test_a_file_nobody_vouches_for_waits_for_the_user(
    server: Server, source: OfficialFile, tmp_path: Path
) -> None:
    unknown = replace(source, sha256=None)
    for _ in range(2):
        with pytest.raises(ExportError, match=f"run again with --download net={DIGEST}"):
            download(unknown, quiet, tmp_path)
        assert files(tmp_path) == STARTED
    assert download(source, quiet, tmp_path).read_bytes() == CONTENT
    assert download(unknown, quiet, tmp_path).read_bytes() == CONTENT  # vouched for before
    assert server.asked == [None]
    (tmp_path / "net" / "net.pth").write_bytes(b"altered")
    with pytest.raises(ExportError, match="nobody publishes a SHA-256"):
        download(unknown, quiet, tmp_path)


@pytest.mark.parametrize("status", [404, 429, 503])
def test_a_refusal_says_what_to_do(
    server: Server, source: OfficialFile, tmp_path: Path, status: int
) -> None:
    server.status = status
    with pytest.raises(ExportError, match=rf"answered {status} .*give it with --weights") as err:
        download(source, quiet, tmp_path)
    assert "\n" not in str(err.value)
    assert files(tmp_path) == set()


def test_no_server_says_what_to_do(server: Server, source: OfficialFile, tmp_path: Path) -> None:
    encrypted = replace(source, url=str(source.url).replace("http:", "https:"))
    with pytest.raises(ExportError, match=r"could not be reached \(.*SSL.*check the connection"):
        download(encrypted, quiet, tmp_path)
    server.shutdown()
    server.server_close()
    with pytest.raises(ExportError, match=r"could not be reached \(.*refused.*check the conn"):
        download(source, quiet, tmp_path)


def test_redirections_are_followed_within_the_web(
    server: Server, source: OfficialFile, tmp_path: Path
) -> None:
    server.move_to = "/moved/net.pth"
    assert download(source, quiet, tmp_path).read_bytes() == CONTENT
    server.move_to = "ftp://example.com/net.pth"
    with pytest.raises(ExportError, match=r"redirects to ftp://example.com/net.pth, which is not"):
        download(source, quiet, tmp_path / "again")


def test_a_redirection_never_drops_the_encryption() -> None:
    request = urllib.request.Request("https://example.com/net.pth")
    follow = fetch._SafeRedirects().redirect_request
    with pytest.raises(ExportError, match="not encrypted: refused"):
        follow(request, None, 302, "Found", Message(), "http://example.com/net.pth")
    assert follow(request, None, 302, "Found", Message(), "https://cdn.example.com/x") is not None


def test_the_proxy_of_the_environment_is_used(
    server: Server, source: OfficialFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    download(replace(source, url="http://weights.invalid/net.pth"), quiet, tmp_path)
    assert server.requests[0][0] == "http://weights.invalid/net.pth"


def test_a_full_disk_says_so(
    source: OfficialFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetch, "_copy", full)
    with pytest.raises(ExportError, match=r"No space left on device.*MAMBAPOSE_CACHE"):
        download(source, quiet, tmp_path)


def test_a_cache_that_cannot_be_written_says_so(source: OfficialFile, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ExportError, match=r"could not be written.*MAMBAPOSE_CACHE"):
        download(source, quiet, tmp_path / "file")


def test_progress_is_told_in_mib(
    source: OfficialFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download(source, quiet, tmp_path)
    assert capsys.readouterr().err.startswith("net MiB: 2 of 2, ")


@pytest.mark.parametrize("text", ["\xb2", "-1", "", " 3", "9" * 5000, "\u0663"])
def test_a_length_that_is_no_number_is_none(text: str) -> None:
    """\xb2, a superscript two, is a digit to Python and no number."""
    assert fetch._length(SimpleNamespace(headers={"Content-Length": text})) is None
    assert fetch._length(SimpleNamespace(headers={"Content-Length": "12"})) == 12


@pytest.mark.parametrize("text", ["bytes \xb2-3/4", "bytes 2-3/" + "9" * 5000, "bytes \u0662-3/4"])
def test_a_part_that_is_no_number_is_not_believed(text: str, tmp_path: Path) -> None:
    answer = SimpleNamespace(headers={"Content-Range": text}, url="https://example.com/x")
    with pytest.raises(ExportError, match="was asked for byte 2 on"):
        fetch._whole_length(answer, tmp_path / "part", 2)
