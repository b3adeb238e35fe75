"""``mp-export --model``: a user's own network to a bundle, alone and in the pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from mambapose.benchmarks.comparison import own_sides
from mambapose.benchmarks.sides import size_of
from mambapose.export.cli import main
from mambapose.export.own_model import build as own_build
from mambapose.export.own_model.build import AS_BUILT, OwnModel, build_own_model, check_contract
from mambapose.export.own_model.network import inputs_from_texts
from mambapose.runtime.backends.loader import load_engine
from mambapose.runtime.bundle.bundle import read_bundle, read_gate
from mambapose.runtime.check.machine import stage_finding
from mambapose.runtime.errors import ExportError
from mambapose.runtime.stages.table import MODEL
from mambapose.runtime.targets import TARGETS
from mambapose.runtime.types import GraphSpec, Size, TensorSpec

CODE = """
import torch
from torch import nn
from mamba_ssm import Mamba

class Lifter(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.first, self.last = nn.Linear(34, width), nn.Linear(width, 51)
        self.mixer = Mamba(width, bimamba_type="v2")

    def forward(self, keypoints):
        batch, frames = keypoints.shape[:2]
        hidden = self.first(keypoints.flatten(2))
        xyz = self.last(hidden + self.mixer(hidden))
        return xyz.view(batch, frames, 17, 3)

class Two(nn.Module):
    def forward(self, x, index):
        return {"picked": x[:, index[0]], "sum": x.sum(1)}
"""
KEYPOINTS = "keypoints:float32:N,9,17,2"


# The networks that ship stand around those brought: they are exported in tests of their own.
pytestmark = pytest.mark.usefixtures("kept_stages")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "brought_net.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def brought(*, stage: str = MODEL, **fields: object) -> OwnModel:
    values = {"model": "brought_net:Lifter", "inputs": inputs_from_texts([KEYPOINTS]), **fields}
    return OwnModel(stage=stage, **values)  # type: ignore[arg-type]


def test_a_lone_network_is_a_bundle_like_any_other(folder: Path) -> None:
    said: list[str] = []
    out = folder / "bundle"
    build_own_model(
        brought(outputs=("xyz",)), TARGETS["cpu"], out, folder=folder, overwrite=False,
        tell=said.append,
    )  # fmt: skip
    bundle = read_bundle(out)
    entry = bundle.stage(MODEL)
    assert (entry.network, entry.scan_spec) == ("brought_net:Lifter", 1)
    assert entry.weights.label == AS_BUILT
    assert max(entry.gate.values()) < 1e-5
    assert set(entry.gate) >= {"relative"}
    graph = entry.graphs["main"]
    assert graph.spec.outputs == (TensorSpec("xyz", "float32", ("N", 9, 17, 3)),)
    assert bundle.file(graph.forms["trt"].path).is_file()
    assert said[:2] == [
        "brought_net:Lifter: building it and calling it",
        "brought_net:Lifter: making the graph main with torch",
    ]
    assert said[2].startswith("rewrites: ")
    assert said[3:5] == [
        "brought_net:Lifter: writing it, then comparing ONNX Runtime with torch",
        "stood in for: mamba_ssm.Mamba",
    ]
    assert stage_finding(bundle, MODEL, "onnxruntime").ok
    inputs, outputs = read_gate(bundle, graph)
    assert np.abs(outputs["xyz"]).max() > 0
    assert size_of(bundle, MODEL) == "9x17x2"
    assert [side.label for side in own_sides(bundle)] == [MODEL]  # no pipeline to measure
    # Any number of people, as the contract says.
    with load_engine(bundle, MODEL, "main") as engine:
        three = engine.run({"keypoints": np.repeat(inputs["keypoints"][:1], 3, 0)})["xyz"]
        np.testing.assert_allclose(three[2], outputs["xyz"][0], rtol=1e-4, atol=1e-6)


def test_weights_are_loaded_strictly(folder: Path) -> None:
    import sys

    sys.path.insert(0, str(folder))
    try:
        from mambapose.export.own_model.network import built, user_code

        with user_code(folder):
            torch.manual_seed(7)
            network = built("brought_net:Lifter")
    finally:
        sys.path.remove(str(folder))
    torch.save({"state_dict": network.state_dict()}, folder / "best.pth")
    out = folder / "bundle"
    asked = brought(weights=folder / "best.pth")
    build_own_model(asked, TARGETS["cpu"], out, folder=folder, overwrite=False, tell=lambda _: None)
    bundle = read_bundle(out)
    entry = bundle.stage(MODEL)
    assert (entry.weights.file, entry.weights.trained) == ("best.pth", True)
    inputs, outputs = read_gate(bundle, entry.graphs["main"])
    with torch.no_grad():
        wanted = network(torch.from_numpy(inputs["keypoints"])).numpy()
    np.testing.assert_allclose(outputs["y"], wanted, rtol=1e-4, atol=1e-6)
    torch.save({"first.weight": torch.zeros(2)}, folder / "other.pth")
    for name, message in (
        ("other.pth", "wanted to hold the weights of brought_net:Lifter"),
        ("absent.pth", "a checkpoint file was wanted, found none at"),
    ):
        with pytest.raises(ExportError, match=message):
            build_own_model(
                brought(weights=folder / name), TARGETS["cpu"], folder / "none", folder=folder,
                overwrite=False, tell=lambda _: None,
            )  # fmt: skip
        assert not (folder / "none").exists()


def test_half_weights_are_stored_as_they_came(folder: Path) -> None:
    from safetensors.torch import save_file

    from mambapose.export.own_model.network import built, user_code

    with user_code(folder):
        torch.manual_seed(8)
        network = built("brought_net:Lifter")
    save_file({k: v.half() for k, v in network.state_dict().items()}, folder / "h.safetensors")
    out = folder / "bundle"
    asked = brought(weights=folder / "h.safetensors")
    build_own_model(asked, TARGETS["cpu"], out, folder=folder, overwrite=False, tell=lambda _: None)
    bundle = read_bundle(out)
    entry = bundle.stage(MODEL)
    graph = onnx.load(bundle.file(entry.graphs["main"].onnx), load_external_data=False).graph
    assert any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer)
    inputs, outputs = read_gate(bundle, entry.graphs["main"])
    network.load_state_dict({k: v.half().float() for k, v in network.state_dict().items()})
    with torch.no_grad():
        wanted = network(torch.from_numpy(inputs["keypoints"])).numpy()
    np.testing.assert_allclose(outputs["y"], wanted, rtol=1e-3, atol=1e-4)


def test_several_inputs_and_named_outputs(folder: Path) -> None:
    inputs = inputs_from_texts(["x:float32:2,5,3", "index:int64:1"])
    asked = brought(model="brought_net:Two", inputs=inputs)
    bundle = build_own_model(
        asked, TARGETS["cpu"], folder / "two", folder=folder, overwrite=False, tell=lambda _: None
    )
    spec = bundle.stage(MODEL).graphs["main"].spec
    assert [str(output) for output in spec.outputs] == [
        "picked: float32 (2, 3)", "sum: float32 (2, 3)",
    ]  # fmt: skip
    assert bundle.stage(MODEL).scan_spec is None


@pytest.mark.slow
def test_a_lifter_takes_its_place_in_the_pipeline(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(
        ["--model", "brought_net:Lifter", "--inputs", KEYPOINTS, "--outputs", "xyz", "--stage",
         "lift3d", "--out", "mine"]
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "next: mp-run --engine mine VIDEO" in said
    assert "rewrites: " in said
    bundle = read_bundle(folder / "mine")
    assert list(bundle.stages) == ["pose2d", "lift3d"]
    assert (bundle.schedule.clip_frames, bundle.schedule.hop) == (9, 3)
    assert bundle.stage("pose2d").weights.file == "mambapose-nano.safetensors"
    from mambapose.runtime.loading import open_pipeline

    with open_pipeline(bundle, Size(48, 64)) as pipeline:
        assert pipeline is not None


@pytest.mark.slow
def test_flow_and_depth_take_their_places_in_the_pipeline(folder: Path) -> None:
    """Flow sees this frame and the one before, depth this frame; both reach the pose network."""
    from mambapose.runtime.loading import open_pipeline, opened_flow
    from mambapose.runtime.stages.flow import FlowStage
    from mambapose.runtime.types import Frame

    (folder / "dense_nets.py").write_text(DENSE)
    sides = "uint8:1,48,64,3"
    for stage, name, inputs in (
        ("flow", "Moved", ["--inputs", f"image1:{sides}", "--inputs", f"image2:{sides}"]),
        ("depth", "Bright", ["--inputs", f"image:{sides}"]),
    ):
        main(
            ["--model", f"dense_nets:{name}", *inputs, "--outputs", stage, "--stage", stage,
             "--out", stage]
        )  # fmt: skip
        bundle = read_bundle(folder / stage)
        assert list(bundle.stages) == [stage, "pose2d", "lift3d"]
        assert getattr(bundle.schedule, f"{stage}_size") == (48, 64)
        assert stage_finding(bundle, stage, "onnxruntime").ok
        with open_pipeline(bundle, Size(96, 128)) as pipeline:
            frames = [Frame(np.full((96, 128, 3), 40 * k, np.uint8), k, k / 30) for k in range(3)]
            assert len(list(pipeline.run(frames))) == 3
            assert pipeline.times.summary()[stage]["runs"] == 3
    with opened_flow(read_bundle(folder / "flow"), portrait=False) as flow:
        assert isinstance(flow, FlowStage)
        assert flow.run(frames[1].image) is None
        found = flow.run(frames[2].image)
        assert found is not None
        assert found.values.shape == (2, 48, 64)
        np.testing.assert_array_equal(found.values, 40.0)  # this frame less the one before
        flow.forget()
        assert flow.run(frames[2].image) is None


DENSE = """
import torch

class Moved(torch.nn.Module):
    def forward(self, image1, image2):
        change = (image1.float() - image2.float()).mean(-1)
        return torch.stack([change, change], 1)

class Bright(torch.nn.Module):
    def forward(self, image):
        return image.float().mean(-1)[:, None] / 255
"""


def test_no_rewrite_reaches_the_export(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(
        own_build, "build_own_model", lambda asked, *_, **__: seen.append(asked.rewrite)
    )
    for words in ([], ["--no-rewrite"]):
        main(["--model", "brought_net:Lifter", "--inputs", KEYPOINTS, "--out", "none", *words])
    assert seen == [True, False]


def test_a_rewrite_that_fails_says_how_to_do_without(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: onnx.ModelProto) -> None:
        raise ZeroDivisionError("not foreseen")

    monkeypatch.setattr(own_build, "rewritten", fail)
    with pytest.raises(ExportError, match=r"not foreseen.*--no-rewrite"):
        build_own_model(
            brought(), TARGETS["cpu"], folder / "none", folder=folder, overwrite=False,
            tell=lambda _: None,
        )  # fmt: skip
    assert not (folder / "none").exists()


LIFT = GraphSpec(
    "main",
    (TensorSpec("keypoints", "float32", ("N", 9, 17, 2)),),
    (TensorSpec("xyz", "float32", ("N", 9, 17, 3)),),
)


@pytest.mark.parametrize(
    ("stage", "inputs", "outputs", "message"),
    [
        ("lift3d", [("keypoints", "float32", (1, 9, 17, 2))], None, "found input keypoints"),
        ("lift3d", [("x", "float32", ("N", 9, 17, 2))], None, "found input x"),
        ("lift3d", [("keypoints", "float16", ("N", 9, 17, 2))], None, "found input keypoints"),
        ("lift3d", [("score", "float32", ("N", 9, 17))], None, "as the first input"),
        ("lift3d", None, [("xyz", "float32", ("N", 8, 17, 3))], "found output xyz"),
        ("lift3d", None, [("y", "float32", ("N", 9, 17, 3))], "found output y"),
        ("pose2d", None, None, "found input keypoints"),
        ("flow", None, None, r"\(no side free\), found input keypoints"),
        ("flow", [("image1", "uint8", (1, 48, 64, 3))], None, "found no input image2"),
        ("depth", [("image", "uint8", (1, 48, 64, 3))], None, "found output xyz"),
        ("depth", [("image", "uint8", ("N", 48, 64, 3))], None, "found input image"),
        ("detect", None, None, "--stage model, flow, depth, pose2d, lift3d was wanted"),
    ],
)
def test_a_place_has_a_contract(
    stage: str, inputs: list[tuple] | None, outputs: list[tuple] | None, message: str
) -> None:
    check_contract("lift3d", LIFT)
    check_contract(MODEL, LIFT)
    spec = GraphSpec(
        "main",
        LIFT.inputs if inputs is None else tuple(TensorSpec(*item) for item in inputs),
        LIFT.outputs if outputs is None else tuple(TensorSpec(*item) for item in outputs),
    )
    with pytest.raises(ExportError, match=message):
        check_contract(stage, spec)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--model", "brought_net:Lifter"], 1, "--inputs for every input"),
        (["--model", "brought_net:Liftr", "--inputs", KEYPOINTS], 1, "it has: "),
        (["--model", "brought_net:Lifter", "--inputs", "x:float32:N,9,16,2"], 1, "brought_net.py:"),
        (["--model", "brought_net:Lifter", "--flow", "none"], 2, "no meaning beside --model"),
        (["--model", "a:b", "--weights", "lift3d=x.pth"], 2, "no meaning beside --model"),
        (["--inputs", KEYPOINTS], 2, "--inputs belongs to --model"),
        (["--no-rewrite"], 2, "--no-rewrite belongs to --model"),
        (["--weights", "best.pth"], 2, "STAGE=FILE was wanted"),
    ],
)
def test_the_command_refuses_in_a_line(
    folder: Path, words: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as found:
        main([*words, "--out", "none"])
    assert found.value.code == status
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "none").exists()
