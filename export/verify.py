"""Every exported graph compared with the torch module it came from, before a bundle exists.

Each graph runs in ONNX Runtime with the compiled operator where it is built, and always in the
portable function form, on seeded inputs. RAFT also runs as the runtime's flow stage runs it, a
causal lifter frame by frame against the whole sequence in torch, and the window of a clip network
gets features of moving pictures. The errors go into bundle.json, the inputs and FP32 outputs into
its gate folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mambapose.export.samples import (
    PEOPLE,
    image_pair,
    moving_pictures,
    sample_inputs,
    walking_figure,
)
from mambapose.runtime.backends.engine import Engine
from mambapose.runtime.backends.fake import FakeEngine
from mambapose.runtime.bundle.gate import FP32_LIMITS, exceeded, graph_errors
from mambapose.runtime.errors import EngineError, ExportError
from mambapose.runtime.stages.causal_lifting import STEP, next_name
from mambapose.runtime.stages.flow import GRAPHS, FlowStage
from mambapose.runtime.types import Array, GraphName, GraphSpec, Size

if TYPE_CHECKING:
    import torch

Arrays = Mapping[str, Array]
Run = Callable[[str, Arrays], dict[str, Array]]  # graph name, inputs -> outputs
NATIVE_LIMIT = 1e-4
SEQUENCE_LIMIT = 1e-4  # ten times what any network here was measured at
CONSTANT = 1e-7  # share of the largest value: what the rounding of FP32 can change
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
    """The errors of a stage, after every graph ran; ExportError when one is above its limit.

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
            share = graph_errors(None, inputs, outputs, plain(name, inputs))["relative"]
            _raise_to(errors, {"native_vs_function": share})
        gate[name] = (inputs, outputs)
        _check_varies(stage, name, inputs, outputs, best)
    if _is_raft(graphs):
        for size in _sizes(graphs):
            found, wanted = (
                {"flow": _watched_flow(run, graphs, size, flow_iters, seed)[0]}
                for run in (best, torch_run)
            )
            _raise_to(errors, graph_errors(stage, {}, found, wanted))
    if STEP in graphs:
        _raise_to(errors, {"steps_vs_sequence": _sequence_error(best, graphs[STEP], seed)})
    if problem := exceeded(errors, LIMITS):
        raise ExportError(
            f"stage {stage}: the exported graphs differ from torch ({problem}); "
            "nothing was written, please report this with the command and the weights used"
        )
    return Verified(errors, gate)


def _check_varies(stage: str, name: str, inputs: Arrays, outputs: Arrays, run: Run) -> None:
    """ExportError when a graph gives the same answer to other inputs.

    Such a gate holds nothing: any engine that gives that constant would pass with an error of 0.
    The other inputs are the same values in another order and of other sizes, so they are as
    plausible as the samples; whole numbers and flags are only put in another order.
    """
    others = other_inputs(inputs)
    outputs = {key: array for key, array in outputs.items() if array.size}
    if not outputs or all(np.array_equal(inputs[key], array) for key, array in others.items()):
        return
    if not all(np.isfinite(array).all() for array in outputs.values()):
        return  # the comparison with torch has said so
    found = run(name, others)
    scales = {key: float(np.abs(array.astype(np.float64)).max()) for key, array in outputs.items()}
    if any(
        np.abs(found[key].astype(np.float64) - array.astype(np.float64)).max()
        > CONSTANT * (scales[key] or 1.0)
        for key, array in outputs.items()
    ):
        return
    raise ExportError(
        f"stage {stage}, graph {name}: an answer that depends on the inputs was wanted, found the "
        "same one for different inputs, so a comparison of it proves nothing; give trained "
        "weights, or look for a last layer that is all zeros"
    )


def other_inputs(inputs: Arrays) -> dict[str, Array]:
    """Other inputs of the same shapes: the values of ``inputs`` from back to front, each times a
    factor of 0.5 to 1 where it is a measured number or a pixel.
    """
    rng = np.random.default_rng(0)
    others: dict[str, Array] = {}
    for name, array in inputs.items():
        turned = np.flip(array)
        if array.dtype == np.uint8 or np.issubdtype(array.dtype, np.floating):
            scaled = turned.astype(np.float64) * rng.uniform(0.5, 1, array.shape)
            turned = scaled.astype(array.dtype)
        others[name] = np.ascontiguousarray(turned).reshape(array.shape)
    return others


def _raise_to(errors: dict[str, float], more: Mapping[str, float]) -> None:
    """Keep the larger error of each unit in ``errors``; one that is not a number is kept."""
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
    if _is_raft(graphs):
        return {
            name: inputs
            for size in _sizes(graphs)
            for name, inputs in _flow_inputs(run, graphs, size, seed).items()
        }
    if "encode" in graphs:
        return _clip_inputs(run, graphs, seed)
    if STEP in graphs:
        one = walked(1, seed)  # the state of a second person would double the stored arrays
        return {STEP: _walk(run, graphs[STEP].spec, one)[1]}
    return {name: sample_inputs(stage, graph.spec, seed) for name, graph in graphs.items()}


def _clip_inputs(run: Run, graphs: Mapping[str, Exported], seed: int) -> dict[str, Arrays]:
    """The inputs of ``encode`` and ``main`` of a clip network.

    ``encode`` gets pictures, and ``main`` the features that ``encode`` makes of successive pictures
    of one person; one is enough, because the portable form of a whole window is slow.
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
    """xyz (N, T, 17, 3) of a sequence run frame by frame, and the inputs of the last step."""
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
    """The largest difference between the steps and the whole sequence in torch.

    It is a share of the largest value of the whole sequence.
    """
    import torch

    joints = walked(PEOPLE, seed)
    with torch.no_grad():
        whole = graph.module.whole(*(torch.from_numpy(rows) for rows in joints.values()))  # type: ignore[operator]
    found = _walk(run, graph.spec, joints)[0].astype(np.float64)
    wanted = whole.numpy().astype(np.float64)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


# --- flow: the graphs feed each other --------------------------------------------------------

STEPS_BEFORE = 2  # the gate sees RAFT's steps in the middle of the loop, not at its first


def _is_raft(graphs: Mapping[str, Exported]) -> bool:
    """True for a flow network of several graphs, not one over both images."""
    return any(GraphName.parse(name).base == "corr" for name in graphs)


def _sizes(graphs: Mapping[str, Exported]) -> list[Size]:
    """The sizes of the pictures, each once."""
    return list(dict.fromkeys(size for name in graphs if (size := GraphName.parse(name).size)))


def _watched_flow(
    run: Run, graphs: Mapping[str, Exported], size: Size, iterations: int, seed: int
) -> tuple[Array, dict[str, Arrays]]:
    """The flow (1, 2, H, W) of the sample pair, and graph name -> the last inputs of that graph.

    The runtime's flow stage runs with these graphs.
    """
    given: dict[str, Arrays] = {}

    def engine(name: str) -> FakeEngine:
        def watched(inputs: Arrays) -> dict[str, Array]:
            given[name] = dict(inputs)
            return run(name, inputs)

        return FakeEngine(graphs[name].spec, watched)

    stage = FlowStage({base: engine(str(GraphName(base, size))) for base in GRAPHS}, iterations)
    now, before = image_pair(*size, seed)
    stage.run(before[0])
    found = stage.run(now[0])
    assert found is not None  # the second picture has one before it
    return found.values[None], given


def _flow_inputs(
    run: Run, graphs: Mapping[str, Exported], size: Size, seed: int
) -> dict[str, Arrays]:
    """Inputs of each flow graph as they occur STEPS_BEFORE steps into the loop."""
    given = _watched_flow(run, graphs, size, STEPS_BEFORE, seed)[1]
    step = str(GraphName("step", size))
    return {**given, step: _watched_flow(run, graphs, size, STEPS_BEFORE + 1, seed)[1][step]}
