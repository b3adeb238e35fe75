"""What every training run has: rates, a running mean of the weights, an optimiser, a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mambapose.runtime import durable
from mambapose.runtime.errors import ExportError

FORMAT_VERSION = 1
CHECKPOINT = "checkpoint.pt"
# Not decayed, whatever their shape: constants of the scan and learned embeddings.
UNDECAYED = ("A_log", "A_b_log", "A_logs", "dt_projs_bias", "embed")


class RunPlan(Protocol):
    """The fields of a plan that learning rates and the mean of the weights depend on."""

    @property
    def rate(self) -> float: ...
    @property
    def warmup(self) -> int: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def average(self) -> float: ...


class Optimiser(Protocol):
    """What a training loop needs from an optimiser; those of torch have it."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...
    def zero_grad(self, set_to_none: bool = True) -> None: ...
    def step(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


@dataclass
class RunState:
    """A training run: its plan, network, running mean of the weights, optimiser and counts.

    decay: the step at which the rate starts to fall, and in how many steps it falls to zero; notes:
    the commands so far, and the run that this one started from.
    """

    plan: Any
    model: nn.Module
    average: dict[str, Tensor]
    optimiser: Optimiser
    step: int = 0
    seconds: float = 0.0
    decay: tuple[int, int] | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def rate(self) -> float:
        """The learning rate of the next step: a rise, a plateau, and a straight fall to zero."""
        rate: float = float(self.plan.rate) * min(1.0, (self.step + 1) / max(self.plan.warmup, 1))
        if self.decay is not None:
            start, steps = self.decay
            rate *= max(0.0, 1.0 - max(self.step - start, 0) / steps)
        return rate

    def finished(self) -> bool:
        """Whether the rate has fallen to zero."""
        return self.decay is not None and self.step >= sum(self.decay)

    def update_average(self) -> None:
        """Move the mean of the weights by one step; young runs forget faster.

        Counters are copied, not averaged.
        """
        keep = min(self.plan.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                if tensor.is_floating_point():
                    self.average[name].lerp_(tensor, 1 - keep)
                else:
                    self.average[name].copy_(tensor)

    def count(self, samples: int) -> None:
        """Add the ``samples`` that one step has seen."""
        raise NotImplementedError

    def content(self, plan: Mapping[str, Any], **counts: int) -> dict[str, Any]:
        """The content of a checkpoint.

        plan: the plan as plain values; counts: the counts that this kind of run keeps.
        """
        return {
            "format_version": FORMAT_VERSION,
            "plan": dict(plan),
            "step": self.step,
            "seconds": self.seconds,
            **counts,
            "decay": None if self.decay is None else list(self.decay),
            "notes": self.notes,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "random": torch.get_rng_state(),
        }

    def restore(
        self, content: Mapping[str, Any], counts: Sequence[str], what: tuple[str, Path]
    ) -> None:
        """Set this run to a checkpoint's content; what: network and file, for the ExportError."""
        device = next(self.model.parameters()).device
        if "optimiser" not in content:
            raise ExportError(
                f"a run was wanted in {what[1]}, found a mean of runs, which cannot go on; "
                "give its folder to --start-from"
            )
        try:
            self.model.load_state_dict(content["model"])
            self.optimiser.load_state_dict(content["optimiser"])
            self.average = {name: content["average"][name].to(device) for name in self.average}
        except (KeyError, RuntimeError, ValueError) as err:
            raise ExportError(
                f"weights of {what[0]} were wanted in {what[1]}, found others "
                f"({str(err).splitlines()[0]}); start again with another --out"
            ) from err
        torch.set_rng_state(content["random"])
        for name in ("step", "seconds", "notes", *counts):
            setattr(self, name, content[name])
        self.decay = None if content["decay"] is None else tuple(content["decay"])


@contextmanager
def mean_weights(state: RunState) -> Iterator[nn.Module]:
    """A context with the network in eval mode and its mean weights; the current ones come back."""
    kept = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    state.model.load_state_dict(state.average)
    state.model.eval()
    try:
        yield state.model
    finally:
        state.model.load_state_dict(kept)
        state.model.train()


def adamw(plan: RunPlan, model: nn.Module, without: Collection[str] = ()) -> torch.optim.Optimizer:
    """AdamW for all parameters but ``without``; it does not decay biases, norms and UNDECAYED."""
    whole: list[Tensor] = []
    free: list[Tensor] = []
    for name, parameter in model.named_parameters():
        if name in without:
            continue
        bare = parameter.ndim < 2 or name.endswith(UNDECAYED)
        (free if bare else whole).append(parameter)
    groups = [
        {"params": whole, "weight_decay": plan.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=plan.rate, betas=(0.9, 0.98))


def command_here(module: str, step: int, device: str) -> dict[str, Any]:
    """What a card records about how a file was made: the command now running, and the step."""
    words = " ".join([f"python -m mambapose.train.{module}", *sys.argv[1:]])
    return {"step": step, "command": words, "device": device, "torch": str(torch.__version__)}


def write_checkpoint(content: Mapping[str, Any], folder: Path) -> Path:
    """The path of the checkpoint, which is written beside the old one and then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CHECKPOINT
    beside = path.with_suffix(".part")
    torch.save(dict(content), beside)
    durable.replace(beside, path)
    return path
