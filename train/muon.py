"""Muon for the layers inside a network, AdamW for the rest, as one optimiser.

Muon (K. Jordan and others, "Muon: An optimizer for hidden layers in neural networks", 2024; in
torch) makes the update of a matrix orthogonal. Kernels of convolutions are matrices of outputs by
everything else. Updates are scaled to the size of AdamW's (Liu and others, arXiv 2502.16982), so
both follow one rate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mambapose.runtime.errors import ExportError
from mambapose.train.checkpoint import UNDECAYED, RunPlan, adamw

NARROWEST = 16  # rows and columns from which on a matrix is Muon's


class MuonAdamW:
    """Both optimisers with the interface of ``torch.optim.Optimizer`` that a training loop needs.

    ends: beginnings of the names of the first and last layers, which AdamW trains. ExportError
    when nothing is left for Muon.
    """

    def __init__(self, plan: RunPlan, model: nn.Module, ends: tuple[str, ...]) -> None:
        inner = {
            name: parameter for name, parameter in model.named_parameters()
            if parameter.ndim in (2, 4) and _narrow_side(parameter) >= NARROWEST
            and not name.startswith(ends) and not name.endswith(UNDECAYED)
        }  # fmt: skip
        self._whole = list(inner.values())
        self._matrices = [nn.Parameter(matrix(p.data, p)) for p in self._whole]
        if not self._matrices:
            raise ExportError("matrices for Muon were wanted, the network has none; use --adamw")
        self._muon = torch.optim.Muon(
            self._matrices, lr=plan.rate, weight_decay=plan.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )  # fmt: skip
        self._adamw = adamw(plan, model, without=inner.keys())

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [*self._muon.param_groups, *self._adamw.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self._whole:
            parameter.grad = None
        self._adamw.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """One step of both optimisers; the gradients are handed to Muon's matrices first.

        The matrices share their memory with the parameters.
        """
        for parameter, view in zip(self._whole, self._matrices, strict=True):
            view.grad = None if parameter.grad is None else matrix(parameter.grad, parameter)
        self._muon.step()
        self._adamw.step()

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state; KeyError when it is that of another optimiser."""
        self._muon.load_state_dict(state_dict["muon"])
        self._adamw.load_state_dict(state_dict["adamw"])


def matrix(values: Tensor, like: Tensor) -> Tensor:
    """(outputs, everything else) from (outputs, inputs) or (outputs, inputs, h, w).

    Its order is that of the memory of ``like``, so that a tensor of that layout gives a view.
    """
    if like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)
    return values.flatten(1)


def _narrow_side(parameter: Tensor) -> int:
    return min(len(parameter), parameter[0].numel())
