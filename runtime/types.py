"""The nouns of a running pipeline.

Letters used in every shape comment: B batch, N people (or SSM states inside the scan),
T frames, L scan length, D channels, J joints, H W pixels, K scan directions. ``xy`` is pixels of
the original frame, ``xyxy`` a box in the same pixels; images are RGB uint8 (H, W, 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.errors import EngineError

Array = NDArray[np.generic]
FloatArray = NDArray[np.float32]
ImageArray = NDArray[np.uint8]


@dataclass(frozen=True)
class Frame:
    """One decoded image. image: uint8 RGB (H, W, 3); timestamp in seconds from the start."""

    image: ImageArray
    index: int
    timestamp: float


@dataclass(frozen=True)
class Pose:
    """One person in one frame.

    box: (4,) xyxy px; xy: (J, 2) px of the original frame; score: (J,) heatmap peaks;
    xyz: (17, 3) Human3.6M order, root-relative, y down, body heights, or None without a lifter.
    """

    frame: int
    track: int
    box: FloatArray
    xy: FloatArray
    score: FloatArray
    xyz: FloatArray | None = None


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and dimensions of one tensor; a str dimension is free (``N`` people)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} ({', '.join(map(str, self.shape))})"

    def check(self, array: Array) -> None:
        """Raise EngineError unless the array has this dtype and these dimensions."""
        fits = array.ndim == len(self.shape) and all(
            isinstance(want, str) or want == have
            for want, have in zip(self.shape, array.shape, strict=True)
        )
        if not fits or array.dtype != np.dtype(self.dtype):
            raise EngineError(
                f"tensor {self} was wanted, found {array.dtype} {tuple(array.shape)}; "
                "pass exactly the tensors the bundle declares"
            )


@dataclass(frozen=True)
class GraphSpec:
    """Inputs and outputs of one ONNX graph of a stage."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def check_inputs(self, inputs: Mapping[str, Array]) -> None:
        """Raise EngineError unless the mapping holds exactly the declared inputs."""
        wanted = {spec.name for spec in self.inputs}
        if wanted != set(inputs):
            raise EngineError(
                f"graph {self.name}: inputs {sorted(wanted)} were wanted, found {sorted(inputs)}"
            )
        for spec in self.inputs:
            spec.check(inputs[spec.name])
