"""The journal: one line per frame as soon as it is known, usable after a kill or a full disk."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mambapose.runtime.errors import OutputError
from mambapose.runtime.results.journal import Journal
from mambapose.runtime.results.journal_reader import JournalReader
from mambapose.runtime.types import Pose

from .made_up import pose

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_journal_is_one_line_per_frame(tmp_path: Path) -> None:
    with Journal(tmp_path / "out", {"tool": "mambapose", "name": "Zoë"}) as journal:
        journal.append(0, 0.0, [pose(0, 3), pose(0, 4, solid=False)])
        journal.append(1, 1 / 3, [])
        # Flushed: readable while the run goes on.
        assert len(journal.path.read_text("utf-8").splitlines()) == 3
        journal.finish(frames=2)
    lines = [json.loads(line) for line in journal.path.read_text("utf-8").splitlines()]
    assert lines[0] == {"meta": {"tool": "mambapose", "name": "Zoë"}}
    assert lines[3] == {"end": {"frames": 2}}
    assert lines[2] == {"frame": 1, "timestamp": 0.333333, "people": []}
    first, second = lines[1]["people"]
    assert (first["id"], second["id"], second["xyz"]) == (3, 4, None)
    for name, tolerance in (("box", 6e-4), ("xy", 6e-4), ("score", 6e-5), ("xyz", 6e-6)):
        np.testing.assert_allclose(first[name], getattr(pose(0, 3), name), rtol=0, atol=tolerance)


def test_journal_keeps_the_decimals_that_mean_something(tmp_path: Path) -> None:
    """A thousandth of a pixel, 0.02 mm of a person, a microsecond; more would only cost space."""
    person = replace(
        pose(0),
        box=np.full(4, 1.23456789),
        xy=np.full((17, 2), 1.23456789),
        score=np.full(17, 0.123456789),
        xyz=np.full((17, 3), 0.123456789),
    )
    with Journal(tmp_path, {}) as journal:
        journal.append(0, 1.23456789, [person])
    (record,) = JournalReader(journal.path)
    (first,) = record["people"]
    assert record["timestamp"] == 1.234568
    assert (first["box"][0], first["xy"][0][0], first["score"][0]) == (1.235, 1.235, 0.1235)
    assert first["xyz"][0][0] == 0.12346


def test_journal_writes_missing_joints_as_null(tmp_path: Path) -> None:
    person = pose(0)
    person.xy[5] = np.nan
    with Journal(tmp_path, {}) as journal:
        journal.append(0, 0.0, [person])
    (record,) = JournalReader(journal.path)
    assert record["people"][0]["xy"][5] == [None, None]
    assert None not in record["people"][0]["xy"][4]


def test_journal_does_not_overwrite(tmp_path: Path) -> None:
    with Journal(tmp_path, {"run": 1}) as journal:
        journal.append(0, 0.0, [])
        journal.finish()
    with pytest.raises(OutputError, match="cannot be created"):
        Journal(tmp_path, {"run": 2})
    assert '"run":1' in journal.path.read_text()
    with pytest.raises(OutputError, match="closed"):
        journal.append(1, 0.0, [])


def test_journal_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*request: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match="No space left on device") as caught:
        Journal(tmp_path, {})
    assert "\n" not in str(caught.value)


def flat(people: list[Pose]) -> list[Pose]:
    return [replace(person, xyz=None) for person in people]


def write_late(out: Path, finish: bool = True) -> Journal:
    """Frame 0: two people, one never lifted; 1: nobody; 2 and 3: one person; 3D two frames late."""
    frames = [[pose(0, 1), pose(0, 12, solid=False)], [], [pose(2, 1)], [pose(3, 1)]]
    with Journal(out, {}) as journal:
        for frame, people in enumerate(frames):
            journal.append(frame, frame / 10, flat(people), waits=True)
            if frame >= 2:
                journal.lift(frame - 2, frames[frame - 2])
        if finish:
            for frame in (2, 3):
                journal.lift(frame, frames[frame])
            journal.finish()
    return journal


def test_late_3d_gives_the_records_of_3d_at_once(tmp_path: Path) -> None:
    late = write_late(tmp_path / "late")
    with Journal(tmp_path / "at once", {}) as journal:
        journal.append(0, 0.0, [pose(0, 1), pose(0, 12, solid=False)])
        journal.append(1, 0.1, [])
        journal.append(2, 0.2, [pose(2, 1)])
        journal.append(3, 0.3, [pose(3, 1)])
    found = list(JournalReader(late.path))
    assert found == list(JournalReader(journal.path))
    assert [list(person) for person in found[0]["people"]] == [
        ["id", "box", "xy", "score", "xyz"]
    ] * 2
    assert (late.frames, journal.frames) == (4, 4)
    assert JournalReader(late.path).end == {}


def test_frames_whose_3d_never_came_are_there_without_it(tmp_path: Path) -> None:
    journal = write_late(tmp_path, finish=False)
    found = list(JournalReader(journal.path))
    assert [record["frame"] for record in found] == [0, 1, 2, 3]
    assert found[0]["people"][0]["xyz"] is not None
    assert [record["people"][0]["xyz"] for record in found[2:]] == [None, None]
    np.testing.assert_allclose(found[3]["people"][0]["xy"], pose(3).xy, atol=6e-4)
    assert JournalReader(journal.path).end is None
    # Cut anywhere, every whole line counts: the frames are those whose line is complete.
    data = journal.path.read_bytes()
    for size in range(data.index(b"\n") + 1, len(data), 97):
        journal.path.write_bytes(data[:size])
        whole = data[:size].count(b'"timestamp"') - (
            b'"timestamp"' in data[:size].rsplit(b"\n")[-1]
        )
        assert len(list(JournalReader(journal.path))) == whole


@pytest.mark.parametrize(
    "line", ['{"frame":7,"xyz":{}}', '{"frame":2,"xyz":[]}', '{"xyz":{}}', "[]", '{"frame":2}']
)
def test_3d_of_a_frame_that_does_not_wait_is_damage(tmp_path: Path, line: str) -> None:
    journal = write_late(tmp_path, finish=False)
    with journal.path.open("a") as file:
        file.write(line + "\n")
    reader = JournalReader(journal.path)
    assert len(list(reader)) == 4
    assert reader.damage.lines == 1


def test_a_journal_reaches_the_disk_within_about_a_second(tmp_path: Path, monkeypatch) -> None:
    """Also when no frame comes after it, as from a camera that stalls."""
    synced: list[int] = []
    sync = os.fsync

    def noted(file: int) -> None:
        synced.append(os.fstat(file).st_size)
        sync(file)

    monkeypatch.setattr(os, "fsync", noted)
    with Journal(tmp_path, {}) as journal:
        for frame in range(5):
            journal.append(frame, frame / 30, [])
        size = journal.path.stat().st_size
        deadline = time.monotonic() + 30
        while size not in synced:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        # A disk that is slow does not hold up frames: they are not synced one by one.
        assert len(synced) <= 3
        journal.append(5, 1.0, [])
    assert synced[-1] == journal.path.stat().st_size


def test_a_journal_that_is_deleted_is_not_called_safe(tmp_path: Path) -> None:
    with Journal(tmp_path / "out", {}) as journal:
        journal.append(0, 0.0, [])
        shutil.rmtree(tmp_path / "out")
        deadline = time.monotonic() + 30
        problem = None
        while problem is None and time.monotonic() < deadline:
            try:
                journal.append(1, 0.0, [])
            except OutputError as err:
                problem = str(err)
            time.sleep(0.02)
        assert problem is not None
        assert "was deleted while the run wrote to it" in problem
        assert "safe" not in problem
        with pytest.raises(OutputError, match="was deleted"):
            journal.close()
    short = Journal(tmp_path / "again", {})
    short.append(0, 0.0, [])
    shutil.rmtree(tmp_path / "again")
    with pytest.raises(OutputError, match="was deleted"):  # over before the first look
        short.close()


def test_a_disk_that_fails_to_sync_ends_the_run(tmp_path: Path, monkeypatch) -> None:
    def failing(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    journal = Journal(tmp_path, {})
    monkeypatch.setattr(os, "fsync", failing)
    journal.append(0, 0.0, [])
    with pytest.raises(OutputError, match="Input/output error"):
        journal.close()


FILL_UP = """
import resource, signal, sys
from pathlib import Path
from mambapose.runtime.errors import OutputError
from mambapose.runtime.results.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
journal = Journal(Path(sys.argv[1]), {})
try:
    for frame in range(100):
        journal.append(frame, frame / 30, [])
except OutputError as err:
    print(journal.frames, err)
"""


def test_journal_that_cannot_grow_keeps_whole_lines(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILL_UP, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
        timeout=60,
    )
    frames = int(done.stdout.split()[0])
    assert f"{frames} frames are safe in it" in done.stdout
    data = (tmp_path / "poses.ndjson").read_bytes()
    assert data.endswith(b"\n")
    assert [record["frame"] for record in JournalReader(tmp_path / "poses.ndjson")] == list(
        range(frames)
    )
    assert 10 < frames < 100


KILLED_RUN = """
import sys, time
from pathlib import Path
import numpy as np
from mambapose.runtime.results.journal import Journal
from mambapose.runtime.types import Size
from mambapose.runtime.results.overlay import Overlay
out = Path(sys.argv[1])
journal = Journal(out, {"run": "killed"})
video = Overlay(out / "overlay.mp4", Size(48, 64), 30)
for frame in range(100000):
    video.write(np.full((48, 64, 3), frame % 200, np.uint8), frame / 30)
    journal.append(frame, frame / 30, [])
    time.sleep(0.002)
"""


def test_kill_nine_leaves_a_readable_journal_and_no_half_video(tmp_path: Path) -> None:
    journal = tmp_path / "poses.ndjson"
    process = subprocess.Popen([sys.executable, "-c", KILLED_RUN, str(tmp_path)], env=ENVIRONMENT)
    try:
        deadline = time.monotonic() + 60
        while not journal.exists() or journal.stat().st_size < 8000:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    frames = [record["frame"] for record in JournalReader(journal)]
    assert frames == list(range(len(frames)))
    assert len(frames) > 100
    # The video is not complete, so it has not taken its name.
    assert not (tmp_path / "overlay.mp4").exists()
    assert (tmp_path / "overlay.mp4.part").exists()
