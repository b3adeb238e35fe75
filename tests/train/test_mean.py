"""The mean of runs: its weights, its history, what it refuses."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mambapose.benchmarks.truth.motion import clips_from_file
from mambapose.runtime.errors import ExportError
from mambapose.train import curve as lift_curve
from mambapose.train import mean
from mambapose.train.checkpoint import CHECKPOINT
from mambapose.train.lift import state as lift_state
from mambapose.train.lift import train as lift
from mambapose.train.lift.card import before
from mambapose.train.lift.state import Settings
from mambapose.train.pose2d import state as pose2d_state

CPU = torch.device("cpu")
TINY = Settings("mambapose3d", frames=(2, 3), batch=1, warmup=4, pairs=1)


def _command(words: str, step: int) -> dict[str, object]:
    return {"step": step, "command": words, "device": "cpu", "torch": "2"}


def _lifter(
    out: Path, data: Path, seed: int, start: Path | None = None, steps: int = 3
) -> lift_state.State:
    """A run of so many steps, saved."""
    plan = replace(TINY, seed=seed)
    state = (
        lift_state.fresh(plan, CPU) if start is None else lift_state.started_from(start, plan, CPU)
    )
    state.notes.setdefault("commands", []).append(_command(f"lift --out {out.name}", state.step))
    lift.train(state, clips_from_file(data), out, lift.Limits(steps=steps))
    return state


@pytest.fixture(scope="module")
def lifters(motion_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs ``one`` and ``two`` that both began with the weights of ``start``."""
    folder = tmp_path_factory.mktemp("lifters")
    _lifter(folder / "start", motion_folder, 1, steps=4)
    for number, name in enumerate(("one", "two"), 2):
        _lifter(folder / name, motion_folder, number, folder / "start", steps=2 + number)
    return folder


def _mean(out: Path, *runs: Path) -> dict[str, object]:
    words = [*map(str, runs), "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:  # the card tells the command line of the process
        patch.setattr(sys, "argv", ["mean.py", *words])
        done = CliRunner().invoke(mean.main, words)
    assert done.exit_code == 0, done.output
    return lift_state.read(out)


def test_weights_are_in_the_middle_and_runs_start_from_it(lifters: Path, tmp_path: Path) -> None:
    content = _mean(tmp_path / "mean", lifters / "one", lifters / "two")
    one, two = (lift_state.read(lifters / name)["average"] for name in ("one", "two"))
    assert any(not torch.equal(one[name], two[name]) for name in one)
    for name, tensor in content["average"].items():
        torch.testing.assert_close(tensor, (one[name] + two[name]) / 2)
    state = lift_state.started_from(tmp_path / "mean", replace(TINY, seed=9), CPU)
    for name, tensor in state.model.state_dict().items():
        torch.testing.assert_close(tensor, content["average"][name])


def test_every_run_is_in_the_history_once(lifters: Path, tmp_path: Path) -> None:
    content = _mean(tmp_path / "mean", lifters / "one", lifters / "two")
    alone = [lift_state.read(lifters / name) for name in ("start", "one", "two")]
    for key in ("step", "windows"):
        assert lift_state.whole(content, key) == sum(one[key] for one in alone)
    assert [run["step"] for run in before(content)] == [4, 4]
    words = [made["command"] for made in content["notes"]["commands"]]
    assert words[:3] == ["lift --out start", "lift --out one", "lift --out two"]
    ours = f"{lifters / 'one'} {lifters / 'two'} --out {tmp_path / 'mean'}"
    assert words[3:] == [f"python -m mambapose.train.mean {ours}"]
    curve = lift_curve.curves(tmp_path / "mean")
    assert curve == lift_curve.curves(lifters / "two")
    assert curve["training"]


def test_a_run_and_the_one_it_started_from(lifters: Path, tmp_path: Path) -> None:
    content = _mean(tmp_path / "mean", lifters / "start", lifters / "two")
    alone = lift_state.read(lifters / "two")
    assert lift_state.whole(content, "windows") == lift_state.whole(alone, "windows")
    assert content["notes"]["commands"][:-1] == alone["notes"]["commands"]


def test_a_mean_cannot_be_resumed(lifters: Path, tmp_path: Path) -> None:
    _mean(tmp_path / "mean", lifters / "one", lifters / "two")
    with pytest.raises(ExportError, match=r"found a mean of runs.*--start-from"):
        lift_state.resumed(tmp_path / "mean", CPU)


def _pose2d(out: Path, seed: int, samples: int, start: Path | None = None) -> None:
    plan = pose2d_state.Settings(seed=seed)
    state = (
        pose2d_state.fresh(plan, CPU)
        if start is None
        else pose2d_state.started_from(start, plan, CPU)
    )
    state.step, state.samples, state.seconds = samples // 32, samples, 10.0
    state.notes.setdefault("commands", []).append(_command(f"pose2d --out {out.name}", 0))
    for tensor in state.average.values():
        if tensor.is_floating_point():
            tensor += seed
    pose2d_state.save(state, out)
    row = {"step": state.step, "hours": round(10 / 3600, 4), "total": seed, "place": 1, "side": 1}
    lift_curve.append_curve(out, {**row, "samples_per_s": 9.0})
    for name in ("rgb", "rgb+flow"):
        lift_curve.append_curve(out, {"step": state.step, "held_out": {name: {"median": seed}}})


def test_pose2d_runs_count_once_too(tmp_path: Path) -> None:
    _pose2d(tmp_path / "start", 1, 320)
    _pose2d(tmp_path / "one", 2, 64, tmp_path / "start")
    _pose2d(tmp_path / "two", 4, 96, tmp_path / "start")
    content = _mean(tmp_path / "mean", *(tmp_path / name for name in ("start", "one", "two")))
    past = pose2d_state.so_far(content, tmp_path / "mean")
    assert (past["samples"], past["seconds"]) == (320 + 64 + 96, 30.0)
    assert past["step"] + past["offset"] == (320 + 64 + 96) // 32
    words = [made["command"] for made in past["commands"]]
    assert words[:3] == [f"pose2d --out {name}" for name in ("start", "one", "two")]
    assert len(words) == 4
    training, held_out = past["curves"]["training"], past["curves"]["held_out"]
    assert [(row["step"], row["total"]) for row in training] == [(10, 1), (12, 2), (15, 4)]
    assert [row["hours"] for row in training] == pytest.approx([0.0028, 0.0056, 0.0084], abs=2e-4)
    assert [row["step"] for row in held_out] == [10, 10, 12, 12, 15, 15]
    later = pose2d_state.started_from(tmp_path / "mean", pose2d_state.Settings(), CPU)
    assert later.notes["before"]["curves"] == past["curves"]
    alone = pose2d_state.read(tmp_path / "start")["average"]["heat_head.bias"]
    found = pose2d_state.averaged_model(tmp_path / "mean").heat_head.bias
    torch.testing.assert_close(found.detach(), alone + (0 + 2 + 4) / 3)


def test_weights_that_ship_count_as_a_run(tmp_path: Path) -> None:
    """Those that the last run started from; others would lack a history."""
    from safetensors.torch import save_file

    state = pose2d_state.fresh(pose2d_state.Settings(seed=5), CPU)
    made = [_command("pose2d --out first", 0)]
    for name, commands in (("first", made), ("other", [_command("pose2d --out other", 0)])):
        training = {"step": 10, "samples": 320, "seconds": 10.0, "commands": commands}
        save_file(
            {key: tensor.contiguous() for key, tensor in state.average.items()},
            tmp_path / f"{name}.safetensors",
            {"training": json.dumps(training)},
        )  # fmt: skip
    file = tmp_path / "first.safetensors"
    _pose2d(tmp_path / "one", 2, 64, file)
    content = _mean(tmp_path / "mean", file, tmp_path / "one")
    past = pose2d_state.so_far(content, tmp_path / "mean")
    assert (past["samples"], past["offset"]) == (320 + 64, 10)
    assert past["commands"][:1] == made
    found = content["average"]["heat_head.bias"]
    torch.testing.assert_close(found, state.average["heat_head.bias"] + (0 + 2) / 2)
    words = [str(tmp_path / "other.safetensors"), str(tmp_path / "one"), "--out", str(tmp_path)]
    done = CliRunner().invoke(mean.main, words)
    assert done.exit_code == 1
    assert "weights that the last run started from were wanted" in done.output


def test_what_has_no_mean_is_refused(lifters: Path, motion_folder: Path, tmp_path: Path) -> None:
    deep = replace(TINY, pairs=2)
    lift_state.save(lift_state.fresh(deep, CPU), tmp_path / "deep")
    other = replace(TINY, network="tcn", pairs=None)
    lift_state.save(lift_state.fresh(other, CPU), tmp_path / "tcn")
    cases = [
        ([lifters / "one"], "two or more runs of one network were wanted, found 1 of mambapose3d"),
        ([lifters / "one", tmp_path / "tcn"], "found 2 of mambapose3d, tcn"),
        ([lifters / "one", tmp_path / "deep"], "tensors of different shapes"),
        ([lifters / "one", tmp_path / "none"], "cannot be read"),
    ]
    for runs, sentence in cases:
        done = CliRunner().invoke(mean.main, [*map(str, runs), "--out", str(tmp_path / "mean")])
        assert done.exit_code == 1
        assert sentence in done.output
        assert len(done.output.splitlines()) == 1
        assert not (tmp_path / "mean").exists()


def test_a_run_is_not_written_over(lifters: Path, tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"of another run")
    words = [str(lifters / "one"), str(lifters / "two"), "--out", str(tmp_path)]
    done = CliRunner().invoke(mean.main, words)
    assert done.exit_code == 1
    assert "holds a run" in done.output
    assert (tmp_path / CHECKPOINT).read_bytes() == b"of another run"
