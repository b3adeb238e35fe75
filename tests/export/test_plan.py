"""Plans: the defaults of a target, every option, and every request that cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mambapose.export import weights
from mambapose.export.models import NETWORKS
from mambapose.export.official_files import SOURCES
from mambapose.export.plan import ExportOptions, Plan, default_networks, make_plan
from mambapose.export.weights import shipped_detector
from mambapose.runtime.bundle.bundle import file_sha256
from mambapose.runtime.errors import ExportError
from mambapose.runtime.targets import TARGETS, Schedule

CPU = TARGETS["cpu"]


@pytest.fixture(autouse=True)
def nothing_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of weights that ship, empty, whatever this version ships."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    monkeypatch.setattr(weights, "FOLDER", folder)
    return folder


FREE = ExportOptions(untrained=True)


def plan(**changes: object) -> Plan:
    return make_plan(CPU, replace(FREE, **changes))  # type: ignore[arg-type]


def test_the_defaults_are_the_four_stages_at_the_targets_sizes() -> None:
    found = plan()
    assert {stage.stage: stage.network.name for stage in found.stages} == default_networks()
    assert found.schedule == Schedule()
    sizes = {stage.stage: stage.sizes for stage in found.stages}
    assert sizes == {
        "flow": ((192, 256), (256, 192)),
        "depth": ((252, 336), (336, 252)),
        "pose2d": ((256, 192),),
        "lift3d": (),
    }
    assert all(stage.untrained for stage in found.stages)
    assert found.precision == "fp32"


def test_every_network_can_be_planned_for_its_stage() -> None:
    for name, network in NETWORKS.items():
        (stage,) = plan(only=(network.stage,), networks={network.stage: name}).stages
        assert stage.network == network


def test_options_reach_the_schedule() -> None:
    found = plan(
        sizes={"flow": (128, 128), "depth": (140, 196), "pose2d": (384, 288)},
        flow_iters=4,
        clip_frames=27,
        flip=True,
    )
    assert found.schedule == Schedule(
        flow_size=(128, 128),
        depth_size=(140, 196),
        pose_size=(384, 288),
        flow_iters=4,
        clip_frames=27,
        hop=9,
    )
    stages = {stage.stage: stage for stage in found.stages}
    assert stages["flow"].sizes == ((128, 128),)  # square: one orientation
    assert stages["depth"].sizes == ((140, 196), (196, 140))
    assert stages["lift3d"].flip
    assert not stages["pose2d"].flip


@pytest.mark.parametrize("frames", [1, 2, 9, 81, 243])
def test_the_window_always_advances(frames: int) -> None:
    schedule = plan(clip_frames=frames).schedule
    assert 1 <= schedule.hop <= schedule.clip_frames
    assert schedule.lookahead >= 0


def test_stages_can_be_dropped_or_chosen() -> None:
    assert [s.stage for s in plan(networks={"flow": "none", "lift3d": "none"}).stages] == [
        "depth",
        "pose2d",
    ]
    assert [s.stage for s in plan(only=("lift3d", "flow")).stages] == ["flow", "lift3d"]


def test_weights_downloads_and_random_weights_mix(tmp_path: Path) -> None:
    file = tmp_path / "vits.pth"
    file.write_bytes(b"x")
    found = plan(weights={"depth": file}, download=("raft-small",))
    stages = {stage.stage: stage for stage in found.stages}
    assert stages["depth"].weights == file
    assert stages["depth"].source is None
    assert stages["flow"].source == SOURCES["raft-small"]
    assert stages["pose2d"].untrained
    assert not stages["flow"].untrained


def test_the_plan_is_printed_one_line_per_stage(tmp_path: Path) -> None:
    detector = tmp_path / "yolox.onnx"
    detector.write_bytes(b"x")
    lines = plan(detect=detector, seed=3, download=("raft-small",), flip=True).lines()
    assert len(lines) == 6
    assert lines[0] == "target cpu, fp32, onnxruntime"
    assert "192x256 256x192, 12 iterations, download https://" in lines[1]
    assert "256x192, random weights, seed 3" in lines[3]
    assert "T=81, flip test, random weights" in lines[4]
    assert lines[5].endswith("yolox.onnx")


BAD: dict[str, tuple[dict[str, object], str]] = {
    "flow below 128": ({"sizes": {"flow": (120, 256)}}, "of 8 from 128 .*nearest is 128x256"),
    "flow not of 8": ({"sizes": {"flow": (192, 250)}}, "nearest is 192x248"),
    "depth not of 14": ({"sizes": {"depth": (250, 336)}}, "of 14 from 14.*nearest is 252x336"),
    "depth of nothing": ({"sizes": {"depth": (0, 336)}}, "nearest is 14x336"),
    "pose not of 16": ({"sizes": {"pose2d": (256, 190)}}, "nearest is 256x192"),
    "too large": ({"sizes": {"flow": (8192, 192)}}, "to 4096 px"),
    "size of lifter": ({"sizes": {"lift3d": (1, 1)}}, "--size lift3d=.*no meaning"),
    "size of a dropped stage": (
        {"sizes": {"flow": (192, 256)}, "only": ("depth",)},
        "--size flow=.* not exported; the plan has: depth",
    ),
    "unknown network": ({"networks": {"pose2d": "hrnet"}}, "'hrnet' is not known.*vitpose-s"),
    "network of another stage": ({"networks": {"flow": "vitpose-s"}}, "not known for stage flow"),
    "unknown stage": ({"only": ("segment",)}, "'segment' is not known; use one of: flow"),
    "contradiction": (
        {"networks": {"flow": "raft-small"}, "only": ("depth",)},
        "--flow raft-small contradicts --only depth",
    ),
    "nothing left": ({"networks": {"depth": "none"}, "only": ("depth",)}, "no stage is left"),
    "iterations": ({"flow_iters": 0}, "--flow-iters from 1 to 100 was wanted, found 0"),
    "clip": (
        {"clip_frames": 244},
        "clip of 1 to 243 frames was wanted, found 244; change --clip-frames",
    ),
    "precision": ({"precision": "int8"}, "int8 was wanted, target cpu offers fp32"),
    "no such weights": ({"weights": {"flow": Path("/no/f.pth")}}, "found no file at /no/f.pth"),
    "no such detector": ({"detect": Path("/no/d.onnx")}, "found none at /no/d.onnx"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_in_one_line(case: str) -> None:
    options, sentence = BAD[case]
    with pytest.raises(ExportError, match=sentence) as caught:
        plan(**options)
    assert "\n" not in str(caught.value)


def test_weights_for_a_stage_outside_the_plan_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(b"x")
    for stage in ("flow", "segment"):
        with pytest.raises(ExportError, match=f"--weights {stage}=.* the plan has: depth"):
            plan(weights={stage: file}, only=("depth",))


def test_random_weights_must_be_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(b"x")
    with pytest.raises(ExportError, match="wanted for pose2d, lift3d, none given") as caught:
        make_plan(CPU, ExportOptions())
    for choice in ("--weights pose2d=FILE", "(mambapose-nano), leave", "--untrained"):
        assert choice in str(caught.value)
    for asked in ({"networks": {"flow": "raft-small"}}, {"sizes": {"flow": (192, 256)}}):
        with pytest.raises(ExportError, match=r"wanted for flow, .*--download raft-small"):
            make_plan(CPU, ExportOptions(**asked))  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="wanted for pose2d"):
        make_plan(CPU, ExportOptions(download=("raft-small", "posemamba-s")))
    make_plan(CPU, ExportOptions(download=("posemamba-s", "vitpose-b")))
    make_plan(CPU, ExportOptions(only=("depth",), weights={"depth": file}))


def test_weights_that_ship_are_used_unless_others_are_given(
    nothing_ships: Path, tmp_path: Path
) -> None:
    for name in ("mambapose-nano", "mambapose3d-nano", "posemamba-s"):
        (nothing_ships / f"{name}.safetensors").write_bytes(b"x")
    found = {stage.stage: stage for stage in make_plan(CPU, ExportOptions()).stages}
    assert list(found) == ["pose2d", "lift3d"]
    assert all(stage.shipped and not stage.untrained for stage in found.values())
    assert found["lift3d"].weights == nothing_ships / "mambapose3d-nano.safetensors"

    file = tmp_path / "mine.pth"
    file.write_bytes(b"x")
    asked = ExportOptions(weights={"pose2d": file}, download=("posemamba-s",))
    found = {stage.stage: stage for stage in make_plan(CPU, asked).stages}
    assert (found["pose2d"].weights, found["pose2d"].shipped) == (file, False)
    assert (found["lift3d"].source, found["lift3d"].weights) == (SOURCES["posemamba-s"], None)
    (stage,) = make_plan(
        CPU, ExportOptions(only=("lift3d",), networks={"lift3d": "posemamba-s"})
    ).stages
    assert stage.shipped


def test_flow_and_depth_are_left_out_where_they_have_no_weights(
    nothing_ships: Path, tmp_path: Path
) -> None:
    for name in ("mambapose-nano", "mambapose3d-nano"):
        (nothing_ships / f"{name}.safetensors").write_bytes(b"x")
    found = make_plan(CPU, ExportOptions())
    assert found.notes == (
        "flow: no weights ship; give --weights flow=FILE or --download raft-small; going on "
        "without",
        "depth: no weights ship; give --weights depth=FILE or --download "
        "depth-anything-v2-small; going on without",
    )
    assert [line.split()[0] for line in found.lines()] == ["target", "pose2d", "lift3d", "detect"]
    assert "weights that ship" in found.lines()[1]
    file = tmp_path / "vits.pth"
    file.write_bytes(b"x")
    found = make_plan(CPU, ExportOptions(weights={"depth": file}, download=("raft-small",)))
    assert [stage.stage for stage in found.stages] == list(default_networks())
    assert found.notes == ()
    # --untrained is the whole pipeline: random weights where there are none, and only there.
    found = make_plan(CPU, ExportOptions(untrained=True))
    assert [stage.untrained for stage in found.stages] == [True, True, False, False]
    assert found.notes == ()


def test_a_causal_lifter_has_no_window_to_choose() -> None:
    causal = {"networks": {"lift3d": "posemagic-nano-causal"}, "only": ("lift3d",)}
    found = plan(**causal)
    assert "frame by frame" in found.lines()[1]
    for option, given in (("--flip", {"flip": True}), ("--clip-frames", {"clip_frames": 27})):
        with pytest.raises(ExportError, match=f"{option} is for lifters of a window"):
            plan(**causal, **given)
    assert plan(networks={"lift3d": "posemagic-nano"}, flip=True, clip_frames=27).stages


def test_the_detector_that_ships_comes_with_a_pose_network_unless_told() -> None:
    assert plan(untrained=True).detect == shipped_detector()
    last = plan(untrained=True).lines()[-1]
    assert last.split() == ["detect", "yolox-nano", "weights", "that", "ship"]
    assert plan(untrained=True, detector=False).detect is None
    assert plan(untrained=True, only=("pose2d",)).detect is None
    assert plan(untrained=True, networks={"pose2d": "none"}).detect is None
    assert plan(untrained=True, download=("yolox-tiny",)).detect is None


def test_the_detector_that_ships_is_the_published_file() -> None:
    assert file_sha256(shipped_detector()) == SOURCES["yolox-nano"].sha256
