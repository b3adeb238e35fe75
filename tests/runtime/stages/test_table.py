"""The rows of stages: which form a network has, which graphs a clip needs of a bundle."""

from __future__ import annotations

import pytest

from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.errors import BundleError
from mambapose.runtime.loading import clip_graphs, needed_graphs
from mambapose.runtime.run_options import RunOptions
from mambapose.runtime.stages.table import MODEL, STAGES, SizeRule
from mambapose.runtime.types import Size

from ..fakes import lift_engine, pose_engine
from ..small_bundle import write_fake_bundle

RAFT = ("encode", "corr", "step", "upsample")


@pytest.mark.parametrize(
    ("stage", "present", "form"),
    [
        ("flow", {*RAFT}, RAFT),
        ("flow", {*RAFT, "main"}, ("main",)),
        ("flow", {"encode", "main"}, ("main",)),
        ("flow", {"corr", "step"}, RAFT),  # what lacks is named then
        ("pose2d", {"encode", "main"}, ("encode", "main")),
        ("pose2d", {"main"}, ("main",)),
        ("lift3d", {"step"}, ("step",)),
        ("lift3d", {"main"}, ("main",)),
        ("depth", {"main"}, ("main",)),
    ],
)
def test_the_form_of_a_network(stage: str, present: set[str], form: tuple[str, ...]) -> None:
    assert STAGES[stage].form(present) == form


def test_every_output_of_the_contract_has_a_measure_and_every_input_a_sample() -> None:
    for stage in STAGES.values():
        assert {tensor.name for tensor in stage.outputs} <= set(stage.gate)
        assert {tensor.name for tensor in stage.inputs} <= set(stage.samples)
        assert not stage.inputs or set(stage.may_lack) < {tensor.name for tensor in stage.inputs}


def test_a_size_rule_names_the_nearest() -> None:
    rule = SizeRule(128, 8)
    assert rule.fits(Size(128, 4096))
    assert not rule.fits(Size(120, 256))
    assert not rule.fits(Size(128, 4104))
    assert rule.nearest(Size(1, 257)) == (128, 256)


def renamed(bundle: Bundle, stage: str, old: str, new: str) -> Bundle:
    graphs = dict(bundle.stages[stage].graphs)
    graphs[new] = graphs.pop(old)
    object.__setattr__(bundle.stages[stage], "graphs", graphs)
    return bundle


def test_a_size_has_no_place_in_the_names_of_other_stages(tmp_path) -> None:
    bundle = write_fake_bundle(tmp_path / "b", {"pose2d": pose_engine(), "lift3d": lift_engine(9)})
    renamed(bundle, "lift3d", "main", "step@10x20")
    with pytest.raises(BundleError, match="of stage lift3d was wanted, the bundle holds: step@10x"):
        clip_graphs(bundle, "lift3d", portrait=False)


def test_what_a_lone_model_takes_in_asks_for_no_map(tmp_path) -> None:
    """It has an input named flow; the pipeline does not run it, so nothing takes flow in."""
    blind = write_fake_bundle(tmp_path / "blind", {"pose2d": pose_engine(dense=False)})
    seeing = write_fake_bundle(tmp_path / "seeing", {"pose2d": pose_engine(dense=True)})
    stages = {**blind.stages, "flow": blind.stages["pose2d"]}
    object.__setattr__(blind, "stages", {**stages, MODEL: seeing.stages["pose2d"]})
    needed = needed_graphs(blind, Size(10, 20), RunOptions())
    assert [stage for _, stage, _ in needed] == ["pose2d"]
