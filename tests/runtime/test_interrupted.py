"""Runs that end early: Ctrl-C once and twice, kill -9, a full disk, a reader that leaves."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mambapose.runtime.interrupt import Interruptible

from .drawn_clip import DrawnClip, write_clip
from .small_bundle import write_fake_bundle
from .test_cli import SCHEDULE, mp_run, plain_engines

HERE = Path(__file__).resolve().parent
PATIENCE = 120  # seconds for what takes one or two: the neighbours of this test are busy too

SLOW = """
import sys, time
from dataclasses import replace
sys.path.insert(0, {tests!r})
import importlib, types
package = types.ModuleType("runtime_tests")
package.__path__ = [{here!r}]
sys.modules["runtime_tests"] = package
t = importlib.import_module("runtime_tests.test_cli")
from mambapose.runtime.backends.loader import BACKENDS
from mambapose.runtime.people import one_person
from mambapose.runtime.cli import main
from mambapose.runtime.people.tracking import full_frame

engines = t.plain_engines()
def slow(inputs):
    time.sleep(0.05)
    return t.upright(inputs)
engines["pose2d"].function = slow
one_person.found_box = lambda last, size, look: full_frame(size)
BACKENDS["onnxruntime"] = replace(
    BACKENDS["onnxruntime"], load=lambda bundle, stage, graph, where: engines[stage]
)
main(sys.argv[1:])
"""


def start_slow_run(tmp_path, clip, *options, limit=None):
    """mp-run in a process of its own, 50 ms per frame; returns it once 3D joints are recorded
    and, with an overlay, drawn.

    limit: bytes a file may grow to, as on a disk that fills up.
    """
    bundle = write_fake_bundle(tmp_path / "bundle", plain_engines(), SCHEDULE)
    code = SLOW.format(tests=str(HERE.parent), here=str(HERE))
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--engine", str(bundle.path), str(clip), "-o", str(out),
         *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=limit and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))),
    )  # fmt: skip
    journal, video = out / "poses.ndjson", out / "overlay.mp4"
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        drawn = video.is_file() or "--overlay" not in options
        if drawn and journal.is_file() and b'"xyz":{"1":' in journal.read_bytes():
            break
        time.sleep(0.02)
    return process, out


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "long.mp4"
    write_clip(path, DrawnClip(frames=200, size=(96, 64)))
    return path


def test_ctrl_c_finishes_the_frame_and_exits_130(tmp_path, long_clip):
    process, out = start_slow_run(tmp_path, long_clip, "--overlay")
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, errors
    assert "stopped by Ctrl-C" in said
    document = json.loads((out / "poses.json").read_text())
    frames = len(document["frames"])
    assert 4 <= frames < 200
    assert document["meta"]["complete"] is False
    assert all(frame["people"][0]["xyz"] is not None for frame in document["frames"])
    assert json.loads((out / "run.json").read_text())["interrupted"] is True
    import av

    with av.open(str(out / "overlay.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == frames


def recorded_frames(out):
    return (out / "poses.ndjson").read_bytes().count(b'"people":[')


def test_ctrl_c_twice_stops_at_once_and_says_how_to_go_on(capsys, tmp_path, long_clip):
    process, out = start_slow_run(tmp_path, long_clip, "--overlay")
    process.send_signal(signal.SIGINT)
    time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert f"mp-run --recover --out {out} makes the results" in errors
    assert sorted(path.name for path in out.iterdir()) == ["overlay.mp4", "poses.ndjson"]
    assert mp_run("--recover", "--out", out) == 0
    assert f"{recorded_frames(out)} frames of an interrupted run" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["out", "out.json"])
def test_kill_9_loses_no_frame_and_recover_makes_the_results(capsys, tmp_path, long_clip, name):
    process, out = start_slow_run(tmp_path, long_clip, "--out", str(tmp_path / name))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    assert not (out / "poses.json").exists()
    recorded = recorded_frames(out)
    assert mp_run("--recover", "-o", tmp_path / name) == 0
    assert f"{recorded} frames of an interrupted run" in capsys.readouterr().out
    result = tmp_path / name if name.endswith(".json") else out / "poses.json"
    frames = json.loads(result.read_text())["frames"]
    assert [frame["frame"] for frame in frames] == list(range(recorded))
    people = [frame["people"][0] for frame in frames]
    assert all(len(person["xy"]) == 17 for person in people)
    # The last ones were still waiting for the frames after them.
    assert people[0]["xyz"] is not None
    assert people[-1]["xyz"] is None


def test_a_reader_that_leaves_does_not_cost_the_results(tmp_path, long_clip):
    process, out = start_slow_run(tmp_path, long_clip, "--range", "0:20")
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=PATIENCE) == 1
    assert json.loads((out / "poses.json").read_text())["meta"]["complete"] is True


def test_a_disk_that_fills_up_keeps_what_was_recorded(capsys, tmp_path, long_clip):
    process, out = start_slow_run(tmp_path, long_clip, "--quiet", limit=12_000)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert errors.count("\n") == 1
    assert "cannot grow" in errors
    assert sorted(path.name for path in out.iterdir()) == ["poses.ndjson"]
    assert mp_run("--recover", "-o", out, "--quiet") == 0
    assert len(json.loads((out / "poses.json").read_text())["frames"]) > 2


def test_the_first_ctrl_c_asks_and_the_second_stops():
    with Interruptible() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        assert list(stop.frames([1, 2])) == []
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
