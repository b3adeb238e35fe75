"""Writing a bundle: complete or absent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mambapose.runtime.bundle import staging
from mambapose.runtime.bundle.bundle import read_bundle, write_bundle
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.errors import BundleError

from .depth_bundle import fill, snapshot


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle", fill)


def test_an_existing_folder_is_refused_and_untouched(bundle: Bundle, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    with pytest.raises(BundleError, match=r"exists already.*--overwrite"):
        write_bundle(bundle.path, fill)
    assert snapshot(tmp_path) == before


def test_overwrite_replaces_a_bundle_and_nothing_else(bundle: Bundle, tmp_path: Path) -> None:
    newer = write_bundle(bundle.path, lambda folder: fill(folder, marker=b"newer"), overwrite=True)
    assert newer.hash != bundle.hash
    assert read_bundle(bundle.path) == newer
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]

    home = tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("dear")
    file = tmp_path / "file"
    file.write_text("x")
    for out in (home, file):
        with pytest.raises(BundleError, match="is not a bundle"):
            write_bundle(out, fill, overwrite=True)
    assert (home / "letter.txt").read_text() == "dear"
    assert file.read_text() == "x"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError(28, "No space left")])
@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_write_leaves_what_was_there(
    tmp_path: Path, error: BaseException, existing: bool
) -> None:
    out = tmp_path / "bundle"
    if existing:
        write_bundle(out, fill)
    before = snapshot(tmp_path)

    def stop(folder: Path) -> Bundle:
        fill(folder)
        raise error

    expected = BundleError if isinstance(error, OSError) else error
    with pytest.raises(expected):  # type: ignore[arg-type]
        write_bundle(out, stop, overwrite=True)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("failing", ["rename", "fsync"])
def test_a_disk_that_fails_at_the_end_leaves_the_old_bundle(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    before = snapshot(tmp_path)
    real: Any = getattr(os, failing)
    calls = []

    def fail(*args: Any) -> None:
        calls.append(args)
        if failing == "fsync" or len(calls) == 2:  # the second rename brings the new one in
            raise OSError(28, "No space left on device")
        real(*args)

    monkeypatch.setattr(os, failing, fail)
    monkeypatch.setattr(staging, "_exchange", lambda one, other: False)
    with pytest.raises(BundleError, match="No space left on device; nothing was changed"):
        write_bundle(bundle.path, lambda f: fill(f, marker=b"newer"), overwrite=True)
    monkeypatch.undo()
    assert calls
    assert snapshot(bundle.path) == {
        name.removeprefix("bundle/"): data
        for name, data in before.items()
        if name.startswith("bundle/")
    }
    assert read_bundle(bundle.path) == bundle


def test_a_description_that_does_not_match_its_files_is_never_published(tmp_path: Path) -> None:
    def forget(folder: Path) -> Bundle:
        made = fill(folder)
        (folder / "stages" / "depth.data").unlink()
        return made

    with pytest.raises(BundleError, match=r"depth\.data is missing"):
        write_bundle(tmp_path / "bundle", forget)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_no_half_bundle(small_disk: Path) -> None:
    kept = write_bundle(small_disk / "kept", fill)
    before = snapshot(small_disk)
    for out, overwrite in ((small_disk / "new", False), (kept.path, True)):
        with pytest.raises(BundleError, match="No space left on device"):
            write_bundle(out, lambda f: fill(f, marker=b"x" * 300), overwrite=overwrite)
        assert snapshot(small_disk) == before
    assert read_bundle(kept.path) == kept


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a POSIX signal")
def test_what_a_killed_export_left_behind_goes_with_the_next_one(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        from mambapose.runtime.bundle.bundle import write_bundle
        def fill(folder):
            (folder / "half.onnx").write_bytes(b"half")
            print(folder.name, flush=True)
            sys.stdin.readline()
            os.kill(os.getpid(), 9)
        write_bundle(Path(sys.argv[1]), fill)
        """
    )
    out = tmp_path / "bundle"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    half = tmp_path / process.stdout.readline().strip()
    other = write_bundle(tmp_path / "other", fill)
    with pytest.raises(BundleError, match="another export"):  # while the other one is alive
        write_bundle(out, fill)
    assert (half / "half.onnx").read_bytes() == b"half"
    process.communicate("go\n")
    assert process.returncode == -signal.SIGKILL
    assert half.is_dir()
    write_bundle(out, fill)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "other"]
    assert read_bundle(other.path) == other
