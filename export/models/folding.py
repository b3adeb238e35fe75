"""Modules whose exported form holds constants computed from their parameters."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, TypeVar

from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Foldable(nn.Module, ABC):
    """A module whose forward works on constants computed from its (official) parameters.

    Training and the state dict see the parameters; an exported graph has the constants only, so
    that it does no arithmetic on weights (``freeze``).
    """

    def __init__(self) -> None:
        super().__init__()
        self._kind: Any = None

    @abstractmethod
    def fold(self) -> Any:
        """A NamedTuple of tensors, computed from the parameters."""

    def constants(self) -> Any:
        """The result of ``fold``, or the frozen copies of it when there are any."""
        if self._kind is None:
            return self.fold()
        return self._kind(*(getattr(self, f"folded_{name}") for name in self._kind._fields))

    def _freeze(self) -> None:
        values = self.fold()
        for key in [key for key, _ in self.named_parameters(recurse=False)]:
            delattr(self, key)
        for key in [key for key, _ in self.named_children()]:
            delattr(self, key)
        for name, value in values._asdict().items():
            frozen = value.detach().contiguous().clone()
            self.register_buffer(f"folded_{name}", frozen, persistent=False)
        self._kind = type(values)


def bias_of(layer: nn.Conv1d | nn.Conv2d) -> Tensor:
    """The bias of a convolution that has one; torch declares the type as one that may be None."""
    assert layer.bias is not None
    return layer.bias


def freeze(model: ModuleT) -> ModuleT:
    """A copy of the model in eval mode that holds folded constants in place of parameters."""
    frozen = copy.deepcopy(model).eval()
    for module in list(frozen.modules()):
        if isinstance(module, Foldable):
            module._freeze()
    return frozen
