"""mp-run as a user meets it: help, refusals in one line, interrupts, recovery."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import click
import numpy as np
import pytest

from mambapose.runtime import loading, running
from mambapose.runtime.backends.loader import BACKENDS
from mambapose.runtime.cli import RunCommand, command, main
from mambapose.runtime.results.destination import RESULTS
from mambapose.runtime.results.journal import JOURNAL
from mambapose.runtime.running import noted_warnings
from mambapose.runtime.targets import Schedule

from .drawn_clip import DrawnClip, write_clip
from .fakes import gaussians, lift_engine, pose_engine
from .small_bundle import use_backend, use_fakes, write_fake_bundle

HERE = Path(__file__).resolve().parent


def upright(inputs):
    people = len(inputs["rgb"])
    x = np.tile(np.linspace(15, 32, 17), (people, 1))
    y = np.tile(np.linspace(12, 52, 17), (people, 1))
    return {"heatmaps": gaussians(np.stack([x, y], -1))}


def plain_engines():
    return {"pose2d": pose_engine(upright), "lift3d": lift_engine(None, 9)}


SCHEDULE = Schedule(clip_frames=9, hop=3)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(path, DrawnClip(frames=24, size=(160, 96)))
    return path


@pytest.fixture
def bundle(monkeypatch, tmp_path):
    engines = plain_engines()
    use_fakes(monkeypatch, engines)
    return write_fake_bundle(tmp_path / "bundle", engines, SCHEDULE).path


def mp_run(*args):
    """Exit code of mp-run."""
    try:
        main([str(arg) for arg in args])
    except SystemExit as ended:
        return ended.code
    return 0


def refusal(capsys, *args):
    """The one line of a run that is refused with exit 1."""
    assert mp_run(*args) == 1
    text = capsys.readouterr().err.strip().splitlines()
    line = [part for part in text if not part.startswith(("note:", "frames:"))]
    assert len(line) == 1
    assert line[0].startswith("error: ")
    return line[0]


def test_help_is_grouped_short_and_needs_click_alone():
    code = textwrap.dedent(
        """
        import sys
        from mambapose.runtime.cli import main
        try:
            main(["--help"])
        except SystemExit as end:
            assert end.code == 0
        heavy = {"torch", "onnx", "onnxruntime", "av", "cv2", "PIL", "tensorrt"} & set(sys.modules)
        assert not heavy, heavy
        """
    )
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = os.times()
    # CPU seconds, whatever else the machine does; the command takes 0.05 s.
    assert after.children_user - before.children_user < 3
    lines = done.stdout.splitlines()
    assert len(lines) <= 48
    assert max(map(len, lines)) <= 80
    for heading in ("What:", "Speed:", "Machine:", "Output:"):
        assert heading in lines
    assert "Example: mp-run walk.mp4" in done.stdout
    assert "default: the bundle that ships" in " ".join(done.stdout.split())


def test_every_option_is_in_the_help():
    listed = [name for _, names in RunCommand.headings for name in names]
    options = [param.name for param in command.params if param.name != "source"]
    assert sorted(listed) == sorted(set(options) - {"version"})
    backend = next(param for param in command.params if param.name == "backend")
    assert list(backend.type.choices) == ["auto", *BACKENDS]


def test_the_help_does_not_depend_on_the_name_of_its_option(capsys, monkeypatch):
    """Newer releases of click keep it under another name than older ones."""
    other = click.Option(["--help", "_asked"], is_flag=True, help="Show this message.")
    monkeypatch.setattr(RunCommand, "get_help_option", lambda self, context: other)
    context = click.Context(command, info_name="mp-run")
    assert "--help" in command.get_help(context)


def test_the_bundle_that_ships_is_the_default(capsys, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(running, "run_video", lambda request: asked.append(request) or 0)
    monkeypatch.setattr(loading, "SHIPPED", tmp_path / "cpu")
    line = refusal(capsys, "clip.mp4")
    assert f"was wanted at {tmp_path / 'cpu'}, found none" in line
    assert "make weights" in line
    write_fake_bundle(tmp_path / "cpu", plain_engines(), SCHEDULE)
    assert mp_run("clip.mp4") == 0
    assert [request.bundle for request in asked] == [tmp_path / "cpu"]


def test_flow_and_depth_run_unless_told(monkeypatch):
    asked = []
    monkeypatch.setattr(running, "run_video", lambda request: asked.append(request) or 0)
    for options in ([], ["--no-flow"], ["--no-depth", "--height", "1.8"]):
        assert mp_run("--engine", "b", "clip.mp4", *options) == 0
    assert [(r.flow, r.depth, r.height) for r in asked] == [
        (True, True, None),
        (False, True, None),
        (True, False, 1.8),
    ]


@pytest.mark.parametrize("package", ["av", "PIL.Image"])
def test_a_missing_package_is_one_line(capsys, monkeypatch, tmp_path, bundle, clip, package):
    monkeypatch.setitem(sys.modules, package, None)
    line = refusal(capsys, "--engine", bundle, clip, "-o", tmp_path / "out", "--overlay")
    assert "pip install 'mambapose[cpu]'" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "Missing argument 'INPUT'"),
        (["--engine", "b", "clip.mp4", "--format", "xml"], "json, npz, csv"),
        (["--engine", "b", "clip.mp4", "--flow-iters", "0"], "flow-iters"),
        (["--recover", "clip.mp4"], "--recover takes INPUT for --overlay only"),
    ],
)
def test_usage_errors_exit_2(capsys, args, text):
    assert mp_run(*args) == 2
    assert text in capsys.readouterr().err


def test_a_run_writes_everything_and_says_so(capsys, tmp_path, bundle, clip):
    out = tmp_path / "out"
    assert mp_run("--engine", bundle, clip, "-o", out, "--overlay") == 0
    said = capsys.readouterr()
    assert "note: no detector: one person assumed" in said.err
    for name in (*RESULTS, JOURNAL, "overlay.mp4", "run.json"):
        assert f"wrote {out / name}" in said.out
        assert (out / name).stat().st_size > 0
    assert said.out.splitlines()[-1].startswith("24 frames, 1 person, ")
    report = json.loads((out / "run.json").read_text())
    meta = json.loads((out / "poses.json").read_text())["meta"]
    assert report["frames"] == 24
    assert report["problem"] is None
    assert report["bundle_hash"] == meta["bundle"]["hash"]
    assert report["source"] == {
        "name": str(clip), "path": str(clip), "width": 160, "height": 96, "fps": 30.0,
    }  # fmt: skip
    assert report["backend"] == "onnxruntime"
    assert report["threads"] >= 1
    assert {"frame", "pose2d", "lift3d", "overlay", "journal"} <= set(report["times"])
    assert report["times"]["pose2d"]["runs"] == 24
    assert "onnxruntime" in report["versions"]
    assert report["peak_rss_mib"] > 10


def test_an_option_that_has_no_effect_is_named(capsys, tmp_path, bundle, clip):
    common = ("--engine", bundle, clip, "--range", "0:2")
    assert mp_run(*common, "-o", tmp_path / "a", "--max-people", 3) == 0
    assert "note: --max-people has no effect without a detector" in capsys.readouterr().err
    assert mp_run(*common, "-o", tmp_path / "b") == 0
    assert "--max-people" not in capsys.readouterr().err


def test_nobody_is_said(capsys, tmp_path, bundle, clip):
    common = ("--engine", bundle, clip, "--range", "0:2")
    assert mp_run(*common, "-o", tmp_path / "a", "--person", 7) == 0
    said = capsys.readouterr()
    assert "note: --person 7 was never there; found were 1\n" in said.err
    assert said.out.splitlines()[-1].startswith("2 frames, 0 people")
    assert mp_run(*common, "-o", tmp_path / "b", "--person", 1) == 0
    assert "nobody" not in capsys.readouterr().err


def test_quiet_is_quiet(capsys, tmp_path, bundle, clip):
    assert mp_run("--engine", bundle, clip, "-o", tmp_path / "out", "--quiet") == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == ""


def test_untrained_weights_are_marked_everywhere(capsys, monkeypatch, tmp_path, clip):
    from mambapose.runtime.results import draw

    marked = []
    real = draw.draw_poses
    monkeypatch.setattr(
        draw, "draw_poses",
        lambda *args, **options: marked.append(options["untrained"]) or real(*args, **options),
    )  # fmt: skip
    engines = plain_engines()
    use_fakes(monkeypatch, engines)
    bundle = write_fake_bundle(tmp_path / "bundle", engines, SCHEDULE, trained=False)
    out = tmp_path / "out"
    assert mp_run("--engine", bundle.path, clip, "-o", out, "--overlay") == 0
    assert "untrained weights (pose2d, lift3d): the poses mean nothing" in capsys.readouterr().err
    document = json.loads((out / "poses.json").read_text())
    assert document["meta"]["trained"] is False
    assert document["meta"]["untrained_stages"] == ["pose2d", "lift3d"]
    assert any("untrained" in note for note in json.loads((out / "run.json").read_text())["notes"])
    assert marked == [True] * 24
    boxes = {tuple(frame["people"][0]["box"]) for frame in document["frames"]}
    assert boxes == {(0, 0, 160, 96)}


def test_a_label_of_the_weights_is_shown_everywhere(capsys, monkeypatch, tmp_path, clip):
    from mambapose.runtime.results import draw

    drawn = []
    real = draw.draw_poses
    monkeypatch.setattr(
        draw, "draw_poses",
        lambda *args, **options: drawn.append(options["label"]) or real(*args, **options),
    )  # fmt: skip
    engines = plain_engines()
    use_fakes(monkeypatch, engines)
    measured = {"PCK@0.2": 0.71}
    bundle = write_fake_bundle(
        tmp_path / "bundle", engines, SCHEDULE, label="demonstration", measured=measured
    )
    out = tmp_path / "out"
    assert mp_run("--engine", bundle.path, clip, "-o", out, "--overlay") == 0
    text = "demonstration weights (pose2d, lift3d)"
    said = capsys.readouterr().err
    assert f"note: {text}: good enough to look at" in said
    assert "note: without flow and depth: the bundle does not hold them" in said
    meta = json.loads((out / "poses.json").read_text())["meta"]
    assert (meta["trained"], meta["label"]) == (True, text)
    assert meta["stages"]["pose2d"]["label"] == "demonstration"
    assert meta["stages"]["pose2d"]["measured"] == measured
    assert json.loads((out / "run.json").read_text())["label"] == text
    assert drawn == [text] * 24


@pytest.mark.parametrize("args", [("--help",), ("--recover", "-o", "RUN")])
def test_output_that_nothing_takes_is_one_line(tmp_path, bundle, clip, args):
    assert mp_run("--engine", bundle, clip, "-o", tmp_path / "run", "--quiet") == 0
    args = [arg.replace("RUN", str(tmp_path / "run")) for arg in args]
    code = "from mambapose.runtime.cli import main; main()"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, *args], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == (
        "error: standard output cannot be written (No space left on device); send it elsewhere\n"
    )


def test_text_of_others_does_not_steer_the_terminal(capsys, tmp_path, bundle):
    name = "a\x1b[2Jb\n.mp4"
    line = refusal(capsys, "--engine", bundle, tmp_path / name, "-o", tmp_path / "out")
    assert "a\\x1b[2Jb\\x0a.mp4" in line
    assert mp_run("--backend", "\x1b]0;title\x07", "x.mp4") == 2
    assert "\x1b" not in capsys.readouterr().err


def test_bad_input_is_one_line_and_leaves_nothing(capsys, tmp_path, bundle, clip):
    out = tmp_path / "out"
    text, empty = tmp_path / "text.mp4", tmp_path / "empty.mp4"
    text.write_text("not a video at all\n" * 50)
    empty.write_bytes(b"")
    common = ("--engine", bundle, "-o", out)
    assert "no such file" in refusal(capsys, *common, tmp_path / "none.mp4")
    assert "cannot be read" in refusal(capsys, *common, text)
    assert "0 bytes" in refusal(capsys, *common, empty)
    assert "found nothing" in refusal(capsys, "--engine", tmp_path / "nowhere", clip, "-o", out)
    assert "found a file" in refusal(capsys, "--engine", clip, clip, "-o", out)
    assert "yolox" in refusal(capsys, *common, clip, "--detect", tmp_path / "yolox.onnx")
    assert "range" in refusal(capsys, *common, clip, "--range", "9:3")
    assert "clip.mp4 has 24" in refusal(capsys, *common, clip, "--range", "500:", "--overlay")
    assert not out.exists()


def test_a_single_frame_of_odd_size(capsys, tmp_path, bundle):
    from PIL import Image

    Image.fromarray(DrawnClip(size=(161, 97)).image(0)).save(tmp_path / "one.png")
    out = tmp_path / "out"
    assert mp_run("--engine", bundle, tmp_path / "one.png", "-o", out, "--overlay") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 frame, 1 person, ")
    import av

    with av.open(str(out / "overlay.mp4")) as video:
        assert [(p.width, p.height) for p in video.decode(video=0)] == [(162, 98)]


def test_a_bundle_without_a_pose_network_is_refused(capsys, monkeypatch, tmp_path, clip):
    engines = {"lift3d": lift_engine(None, 9)}
    bundle = write_fake_bundle(tmp_path / "bundle", engines, SCHEDULE)
    line = refusal(capsys, "--engine", bundle.path, clip, "-o", tmp_path / "out")
    assert "stage pose2d was wanted" in line
    assert not (tmp_path / "out").exists()


def test_a_changed_byte_in_the_bundle_is_refused(capsys, tmp_path, bundle, clip):
    file = bundle / "stages" / "pose2d.onnx"
    file.write_bytes(b"X" + file.read_bytes()[1:])
    assert "changed" in refusal(capsys, "--engine", bundle, clip, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_truncated_video_keeps_the_frames_before_the_break(capsys, tmp_path, bundle):
    whole = tmp_path / "whole.mp4"
    write_clip(whole, DrawnClip(frames=90, size=(160, 96)))
    cut = tmp_path / "cut.mp4"
    data = whole.read_bytes()
    cut.write_bytes(data[: int(len(data) * 0.7)])
    out = tmp_path / "out"
    line = refusal(capsys, "--engine", bundle, cut, "-o", out)
    document = json.loads((out / "poses.json").read_text())
    assert 10 < len(document["frames"]) < 90
    assert line.endswith(f"; the results hold {len(document['frames'])} frames")
    assert document["meta"]["problem"] in line
    assert all(frame["people"][0]["xyz"] is not None for frame in document["frames"])


def test_an_image_that_breaks_in_the_middle_keeps_those_before(capsys, tmp_path, bundle):
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(6):
        Image.fromarray(DrawnClip(size=(160, 96)).image(k)).save(folder / f"{k}.png")
    (folder / "4.png").write_bytes(b"broken")
    out = tmp_path / "out"
    line = refusal(capsys, "--engine", bundle, folder, "-o", out)
    assert "4.png" in line
    assert len(json.loads((out / "poses.json").read_text())["frames"]) == 4


def test_a_failure_before_the_first_frame_leaves_nothing(capsys, monkeypatch, tmp_path, clip):
    from mambapose.runtime.errors import EngineError

    def broken(inputs):
        raise EngineError("graph main failed")

    engines = {"pose2d": pose_engine(broken)}
    use_fakes(monkeypatch, engines)
    bundle = write_fake_bundle(tmp_path / "bundle", engines, SCHEDULE)
    out = tmp_path / "out"
    refusal(capsys, "--engine", bundle.path, clip, "-o", out, "--overlay")
    assert not out.exists()


def test_recovering_what_is_not_there_is_refused(capsys, tmp_path):
    assert "journal" in refusal(capsys, "--recover", "-o", tmp_path / "nowhere")


def test_the_slow_operator_is_mentioned_once(capsys, monkeypatch, tmp_path, clip):
    from mambapose.runtime.backends.onnxruntime import SlowOperatorWarning

    engines = plain_engines()
    use_fakes(monkeypatch, engines)
    load = BACKENDS["onnxruntime"].load

    def slow(*request):
        if request[1] == "pose2d":
            warnings.warn("the slow form is in use", SlowOperatorWarning, stacklevel=2)
        return load(*request)

    use_backend(monkeypatch, slow)
    bundle = write_fake_bundle(tmp_path / "bundle", engines, SCHEDULE)
    assert mp_run("--engine", bundle.path, clip, "-o", tmp_path / "out") == 0
    assert capsys.readouterr().err.count("note: the slow form is in use\n") == 1
    report = json.loads((tmp_path / "out" / "run.json").read_text())
    assert "the slow form is in use" in report["notes"]


def test_other_warnings_pass_through():
    def noisy():
        notes = []
        with noted_warnings(notes):
            warnings.warn("not ours", DeprecationWarning, stacklevel=1)
        return notes

    with pytest.warns(DeprecationWarning, match="not ours"):
        assert noisy() == []
