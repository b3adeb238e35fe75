"""Runs that end early: Ctrl-C once and twice, kill -9, a full disk, a reader that leaves."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import click
import numpy as np
import pytest

from mambapose.runtime.commands import run_command
from mambapose.runtime.interrupt import Interruptible, signals_raise
from mambapose.runtime.results.destination import Destination
from mambapose.runtime.types import Size
from mambapose.runtime.video.prefetch import Prefetch
from mambapose.runtime.video.sources import open_source

from .drawn_clip import DrawnClip, write_clip
from .small_bundle import use_fakes, write_fake_bundle
from .test_cli import SCHEDULE, mp_run, plain_engines, refusal

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


@pytest.fixture(autouse=True)
def usual_signals():
    """Signals as in a shell in front, also where the tests run under nohup or in the background."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL,
             signal.SIGHUP: signal.SIG_DFL}  # fmt: skip
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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
    journal, video = out / "poses.ndjson", out / "overlay.mp4.part"
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        drawn = video.is_file() or "--overlay" not in options
        if drawn and journal.is_file() and b'"xyz":{"1":' in journal.read_bytes():
            break
        time.sleep(0.02)
    return process, out


def ended_well(process):
    process.communicate(timeout=PATIENCE)
    return process.returncode == 0


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "long.mp4"
    write_clip(path, DrawnClip(frames=200, size=(96, 64)))
    return path


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP")],
)
def test_a_signal_lets_the_frame_finish(tmp_path, long_clip, number, name):
    process, out = start_slow_run(tmp_path, long_clip, "--overlay")
    process.send_signal(number)
    said, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number, errors
    assert f"stopped by {name}" in said
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_results_are_written_waits_for_them(
    monkeypatch, tmp_path, long_clip, number
):
    engines = plain_engines()
    use_fakes(monkeypatch, engines)
    bundle = write_fake_bundle(tmp_path / "bundle", engines, SCHEDULE).path
    write = Destination.write_results

    def disturbed(self):
        os.kill(os.getpid(), number)
        return write(self)

    monkeypatch.setattr(Destination, "write_results", disturbed)
    args = ("--engine", bundle, long_clip, "--range", "0:3", "-o", tmp_path / "out", "--quiet")
    assert mp_run(*args) == 128 + number
    assert {"poses.json", "poses.npz", "poses.csv", "run.json"} < set(os.listdir(tmp_path / "out"))


def test_ctrl_c_twice_stops_at_once_and_says_how_to_go_on(capsys, tmp_path, long_clip):
    process, out = start_slow_run(tmp_path, long_clip, "--overlay")
    process.send_signal(signal.SIGINT)
    time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert f"mp-run --recover --out {out} makes the results" in errors
    left = {path.name for path in out.iterdir()}
    assert {"poses.ndjson"} <= left <= {"poses.ndjson", "overlay.mp4"}  # what was drawn, if whole
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
    said = capsys.readouterr().out
    assert f"{recorded} frames of an interrupted run, " in said
    assert "of them without 3D, which waited for later frames" in said
    result = tmp_path / name if name.endswith(".json") else out / "poses.json"
    frames = json.loads(result.read_text())["frames"]
    assert [frame["frame"] for frame in frames] == list(range(recorded))
    people = [frame["people"][0] for frame in frames]
    assert all(len(person["xy"]) == 17 for person in people)
    # The last ones were still waiting for the frames after them.
    assert people[0]["xyz"] is not None
    assert people[-1]["xyz"] is None


def test_recover_draws_the_overlay_of_a_killed_run_again(capsys, tmp_path, long_clip):
    process, out = start_slow_run(tmp_path, long_clip, "--overlay", "--range", "20:90")
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert not (out / "overlay.mp4").exists()
    recorded = recorded_frames(out)
    assert mp_run("--recover", "--overlay", "-o", out) == 0
    assert f"wrote {out / 'overlay.mp4'}: {recorded} frames" in capsys.readouterr().out
    moved = tmp_path / "moved.mp4"
    moved.write_bytes(long_clip.read_bytes())
    assert mp_run(moved, "--recover", "--overlay", "-o", tmp_path / "out.mp4", "--quiet") == 0
    with open_source(str(out / "overlay.mp4")) as source:
        first = [frame.image for frame in source]
    with open_source(str(tmp_path / "out.mp4")) as source:
        again = [frame.image for frame in source]
    assert len(first) == len(again) == recorded
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_an_overlay_drawn_again_is_the_one_of_the_run(tmp_path, long_clip):
    process, out = start_slow_run(tmp_path, long_clip, "--overlay", "--range", "20:40", "--quiet")
    assert ended_well(process)
    with open_source(str(out / "overlay.mp4")) as source:
        before = [(frame.timestamp, frame.image) for frame in source]
    assert mp_run("--recover", "--overlay", "-o", out, "--quiet") == 0
    with open_source(str(out / "overlay.mp4")) as source:
        again = [(frame.timestamp, frame.image) for frame in source]
    assert [time for time, _ in before] == [time for time, _ in again]
    # The run keeps waiting pictures as JPEG and draws unrounded joints: not every bit is the same.
    gaps = [np.abs(a[1].astype(int) - b[1]).mean() for a, b in zip(before, again, strict=True)]
    assert max(gaps) < 8  # of 255; a skeleton that is missing or elsewhere makes 30


def test_an_overlay_cannot_be_drawn_again_without_its_video(capsys, tmp_path, long_clip):
    process, out = start_slow_run(tmp_path, long_clip, "--range", "0:20", "--quiet")
    assert ended_well(process)
    small = tmp_path / "small.mp4"
    write_clip(small, DrawnClip(frames=3, size=(64, 48)))
    before = (out / "poses.json").read_bytes()
    assert "has 64x48; give the video" in refusal(
        capsys, small, "--recover", "--overlay", "-o", out
    )
    journal = out / "poses.ndjson"
    journal.write_text(journal.read_text().replace(f'"path":"{long_clip}"', '"path":null'))
    line = refusal(capsys, "--recover", "--overlay", "-o", out)
    assert "mp-run VIDEO --recover --overlay" in line
    assert (out / "poses.json").read_bytes() != before  # the path is gone from its meta
    assert not (out / "overlay.mp4").exists()


@pytest.mark.parametrize(
    "place", ["http://127.0.0.1:{}/x.mp4", "tcp://127.0.0.1:{}", "/dev/video0"]
)
def test_what_a_journal_names_is_opened_only_if_it_is_a_file(capsys, tmp_path, long_clip, place):
    process, out = start_slow_run(tmp_path, long_clip, "--range", "0:5", "--quiet")
    assert ended_well(process)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        place = place.format(server.getsockname()[1])
        journal = out / "poses.ndjson"
        journal.write_text(journal.read_text().replace(str(long_clip), place))
        assert "give the video" in refusal(capsys, "--recover", "--overlay", "-o", out)
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_folder_that_is_deleted_in_mid_run_ends_it_with_the_truth(tmp_path, long_clip):
    process, out = start_slow_run(tmp_path, long_clip, "--overlay", "--quiet")
    shutil.rmtree(out)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert errors.count("\n") == 1
    assert "was deleted while the run wrote to it" in errors
    assert "safe" not in errors
    assert not out.exists()


def test_a_second_run_into_the_folder_of_a_living_one_is_refused(capsys, tmp_path, long_clip):
    process, out = start_slow_run(tmp_path, long_clip, "--range", "0:40", "--quiet")
    for more in ((), ("--overwrite",)):
        assert "in use by another run" in refusal(capsys, long_clip, "-o", out, *more)
    assert ended_well(process)
    assert len(json.loads((out / "poses.json").read_text())["frames"]) == 40
    assert json.loads((out / "run.json").read_text())["frames"] == 40


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_told_to_end_cleans_up(capsys, number):
    cleaned = []

    @click.command()
    def command():
        try:
            os.kill(os.getpid(), number)
        finally:
            cleaned.append(True)

    with pytest.raises(SystemExit) as ended:
        run_command(command, [], "x")
    assert ended.value.code == 128 + number
    assert cleaned == [True]
    assert capsys.readouterr().err.strip() == "interrupted"
    assert signal.getsignal(number) is signal.SIG_DFL


def test_signals_that_are_ignored_or_handled_stay_so():
    handled = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    other = signal.signal(signal.SIGTERM, lambda *request: handled.append(request))
    try:
        with signals_raise(), Interruptible() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.asked is None
    finally:
        signal.signal(signal.SIGHUP, before)
        signal.signal(signal.SIGTERM, other)
    assert len(handled) == 1


def test_a_camera_that_does_not_answer_can_be_stopped():
    class Stalled:
        size, fps, frame_count, problem = Size(4, 4), 30.0, None, None

        def __iter__(self):
            threading.Event().wait(3)
            return iter(())

    with Interruptible() as stop, Prefetch(Stalled(), stop=lambda: stop.asked is not None) as ahead:
        start = time.monotonic()
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        assert list(stop.frames(ahead)) == []
        assert time.monotonic() - start < 2


def test_the_first_ctrl_c_asks_and_the_second_stops():
    with Interruptible() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        assert list(stop.frames([1, 2])) == []
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
