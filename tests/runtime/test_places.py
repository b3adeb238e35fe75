"""Where a run writes: nothing lost, nothing shared, and names that cannot be written said first."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tempfile
from pathlib import Path

import pytest

from mambapose.runtime import running
from mambapose.runtime.results.destination import destination_of

from .test_cli import bundle, clip, mp_run, refusal

__all__ = ["bundle", "clip"]  # fixtures


def test_an_earlier_run_stays_until_there_is_something_to_replace_it(
    capsys, tmp_path, bundle, clip
):
    out = tmp_path / "out"
    assert mp_run("--engine", bundle, clip, "-o", out, "--overlay", "--quiet") == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    common = ("-o", out, "--overwrite", "--overlay")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:700])
    for wrong in (
        ("--engine", bundle, clip, "--range", "500:"),
        ("--engine", bundle, broken),
        ("--engine", bundle, tmp_path / "none.mp4"),
        ("--engine", tmp_path / "none", clip),
    ):
        refusal(capsys, *common, *wrong)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_named_file_and_a_list_of_formats_exclude_each_other(capsys, tmp_path, bundle, clip):
    common = ("--engine", bundle, clip, "--format", "npz")
    assert mp_run(*common, "-o", tmp_path / "walk.csv") == 2
    assert "names one file; leave out --format" in capsys.readouterr().err
    assert mp_run(*common, "-o", tmp_path / "walk.mp4", "--quiet") == 0
    assert (tmp_path / "walk" / "poses.npz").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("n" * 300, "too long"),
        ("n" * 254 + ".json", "longer than 255 bytes"),
        ("n" * 248 + ".json", "longer than 255 bytes"),
        ("ä" * 126 + ".csv", "longer than 255 bytes"),
        ("bad\udcff", "not UTF-8"),
        ("bad\udcff.mp4", "not UTF-8"),
    ],
)
def test_names_that_would_fail_at_the_end_fail_before_the_run(
    capsys, tmp_path, bundle, clip, name, text
):
    line = refusal(capsys, "--engine", bundle, clip, "-o", tmp_path / name)
    assert text in line
    assert "choose another --out" in line
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_result_beside_a_folder_of_another_filesystem(tmp_path, bundle, clip):
    """The file is written where it belongs, not moved there from the folder."""
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one filesystem only")
    with tempfile.TemporaryDirectory(dir=elsewhere) as other:
        (tmp_path / "walk").symlink_to(other)
        out = tmp_path / "walk.json"
        assert mp_run("--engine", bundle, clip, "-o", out, "--quiet") == 0
        assert len(json.loads(out.read_text())["frames"]) == 24
        assert (Path(other) / "poses.ndjson").exists()


def test_two_runs_never_share_a_folder(capsys, tmp_path, bundle, clip):
    out = tmp_path / "out"
    busy = destination_of(out, ("json",))
    for args in (
        ("--engine", bundle, clip, "-o", out),
        ("--engine", bundle, clip, "-o", out, "--overwrite"),
        ("--engine", bundle, clip, "-o", tmp_path / "out.json"),
        ("--recover", "-o", out),
    ):
        with busy.locked():
            assert "is in use by another run" in refusal(capsys, *args)
            assert list(out.iterdir()) == []
    assert not out.exists()
    assert mp_run("--engine", bundle, clip, "-o", out, "--quiet") == 0


def test_a_folder_without_locks_is_said_to_be(capsys, monkeypatch, tmp_path, bundle, clip):
    def refused(*request):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)
    assert mp_run("--engine", bundle, clip, "-o", tmp_path / "out") == 0
    assert "cannot be locked" in capsys.readouterr().err


def test_a_source_without_any_frame_is_refused(capsys, monkeypatch, tmp_path, bundle, clip):
    monkeypatch.setattr(running.Prefetch, "__iter__", lambda self: iter(()))
    assert "gave no frame" in refusal(capsys, "--engine", bundle, clip, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_earlier_run_is_not_replaced_unless_asked(capsys, tmp_path, bundle, clip):
    out = tmp_path / "out"
    assert mp_run("--engine", bundle, clip, "-o", out, "--overlay", "--quiet") == 0
    before = (out / "poses.json").read_bytes()
    assert "--overwrite" in refusal(capsys, "--engine", bundle, clip, "-o", out)
    assert (out / "poses.json").read_bytes() == before
    code = mp_run("--engine", bundle, clip, "-o", out, "--overwrite", "--format", "csv", "--quiet")
    assert code == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == ["poses.csv", "poses.ndjson", "run.json"]


def test_a_range_and_a_named_file(tmp_path, bundle, clip):
    out = tmp_path / "walk.json"
    assert mp_run("--engine", bundle, clip, "-o", out, "--range", "5:9", "--quiet") == 0
    assert [f["frame"] for f in json.loads(out.read_text())["frames"]] == [5, 6, 7, 8]
    assert sorted(path.name for path in (tmp_path / "walk").iterdir()) == [
        "poses.ndjson",
        "run.json",
    ]


@pytest.mark.parametrize(
    ("out", "overlay", "folder", "video", "formats"),
    [
        ("out", False, "out", None, ("json", "npz", "csv")),
        ("out", True, "out", "out/overlay.mp4", ("json", "npz", "csv")),
        ("a/b.mp4", False, "a/b", "a/b.mp4", ("json", "npz", "csv")),
        ("b.npz", True, "b", "b/overlay.mp4", ("npz",)),
    ],
)
def test_where_results_go(out, overlay, folder, video, formats):
    found = destination_of(Path(out), ("json", "npz", "csv"), overlay=overlay)
    assert found.folder == Path(folder)
    assert found.overlay == (None if video is None else Path(video))
    assert found.formats == formats


@pytest.mark.parametrize("out", ["file", "file.json", "file/below", "taken"])
def test_a_place_that_cannot_be_written_is_one_line(capsys, tmp_path, bundle, clip, out):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "taken" / "poses.json").mkdir(parents=True)
    line = refusal(capsys, "--engine", bundle, clip, "-o", tmp_path / out, "--overwrite")
    assert "choose another" in line
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "file", "taken"]


def test_the_input_is_never_overwritten(capsys, tmp_path, bundle, clip):
    video = tmp_path / "walk.mp4"
    video.write_bytes(clip.read_bytes())
    for source in (video, f"file://{video}"):
        line = refusal(capsys, "--engine", bundle, source, "-o", video, "--overwrite")
        assert "would be overwritten" in line
    assert video.read_bytes() == clip.read_bytes()
