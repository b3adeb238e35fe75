"""The card of a lifter, and the weights beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mambapose.benchmarks.truth.motion import clips_from_file
from mambapose.export import weights as shipped
from mambapose.runtime.bundle.bundle import file_sha256
from mambapose.runtime.errors import ExportError
from mambapose.train import curve as lift_curve
from mambapose.train.lift import card
from mambapose.train.lift import evaluate as lift_eval
from mambapose.train.lift import state as lift_state
from mambapose.train.lift import train as lift
from mambapose.train.lift.state import Settings

CPU = torch.device("cpu")
PLAN = Settings("linear", frames=(27,), batch=1, cues=True)
COST = {"network": "a", "parameters": 7, "frames": 5, "batch": 2, "mib": 3.0, "ms": 4.0,
        "case": "training", "device": "cpu", "threads": 1, "torch": "x"}  # fmt: skip


@pytest.fixture(scope="module")
def finished_run(motion_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that started from another one."""
    clips = clips_from_file(motion_folder)
    first, out = (tmp_path_factory.mktemp(name) for name in ("first", "run"))
    lift.train(lift_state.fresh(PLAN, CPU), clips, first, lift.Limits(steps=3))
    state = lift_state.started_from(first, PLAN, CPU)
    state.notes["commands"].append({"step": 0, "command": "train --data /home/me/cmu --steps 2"})
    lift.train(state, clips, out, lift.Limits(steps=2))
    return out


@pytest.fixture(scope="module")
def written(
    finished_run: Path, motion_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The card's path without its ending; the numbers are a short look's."""
    out = tmp_path_factory.mktemp("weights") / "some.lifter"
    report = lift_eval.report(lift_state.read(finished_run), motion_folder, None)
    card.ship(
        finished_run, out, motion_folder, None, known=["fails in the dark"], costs=[COST],
        others=[{**report, "network": "tcn"}], commit="abc",
    )  # fmt: skip
    return out


def test_the_card_says_what_the_file_is(written: Path, motion_folder: Path) -> None:
    values = json.loads(written.with_name("some.lifter.json").read_text())
    file = written.with_name("some.lifter.safetensors")
    assert values["file"]["sha256"] == file_sha256(file)
    assert values["data"][0]["sha256"] == file_sha256(motion_folder / "cmu_17j_60hz.npz")
    assert values["label"] == "demonstration"
    assert values["known_failures"][-1] == "fails in the dark"
    assert "not measured on pose2sim" in values["known_failures"]
    assert values["commit"] == "abc"
    assert values["commands"][-1]["command"] == "train --data cmu --steps 2"
    assert values["parameters"] == values["accuracy"]["parameters"]
    assert set(values["accuracy"]) >= {"held_out", "held_out_exact_2d", "corruption", "cues"}
    held_out = values["accuracy"]["held_out"]["mean"]
    assert values["headline"] == {
        "held-out activities PA-MPJPE mm": round(held_out["pa_mpjpe_mm"], 1),
        "held-out activities MPJPE mm": round(held_out["mpjpe_mm"], 1),
    }
    assert (values["steps"], values["windows"]) == (5, 5)
    assert values["curves"]["training"][-1]["step"] == 2
    assert values["before"][0]["curves"]["training"][-1]["step"] == 3


def test_the_card_can_be_read(written: Path) -> None:
    text = written.with_name("some.lifter.md").read_text()
    assert "**demonstration**" in text
    assert "| a | 7 | 5 | 2 | training | 4.0 | 3.0 |" in text
    assert "| tcn |" in text
    assert "mocap.cs.cmu.edu" in text
    for line in ("| 1 | 3 |", "| 2 | 2 |"):  # the last points of both curves
        assert line in text


def test_the_export_takes_what_was_written(written: Path) -> None:
    file = written.with_name("some.lifter.safetensors")
    facts = shipped.facts_from_file(file)
    assert facts == shipped.Facts("body_height", None, "demonstration", "Apache-2.0", half=True)
    assert shipped.read_card(file).label == "demonstration"


def test_the_file_holds_the_mean_weights_in_fp16(written: Path, finished_run: Path) -> None:
    content = lift_state.read(finished_run)
    found = lift_state.read(written.with_name("some.lifter.safetensors"))
    assert found["average"].keys() == content["average"].keys()
    for name, tensor in found["average"].items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, content["average"][name], rtol=1e-3, atol=1e-4)
    for key in ("plan", "step", "seconds", "windows"):
        assert found[key] == content[key], key
    assert found["notes"]["before"] == content["notes"]["before"]
    # Folders of whoever trained are nobody's business.
    assert found["notes"]["commands"] == [{"step": 0, "command": "train --data cmu --steps 2"}]
    with pytest.raises(ExportError, match="fit FP16"):
        card.half({"big": torch.tensor([1e6])})


def test_training_goes_on_from_weights_that_ship(written: Path, motion_folder: Path) -> None:
    file = written.with_name("some.lifter.safetensors")
    state = lift_state.started_from(file, PLAN, CPU)
    for name, tensor in lift_state.read(file)["average"].items():
        assert torch.equal(state.average[name], tensor), name
    assert (state.step, state.notes["before"]["step"]) == (0, 2)
    curves = json.loads(written.with_name("some.lifter.json").read_text())["curves"]
    assert curves["training"]
    assert state.notes["before"]["curves"] == curves
    batch = lift.batch_of_step(PLAN, lift.Motions(clips_from_file(motion_folder)), 0)
    lift.train_step(state, batch)
    assert lift_state.whole({"step": state.step, "notes": state.notes}, "step") == 6


def test_a_file_of_others_cannot_be_started_from(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ExportError, match="weights that this command's card wrote were wanted"):
        lift_state.started_from(path, PLAN, CPU)
    path.write_bytes(b"nothing")
    with pytest.raises(ExportError, match="cannot be read"):
        lift_state.read(path)


def test_goals_decide_the_label() -> None:
    good = {"pa_mpjpe_mm": 39.0}
    assert card.failures({"pose2sim": {"cam01": good}, "held_out": {"mean": good}}) == []
    bad = card.failures({"pose2sim": {"cam01": {"pa_mpjpe_mm": 61.0}}, "held_out": {"mean": good}})
    assert bad == ["PA-MPJPE 61 mm on pose2sim cam01, the goal is 60"]


def test_curves_are_thinned_with_their_end() -> None:
    rows = [{"step": number} for number in range(1000)]
    assert len(lift_curve.thinned(rows, 50)) == 50
    assert lift_curve.thinned(rows, 50)[-1] == {"step": 999}
    assert lift_curve.thinned([], 50) == []


def test_the_command_writes_and_refuses(
    finished_run: Path, motion_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "lifter"
    words = ["--data", str(motion_folder), "--out", str(out)]
    wrong = CliRunner().invoke(card.main, [str(tmp_path), *words])
    assert wrong.exit_code == 1
    assert "cannot be read" in wrong.output
    costs = tmp_path / "costs.jsonl"
    costs.write_text(json.dumps(COST) + "\n")
    done = CliRunner().invoke(card.main, [str(finished_run), *words, "--costs", str(costs)])
    assert done.exit_code == 0, done.output
    assert "demonstration: wrote" in done.output
    assert json.loads((tmp_path / "lifter.json").read_text())["costs"] == [COST]
