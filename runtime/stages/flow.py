"""The flow stage: the flow of every frame to the one before it.

image1 is the current frame t and image2 frame t-1, so the flow lies in the coordinates of frame t
like the crop of frame t, and points to where a pixel was. RAFT has four graphs and a loop over
them. It encodes each image alone, so the feature map kept from frame t-1 is exact; hidden state and
context come from frame t alone. For a network of one graph (a user's own), which takes both images,
the last image is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mambapose.runtime.backends.engine import Engine
from mambapose.runtime.errors import MismatchError
from mambapose.runtime.stages.resize import Letterbox, letterbox_from_sizes, letterboxed
from mambapose.runtime.stages.table import STAGES
from mambapose.runtime.types import Array, FloatArray, ImageArray

GRAPHS = STAGES["flow"].graphs[-1]  # of RAFT
PAIR = "main"  # the graph of a network that takes both images


@dataclass(frozen=True)
class DenseMap:
    """A low-resolution map of one frame. values: (C, h, w); box: where the frame lies in it."""

    values: FloatArray
    box: Letterbox


class FlowStage:
    """The flow of each frame to the one before it.

    engines: RAFT's four graphs, or the graph PAIR alone; iterations: how often RAFT updates the
    flow of a pair of images. EngineError when a graph is missing.
    """

    def __init__(self, engines: Mapping[str, Engine], iterations: int) -> None:
        self._network: _Raft | _Pair
        if PAIR in engines:
            self._network = _Pair(engines[PAIR])
        else:
            self._network = _Raft(engines, iterations)
        self._kept: Array | None = None

    def forget(self) -> None:
        """Drop what was kept of the last frame: the next frame has no flow."""
        self._kept = None

    def run(self, image: ImageArray) -> DenseMap | None:
        """Flow (2, H, W) in map pixels, or None when no frame before this one is kept."""
        box = letterbox_from_sizes(image.shape[:2], self._network.size)
        encoded = self._network.encode(letterboxed(image, box)[None])
        last, self._kept = self._kept, encoded[self._network.kept]
        if last is None:
            return None
        flow = self._network.flow(encoded, last)["flow"][0]
        return DenseMap(flow.astype(np.float32, copy=False), box)


class _Raft:
    """RAFT: both images encoded, their correlation, then updates of the flow.

    kept: the output of ``encode`` that the flow of the next frame needs again.
    """

    kept = "fmap"

    def __init__(self, engines: Mapping[str, Engine], iterations: int) -> None:
        if missing := [name for name in GRAPHS if name not in engines]:
            raise MismatchError(
                f"graph {missing[0]} of RAFT was wanted, found {', '.join(engines)}; "
                "export the bundle again with mp-export"
            )
        self._engines = engines
        self._iterations = iterations
        (image,) = engines["encode"].spec.inputs
        (coords,) = (i for i in engines["step"].spec.inputs if i.name == "coords")
        self.size = fixed_size(image.shape[1:3], "encode")
        grid_h, grid_w = fixed_size(coords.shape[2:], "step")
        y, x = np.mgrid[:grid_h, :grid_w].astype(np.float32)
        self._grid = np.stack([x, y])[None]

    def encode(self, image: Array) -> Mapping[str, Array]:
        """Features, hidden state and context of image (1, H, W, 3)."""
        return self._engines["encode"].run({"image": image})

    def flow(self, encoded: Mapping[str, Array], last: Array) -> Mapping[str, Array]:
        """``flow`` (1, 2, H, W) from the kept features of the frame before."""
        state = self._engines["corr"].run({"fmap1": encoded["fmap"], "fmap2": last})
        state |= {"coords": self._grid, "hidden": encoded["hidden"], "context": encoded["context"]}
        for _ in range(self._iterations):
            found = self._engines["step"].run(state)
            state["coords"], state["hidden"] = found["coords_next"], found["hidden_next"]
        upsample = self._engines["upsample"]
        return upsample.run({tensor.name: state[tensor.name] for tensor in upsample.spec.inputs})


class _Pair:
    """A network of one graph over both images. kept: the image that the next frame needs again."""

    kept = "image1"

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.size = fixed_size(engine.spec.inputs[0].shape[1:3], PAIR)

    def encode(self, image: Array) -> Mapping[str, Array]:
        """The image (1, H, W, 3) unchanged; the network needs it again with the next one."""
        return {"image1": image}

    def flow(self, encoded: Mapping[str, Array], last: Array) -> Mapping[str, Array]:
        """``flow`` (1, 2, H, W) from the frame before."""
        return self._engine.run({**encoded, "image2": last})


def fixed_size(shape: tuple[int | str, ...], graph: str) -> tuple[int, int]:
    """The two sides of ``shape`` as whole numbers; EngineError when one is free."""
    if len(shape) != 2 or any(isinstance(side, str) for side in shape):
        raise MismatchError(
            f"graph {graph}: fixed height and width were wanted, found {shape}; "
            "export the bundle again with mp-export"
        )
    return int(shape[0]), int(shape[1])
