"""Pose Magic: a step is a sequence of one frame, no future reaches the past, the cost stays.

There is no published network to compare with: the one-way mixer and the graph convolutions are held
to plain loops, the step to the whole sequence, both exported forms to torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mambapose.export.build import build_bundle
from mambapose.export.models import NETWORKS, posemagic
from mambapose.export.models.posemamba import MIRROR
from mambapose.export.plan import ExportOptions, make_plan
from mambapose.runtime.backends.loader import load_engine
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.check.machine import stage_finding
from mambapose.runtime.errors import ExportError
from mambapose.runtime.stages.causal_lifting import CausalLifter, next_name
from mambapose.runtime.stages.lifting import Seen
from mambapose.runtime.targets import TARGETS
from mambapose.runtime.types import Where

from ..export_cache import cached_graph, reused_stages

SMALL = {"width": 16, "depth": 2, "out_width": 24}
LIMIT = 1e-5  # of the largest value: what a step may differ from the whole sequence
FRAMES = 7


@pytest.fixture(scope="module")
def causal() -> posemagic.PoseMagic:
    return lively(posemagic.build(**SMALL, causal=True, seed=3))


@pytest.fixture(scope="module")
def window() -> posemagic.PoseMagic:
    return lively(posemagic.build(**SMALL, seed=3))


def lively(model: posemagic.PoseMagic) -> posemagic.PoseMagic:
    """The model with streams that are not weighed evenly, as they are at first, and with scans of
    long steps: at first they are so short that what a scan remembers hardly shows."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in model.layers:
            layer.fuse.weight.normal_(0, 0.5, generator=generator)
            mixer = layer.frames.mixer
            mixer.dt_proj.bias.add_(3)
            for weight in (mixer.x_proj.weight, mixer.out_proj.weight):
                weight.mul_(4)
    return model


def sample(people: int, frames: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(seed)
    joints = generator.uniform(-0.5, 0.5, (people, 1, 17, 2))
    moves = 0.02 * generator.standard_normal((people, frames, 17, 2)).cumsum(1)
    score = generator.uniform(0, 1, (people, frames, 17))
    return torch.from_numpy((joints + moves).astype(np.float32)), torch.from_numpy(
        score.astype(np.float32)
    )


def stepped(run: Callable[..., Any], spec: Any, joints: torch.Tensor, score: torch.Tensor) -> Any:
    """(B, T, 17, 3) of the frames one by one; run: the inputs of a step -> its outputs."""
    state = [np.zeros((len(joints), *t.shape[1:]), np.float32) for t in spec.inputs[2:]]
    poses = []
    for frame in range(joints.shape[1]):
        xyz, *state = run(joints[:, frame].numpy(), score[:, frame].numpy(), *state)
        poses.append(xyz)
    return np.stack(poses, 1)


def in_torch(graph: nn.Module) -> Callable[..., list[np.ndarray]]:
    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [out.numpy() for out in graph(*map(torch.from_numpy, arrays))]

    return run


# --- parts against plain loops ------------------------------------------------------------------


def looped_mixer(mixer: posemagic.OneWayMixer, x: np.ndarray) -> np.ndarray:
    """The one-way mixer (L, d) -> (L, d), token by token and channel by channel, in float64."""
    w = {name: p.detach().double().numpy() for name, p in mixer.named_parameters()}
    inner, rank, taps = len(w["D"]), mixer.rank, posemagic.TAPS
    values, gates = np.split(x @ w["in_proj.weight"].T, 2, -1)
    state = np.zeros((inner, posemagic.STATES))
    rows = []
    for t in range(len(x)):
        u = w["conv1d.bias"].copy()
        for k in range(taps):
            if t - k >= 0:
                u += w["conv1d.weight"][:, 0, taps - 1 - k] * values[t - k]
        u = u / (1 + np.exp(-u))
        parts = w["x_proj.weight"] @ u
        b, c = parts[rank : rank + posemagic.STATES], parts[rank + posemagic.STATES :]
        dt = np.log1p(np.exp(w["dt_proj.weight"] @ parts[:rank] + w["dt_proj.bias"]))
        for d in range(inner):
            state[d] = np.exp(-np.exp(w["A_log"][d]) * dt[d]) * state[d] + dt[d] * u[d] * b
        y = state @ c + w["D"] * u
        rows.append(w["out_proj.weight"] @ (y * gates[t] / (1 + np.exp(-gates[t]))))
    return np.stack(rows)


def test_the_one_way_mixer_is_the_loop(causal):
    mixer = causal.layers[0].frames.mixer
    x = np.random.default_rng(1).standard_normal((6, 16))
    with torch.no_grad():
        found = mixer(torch.from_numpy(x.astype(np.float32))[None])[0][0].numpy()
    wanted = looped_mixer(mixer, x)
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_bones_are_weighed_by_how_many_meet():
    joined = posemagic.skeleton()
    assert torch.equal(joined, joined.T)
    assert joined[10, 10] == pytest.approx(1 / 2)  # the head: itself and the neck
    assert joined[2, 3] == pytest.approx(1 / np.sqrt(3 * 2))  # knee and foot
    assert joined[3, 6] == 0


@pytest.mark.parametrize(("form", "offsets"), [("causal", (-2, -1)), ("window", (-1, 1))])
def test_the_graph_convolution_in_time_looks_at_two_frames(form, offsets, request):
    """With every other way from frame to frame shut, exactly those frames matter to frame 3."""
    model = posemagic.build(**{**SMALL, "depth": 1}, causal=form == "causal", seed=3)
    layer = model.layers[0]
    with torch.no_grad():
        layer.frames.mixer.out_proj.weight.zero_()
        if form == "window":  # its size of a person is of the whole clip
            layer.fuse.weight.zero_()
    x = torch.randn(1, 7, 17, 16, generator=torch.Generator().manual_seed(0))
    matter = set()
    for frame in range(7):
        changed = x.clone()
        changed[:, frame] += 1.0 * torch.arange(16)
        with torch.no_grad():
            if not torch.equal(layer(changed, None)[0][:, 3], layer(x, None)[0][:, 3]):
                matter.add(frame - 3)
    assert matter == {0, *offsets}


# --- the causal form ----------------------------------------------------------------------------


@pytest.mark.parametrize(("people", "frames"), [(1, 1), (2, 2), (3, 13), (1, 243)])
def test_steps_are_the_whole_sequence(causal, people, frames, relative_error):
    graph, spec = posemagic.graphs(causal, 81)["step"]
    joints, score = sample(people, frames)
    with torch.no_grad():
        wanted = graph.whole(joints, score).numpy()
    assert relative_error(stepped(in_torch(graph), spec, joints, score), wanted) <= LIMIT
    assert not wanted[:, :, 0].any()


def test_what_is_carried_matters(causal):
    graph, spec = posemagic.graphs(causal, 81)["step"]
    joints, score = sample(1, FRAMES)
    run = in_torch(graph)
    whole = stepped(run, spec, joints, score)
    for forgotten in range(3):

        def forgetful(*arrays: np.ndarray, lost: int = forgotten) -> list[np.ndarray]:
            return run(*(a * 0 if k == 2 + lost else a for k, a in enumerate(arrays)))

        found = stepped(forgetful, spec, joints, score)
        assert np.array_equal(found[:, 0], whole[:, 0])
        assert np.abs(found - whole).max() > 1e-2 * np.abs(whole).max()


def test_no_future_frame_changes_a_past_answer(causal, window):
    joints, score = sample(2, 11)
    other = joints.clone()
    other[:, 7:] = 3 * joints[:, 7:] + 1
    with torch.no_grad():
        assert torch.equal(causal(joints, score)[:, :7], causal(other, score)[:, :7])
        assert not torch.equal(causal(joints, score)[:, 7:], causal(other, score)[:, 7:])
        seen = (window(joints, score) - window(other, score)).abs().amax((0, 2, 3))
    assert (seen > 1e-4).all()  # the window form sees the future


def test_a_person_is_scaled_and_centred_by_the_frame_alone(causal):
    """Without the channels of place and size, these do not matter in any frame."""
    blind = posemagic.build(**SMALL, causal=True, seed=3)
    blind.joint_proj.weight.data[:, 3:] = 0
    joints, score = sample(1, FRAMES)
    size = torch.linspace(0.2, 1, FRAMES)[None, :, None, None]
    moved = size * joints + 0.3
    with torch.no_grad():
        torch.testing.assert_close(blind(moved, score), blind(joints, score), rtol=1e-3, atol=1e-4)
        assert (causal(moved, score) - causal(joints, score)).abs().max() > 1e-3
        assert torch.isfinite(causal(torch.full_like(joints, 0.25), score)).all()


def test_gradients_reach_every_parameter(causal, window):
    for model in (causal, window):
        joints, score = sample(2, 5)
        model.zero_grad()
        model(joints, score).square().mean().backward()
        lacking = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert lacking == []
        model.zero_grad()


# --- through ONNX -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(causal, tmp_path_factory) -> Bundle:
    """What mp-export makes of the causal form: its graph, checked, and nothing else."""
    folder = tmp_path_factory.mktemp("causal")
    save_file(causal.state_dict(), folder / "weights.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        name = "posemagic-nano-causal"
        small = replace(NETWORKS[name], config={**SMALL, "causal": True})
        patch.setitem(NETWORKS, name, small)
        options = ExportOptions(
            networks={"lift3d": name},
            only=("lift3d",),
            weights={"lift3d": folder / "weights.safetensors"},
        )
        plan = make_plan(TARGETS["cpu"], options)
        with reused_stages():
            return build_bundle(plan, folder / "bundle", overwrite=False, tell=lambda _: None)


@pytest.fixture(scope="module")
def step(causal, bundle):
    """(graph, contract, ONNX model) of the step."""
    graph, spec = posemagic.graphs(causal, 81)["step"]
    return graph, spec, onnx.load(bundle.file(bundle.graph("lift3d", "step").onnx))


def test_a_bundle_holds_the_step_alone_and_how_near_it_is_to_the_sequence(bundle):
    stage = bundle.stage("lift3d")
    assert list(stage.graphs) == ["step"]
    assert stage.options == {"unit": "body_height"}
    assert stage.gate["steps_vs_sequence"] <= LIMIT
    assert stage.gate["joint_mm"] < 0.05
    finding = stage_finding(bundle, "lift3d", Where("onnxruntime"))
    assert finding.ok, finding


def test_the_lifter_of_a_bundle_answers_as_the_whole_sequence(causal, bundle, relative_error):
    graph, _ = posemagic.graphs(causal, 81)["step"]
    joints, score = sample(2, 11)
    with load_engine(bundle, "lift3d", "step", Where(threads=1)) as engine:
        lifter = CausalLifter(engine)
        poses = []
        for frame in range(11):
            seen = Seen((4, 9), joints[:, frame].double().numpy(), score[:, frame].numpy())
            ((_, xyz),) = lifter.add(frame, seen)
            poses.append(np.stack([xyz[4], xyz[9]]))
    with torch.no_grad():
        assert relative_error(np.stack(poses, 1), graph.whole(joints, score)) <= LIMIT


def session(model: Any, library: Path | None) -> Callable[..., list[np.ndarray]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if library is not None:
        options.register_custom_ops_library(str(library))
    made = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in made.get_inputs()]
    return lambda *arrays: made.run(None, dict(zip(names, arrays, strict=True)))


def test_exported_steps_are_the_whole_sequence(step, scan_form, relative_error):
    graph, spec, model = step
    run = session(model, scan_form)
    for people, frames in ((1, 1), (2, 2), (3, 13), (1, 243)):
        joints, score = sample(people, frames, seed=frames)
        with torch.no_grad():
            wanted = graph.whole(joints, score).numpy()
        assert relative_error(stepped(run, spec, joints, score), wanted) <= LIMIT


def test_the_step_is_one_scan_per_mixer_and_constant_work(step):
    """Nothing in the graph knows how many frames came before: all sides but N are numbers."""
    _, spec, model = step
    scans = [node for node in model.graph.node if node.op_type == "SelectiveScan"]
    assert len(scans) == 2 * SMALL["depth"]
    assert not any(node.op_type in ("Loop", "Scan", "If") for node in model.graph.node)
    outputs = {tensor.name: tensor.shape for tensor in spec.outputs}
    for tensor in spec.inputs:
        assert tensor.shape[0] == "N"
        assert all(isinstance(side, int) for side in tensor.shape[1:])
        if tensor.name in posemagic.STATE:
            assert outputs[next_name(tensor.name)] == tensor.shape


def test_the_window_graph_agrees_with_torch_and_mirrors(scan_form, run_onnx, exported):
    graph, _, model = exported
    joints, score = sample(2, FRAMES)
    arrays = {"keypoints": joints.numpy(), "score": score.numpy()}
    with torch.no_grad():
        wanted = graph(joints, score).numpy()
    found = run_onnx(model, arrays, scan_form)["xyz"]
    assert np.abs(found - wanted).max() <= LIMIT * np.abs(wanted).max()
    mirrored = {
        "keypoints": arrays["keypoints"][:, :, MIRROR] * np.float32([-1, 1]),
        "score": np.ascontiguousarray(arrays["score"][:, :, MIRROR]),
    }
    back = run_onnx(model, mirrored, scan_form)["xyz"][:, :, MIRROR] * np.float32([-1, 1, 1])
    np.testing.assert_allclose(back, found, atol=1e-5 * np.abs(wanted).max())


@pytest.fixture(scope="module")
def exported():
    """(graph, contract, ONNX model) of a window form of one layer with the flip test."""
    model = lively(posemagic.build(**{**SMALL, "depth": 1}, seed=3))
    graph, spec = posemagic.graphs(model, FRAMES, flip=True)["main"]
    return graph, spec, cached_graph(graph, spec)


def test_a_step_has_no_flip_test(causal):
    with pytest.raises(ExportError, match="a state of its own"):
        posemagic.graphs(causal, 81, flip=True)


@pytest.mark.parametrize("name", [n for n in NETWORKS if n.startswith("posemagic")])
def test_parameters_and_the_memory_of_a_person(name):
    network = NETWORKS[name]
    model = posemagic.build(**network.config)
    assert sum(p.numel() for p in model.parameters()) == network.params
    assert model.causal == network.causal == name.endswith("-causal")
    if network.causal:
        spec = posemagic.step_spec(model.width, len(model.layers))
        state = sum(4 * np.prod(t.shape[1:]) for t in spec.inputs if t.name in posemagic.STATE)
        assert state == {128: 9_052_160, 64: 696_320}[model.width]
