"""The card of mambapose-nano: written with the weights and true to them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("cv2", reason="opencv is not installed (extra train)")

from click.testing import CliRunner

from mambapose.export.weights import read_card
from mambapose.train.pose2d import card as pose2d_card
from mambapose.train.pose2d import cost as pose2d_cost
from mambapose.train.pose2d import state as pose2d_state
from mambapose.train.pose2d import train as pose2d
from mambapose.train.pose2d.state import Settings
from mambapose.train.run_loop import Limits
from mambapose.train.world.cache import write_store

from ..pose2d_shots import drawn_shot

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of two steps that looked at held-out people once, and what was shipped of it."""
    folder = tmp_path_factory.mktemp("run")
    store = folder / "store"
    write_store(store, map(drawn_shot, range(3)), 3)
    state = pose2d_state.fresh(Settings(batch=2), CPU)
    state.notes["commands"] = [
        {"step": 0, "command": "train it --data /home/me/cmu", "device": "cpu", "torch": "2"}
    ]
    look = pose2d.look_at(store, None)
    recipe = state.recipe((str(store),), None)
    pose2d.train(state, recipe, folder / "run", Limits(steps=2, measure_s=0.0), look=look)
    values = pose2d_card.ship(
        folder / "run", folder / "out", None, [store], count=4, known=["it sees discs"],
        costs=[{"network": "n", "parameters": 1, "batch": 2, "ms": 3.0, "mib": 4.0}],
    )  # fmt: skip
    return folder, values


@pytest.mark.slow
def test_weights_are_the_mean_in_half(shipped: tuple[Path, dict[str, Any]]) -> None:
    from safetensors import safe_open

    folder, values = shipped
    file = folder / "out" / "mambapose-nano.safetensors"
    assert values["file"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    mean = torch.load(folder / "run" / "checkpoint.pt", weights_only=True)["average"]
    with safe_open(file, "pt") as content:
        names = set(content.keys())
        assert names == {name for name in mean if "num_batches" not in name}
        for name in names:
            assert torch.equal(content.get_tensor(name), mean[name].half())
        assert content.metadata()["label"] == "demonstration"
    assert file.stat().st_size < 6e6


@pytest.mark.slow
def test_training_goes_on_from_shipped_weights(shipped: tuple[Path, dict[str, Any]]) -> None:
    folder, values = shipped
    state = pose2d_state.started_from(folder / "out/mambapose-nano.safetensors", Settings(), CPU)
    assert state.offset == values["steps"] == 2
    assert state.notes["before"]["samples"] == values["samples"] == 4
    assert state.notes["before"]["curves"] == values["curves"]
    assert len(values["curves"]["training"]) == 1


@pytest.mark.slow
def test_card_says_what_was_measured(shipped: tuple[Path, dict[str, Any]]) -> None:
    folder, values = shipped
    assert json.loads((folder / "out/mambapose-nano.json").read_text()) == values
    assert set(values["accuracy"]) == {
        "rgb", "rgb+flow", "rgb+depth", "rgb+flow+depth",
        "clean", "darkness", "blur", "noise", "occlusion",
    }  # fmt: skip
    assert values["headline"]["rendered PCK@0.2"] == round(values["accuracy"]["rgb"]["pck20"], 3)
    assert [row["step"] for row in values["curves"]["held_out"]] == [1, 1, 2, 2]
    assert values["known_failures"] == ["not measured on real video", "it sees discs"]
    text = (folder / "out/mambapose-nano.md").read_text()
    for words in (
        "**demonstration**",
        "it sees discs",
        "train it --data cmu\n",
        "| n | 1 | 2 | 3.0 | 4.0 |",
    ):
        assert words in text
    card = read_card(folder / "out/mambapose-nano.safetensors")
    assert card.label == "demonstration"


def test_the_card_tells_of_real_people() -> None:
    first = {"command": "python -m it --store S1"}
    later = {"command": "python -m it --store S1 --real real-people --resume"}
    assert "No picture of a real person" in pose2d_card.trained_on([first])
    assert "did not pose" in pose2d_card.trained_on([first, later, first])


def test_goals_decide_about_the_label() -> None:
    good = {"pck20": 0.9, "collapsed": 0.02, "median": 0.025}
    assert pose2d_card.failures({"together": good}) == []
    for name, bad in (("pck20", 0.84), ("collapsed", 0.06), ("median", 0.031)):
        missed = pose2d_card.failures({"together": {**good, name: bad}})
        assert len(missed) == 1
    assert pose2d_card.failures({"rgb": good}) == ["not measured on real video"]


@pytest.mark.slow
def test_cost_of_a_step(tmp_path: Path) -> None:
    out = tmp_path / "costs.jsonl"
    names = "mambapose-nano,vitpose-s-simple"
    words = ["--networks", names, "--batch", "1", "--repeats", "1", "--json", str(out)]
    result = CliRunner().invoke(pose2d_cost.main, words)
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["network"] for row in rows] == names.split(",")
    assert 2e6 < rows[0]["parameters"] < 3e6
    assert rows[1]["parameters"] == 21_722_513
    for row in rows:
        assert row["ms"] > 0
        assert row["mib"] > 4 * row["parameters"] / 2**20  # the gradients at least
    refused = CliRunner().invoke(pose2d_cost.main, ["--networks", "raft-small"])
    assert refused.exit_code == 2
    assert "choose from" in refused.output


def test_bad_runs_are_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        pose2d_card.main, [str(tmp_path), "--out", str(tmp_path), "--assets", str(tmp_path)]
    )
    assert result.exit_code == 1
    assert result.output.startswith("error: a checkpoint of this command was wanted")
