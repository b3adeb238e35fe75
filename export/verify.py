"""Every exported graph against the torch module it came from, before a bundle exists.

Each graph runs in ONNX Runtime with the compiled operator where it is built, and always in the
portable function form, on seeded inputs; flow also runs as the whole chain of graphs, a causal
lifter frame by frame against the whole sequence in torch, and the window of a clip network is fed
with features of moving pictures. The errors go into bundle.json,
the inputs and FP32 outputs into its gate folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mambapose.export.samples import (
    PEOPLE,
    identity_grid,
    image_pair,
    moving_pictures,
    sample_inputs,
    walking_figure,
)
from mambapose.runtime.backends.engine import Engine
from mambapose.runtime.bundle.gate import FP32_LIMITS, exceeded, graph_errors
from mambapose.runtime.errors import EngineError, ExportError
from mambapose.runtime.stages.causal_lifting import STEP, next_name
from mambapose.runtime.stages.flow import PAIR
from mambapose.runtime.types import Array, GraphSpec

if TYPE_CHECKING:
    import torch

Arrays = Mapping[str, Array]
Run = Callable[[str, Arrays], dict[str, Array]]  # graph name, inputs -> outputs
NATIVE_LIMIT = 1e-4
SEQUENCE_LIMIT = 1e-4  # ten times what any network here was measured at
SEQUENCE_FRAMES = 27  # of a causal lifter, one by one and at once
LIMITS = {
    **FP32_LIMITS,
    "native_vs_function": NATIVE_LIMIT,
    "steps_vs_sequence": SEQUENCE_LIMIT,
}


@dataclass(frozen=True)
class Exported:
    """One graph: the torch module, its contract and the ONNX file made from it."""

    module: torch.nn.Module
    spec: GraphSpec
    file: Path
    has_scan: bool


@dataclass(frozen=True)
class Verified:
    """Measured errors of a stage by unit, and (inputs, FP32 outputs) of every graph."""

    errors: dict[str, float]
    gate: dict[str, tuple[Arrays, Arrays]]


def verify_stage(
    stage: str,
    graphs: Mapping[str, Exported],
    *,
    flow_iters: int = 12,
    library: Path | None = None,
    seed: int = 0,
) -> Verified:
    """Run and compare every graph of a stage; ExportError names the stage that is off.

    ``library``: the compiled operator, None where it is not built.
    """
    torch_run = _torch_runner(graphs)
    plain = _onnx_runner(graphs, None)
    scans = any(graph.has_scan for graph in graphs.values())
    native = _onnx_runner(graphs, library) if scans and library is not None else None
    best = native or plain

    errors: dict[str, float] = {}
    gate: dict[str, tuple[Arrays, Arrays]] = {}
    for name, inputs in _stage_inputs(stage, graphs, torch_run, seed).items():
        outputs = best(name, inputs)
        _raise_to(errors, graph_errors(stage, inputs, outputs, torch_run(name, inputs)))
        if native is not None:
            # Of no stage: every tensor as a share of its largest value, whatever it means.
            share = graph_errors("", inputs, outputs, plain(name, inputs))["relative"]
            _raise_to(errors, {"native_vs_function": share})
        gate[name] = (inputs, outputs)
    if _is_raft(stage, graphs):
        for suffix in _suffixes(graphs):
            found, wanted = (
                _flow_chain(run, graphs, suffix, flow_iters, seed) for run in (best, torch_run)
            )
            _raise_to(errors, graph_errors(stage, {}, {"flow": found}, {"flow": wanted}))
    if stage == "lift3d" and STEP in graphs:
        _raise_to(errors, {"steps_vs_sequence": _sequence_error(best, graphs[STEP], seed)})
    if problem := exceeded(errors, LIMITS):
        raise ExportError(
            f"stage {stage}: the exported graphs differ from torch ({problem}); "
            "nothing was written, please report this with the command and the weights used"
        )
    return Verified(errors, gate)


def _raise_to(errors: dict[str, float], more: Mapping[str, float]) -> None:
    """Keep the largest error of each unit; not a number stays."""
    for unit, error in more.items():
        if not error <= errors.get(unit, 0.0):
            errors[unit] = error
        errors.setdefault(unit, 0.0)


def _torch_runner(graphs: Mapping[str, Exported]) -> Run:
    def run(name: str, inputs: Arrays) -> dict[str, Array]:
        import torch

        graph = graphs[name]
        tensors = [torch.from_numpy(inputs[tensor.name].copy()) for tensor in graph.spec.inputs]
        with torch.no_grad():
            outputs = graph.module.eval()(*tensors)
        if isinstance(outputs, torch.Tensor):
            outputs = (outputs,)
        return {
            tensor.name: output.numpy()
            for tensor, output in zip(graph.spec.outputs, outputs, strict=True)
        }

    return run


def _onnx_runner(graphs: Mapping[str, Exported], library: Path | None) -> Run:
    engines: dict[str, Engine] = {}

    def run(name: str, inputs: Arrays) -> dict[str, Array]:
        graph = graphs[name]
        if name not in engines:
            engines[name] = open_graph(graph.file, library if graph.has_scan else None)
        return engines[name].run(inputs)

    return run


def open_graph(file: Path, library: Path | None = None) -> Engine:
    """The graph in ONNX Runtime on the CPU; ExportError when it does not load."""
    from mambapose.runtime.backends.onnxruntime import engine_from_file

    try:
        return engine_from_file(file, library=library)
    except EngineError as err:
        raise ExportError(f"{file.name} does not load in ONNX Runtime: {err}") from err


def _stage_inputs(
    stage: str, graphs: Mapping[str, Exported], run: Run, seed: int
) -> dict[str, Arrays]:
    if _is_raft(stage, graphs):
        found: dict[str, Arrays] = {}
        for suffix in _suffixes(graphs):
            found.update(_flow_inputs(run, graphs, suffix, seed))
        return found
    if stage == "pose2d" and "encode" in graphs:
        return _clip_inputs(run, graphs, seed)
    if stage == "lift3d" and STEP in graphs:
        one = walked(1, seed)  # the state of a second person would double the stored arrays
        return {STEP: _walk(run, graphs[STEP].spec, one)[1]}
    return {name: sample_inputs(stage, graph.spec, seed) for name, graph in graphs.items()}


def _clip_inputs(run: Run, graphs: Mapping[str, Exported], seed: int) -> dict[str, Arrays]:
    """Pictures for ``encode``, and for ``main`` what it makes of successive ones of one person: the
    portable form of a whole window takes its time.
    """
    _, height, width, _ = graphs["encode"].spec.inputs[0].shape
    frames = int(graphs["main"].spec.inputs[0].shape[1])
    pictures = moving_pictures(int(height), int(width), frames, seed)
    features = [run("encode", {"rgb": rgb})["features"] for rgb in pictures]
    window = {"features": np.stack(features, axis=1)[:1]}
    return {"encode": {"rgb": pictures[frames // 2]}, "main": window}


# --- a causal lifter: each step feeds the next -----------------------------------------------


def walked(people: int, seed: int) -> dict[str, Array]:
    """keypoints (N, T, 17, 2) and score (N, T, 17) of people who walk for SEQUENCE_FRAMES."""
    score = np.random.default_rng(seed).random((people, SEQUENCE_FRAMES, 17), np.float32)
    return {"keypoints": walking_figure(people, SEQUENCE_FRAMES, seed), "score": score}


def _walk(run: Run, spec: GraphSpec, joints: Arrays) -> tuple[Array, dict[str, Array]]:
    """xyz (N, T, 17, 3) of the frames of a sequence one by one, and the inputs of the last step."""
    people, frames = joints["keypoints"].shape[:2]
    inputs = {
        tensor.name: np.zeros((people, *map(int, tensor.shape[1:])), np.float32)
        for tensor in spec.inputs
    }
    poses = []
    for frame in range(frames):
        inputs = {**inputs, **{name: rows[:, frame].copy() for name, rows in joints.items()}}
        found = run(spec.name, inputs)
        poses.append(found["xyz"])
        if frame < frames - 1:
            inputs = {name: found.get(next_name(name), old) for name, old in inputs.items()}
    return np.stack(poses, 1), inputs


def _sequence_error(run: Run, graph: Exported, seed: int) -> float:
    """Largest difference between the steps and the whole sequence in torch, over the largest
    value of that."""
    import torch

    joints = walked(PEOPLE, seed)
    with torch.no_grad():
        whole = graph.module.whole(*(torch.from_numpy(rows) for rows in joints.values()))  # type: ignore[operator]
    found = _walk(run, graph.spec, joints)[0].astype(np.float64)
    wanted = whole.numpy().astype(np.float64)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


# --- flow: the graphs feed each other --------------------------------------------------------


def _is_raft(stage: str, graphs: Mapping[str, Exported]) -> bool:
    """True for a flow network of several graphs, not one over both images."""
    return stage == "flow" and PAIR not in graphs


def _suffixes(graphs: Mapping[str, Exported]) -> list[str]:
    """``@192x256`` and so on, one for each size."""
    return list(dict.fromkeys(name[name.index("@") :] for name in graphs))


def _flow_start(
    run: Run, graphs: Mapping[str, Exported], suffix: str, seed: int
) -> dict[str, Array]:
    """Everything the steps need: both images encoded, the pyramid, the identity grid."""
    shape = graphs["encode" + suffix].spec.inputs[0].shape
    height, width = int(shape[1]), int(shape[2])
    now, before = image_pair(height, width, seed)
    encoded = run("encode" + suffix, {"image": now})
    fmap2 = run("encode" + suffix, {"image": before})["fmap"]
    pyramid = run("corr" + suffix, {"fmap1": encoded["fmap"], "fmap2": fmap2})
    return {
        "image": now,
        "fmap1": encoded["fmap"],
        "fmap2": fmap2,
        **pyramid,
        "coords": identity_grid(height, width),
        "hidden": encoded["hidden"],
        "context": encoded["context"],
    }


def _flow_steps(
    run: Run, graphs: Mapping[str, Exported], suffix: str, state: dict[str, Array], count: int
) -> None:
    for _ in range(count):
        after = run("step" + suffix, _pick(graphs, "step" + suffix, state))
        state["coords"], state["hidden"] = after["coords_next"], after["hidden_next"]


def _flow_inputs(
    run: Run, graphs: Mapping[str, Exported], suffix: str, seed: int
) -> dict[str, Arrays]:
    """Inputs of each flow graph as they occur two steps into the chain."""
    state = _flow_start(run, graphs, suffix, seed)
    inputs: dict[str, Arrays] = {
        name + suffix: _pick(graphs, name + suffix, state) for name in ("encode", "corr")
    }
    _flow_steps(run, graphs, suffix, state, 2)
    for name in ("step", "upsample"):
        inputs[name + suffix] = _pick(graphs, name + suffix, state)
    return inputs


def _flow_chain(
    run: Run, graphs: Mapping[str, Exported], suffix: str, iterations: int, seed: int
) -> Array:
    """The flow (1, 2, H, W) of the sample pair after all steps."""
    state = _flow_start(run, graphs, suffix, seed)
    _flow_steps(run, graphs, suffix, state, iterations)
    return run("upsample" + suffix, _pick(graphs, "upsample" + suffix, state))["flow"]


def _pick(graphs: Mapping[str, Exported], name: str, state: Arrays) -> dict[str, Array]:
    return {tensor.name: state[tensor.name] for tensor in graphs[name].spec.inputs}
