"""Training: losses, the schedule, saving and resuming to the bit, growing, stopping."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mambapose.benchmarks import lift_baselines
from mambapose.benchmarks.truth.motion import clips_from_file
from mambapose.export.models import selective
from mambapose.export.models.posemamba import person_coordinates
from mambapose.runtime.errors import ExportError
from mambapose.train import curve as lift_curve
from mambapose.train.checkpoint import CHECKPOINT, mean_weights
from mambapose.train.lift import state as lift_state
from mambapose.train.lift import train as lift
from mambapose.train.lift.loss import SCALED, VELOCITY, losses
from mambapose.train.lift.networks import (
    NETWORKS,
    TYPICAL_SIZE,
    build,
    lifted,
    parameters,
    takes_cues,
)
from mambapose.train.lift.state import Settings

CPU = torch.device("cpu")
TINY = Settings("mambapose3d", seed=3, frames=(2, 3), batch=1, warmup=4, pairs=1)


def _run(folder: Path, out: Path, plan: Settings, *steps: int) -> lift_state.State:
    """The run after so many steps, stopped and resumed between the numbers."""
    clips = clips_from_file(folder)
    state = lift_state.fresh(plan, CPU)
    for number, count in enumerate(steps):
        if number:
            torch.manual_seed(99)  # what happens in between does not matter
            state = lift_state.resumed(out, CPU)
        lift.train(state, clips, out, lift.Limits(steps=count))
    return state


def _same(one: lift_state.State, other: lift_state.State) -> None:
    for a, b in ((one.model.state_dict(), other.model.state_dict()), (one.average, other.average)):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "plan",
    [
        TINY,
        replace(TINY, network="linear", pairs=None, cues=True),
        replace(TINY, network="posemagic-nano"),
        replace(TINY, network="posemagic-nano-causal"),
    ],
    ids=lambda plan: plan.network,
)
def test_a_resumed_run_has_the_bits_of_an_unbroken_one(
    plan: Settings, motion_folder: Path, tmp_path: Path
) -> None:
    unbroken = _run(motion_folder, tmp_path / "a", plan, 4)
    resumed = _run(motion_folder, tmp_path / "b", plan, 1, 2, 1)
    assert unbroken.step == resumed.step == 4
    assert unbroken.windows == resumed.windows
    _same(unbroken, resumed)
    fresh = lift_state.fresh(plan, CPU)
    assert not torch.equal(
        next(iter(fresh.model.state_dict().values())), next(iter(resumed.average.values()))
    )


def test_seeds_decide(motion_folder: Path, tmp_path: Path) -> None:
    plan = replace(TINY, network="linear", pairs=None)
    one = _run(motion_folder, tmp_path / "a", plan, 2)
    _same(one, _run(motion_folder, tmp_path / "b", plan, 2))
    other = _run(motion_folder, tmp_path / "c", replace(plan, seed=4), 2)
    assert not torch.equal(one.average["map.weight"], other.average["map.weight"])


@pytest.mark.parametrize(
    "plan",
    [
        Settings("linear", frames=(3,), batch=32, warmup=10, rate=3e-3),
        Settings("mambapose3d", frames=(3,), batch=4, warmup=10, rate=3e-3, pairs=1),
        Settings("posemagic-nano-causal", frames=(3,), batch=4, warmup=10, rate=3e-3, pairs=1),
    ],
    ids=["linear", "mambapose3d", "posemagic-nano-causal"],
)
def test_training_lowers_the_loss(plan: Settings, motion_folder: Path) -> None:
    clips = clips_from_file(motion_folder)
    state = lift_state.fresh(plan, CPU)
    source = lift.batches(plan, lift.Motions(clips), 0, 0)
    found = [lift.train_step(state, next(source))["position"] for _ in range(60)]
    assert np.mean(found[-10:]) < 0.8 * np.mean(found[:10])


def test_losses_by_hand() -> None:
    truth = torch.zeros(1, 3, 2, 3)
    truth[..., 1, 0] = 1
    found = truth * 2
    found[0, 2, 0, 1] = 3
    parts = losses(found, truth)
    # Distances: 0 and 1 in two frames, 3 and 1 in the last; the last step moves a joint by 3.
    assert parts["position"].item() == pytest.approx((1 + 1 + 4) / 6)
    assert parts["velocity"].item() == pytest.approx(3 / 4)
    # The best scale is 1/2 in the first frames, 2 / (4 + 9) in the last.
    scale = 2 / 13
    assert parts["scaled"].item() == pytest.approx((3 * scale + abs(2 * scale - 1)) / 6)
    total = parts["position"] + SCALED * parts["scaled"] + VELOCITY * parts["velocity"]
    assert parts["total"].item() == pytest.approx(total.item())
    heavy, light = (losses(found, truth, velocity=weight)["total"] for weight in (3.0, 1.0))
    assert (heavy - light).item() == pytest.approx(2 * 3 / 4)
    assert losses(truth[:, :1], truth[:, :1])["velocity"].item() == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_compiled_network_takes_the_same_step(motion_folder: Path) -> None:
    clips = clips_from_file(motion_folder)
    found = []
    for compiled in (False, True):
        state = lift_state.fresh(replace(TINY, velocity=2.0), CPU)
        model = torch.compile(state.model, dynamic=False, backend="aot_eager") if compiled else None
        batch = next(lift.batches(state.plan, lift.Motions(clips), 0, 0))
        parts = lift.train_step(state, batch, model)
        found.append((parts, state.model.state_dict()))
    (parts, weights), (same, moved) = found
    assert same == pytest.approx(parts, rel=1e-4)
    for name, tensor in weights.items():
        torch.testing.assert_close(moved[name], tensor, atol=1e-5, rtol=1e-3, msg=name)


def test_rate_rises_stays_and_falls_to_zero() -> None:
    state = lift_state.fresh(replace(TINY, network="linear", pairs=None, warmup=10), CPU)
    rates = []
    for state.step in range(30):
        if state.step == 20:
            state.decay = (20, 5)
        rates.append(state.rate() / TINY.rate)
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:20] == pytest.approx([1] * 11)
    assert rates[20:26] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0])
    assert rates[-1] == 0
    assert state.finished()


def test_windows_of_all_lengths_cost_the_same() -> None:
    plan = Settings("linear", frames=(9, 27, 81), batch=4)
    shapes = {lift.batch_shape(plan, step) for step in range(50)}
    assert shapes == {(36, 9), (12, 27), (4, 81)}


def _ours(name: str) -> bool:
    """Whether a network has blocks to choose the number of, and no cues to be given."""
    return "mamba" in name or "posemagic" in name


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_answers_root_relative(name: str, motion_folder: Path) -> None:
    model = build(name, 0, pairs=1) if _ours(name) else build(name, 0, cues=True)
    cues = takes_cues(name, True)
    plan = Settings(name, frames=(4,), batch=2, cues=cues)
    batch = lift.batch_of_step(plan, lift.Motions(clips_from_file(motion_folder)), 0)
    inputs = {key: torch.from_numpy(value) for key, value in batch.inputs.items()}
    xyz = lifted(model, inputs, cues)
    assert xyz.shape == (2, 4, 17, 3)
    assert not xyz[:, :, 0].any()
    if cues:  # an absent cue is not looked at
        inputs["present"] = torch.zeros(2, 3)
        blank = {k: v if k in ("keypoints", "present") else v * 0 - 7 for k, v in inputs.items()}
        torch.testing.assert_close(lifted(model, inputs, True), lifted(model, blank, True))


@pytest.mark.parametrize(
    "name", ["posemamba-s", "mambapose3d", "posemagic", "posemagic-causal", "transformer"]
)
def test_networks_leave_the_cpu(name: str) -> None:
    """Every table a network makes lies beside its input; the meta device stands for a GPU."""
    options = {"pairs": 1} if _ours(name) else {"cues": True}
    model = build(name, 0, **options).to("meta")
    shapes = {"keypoints": (2, 4, 17, 2), "score": (2, 4, 17), "depth": (2, 4, 17),
              "flow": (2, 4, 17, 2), "present": (2, 3)}  # fmt: skip
    inputs = {key: torch.zeros(shape, device="meta") for key, shape in shapes.items()}
    xyz = lifted(model, inputs, takes_cues(name, True))
    assert xyz.device.type == "meta"
    assert xyz.shape == (2, 4, 17, 3)


def test_bfloat16_leaves_the_scan_in_float32(
    motion_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []
    scan = selective.selective_scan

    def watched(u: torch.Tensor, *arguments: object, **options: object) -> object:
        y = scan(u, *arguments, **options)  # type: ignore[arg-type]
        seen.append(y[0].dtype)
        return y

    monkeypatch.setattr(selective, "selective_scan", watched)
    lift.scan_in_float32("cpu")
    state = lift_state.fresh(replace(TINY, bf16=True), CPU)
    motions = lift.Motions(clips_from_file(motion_folder))
    parts = lift.train_step(state, lift.batch_of_step(state.plan, motions, 0))
    assert set(seen) == {torch.float32}
    assert np.isfinite(parts["total"])
    assert all(value.dtype == torch.float32 for value in state.model.state_dict().values())


def test_baselines_are_of_the_size_of_posemamba() -> None:
    whole = parameters(build("posemamba-s", 0))
    assert whole == 1_470_211
    for name in ("tcn", "transformer"):
        assert 0.85 < parameters(build(name, 0)) / whole < 1.1


@pytest.mark.parametrize("cues", [False, True])
def test_baselines_see_the_person_wherever_it_is(cues: bool) -> None:
    """Elsewhere in the picture and half as large, a pose differs in the place and the size only."""
    generator = torch.Generator().manual_seed(0)
    keypoints, flow = torch.randn(2, 1, 4, 17, 2, generator=generator)
    score, depth = torch.rand(2, 1, 4, 17, generator=generator)
    model = lift_baselines.build("linear", cues=cues)
    given = (score, depth, flow, torch.ones(1, 3)) if cues else ()
    halved = (score, depth, 0.5 * flow, torch.ones(1, 3)) if cues else ()
    here = model.joints(keypoints, given)
    there = model.joints(0.5 * keypoints + torch.tensor([0.3, -0.1]), halved)
    place = [2, 3, 4]
    others = [channel for channel in range(here.shape[-1]) if channel not in place]
    torch.testing.assert_close(there[..., others], here[..., others])
    torch.testing.assert_close(there[..., 4], 0.5 * here[..., 4])
    assert (there[..., place] - here[..., place]).abs().min() > 1e-3


def test_a_deeper_and_longer_run_starts_where_a_shallow_one_ended(
    motion_folder: Path, tmp_path: Path
) -> None:
    short = _run(motion_folder, tmp_path / "short", replace(TINY, frames=(5,)), 2)
    plan = replace(TINY, pairs=3, frames=(9,))
    state = lift_state.started_from(tmp_path / "short", plan, CPU)
    for name, tensor in short.average.items():
        if name != "Temporal_pos_embed":
            assert torch.equal(state.average[name], tensor), name
    stretched, known = state.average["Temporal_pos_embed"], short.average["Temporal_pos_embed"]
    torch.testing.assert_close(stretched[:, [0, 2, 4, 6, 8]], known[:, :5])
    # New blocks are the identity, so the new network answers as the old one on its length, up to
    # the norms that every block is followed by.
    x = torch.randn(1, 5, 17, state.model.head[1].in_features)
    for block in (state.model.STEblocks[2], state.model.TTEblocks[1]):
        torch.testing.assert_close(block(x), x)
    assert state.notes["before"]["step"] == 2
    lift.train(state, clips_from_file(motion_folder), tmp_path / "long", lift.Limits(steps=1))
    again = lift_state.resumed(tmp_path / "long", CPU)
    assert again.plan == plan
    assert again.notes["before"]["plan"]["pairs"] == 1


def test_new_layers_of_posemagic_are_the_identity(motion_folder: Path, tmp_path: Path) -> None:
    plan = replace(TINY, network="posemagic-nano-causal")
    _run(motion_folder, tmp_path, plan, 1)
    state = lift_state.started_from(tmp_path, replace(plan, pairs=2), CPU)
    x = torch.randn(1, 4, 17, 64)
    torch.testing.assert_close(state.model.layers[1](x, None)[0], x)
    assert (state.model.layers[0](x, None)[0] - x).abs().max() > 1e-2


def test_the_lifters_inner_layers_can_be_muons(motion_folder: Path, tmp_path: Path) -> None:
    plan = replace(TINY, muon=True)
    unbroken = _run(motion_folder, tmp_path / "a", plan, 3)
    _same(unbroken, _run(motion_folder, tmp_path / "b", plan, 1, 2))
    plain = _run(motion_folder, tmp_path / "c", TINY, 3)
    inner = "STEblocks.0.mlp.fc1.weight"
    assert not torch.equal(plain.model.state_dict()[inner], unbroken.model.state_dict()[inner])
    content, fresh = lift_state.read(tmp_path / "c"), lift_state.fresh(plan, CPU)
    with pytest.raises(ExportError, match="found others"):  # the optimiser of the other kind
        fresh.restore(content, ("windows",), ("mambapose3d", tmp_path))


def test_posemamba_starts_as_mambapose3d_without_cues(motion_folder: Path, tmp_path: Path) -> None:
    """The same answer for a person of TYPICAL_SIZE in the middle, and for the same person anywhere:
    posemamba-s of our own sees joints in the person's coordinates."""
    cued = _run(motion_folder, tmp_path, TINY, 2)
    state = lift_state.started_from(tmp_path, replace(TINY, network="posemamba-s"), CPU)
    assert state.notes["before"]["plan"]["network"] == "mambapose3d"
    x = TYPICAL_SIZE * person_coordinates(torch.randn(2, 3, 17, 2))[0]
    nothing = torch.zeros(2, 3, 17)
    cues = nothing, nothing, torch.zeros(2, 3, 17, 2), torch.zeros(2, 3)
    with torch.no_grad(), mean_weights(cued) as model:
        wanted = model(x, *cues)
        found = state.model.eval()(x)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        moved = state.model(2.5 * x + torch.tensor([0.3, -0.2]))
        torch.testing.assert_close(moved, found, rtol=1e-3, atol=1e-4)
        assert (model(2.5 * x + 0.3, *cues) - wanted).abs().max() > 1e-3


def test_another_network_cannot_be_started_from(motion_folder: Path, tmp_path: Path) -> None:
    _run(motion_folder, tmp_path, replace(TINY, network="linear", pairs=None), 1)
    with pytest.raises(ExportError, match="a run of mambapose3d was wanted"):
        lift_state.started_from(tmp_path, TINY, CPU)


def test_a_stop_request_saves(
    motion_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = lift_state.fresh(replace(TINY, network="linear", pairs=None), CPU)
    step = lift.train_step

    def interrupted(*arguments: object) -> dict[str, float]:
        parts = step(*arguments)  # type: ignore[arg-type]
        if state.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return parts

    monkeypatch.setattr(lift, "train_step", interrupted)
    number = lift.train(state, clips_from_file(motion_folder), tmp_path, lift.Limits(steps=100))
    assert number == signal.SIGINT
    assert lift_state.resumed(tmp_path, CPU).step == 3


def test_the_curve_has_no_line_after_the_checkpoint(motion_folder: Path, tmp_path: Path) -> None:
    _run(motion_folder, tmp_path, replace(TINY, network="linear", pairs=None), 2)
    with (tmp_path / lift_curve.CURVE).open("a") as file:
        file.write('{"step": 7}\n{"step": ')  # a run that died after its last checkpoint
    state = lift_state.resumed(tmp_path, CPU)
    lift.train(state, clips_from_file(motion_folder), tmp_path, lift.Limits(steps=1))
    rows = [json.loads(line) for line in (tmp_path / lift_curve.CURVE).read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 3]
    assert {"total", "position", "windows_per_s", "peak_mib", "hours"} <= rows[0].keys()


def test_mean_weights_are_lent_and_given_back() -> None:
    state = lift_state.fresh(TINY, CPU)
    with torch.no_grad():
        state.model.head[1].bias.fill_(5.0)
    with mean_weights(state) as model:
        assert not model.training
        assert torch.equal(model.head[1].bias, state.average["head.1.bias"])
    assert state.model.training
    assert (state.model.head[1].bias == 5).all()


def test_mean_forgets_the_start() -> None:
    state = lift_state.fresh(replace(TINY, network="linear", pairs=None), CPU)
    with torch.no_grad():
        state.model.map.bias.fill_(1.0)
    for state.step in range(1, 200):
        state.update_average()
    torch.testing.assert_close(state.average["map.bias"], torch.ones(51), atol=1e-2, rtol=0)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None])
def test_a_broken_checkpoint_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(ExportError, match="a checkpoint of this command was wanted"):
        lift_state.resumed(tmp_path, CPU)


def test_a_checkpoint_of_another_format_is_refused(motion_folder: Path, tmp_path: Path) -> None:
    _run(motion_folder, tmp_path, replace(TINY, network="linear", pairs=None), 1)
    content = lift_state.read(tmp_path)
    torch.save({**content, "format_version": 99}, tmp_path / CHECKPOINT)
    with pytest.raises(ExportError, match="format 1 was wanted"):
        lift_state.read(tmp_path)


def test_the_command_trains_resumes_and_refuses(motion_folder: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    base = ["--data", str(motion_folder), "--out", out, "--steps", "2"]
    run = CliRunner().invoke
    first = run(lift.main, [*base, "--network", "linear", "--frames", "3", "--batch", "2"])
    assert first.exit_code == 0, first.output
    assert "windows/s" in first.output
    again = run(lift.main, base)
    assert again.exit_code == 1
    assert "--resume" in again.output
    resumed = run(lift.main, [*base, "--resume", "--decay-steps", "3"])
    assert resumed.exit_code == 0, resumed.output
    state = lift_state.resumed(tmp_path / "run", CPU)
    assert (state.step, state.decay) == (4, (2, 3))
    assert len(state.notes["commands"]) == 2
    assert run(lift.main, [*base, "--resume"]).exit_code == 0
    assert lift_state.resumed(tmp_path / "run", CPU).step == 5  # the rate has reached zero
    wrong = run(lift.main, ["--data", str(tmp_path), "--out", str(tmp_path / "x")])
    assert wrong.exit_code == 1
    assert "cannot be read" in wrong.output
    assert run(lift.main, [*base[:3], str(tmp_path / "y"), "--frames", "0,9"]).exit_code == 1


def test_no_device_is_said(motion_folder: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is there")
    words = ["--data", str(motion_folder), "--out", str(tmp_path), "--device", "cuda"]
    result = CliRunner().invoke(lift.main, words)
    assert result.exit_code == 1
    assert "torch finds none" in result.output


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # one core a worker
def test_batches_made_ahead_are_the_same(motion_folder: Path) -> None:
    motions = lift.Motions(clips_from_file(motion_folder))
    here, ahead = (lift.batches(TINY, motions, 4, workers) for workers in (0, 2))
    for _ in range(5):
        one, other = next(here), next(ahead)
        np.testing.assert_array_equal(one.xyz, other.xyz)
        np.testing.assert_array_equal(one.inputs["keypoints"], other.inputs["keypoints"])
    del ahead
