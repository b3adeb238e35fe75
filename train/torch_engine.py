"""A torch network with the interface of an engine of the runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from mambapose.runtime.types import Array, GraphSpec, TensorSpec


class TorchEngine:
    """Runs a function of tensors as an engine.

    answer: the function, with arguments in the order of ``inputs`` (name -> shape), on ``device``.
    """

    def __init__(
        self,
        answer: Callable[..., torch.Tensor],
        inputs: Mapping[str, tuple[int | str, ...]],
        output: str,
        device: torch.device,
    ) -> None:
        specs = tuple(TensorSpec(name, "float32", shape) for name, shape in inputs.items())
        self.spec = GraphSpec("main", specs, (TensorSpec(output, "float32", ("N",)),))
        self._answer, self._device = answer, device

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The output by its name, in float32."""
        with torch.inference_mode():
            tensors = [torch.from_numpy(inputs[i.name]).to(self._device) for i in self.spec.inputs]
            answer = self._answer(*tensors).float().cpu().numpy()
        return {self.spec.outputs[0].name: answer}
