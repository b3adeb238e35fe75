"""The flow stage: RAFT's loop over its four graphs, with the last frame's features kept.

image1 is the current frame t and image2 frame t-1, so the flow lies in the coordinates of frame t
like the crop of frame t, and points to where a pixel was. Encoding is per image, so the kept
feature map is exact; hidden state and context come from frame t alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mambapose.runtime.engine import Engine
from mambapose.runtime.errors import EngineError
from mambapose.runtime.resize import Letterbox, letterbox_from_sizes, letterboxed
from mambapose.runtime.types import Array, FloatArray, ImageArray

LEVELS = ("corr0", "corr1", "corr2", "corr3")
GRAPHS = ("encode", "corr", "step", "upsample")


@dataclass(frozen=True)
class DenseMap:
    """A low-resolution map of one frame. values: (C, h, w); box: where the frame lies in it."""

    values: FloatArray
    box: Letterbox


class FlowStage:
    """Flow of each frame to the one before it.

    engines: one for each of GRAPHS; iterations: RAFT updates per pair.
    """

    def __init__(self, engines: Mapping[str, Engine], iterations: int) -> None:
        self._engines = engines
        self._iterations = iterations
        self._features: Array | None = None
        (image,) = engines["encode"].spec.inputs
        (coords,) = (i for i in engines["step"].spec.inputs if i.name == "coords")
        self._size = fixed_size(image.shape[1:3], "encode")
        grid_h, grid_w = fixed_size(coords.shape[2:], "step")
        y, x = np.mgrid[:grid_h, :grid_w].astype(np.float32)
        self._grid = np.stack([x, y])[None]

    def forget(self) -> None:
        """Drop the kept features: the next frame has no flow."""
        self._features = None

    def run(self, image: ImageArray) -> DenseMap | None:
        """Flow (2, H, W) in map pixels, or None when no frame before this one is kept."""
        box = letterbox_from_sizes(image.shape[:2], self._size)
        encoded = self._engines["encode"].run({"image": letterboxed(image, box)[None]})
        last, self._features = self._features, encoded["fmap"]
        if last is None:
            return None
        return DenseMap(self._flow(encoded, last), box)

    def _flow(self, encoded: Mapping[str, Array], last: Array) -> FloatArray:
        state = self._engines["corr"].run({"fmap1": encoded["fmap"], "fmap2": last})
        state |= {"coords": self._grid, "hidden": encoded["hidden"], "context": encoded["context"]}
        for _ in range(self._iterations):
            found = self._engines["step"].run(state)
            state["coords"], state["hidden"] = found["coords_next"], found["hidden_next"]
        upsample = self._engines["upsample"]
        wanted = {tensor.name: state[tensor.name] for tensor in upsample.spec.inputs}
        flow: FloatArray = upsample.run(wanted)["flow"][0].astype(np.float32, copy=False)
        return flow


def fixed_size(shape: tuple[int | str, ...], graph: str) -> tuple[int, int]:
    """The two sides as whole numbers."""
    if len(shape) != 2 or any(isinstance(side, str) for side in shape):
        raise EngineError(
            f"graph {graph}: fixed height and width were wanted, found {shape}; "
            "export the bundle again with mp-export"
        )
    return int(shape[0]), int(shape[1])
