"""The state of a pose2d run: what is saved and how it resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mambapose.export.models import mambapose_nano
from mambapose.runtime.errors import ExportError
from mambapose.train.checkpoint import CHECKPOINT, RunState, adamw, write_checkpoint
from mambapose.train.curve import POINTS, after, rows_of, thinned
from mambapose.train.lift.state import BEFORE_POINTS, read
from mambapose.train.muon import MuonAdamW
from mambapose.train.pose2d.data import Recipe

NETWORK = "mambapose-nano"
ENDS = ("stem", "heat_head", "absent_head", "side_out")  # first and last layers


@dataclass(frozen=True)
class Settings:
    """The settings of a run that may not change while it lasts, besides the stores it draws from.

    muon: inner layers are trained by Muon, the others by AdamW.
    """

    seed: int = 0
    batch: int = 32
    rate: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.02
    average: float = 0.999
    clip_norm: float = 5.0
    bf16: bool = False
    muon: bool = False


@dataclass
class State(RunState):
    """A training run of pose2d.

    samples: how many it has seen so far; offset: the steps of the runs before it, so that no batch
    is drawn twice.
    """

    plan: Settings
    model: mambapose_nano.MambaPoseNano
    samples: int = 0
    offset: int = 0

    def count(self, samples: int) -> None:
        self.samples += samples

    def recipe(
        self, stores: tuple[str, ...], films: str | None, estimates: str | None = None
    ) -> Recipe:
        """What the batches of this run are drawn from."""
        return Recipe(stores, films, self.plan.seed, self.plan.batch, estimates)


def fresh(plan: Settings, device: torch.device) -> State:
    """A new run at step 0."""
    model = mambapose_nano.build(seed=plan.seed).train().to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(plan.seed)
    optimiser = MuonAdamW(plan, model, ENDS) if plan.muon else adamw(plan, model)
    return State(plan, model, average, optimiser)


def save(state: State, folder: Path) -> Path:
    """The path of the checkpoint, which is written beside the old one and then renamed."""
    return write_checkpoint(content_of(state), folder)


def content_of(state: State) -> dict[str, Any]:
    """What a checkpoint of a run holds."""
    plan = {"network": NETWORK, **asdict(state.plan)}
    return state.content(plan, samples=state.samples, offset=state.offset)


def resumed(folder: Path, device: torch.device) -> State:
    """The run saved in ``folder``; ExportError when there is none that this version can read."""
    content = read(folder)
    state = fresh(_plan(content, folder), device)
    state.restore(content, ("samples", "offset"), ("mambapose-nano", folder / CHECKPOINT))
    return state


def _plan(content: dict[str, Any], folder: Path) -> Settings:
    values = dict(content["plan"])
    if values.pop("network", None) != NETWORK:
        raise ExportError(
            f"a run of mambapose-nano was wanted, {folder} holds another; choose another --out"
        )
    return Settings(**values)


def started_from(path: Path, plan: Settings, device: torch.device) -> State:
    """A new run from shipped weights (.safetensors) or from the mean weights of another run."""
    state = fresh(plan, device)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                before = json.loads((file.metadata() or {}).get("training", "{}"))
        except (OSError, SafetensorError, json.JSONDecodeError) as err:
            raise ExportError(f"{path}: weights were wanted, it cannot be read ({err})") from err
    else:
        content = read(path)
        _plan(content, path)
        weights = content["average"]
        before = so_far(content, path, BEFORE_POINTS)
    try:
        state.model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    except RuntimeError as err:
        raise ExportError(
            f"weights of mambapose-nano were wanted in {path}, found others "
            f"({str(err).splitlines()[-1].strip()}); train without --start-from"
        ) from err
    state.average = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    state.offset = int(before.get("offset", 0)) + int(before.get("step", 0))
    state.notes = {"before": before}
    return state


def so_far(content: Mapping[str, Any], folder: Path, points: int = POINTS) -> dict[str, Any]:
    """Step, samples, seconds, commands and curves of a run together with those it started from.

    folder: of the run; its own curves have at most about ``points`` rows.
    """
    before = content["notes"].get("before", {})
    return {
        "step": content["step"], "offset": content["offset"],
        "samples": content["samples"] + before.get("samples", 0),
        "seconds": content["seconds"] + before.get("seconds", 0.0),
        "commands": commands(content),
        "curves": with_curves(before, curves(folder, points), content["offset"]),
    }  # fmt: skip


def commands(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The commands that made a checkpoint's run and those it started from, the first one first."""
    before = content["notes"].get("before", {})
    return [*before.get("commands", []), *content["notes"].get("commands", [])]


def with_curves(
    before: Mapping[str, Any], own: Mapping[str, Sequence[Mapping[str, Any]]], steps: int
) -> dict[str, list[dict[str, Any]]]:
    """The curves of the earlier runs ``before``, continued by those of the next one.

    steps: how many steps the earlier runs took.
    """
    earlier, seconds = before.get("curves", {}), before.get("seconds", 0.0)
    return {name: [*earlier.get(name, []), *after(rows, steps, seconds)]
            for name, rows in own.items()}  # fmt: skip


def curves(folder: Path, points: int = POINTS) -> dict[str, list[dict[str, Any]]]:
    """The training curve of a run and its measurements on held-out people, thinned."""
    rows = rows_of(folder)
    kept = ("step", "hours", "total", "place", "side", "samples_per_s")
    training = [{key: row[key] for key in kept} for row in rows if "total" in row]
    held_out = [
        {"step": row["step"], "inputs": name, **values}
        for row in rows
        for name, values in row.get("held_out", {}).items()
    ]
    return {"training": thinned(training, points), "held_out": thinned(held_out, points)}


def averaged_model(path: Path) -> mambapose_nano.MambaPoseNano:
    """The network with the mean weights of a run, in eval mode."""
    content = read(path)
    model = mambapose_nano.build(seed=_plan(content, path).seed)
    model.load_state_dict(content["average"])
    return model.eval()
