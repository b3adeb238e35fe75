"""The state of a training run: what is saved, how it resumes, how one starts from another.

Batches and rates depend only on the step, so the state is just the weights, their running mean, the
optimiser and torch's random state. A checkpoint is written beside the old one and renamed.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mambapose.runtime.errors import ExportError
from mambapose.train.checkpoint import (
    CHECKPOINT,
    FORMAT_VERSION,
    RunState,
    adamw,
    write_checkpoint,
)
from mambapose.train.curve import curves
from mambapose.train.lift.loss import VELOCITY
from mambapose.train.lift.networks import build, takes_cues, without_cues
from mambapose.train.muon import MuonAdamW

WEIGHTS_SUFFIX, RUN_KEY = ".safetensors", "run"
ENDS = ("Spatial_patch_to_embedding", "joint_proj", "head")  # first and last layers
BEFORE_POINTS = 20  # of the curve of a run that another one started from


@dataclass(frozen=True)
class Settings:
    """The settings of a run that may not change while it lasts; stored with it.

    batch: windows of the longest of ``frames`` per step; of shorter windows there are more, so that
    a step has as many frames. average: how much of the running mean of the weights a step keeps.
    pairs: how many pairs of blocks, None for the published number. muon: inner layers are trained
    by Muon, the others by AdamW. velocity: weight of the error between consecutive frames, where
    position has 1.
    """

    network: str
    split: str = "activities"
    seed: int = 0
    frames: tuple[int, ...] = (81,)
    batch: int = 8
    rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.01
    average: float = 0.999
    clip_norm: float = 1.0
    cues: bool = False
    pairs: int | None = None
    bf16: bool = False
    muon: bool = False
    velocity: float = VELOCITY

    @property
    def takes_cues(self) -> bool:
        return takes_cues(self.network, self.cues)


@dataclass
class State(RunState):
    """A training run of a lifter. windows: how many it has seen so far."""

    plan: Settings
    windows: int = 0

    def count(self, samples: int) -> None:
        self.windows += samples


def fresh(plan: Settings, device: torch.device) -> State:
    """A new run at step 0."""
    model = build(plan.network, plan.seed, cues=plan.cues, pairs=plan.pairs).train().to(device)
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(plan.seed)
    optimiser = MuonAdamW(plan, model, ENDS) if plan.muon else adamw(plan, model)
    return State(plan, model, average, optimiser)


def save(state: State, folder: Path) -> Path:
    """The path of the checkpoint, which is written beside the old one and then renamed."""
    plan = {**asdict(state.plan), "frames": list(state.plan.frames)}
    content = state.content(plan, windows=state.windows)
    return write_checkpoint(content, folder)


def resumed(folder: Path, device: torch.device) -> State:
    """The run saved in ``folder``; ExportError when there is none that this version can read."""
    content = read(folder / CHECKPOINT)
    plan = plan_from_json(content["plan"])
    state = fresh(plan, device)
    state.restore(content, ("windows",), (plan.network, folder / CHECKPOINT))
    return state


def read(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint.

    folder: that of a run, the file of a checkpoint, or weights that ship, which have no optimiser.
    Nothing but tensors and plain values is unpickled.
    """
    path = folder / CHECKPOINT if folder.is_dir() else folder
    if path.suffix == WEIGHTS_SUFFIX:
        return _shipped(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version = content["format_version"]
    except (OSError, KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as err:
        raise ExportError(
            f"a checkpoint of this command was wanted, {path} cannot be read "
            f"({type(err).__name__}); start without --resume"
        ) from err
    if version != FORMAT_VERSION:
        raise ExportError(
            f"a checkpoint of format {FORMAT_VERSION} was wanted, {path} has {version}; "
            "start without --resume"
        )
    return dict(content)


def metadata(content: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """What the file of a run's weights carries beside its tensors, so that ``read`` can read it."""
    kept = ("format_version", "plan", "step", "seconds", "windows", "notes")
    own = {key: content[key] for key in kept}
    return {RUN_KEY: json.dumps({**own, "curves": _curves(content, folder)})}


def _curves(content: Mapping[str, Any], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The curves of a run in its folder, or those that weights that ship carry with them."""
    return content["curves"] if "curves" in content else curves(folder, BEFORE_POINTS)


def _shipped(path: Path) -> dict[str, Any]:
    """The content of FP16 weights that train.lift.card wrote, in float32."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            run = json.loads((file.metadata() or {})[RUN_KEY])
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        if run["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format {run['format_version']}")
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as err:
        raise ExportError(
            f"weights that this command's card wrote were wanted, {path} cannot be read "
            f"({type(err).__name__}: {err}); start without them"
        ) from err
    return {**run, "decay": None, "average": weights}


def plan_from_json(values: dict[str, Any]) -> Settings:
    return Settings(**{**values, "frames": tuple(values["frames"])})


def started_from(folder: Path, plan: Settings, device: torch.device) -> State:
    """A new run from the mean weights of another run.

    The other run is of the same network, possibly with fewer blocks or shorter windows; posemamba-s
    may also start from mambapose3d. Blocks that the other run lacks come last and start as the
    identity (their last maps are zero); train.lift.growth then makes up for the norms behind them.
    Frames that it lacks get positions stretched from those it has. A run that is short and shallow
    first sees several times as many windows an hour.
    """
    content = read(folder)
    old = plan_from_json(content["plan"])
    source = content["average"]
    if (old.network, plan.network) == ("mambapose3d", "posemamba-s"):
        source = without_cues(source)
    elif (old.network, old.cues) != (plan.network, plan.cues):
        raise ExportError(
            f"a run of {plan.network} was wanted to start from, {folder} is of {old.network}"
        )
    state = fresh(plan, device)
    weights = {name: tensor.cpu().clone() for name, tensor in state.average.items()}
    known = {name: tensor for name, tensor in source.items() if name in weights}
    for name in weights.keys() - known.keys():
        if name.endswith(("out_proj.weight", "fc2.weight", "fc2.bias", "scale")):
            weights[name].zero_()
    weights.update(known)
    embed = "Temporal_pos_embed"
    if embed in weights:
        weights[embed] = _stretched(weights[embed], max(old.frames), max(plan.frames))
    state.model.load_state_dict(weights)
    state.average = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    before = as_before(content, folder, content["notes"].get("before"))
    state.notes = {"commands": list(content["notes"].get("commands", [])), "before": before}
    return state


def as_before(
    content: Mapping[str, Any], folder: Path, before: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What a run keeps of the run it started from; before: what that run kept in its turn."""
    kept = {key: content[key] for key in ("plan", "step", "seconds", "windows")}
    return {**kept, "before": before, "curves": _curves(content, folder)}


def whole(content: Mapping[str, Any], key: str) -> float:
    """``seconds``, ``windows`` or ``step`` of a checkpoint plus those of the runs before it."""
    total, before = content[key], content["notes"].get("before")
    while before is not None:
        total, before = total + before[key], before["before"]
    return float(total)


def _stretched(embed: Tensor, known: int, wanted: int) -> Tensor:
    """Positions (1, T, width) whose first ``known`` rows are spread over the first ``wanted``."""
    if wanted <= known:
        return embed
    out = embed.clone()
    rows = embed[:, :known].transpose(1, 2)
    spread = torch.nn.functional.interpolate(rows, wanted, mode="linear", align_corners=True)
    out[:, :wanted] = spread.transpose(1, 2)
    return out


def averaged_model(content: dict[str, Any]) -> tuple[Settings, nn.Module]:
    """The network of a checkpoint with the mean weights, in eval mode."""
    plan = plan_from_json(content["plan"])
    model = build(plan.network, plan.seed, cues=plan.cues, pairs=plan.pairs)
    model.load_state_dict(content["average"])
    return plan, model.eval()
