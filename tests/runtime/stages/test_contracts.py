"""Graphs that are what bundle.json says and not what their stage needs are refused at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from mambapose.runtime.backends.fake import FakeEngine
from mambapose.runtime.errors import EngineError, MismatchError
from mambapose.runtime.loading import IgnoredCodeWarning, open_pipeline, opened_flow
from mambapose.runtime.stages.contracts import check_contract
from mambapose.runtime.stages.detect import yolox_size
from mambapose.runtime.types import GraphSpec, Size, TensorSpec, Where

from ..fakes import depth_engine, fake, flow_engines, lift_engine, pose_engine, tensor
from ..small_bundle import use_fakes, write_fake_bundle

FRAME = Size(96, 128)
Change = Callable[[list[TensorSpec], list[TensorSpec]], object]


def engines() -> dict[str, FakeEngine]:
    return {
        **flow_engines((64, 96)),
        "depth": depth_engine((28, 42)),
        "pose2d": pose_engine(size=(64, 48), heat=(16, 12)),
        "lift3d": lift_engine(frames=9),
    }


def step_engine() -> FakeEngine:
    state = tensor("memory", "N", 4, 8)
    inputs = [tensor("keypoints", "N", 17, 2), tensor("score", "N", 17), state]
    return fake("step", inputs, [tensor("xyz", "N", 17, 3), tensor("memory_next", "N", 4, 8)])


def clip_engines() -> dict[str, FakeEngine]:
    encode = fake(
        "encode", [tensor("rgb", "N", 64, 48, 3, dtype="uint8")], [tensor("features", "N", 12, 8)]
    )
    main = fake("main", [tensor("features", "N", 5, 12, 8)], [tensor("heatmaps", "N", 17, 16, 12)])
    return {"encode": encode, "main": main}


def test_right_graphs_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fakes(monkeypatch, engines())
    open_pipeline(write_fake_bundle(tmp_path / "b", engines()), FRAME).close()
    check_contract("lift3d", {"step": step_engine().spec})
    check_contract("pose2d", {name: engine.spec for name, engine in clip_engines().items()})
    check_contract("model", {"main": GraphSpec("main", (), ())})


def test_an_operator_that_nothing_needs_is_said_to_be_unused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fakes(monkeypatch, engines())
    bundle = write_fake_bundle(tmp_path / "b", engines())
    with pytest.warns(IgnoredCodeWarning, match=r"no network here has .*x\.so is not loaded"):
        open_pipeline(bundle, FRAME, where=Where(operator=Path("x.so"))).close()


def drop(name: str) -> Change:
    def change(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> None:
        for side in (inputs, outputs):
            side[:] = [item for item in side if item.name != name]

    return change


def put(item: TensorSpec, *, output: bool = False) -> Change:
    """The tensor in place of the one of its name, or beside the others."""

    def change(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> None:
        side = outputs if output else inputs
        names = [other.name for other in side]
        if item.name in names:
            side[names.index(item.name)] = item
        else:
            side.append(item)

    return change


WRONG: Sequence[tuple[str, Change]] = [
    ("lift3d", drop("keypoints")),
    ("lift3d", drop("xyz")),
    ("lift3d", put(tensor("keypoints", "N", "T", 17, 2))),  # the window's length must be known
    ("lift3d", put(tensor("keypoints", "N", 10, 17, 2))),  # not that of the other inputs
    ("lift3d", put(tensor("keypoints", "N", 9, 17, 2, dtype="uint8"))),
    ("lift3d", put(tensor("keypoints", "N", 9, 18, 2))),
    ("lift3d", put(tensor("keypoints", 17, 2))),
    ("lift3d", put(tensor("keypoints", 1, 9, 17, 2))),  # one person alone
    ("lift3d", put(tensor("audio", "N", 9))),
    ("lift3d", put(tensor("xyz", "N", 9, 17, 2), output=True)),
    ("lift3d", put(tensor("present", "N", 1 << 40))),
    ("pose2d", drop("rgb")),
    ("pose2d", put(tensor("rgb", "N", "H", 48, 3, dtype="uint8"))),
    ("pose2d", put(tensor("rgb", "N", 64, 48, 3))),
    ("pose2d", put(tensor("rgb", "N", 1 << 20, 48, 3, dtype="uint8"))),
    ("pose2d", put(tensor("heatmaps", "N", 16, 16, 12), output=True)),
    ("pose2d", put(tensor("more", "N"), output=True)),
    ("depth", drop("image")),
    ("depth", put(tensor("image", 1, 28, 42, 4, dtype="uint8"))),
    ("depth", put(tensor("depth", 1, 28, 42), output=True)),
    ("flow.encode", drop("hidden")),
    ("flow.encode", put(tensor("image", 1, 64, "W", 3, dtype="uint8"))),
    ("flow.corr", drop("fmap2")),
    ("flow.corr", put(tensor("corr0", "N", 1), output=True)),
    ("flow.step", drop("corr1")),
    ("flow.step", drop("coords")),
    ("flow.step", drop("coords_next")),
    ("flow.upsample", put(tensor("mask", 1, 8))),
    ("flow.upsample", put(tensor("flow", 1, 2, 8, 12), output=True)),
]


@pytest.mark.parametrize(("name", "change"), WRONG)
def test_a_graph_without_what_its_stage_needs_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: Change
) -> None:
    made = engines()
    spec = made[name].spec
    inputs, outputs = list(spec.inputs), list(spec.outputs)
    change(inputs, outputs)
    made[name] = fake(spec.name, inputs, outputs)
    use_fakes(monkeypatch, made)
    bundle = write_fake_bundle(tmp_path / "b", made)
    stage = name.partition(".")[0]
    with pytest.raises(MismatchError, match=f"stage {stage}, graph .* was wanted") as caught:
        open_pipeline(bundle, FRAME)
    assert str(caught.value).isprintable()
    if stage == "flow":
        with (
            pytest.raises(MismatchError, match="stage flow"),
            opened_flow(bundle, portrait=False),
        ):
            pass


def refused(stage: str, graphs: Mapping[str, FakeEngine], name: str, change: Change) -> None:
    specs = {base: engine.spec for base, engine in graphs.items()}
    inputs, outputs = list(specs[name].inputs), list(specs[name].outputs)
    change(inputs, outputs)
    specs[name] = GraphSpec(name, tuple(inputs), tuple(outputs))
    with pytest.raises(EngineError, match=f"stage {stage}, graph"):
        check_contract(stage, specs)


def test_a_step_carries_a_state_of_fixed_size() -> None:
    step = {"step": step_engine()}
    for change in (
        drop("keypoints"),
        drop("xyz"),
        drop("memory_next"),
        put(tensor("memory", "N", "L", 8)),
        put(tensor("memory", 4, 8)),
        put(tensor("memory_next", "N", 4, 9), output=True),
        put(tensor("depth", "N", 17)),
    ):
        refused("lift3d", step, "step", change)


def test_a_window_takes_an_odd_number_of_what_encode_gives() -> None:
    clip = clip_engines()
    refused("pose2d", clip, "encode", drop("features"))
    refused("pose2d", clip, "encode", drop("rgb"))
    refused("pose2d", clip, "encode", put(tensor("features", "N", "L", 8), output=True))
    refused("pose2d", clip, "main", put(tensor("features", "N", 4, 12, 8)))
    refused("pose2d", clip, "main", put(tensor("features", "N", 5, 12, 9)))
    refused("pose2d", clip, "main", put(tensor("rgb", "N", 64, 48, 3, dtype="uint8")))


def test_a_detector_of_immense_sides_is_refused_without_counting_its_cells() -> None:
    spec = GraphSpec(
        "main", (tensor("images", 1, 3, 1 << 40, 1 << 40),), (tensor("output", 1, 5, 85),)
    )
    with pytest.raises(MismatchError, match="its layout is not known"):
        yolox_size(spec)
