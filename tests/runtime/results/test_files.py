"""Result files say the same in every format and are made with flat memory."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from mambapose.runtime.errors import OutputError
from mambapose.runtime.results.files import WRITERS, conventions, write_results
from mambapose.runtime.results.journal import Journal, record_from_pose
from mambapose.runtime.results.journal_reader import JournalReader
from mambapose.runtime.skeleton import COCO17, H36M17
from mambapose.runtime.types import Pose

from .made_up import pose

# Frame 2 is empty, person 9 has no 3D.
PEOPLE = {0: [(1, True)], 1: [(1, True), (9, False)], 2: [], 3: [(9, False)]}


def write_run(out: Path, finish: bool = True) -> list[Pose]:
    poses = []
    with Journal(out, {"trained": {"pose2d": False}, **conventions()}) as journal:
        for frame, people in PEOPLE.items():
            row = [pose(frame, track, solid) for track, solid in people]
            journal.append(frame, frame / 25, row)
            poses += row
        if finish:
            journal.finish(problem=None, frames=4)
    return poses


def test_three_formats_hold_the_same(tmp_path: Path) -> None:
    poses = write_run(tmp_path)
    paths = write_results(tmp_path).paths
    assert [path.name for path in paths] == ["poses.json", "poses.npz", "poses.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "poses.csv", "poses.json", "poses.ndjson", "poses.npz",
    ]  # fmt: skip

    document = json.loads(paths[0].read_text())
    assert document["meta"]["complete"] is True
    assert document["meta"]["trained"] == {"pose2d": False}
    assert document["meta"]["skeletons"]["xy"]["joints"] == list(COCO17.joints)
    assert document["meta"]["skeletons"]["xyz"]["edges"] == [list(edge) for edge in H36M17.edges]
    assert [frame["frame"] for frame in document["frames"]] == [0, 1, 2, 3]
    people = [person for frame in document["frames"] for person in frame["people"]]

    with np.load(paths[1], allow_pickle=False) as arrays:
        npz = dict(arrays)
    assert json.loads(str(npz["meta"])) == document["meta"]
    assert npz["frames"].tolist() == [0, 1, 2, 3]
    assert npz["times"].tolist() == [0.0, 0.04, 0.08, 0.12]
    assert npz["frame_index"].tolist() == [0, 1, 1, 3]
    assert npz["timestamp"].tolist() == [0.0, 0.04, 0.04, 0.12]
    assert npz["track"].tolist() == [1, 1, 9, 9]
    assert (npz["box"].shape, npz["xy"].shape) == ((4, 4), (4, 17, 2))
    assert (npz["score"].shape, npz["xyz"].shape) == ((4, 17), (4, 17, 3))

    with paths[2].open(newline="") as file:
        header, *rows = csv.reader(file)
    assert len(rows) == 4
    for number, (true, person, row) in enumerate(zip(poses, people, rows, strict=True)):
        cells = dict(zip(header, row, strict=True))
        assert (int(cells["frame"]), int(cells["track"])) == (true.frame, true.track)
        np.testing.assert_allclose(npz["xy"][number], true.xy, atol=6e-4)
        np.testing.assert_allclose(person["xy"], true.xy, atol=6e-4)
        np.testing.assert_allclose(npz["box"][number], person["box"], rtol=1e-6)
        assert float(cells["left_knee_y"]) == person["xy"][13][1]
        assert float(cells["nose_score"]) == person["score"][0]
        assert float(cells["box_x1"]) == person["box"][2]
        if true.xyz is None:
            assert person["xyz"] is None
            assert np.isnan(npz["xyz"][number]).all()
            assert cells["right_wrist_3d_z"] == ""
        else:
            np.testing.assert_allclose(npz["xyz"][number], true.xyz, atol=6e-6)
            assert float(cells["right_wrist_3d_z"]) == person["xyz"][16][2]


def test_frames_that_the_decoder_made_up_are_marked_in_every_format(tmp_path: Path) -> None:
    with Journal(tmp_path, conventions()) as journal:
        journal.append(0, 0.0, [pose(0, 1, True)])
        journal.append(1, 0.1, [pose(1, 1, True)], corrupt=True)
        journal.append(2, 0.2, [], corrupt=True)
        journal.finish()
    found = write_results(tmp_path)
    assert (found.complete, found.damage.lines) == (True, 0)
    json_path, npz_path, csv_path = found.paths
    frames = json.loads(json_path.read_text())["frames"]
    assert [frame.get("corrupt") for frame in frames] == [None, True, True]
    with np.load(npz_path) as arrays:
        assert arrays["corrupt"].tolist() == [False, True, True]
    header, *rows = csv.reader(csv_path.read_text().splitlines())
    assert header[-1] == "corrupt"
    assert [row[-1] for row in rows] == ["0", "1"]


def test_no_people_at_all(tmp_path: Path) -> None:
    with Journal(tmp_path, {}) as journal:
        journal.finish()
    json_path, npz_path, csv_path = write_results(tmp_path).paths
    assert json.loads(json_path.read_text()) == {"meta": {"complete": True}, "frames": []}
    with np.load(npz_path) as arrays:
        assert arrays["xy"].shape == (0, 17, 2)
        assert arrays["frames"].shape == (0,)
    assert len(csv_path.read_text().splitlines()) == 1


def test_only_the_formats_asked_for(tmp_path: Path) -> None:
    write_run(tmp_path)
    assert [path.name for path in write_results(tmp_path, ("csv",)).paths] == ["poses.csv"]
    assert not (tmp_path / "poses.json").exists()
    with pytest.raises(OutputError, match=f"{', '.join(WRITERS)} can be written, found xml"):
        write_results(tmp_path, ("xml",))


def test_missing_joint_is_nan_and_empty(tmp_path: Path) -> None:
    person = pose(0, 1, True)
    person.xy[3] = np.nan
    with Journal(tmp_path, {}) as journal:
        journal.append(0, 0.0, [person])
    _, npz_path, csv_path = write_results(tmp_path).paths
    with np.load(npz_path) as arrays:
        assert np.isnan(arrays["xy"][0, 3]).all()
        assert np.isfinite(arrays["xy"][0, 4]).all()
    header, row = csv.reader(csv_path.read_text().splitlines())
    assert row[header.index("left_ear_x")] == ""


@pytest.mark.parametrize("torn", [b'{"frame":4,"timestamp":0.16,"peo', b"\0" * 40, b"{"])
def test_a_torn_last_line_is_ignored(tmp_path: Path, torn: bytes) -> None:
    write_run(tmp_path, finish=False)
    with (tmp_path / "poses.ndjson").open("ab") as file:
        file.write(torn)
    found = write_results(tmp_path)
    assert (found.frames, found.complete) == (4, False)
    assert [path.name for path in found.paths] == ["poses.json", "poses.npz", "poses.csv"]
    document = json.loads(found.paths[0].read_text())
    assert document["meta"]["complete"] is False
    assert len(document["frames"]) == 4


def test_the_same_journal_gives_the_same_files(tmp_path: Path) -> None:
    write_run(tmp_path)
    before = [path.read_bytes() for path in write_results(tmp_path, ("json", "csv")).paths]
    found = write_results(tmp_path, ("json", "csv"))
    assert found.complete
    assert [path.read_bytes() for path in found.paths] == before


def damaged(out: Path, number: int, line: bytes) -> None:
    """Put ``line`` in place of line ``number`` (from 1) of the journal in ``out``."""
    path = out / "poses.ndjson"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1] = line + b"\n"
    path.write_bytes(b"".join(lines))


def frame_line(frame: object, **changes: object) -> bytes:
    people = [record_from_pose(pose(1, 1, True)) | changes.pop("person", {})]
    record = {"frame": frame, "timestamp": 0.04, "people": people} | changes
    return json.dumps(record).encode()


@pytest.mark.parametrize(
    "line",
    [
        b'{"frame":1,',
        b'{"people":[]}',
        b"[]",
        b"null",
        b"7",
        b"\xff\xfe",
        b"[" * 100_000,
        frame_line(-1),
        frame_line(True),
        frame_line("1"),
        frame_line(2**70),
        frame_line(1, timestamp=float("nan")),
        frame_line(1, timestamp=10**400),
        frame_line(1, people={}),
        frame_line(1, people=[3]),
        frame_line(1, more=1),
        frame_line(1, person={"id": None}),
        frame_line(1, person={"id": 2**63}),
        frame_line(1, person={"box": [1, 2, 3]}),
        frame_line(1, person={"xy": [[0, 0]] * 16}),
        frame_line(1, person={"score": ["1"] * 17}),
        frame_line(1, person={"xyz": [[0, 0]] * 17}),
        frame_line(1, person={"xyz": [[0, 0, float("inf")]] * 17}),
        b'{"frame":7,"xyz":{}}',
        b'{"frame":1,"xyz":[]}',
        b'{"end":',
        b'{"end":{"frames":1}}',
    ],
)
def test_a_damaged_line_costs_its_own_frame_and_no_other(tmp_path: Path, line: bytes) -> None:
    write_run(tmp_path)
    damaged(tmp_path, 3, line)
    found = write_results(tmp_path)
    assert (found.frames, found.complete, found.damage.lines) == (3, False, 1)
    assert found.damage.first.startswith("line 3 ")
    document = json.loads((tmp_path / "poses.json").read_text())
    assert [frame["frame"] for frame in document["frames"]] == [0, 2, 3]
    assert (document["meta"]["complete"], document["meta"]["damaged_lines"]) == (False, 1)
    assert document["meta"]["frames"] == 4  # the end line is whole
    with np.load(tmp_path / "poses.npz") as arrays:
        assert arrays["frames"].tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    "line",
    [
        b'{"end":',
        b'{"end":1}',
        b'{"end": [1]}',
        b'{"end":null}',
        b'{"end":{"frames":1},"x":2}',
        b'{"end":{"problem":"\\ud800"}}',
        b'{"end":{"frames":NaN}}',
    ],
)
def test_a_damaged_end_costs_no_frame(tmp_path: Path, line: bytes) -> None:
    write_run(tmp_path)
    damaged(tmp_path, 6, line)
    found = write_results(tmp_path)
    assert (found.frames, found.complete, found.damage.lines) == (4, False, 1)


def test_a_frame_number_that_is_much_too_large_costs_no_other_frame(tmp_path: Path) -> None:
    write_run(tmp_path)
    damaged(tmp_path, 3, frame_line(5_000_000))
    found = write_results(tmp_path, ("json",))
    assert (found.frames, found.damage.first) == (3, "line 3 is a frame out of order")
    frames = json.loads(found.paths[0].read_text())["frames"]
    assert [frame["frame"] for frame in frames] == [0, 2, 3]


def test_a_frame_written_twice_counts_once(tmp_path: Path) -> None:
    write_run(tmp_path)
    path = tmp_path / "poses.ndjson"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], *lines[1:]]))
    found = write_results(tmp_path)
    assert (found.frames, found.damage.lines) == (4, 2)


@pytest.mark.parametrize("line", [b"{}", b'{"meta":[]}', b'{"meta":{"a":"\\ud800"}}', b"x"])
def test_without_its_first_line_a_journal_still_has_its_frames(tmp_path: Path, line: bytes) -> None:
    write_run(tmp_path)
    damaged(tmp_path, 1, line)
    found = write_results(tmp_path)
    assert (found.frames, found.complete) == (4, False)
    meta = json.loads((tmp_path / "poses.json").read_text())["meta"]
    assert meta["units"]["xyz"].startswith("unknown")
    assert meta["skeletons"] == conventions()["skeletons"]


def test_journals_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="an output folder that mp-run wrote"):
        write_results(tmp_path)
    (tmp_path / "poses.ndjson").write_text('{"something": "else"}\n')
    with pytest.raises(OutputError, match="should start with a meta line and holds no frame"):
        write_results(tmp_path)
    (tmp_path / "poses.ndjson").write_text('{"meta": {"tor')
    with pytest.raises(OutputError, match="ends inside its first line"):
        JournalReader(tmp_path / "poses.ndjson")
    assert [path.name for path in tmp_path.iterdir()] == ["poses.ndjson"]


FULL = """
import resource, signal, sys
from pathlib import Path
from mambapose.runtime.errors import OutputError
from mambapose.runtime.results.files import write_results
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
try:
    write_results(Path(sys.argv[1]))
except OutputError as err:
    print(err)
"""


def test_full_disk_leaves_the_journal_and_says_so(tmp_path: Path) -> None:
    write_run(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": ""},
    )
    assert "every frame is safe" in done.stdout
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["poses.ndjson"]


PEAK = """
import resource, sys
from pathlib import Path
from mambapose.runtime.results.files import write_results
write_results(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_results(Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_is_flat_over_half_an_hour_of_video(tmp_path: Path) -> None:
    """54,000 frames: neither the journal nor the result files hold what passed through."""
    people = [pose(0, 1, True)]
    for name, count in (("short", 100), ("long", 54_000)):
        with Journal(tmp_path / name, conventions()) as journal:
            for frame in range(count):
                if frame == 1000:
                    tracemalloc.start()
                if frame == 2000:
                    grown, _ = tracemalloc.get_traced_memory()
                    tracemalloc.stop()
                journal.append(frame, frame / 30, people, waits=True)
                if frame >= 60:
                    journal.lift(frame - 60, people)
    assert grown < 50_000
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "short"), str(tmp_path / "long")],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": ""},
    )
    # The journal is 65 MiB and the arrays are 24 MiB; none of it may stay in memory.
    assert (tmp_path / "long" / "poses.ndjson").stat().st_size > 50 << 20
    assert int(done.stdout) / 1024 < 8
    with np.load(tmp_path / "long" / "poses.npz") as arrays:
        assert arrays["xyz"].shape == (54_000, 17, 3)
        assert np.isnan(arrays["xyz"]).all(axis=(1, 2)).sum() == 60
        np.testing.assert_allclose(arrays["xy"][-1], people[0].xy, atol=6e-4)
    assert sum(1 for _ in JournalReader(tmp_path / "long" / "poses.ndjson")) == 54_000
