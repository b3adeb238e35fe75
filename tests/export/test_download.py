"""Downloads from a server on this machine: resumed, verified, refused; never a half file."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mambapose.export.download import SOURCES, Source, cache_folder, download_weights, fetch
from mambapose.export.models import NETWORKS
from mambapose.runtime.errors import ExportError

CONTENT = bytes(range(256)) * 20_000  # more than one piece
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT at /good and misbehaves elsewhere; requests are kept in the server."""

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Range")))  # type: ignore[attr-defined]
        getattr(self, "get_" + self.path.strip("/").split("/")[0])()

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def send(self, body: bytes, status: int = 200, announce: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if announce is None else announce))
        self.end_headers()
        self.wfile.write(body)

    def get_good(self) -> None:
        asked = self.headers.get("Range")
        if asked is None:
            self.send(CONTENT)
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(CONTENT):
            self.send_error(416)
        else:
            self.send(CONTENT[start:], 206)

    def get_plain(self) -> None:  # ignores Range
        self.send(CONTENT)

    def get_absent(self) -> None:
        self.send_error(404)

    def get_short(self) -> None:
        self.send(CONTENT[:1_500_000], announce=len(CONTENT))

    def get_moved(self) -> None:
        self.send_response(302)
        self.send_header("Location", "/good/file.pth")
        self.end_headers()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.requests = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=found.serve_forever, args=(0.02,))
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def source(server: ThreadingHTTPServer, path: str, sha256: str | None = DIGEST) -> Source:
    return Source("MIT", f"http://127.0.0.1:{server.server_address[1]}/{path}/file.pth", sha256)


def ranges(server: ThreadingHTTPServer) -> list[str | None]:
    return [asked for _, asked in server.requests]  # type: ignore[attr-defined]


@pytest.mark.parametrize("sha256", [DIGEST, DIGEST[:8], None])
def test_a_file_is_fetched_once(
    server: ThreadingHTTPServer, tmp_path: Path, sha256: str | None
) -> None:
    wanted = source(server, "good", sha256)
    for _ in range(2):
        assert fetch(wanted, tmp_path / "a" / "file.pth").read_bytes() == CONTENT
    assert ranges(server) == [None]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file.pth"]


def test_redirections_are_followed(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    assert fetch(source(server, "moved"), tmp_path / "f").read_bytes() == CONTENT


def test_a_truncated_answer_is_told_and_resumed(
    server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    path = tmp_path / "file.pth"
    with pytest.raises(ExportError, match="it goes on where it stopped"):
        fetch(source(server, "short"), path)
    assert not path.exists()
    assert (tmp_path / "file.pth.partial").stat().st_size == 1_500_000
    assert fetch(source(server, "good"), path).read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=1500000-"]


def test_without_a_known_hash_a_broken_download_starts_again(
    server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    path = tmp_path / "file.pth"
    with pytest.raises(ExportError):
        fetch(source(server, "short", None), path)
    assert not path.exists()
    assert fetch(source(server, "good", None), path).read_bytes() == CONTENT
    assert ranges(server) == [None, None]


@pytest.mark.parametrize("serving", ["good", "plain"])
@pytest.mark.parametrize("kept", [1_000, len(CONTENT)])
def test_partial_files_end_right_whatever_the_server_does(
    server: ThreadingHTTPServer, tmp_path: Path, serving: str, kept: int
) -> None:
    (tmp_path / "file.pth.partial").write_bytes(CONTENT[:kept])
    assert fetch(source(server, serving), tmp_path / "file.pth").read_bytes() == CONTENT
    assert ranges(server) == [f"bytes={kept}-"]


def test_a_wrong_hash_leaves_nothing(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"SHA-256 {'0' * 64} was wanted, found {DIGEST}"):
        fetch(source(server, "good", "0" * 64), tmp_path / "file.pth")
    (tmp_path / "file.pth.partial").write_bytes(b"something else")
    with pytest.raises(ExportError, match="the file was removed"):
        fetch(source(server, "good"), tmp_path / "file.pth")
    assert list(tmp_path.iterdir()) == []


def test_an_altered_file_in_the_cache_is_replaced(
    server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    (tmp_path / "file.pth").write_bytes(b"altered")
    assert fetch(source(server, "good"), tmp_path / "file.pth").read_bytes() == CONTENT


def test_an_absent_file_says_what_to_do(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"answered 404 .*give it with --weights") as caught:
        fetch(source(server, "absent"), tmp_path / "file.pth")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_no_server_says_what_to_do(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    unused = source(server, "good")
    server.shutdown()
    server.server_close()
    with pytest.raises(ExportError, match=r"could not be reached .*check the connection"):
        fetch(unused, tmp_path / "file.pth")


def test_a_cache_that_cannot_be_written_says_so(
    server: ThreadingHTTPServer, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ExportError, match=r"could not be written.*MAMBAPOSE_CACHE"):
        fetch(source(server, "good"), tmp_path / "file" / "file.pth")


def test_download_names_address_and_licence(
    server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = source(server, "good")
    monkeypatch.setitem(SOURCES, "raft-small", wanted)
    monkeypatch.setenv("MAMBAPOSE_CACHE", str(tmp_path))
    lines: list[str] = []
    path = download_weights("raft-small", tell=lines.append)
    assert path == cache_folder() / "raft-small" / "file.pth"
    assert path.read_bytes() == CONTENT
    assert lines == [f"raft-small: {wanted.url}, MIT"]


def test_a_network_without_a_link_says_where_to_get_the_file(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no direct link \(the README of .*ViTPose"):
        download_weights("vitpose-s", folder=tmp_path)
    with pytest.raises(ExportError, match="no source of its weights is known"):
        download_weights("nobody", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_every_network_has_a_source_with_a_licence() -> None:
    for name in NETWORKS:
        found = SOURCES[name]
        assert found.licence, name
        assert bool(found.url) != bool(found.by_hand), name
        assert found.url is None or found.url.startswith("https://"), name
