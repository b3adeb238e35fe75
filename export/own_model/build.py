"""``mp-export --model``: a network from the user's own code to a bundle.

The bundle is like any other: ``mp-check`` runs it against the stored outputs of torch, ``mp-bench``
measures it. In the stage ``model`` the network stands alone. As flow, depth, pose2d or lift3d it
must have the inputs and outputs that the pipeline uses (``runtime/stages/table.py``), and the
bundle holds it together with the networks that ship for the other stages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from mambapose.export.build import (
    Loaded,
    created_now,
    errors_text,
    export_stage,
    facts_of_weights,
    load_network,
    written_stage,
)
from mambapose.export.checkpoints import load_weights
from mambapose.export.own_model.network import (
    built,
    check_repeatable,
    contract,
    flattened,
    user_code,
)
from mambapose.export.own_model.refusals import is_of_user_code, reason, traced
from mambapose.export.plan import ExportOptions, make_plan
from mambapose.export.rewrites import rewritten
from mambapose.export.samples import sample_inputs
from mambapose.plugins.standins import StandIns
from mambapose.runtime.bundle.bundle import tool_version, write_bundle
from mambapose.runtime.bundle.entries import Bundle, StageEntry, WeightsEntry
from mambapose.runtime.errors import ExportError, MambaPoseError
from mambapose.runtime.stages.joints import IMAGE_UNITS
from mambapose.runtime.stages.table import MODEL, STAGES, own_network_stages
from mambapose.runtime.targets import Schedule, Target
from mambapose.runtime.types import GraphSpec, Size, TensorSpec

AS_BUILT = "as built"  # label of weights that the user's code made or loaded itself
Tell = Callable[[str], None]


@dataclass(frozen=True)
class OwnModel:
    """What the user asked for.

    model: ``package.module:name``; outputs: names of the outputs, if any were given; stage: the
    stage of the bundle; weights: a checkpoint, or None to keep those the network was built with;
    rewrite: turn flips and copies into orders of the scans; weights_key: the entry of the
    checkpoint to take.
    """

    model: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...] = ()
    stage: str = MODEL
    weights: Path | None = None
    seed: int = 0
    rewrite: bool = True
    weights_key: str | None = None


class Positional(nn.Module):
    """The user's network with its outputs as a tuple in the order of the contract."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(flattened(self.model(*inputs)).values())


def positional(model: nn.Module, inputs: tuple[TensorSpec, ...]) -> Positional:
    """A Positional whose inputs have names, because torch.export gives free sides only to those."""

    class Named(Positional):
        def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
            return super().forward(*inputs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    named = [inspect.Parameter(name, kind) for name in ("self", *(spec.name for spec in inputs))]
    Named.forward.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    return Named(model)


def build_own_model(
    asked: OwnModel, target: Target, out: Path, *, folder: Path, overwrite: bool, tell: Tell
) -> Bundle:
    """The bundle of the network; the folder ``out`` is written completely or not at all.

    folder: the user's code. Raises the ExportErrors and BundleErrors of its steps.
    """
    with user_code(folder) as noted:
        fill = partial(_fill, asked, target, noted, tell)
        return write_bundle(out, fill, overwrite=overwrite)


def _fill(asked: OwnModel, target: Target, noted: StandIns, tell: Tell, folder: Path) -> Bundle:
    torch.manual_seed(asked.seed)
    tell(f"{asked.model}: building it and calling it")
    model = built(asked.model)
    network = _loaded(asked, model, tell)
    spec = contract("main", model, asked.inputs, asked.outputs)
    check_contract(asked.stage, spec)
    samples = sample_inputs(asked.stage, spec, asked.seed).values()
    check_repeatable(model, spec, [torch.from_numpy(array.copy()) for array in samples])
    options: dict[str, str | int | bool] = {}
    if STAGES[asked.stage].clip:
        options["unit"] = network.unit or IMAGE_UNITS
    schedule = _schedule(target.schedule, asked.stage, spec)
    graphs = {"main": (positional(model, asked.inputs), spec)}
    with tracing():
        entry = written_stage(
            asked.stage, asked.model, network, graphs, folder,
            precision=target.precision, options=options, flow_iters=schedule.flow_iters,
            seed=asked.seed, rewrite=partial(_rewritten, tell) if asked.rewrite else None,
            tell=tell,
        )  # fmt: skip
    _tell_what_happened(entry, noted, tell)
    stages = {**_around(asked, target, tell, folder), asked.stage: entry}
    return Bundle(
        path=folder,
        tool_version=tool_version(),
        created=created_now(),
        target=target.name,
        schedule=schedule,
        stages={name: stages[name] for name in STAGES if name in stages},
    )


def _schedule(usual: Schedule, stage: str, spec: GraphSpec) -> Schedule:
    """The target's schedule, with the size that the network's input has."""
    row, sides = STAGES[stage], spec.inputs[0].shape
    if row.clip:
        frames = int(sides[1])
        return dataclasses.replace(usual, clip_frames=frames, hop=max(1, frames // 3))
    if row.size_field is None:
        return usual
    size: dict[str, Any] = {row.size_field: Size(int(sides[1]), int(sides[2]))}
    return dataclasses.replace(usual, **size)


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """A context that turns whatever the user's code raises under torch's tracing into one sentence.

    torch prints the graph that it had made by then, which is hidden: the sentence says more.
    """
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level, said = logger.level, io.StringIO()
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(said):
            yield
    except MambaPoseError:
        raise
    except Exception as err:
        if is_of_user_code(err):
            raise ExportError(traced(err)) from err
        raise
    else:
        sys.stderr.write(said.getvalue())
    finally:
        logger.setLevel(level)


def _around(asked: OwnModel, target: Target, tell: Tell, folder: Path) -> dict[str, StageEntry]:
    """The other stages of the pipeline, with the networks that ship; none for stage ``model``."""
    if asked.stage == MODEL:
        return {}
    plan = make_plan(target, ExportOptions(seed=asked.seed))
    return {
        part.stage: export_stage(plan, part, load_network(part, plan.seed, tell), folder)
        for part in plan.stages
        if part.stage != asked.stage
    }


def _loaded(asked: OwnModel, model: nn.Module, tell: Tell) -> Loaded:
    """The network with the weights of the file, or with those it was built with."""
    if asked.weights is None:
        return Loaded(model, WeightsEntry(None, None, trained=True, label=AS_BUILT))
    facts, weights = facts_of_weights(asked.weights)
    load_weights(
        model, asked.weights, network=asked.model, weights_key=asked.weights_key, tell=tell
    )
    return Loaded(model, weights, facts.unit, facts.half)


def _rewritten(tell: Tell, model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without flips and copies of tokens; ``tell`` receives a line that counts them."""
    try:
        model, removed = rewritten(model)
    except Exception as err:
        raise ExportError(
            f"flips and copies were wanted as orders of the graph's scans, found {reason(err)}; "
            "keep them with --no-rewrite, and please report this"
        ) from err
    tell(str(removed))
    return model


def _tell_what_happened(entry: StageEntry, noted: StandIns, tell: Tell) -> None:
    if noted.used:
        tell(f"stood in for: {', '.join(noted.used)}")
    scans = "no selective scan" if entry.scan_spec is None else "with selective scans"
    tell(
        f"{entry.network}: {entry.params / 1e6:.2f} M parameters, {scans}, "
        f"{errors_text(entry.gate)}"
    )


def check_contract(stage: str, spec: GraphSpec) -> None:
    """ExportError unless the network has the inputs and outputs that the pipeline's stage needs."""
    if stage == MODEL:
        return
    stages = [row.name for row in own_network_stages()]
    if stage not in stages:
        raise ExportError(
            f"--stage {', '.join((MODEL, *stages))} was wanted for a network of your "
            f"own, found {stage}"
        )
    row = STAGES[stage]
    known, (output,) = row.inputs, row.outputs
    sides: dict[str, int | str] = {}
    wanted = {tensor.name: tensor for tensor in known}
    for found in spec.inputs:
        if found.name not in wanted or not _fits(found, wanted[found.name], sides):
            raise _mismatch(stage, f"input {found}", "; ".join(map(str, known)))
    if spec.inputs[0].name != known[0].name:
        raise _mismatch(stage, f"{spec.inputs[0]} as the first input", str(known[0]))
    have = {tensor.name for tensor in spec.inputs}
    if lacking := [item for item in known if item.name not in (*have, *row.may_lack)]:
        raise _mismatch(stage, f"no input {lacking[0].name}", "; ".join(map(str, known)))
    if len(spec.outputs) != 1 or not _fits(spec.outputs[0], output, sides):
        found_outputs = "; ".join(map(str, spec.outputs))
        raise _mismatch(stage, f"output {found_outputs}", str(output))


def _fits(found: TensorSpec, wanted: TensorSpec, sides: dict[str, int | str]) -> bool:
    """Whether name, dtype and every side agree: N is free, and any other letter is the same number
    wherever it stands.
    """
    if (found.name, found.dtype, len(found.shape)) != (
        wanted.name, wanted.dtype, len(wanted.shape),
    ):  # fmt: skip
        return False
    for have, want in zip(found.shape, wanted.shape, strict=True):
        if want == "N":
            if not isinstance(have, str):
                return False
        elif isinstance(want, str):
            if isinstance(have, str) or sides.setdefault(want, have) != have:
                return False
        elif have != want:
            return False
    return True


def _mismatch(stage: str, found: str, wanted: str) -> ExportError:
    free = "N free" if "N" in wanted else "no side free"
    return ExportError(
        f"stage {stage}: {wanted} was wanted ({free}), found {found}; name inputs with --inputs, "
        f"outputs with --outputs, or leave --stage out"
    )
