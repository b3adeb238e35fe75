"""A folder that an export replaces is whole at every moment, and nobody else's while in use."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mambapose.runtime.bundle import staging
from mambapose.runtime.bundle.bundle import read_bundle
from mambapose.runtime.bundle.staging import staged_folder
from mambapose.runtime.errors import BundleError
from mambapose.runtime.folder_lock import locked_folder

MARKER = "bundle.json"


def write(out: Path, text: str) -> None:
    with staged_folder(out, overwrite=True, marker=MARKER) as folder:
        (folder / MARKER).write_text(text)


@pytest.mark.parametrize("swaps", [True, False])
def test_overwriting_leaves_the_new_folder_and_nothing_else(tmp_path, monkeypatch, swaps) -> None:
    if not swaps:
        monkeypatch.setattr(staging, "_exchange", lambda one, other: False)
    for text in ("a", "b", "c"):
        write(tmp_path / "out", text)
        assert (tmp_path / "out" / MARKER).read_text() == text
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~staging._umask()


def test_a_reader_always_finds_a_whole_folder(tmp_path: Path) -> None:
    if not staging._exchange(tmp_path, tmp_path):
        pytest.skip("this filesystem cannot swap two names")
    out = tmp_path / "out"
    write(out, "0")
    done = threading.Event()
    missing: list[OSError] = []

    def read() -> None:
        while not done.is_set():
            try:
                (out / MARKER).read_bytes()
            except OSError as err:
                missing.append(err)

    reader = threading.Thread(target=read)
    reader.start()
    for k in range(30):
        write(out, str(k))
    done.set()
    reader.join()
    assert missing == []


KILLED = """
import os, signal, sys
from pathlib import Path
from mambapose.runtime.bundle import staging
rename, calls = os.rename, []
def killing(one, other):
    calls.append(one)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(one, other)
os.rename = killing
staging._exchange = lambda one, other: False
with staging.staged_folder(Path(sys.argv[1]), overwrite=True, marker="bundle.json") as folder:
    (folder / "bundle.json").write_text("new")
"""


def kill_between_renames(out: Path) -> None:
    """Replace ``out`` without the swap, and kill -9 between its two renames."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(out)], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert not out.exists()


def test_the_next_export_restores_what_a_killed_one_had_moved_away(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "old")
    kill_between_renames(out)
    with pytest.raises(
        BundleError, match=r"an export that was killed left the earlier one at .*old"
    ):
        read_bundle(out)
    with (
        pytest.raises(BundleError, match="exists already"),
        staged_folder(out, overwrite=False, marker=MARKER),
    ):
        pass
    assert (out / MARKER).read_text() == "old"
    kill_between_renames(out)
    write(out, "new")
    assert (out / MARKER).read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_exports_to_one_place_exclude_each_other(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with staged_folder(out, overwrite=True, marker=MARKER) as folder:
        (folder / MARKER).write_text("first")
        with pytest.raises(BundleError, match=r"another export to .* is running"):
            write(out, "second")
        write(tmp_path / "elsewhere", "third")
    assert (out / MARKER).read_text() == "first"
    write(out, "fourth")


def test_a_folder_in_use_is_not_replaced(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    with locked_folder(tmp_path / "out"), pytest.raises(BundleError, match="in use by a run"):
        write(tmp_path / "out", "new")
    assert (tmp_path / "out" / MARKER).read_text() == "old"


def test_a_link_in_place_of_the_temporary_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    (tmp_path / ".out.partial").symlink_to(tmp_path / "mine")
    with pytest.raises(BundleError, match="is a link"):
        write(tmp_path / "out", "new")
    assert os.listdir(tmp_path / "mine") == ["file"]
