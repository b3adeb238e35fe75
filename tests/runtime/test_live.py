"""mp-run --lookahead as a user meets it: 3D with its frame, and what cannot be asked for."""

from __future__ import annotations

import json

import pytest

from .drawn_clip import DrawnClip, write_clip
from .fakes import lift_engine, pose_engine, step_engine
from .small_bundle import use_fakes, write_fake_bundle
from .test_cli import SCHEDULE, mp_run, plain_engines, refusal, upright


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(path, DrawnClip(frames=24, size=(160, 96)))
    return path


@pytest.mark.parametrize(
    ("lift", "note"),
    [
        ({"lift3d": lift_engine(None, 9)}, "3D at once, by a window of 9 frames for every frame"),
        ({"lift3d.step": step_engine()}, "3D at once, by one step of the lifter per frame"),
    ],
    ids=["window", "causal"],
)
def test_a_live_run_writes_3d_with_its_frame(capsys, monkeypatch, tmp_path, clip, lift, note):
    engines = {"pose2d": pose_engine(upright), **lift}
    use_fakes(monkeypatch, engines)
    bundle = write_fake_bundle(
        tmp_path / "bundle", engines, SCHEDULE, networks={"lift3d": "mambapose3d"}
    )
    out = tmp_path / "out"
    assert mp_run("--engine", bundle.path, clip, "-o", out, "--lookahead", 0, "--overlay") == 0
    assert f"note: {note}" in capsys.readouterr().err
    lines = [json.loads(line) for line in (out / "poses.ndjson").read_text().splitlines()]
    assert len(lines) == 1 + 24 + 1  # meta, frames and end: nothing came later
    assert all(len(line["people"][0]["xyz"]) == 17 for line in lines[1:-1])
    document = json.loads((out / "poses.json").read_text())
    assert all(frame["people"][0]["xyz"] for frame in document["frames"])
    assert document["meta"]["lifter"]["lookahead"] == 0
    assert document["meta"]["lifter"]["hop"] == 1
    assert json.loads((out / "run.json").read_text())["lifter"] == document["meta"]["lifter"]


def test_less_lookahead_is_said_and_more_refused(capsys, monkeypatch, tmp_path, clip):
    engines = plain_engines()
    use_fakes(monkeypatch, engines)
    bundle = write_fake_bundle(tmp_path / "bundle", engines, SCHEDULE).path
    out = tmp_path / "out"
    assert mp_run("--engine", bundle, clip, "-o", out, "--lookahead", 2) == 0
    assert "note: 3D up to 2 frames later, by a window of 9 frames for every 3 frames" in (
        capsys.readouterr().err
    )
    meta = json.loads((out / "poses.json").read_text())["meta"]
    assert meta["lifter"] == {"frames": 9, "hop": 3, "lookahead": 2}
    line = refusal(capsys, "--engine", bundle, clip, "-o", tmp_path / "b", "--lookahead", 99)
    assert "a look-ahead of 0 to 5 frames was wanted (windows of 9), found 99" in line
