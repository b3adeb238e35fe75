"""Fake engines of every stage, with shapes small enough for thousands of frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.backends.fake import FakeEngine
from mambapose.runtime.types import Array, FloatArray, GraphSpec, TensorSpec

# What a fake engine answers to its inputs.
Function = Callable[[Mapping[str, Array]], dict[str, Array]]
Sides = tuple[int, int]


def tensor(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, dtype, shape)


def zeros(spec: GraphSpec) -> Function:
    """Zeros of a spec; a free side follows the first input's first side."""

    def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        people = len(next(iter(inputs.values())))
        return {
            item.name: np.zeros(
                [people if isinstance(s, str) else s for s in item.shape], item.dtype
            )
            for item in spec.outputs
        }

    return answer


def fake(
    name: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    function: Function | None = None,
) -> FakeEngine:
    spec = GraphSpec(name, tuple(inputs), tuple(outputs))
    return FakeEngine(spec, function or zeros(spec))


def flow_engines(
    size: Sides, flow: Callable[[Mapping[str, Array]], Array] | None = None, channels: int = 2
) -> dict[str, FakeEngine]:
    """encode, corr, step and upsample; ``flow``: their inputs -> (1, 2, H, W)."""
    height, width = size
    h, w = height // 8, width // 8
    state = {
        "fmap": (1, channels, h, w),
        "hidden": (1, channels, h, w),
        "context": (1, channels, h, w),
    }
    levels = [tensor(f"corr{i}", h * w, 1, max(1, h >> i), max(1, w >> i)) for i in range(4)]
    coords = (1, 2, h, w)
    encode = fake(
        "encode",
        [tensor("image", 1, height, width, 3, dtype="uint8")],
        [tensor(name, *shape) for name, shape in state.items()],
    )
    corr = fake("corr", [tensor("fmap1", *state["fmap"]), tensor("fmap2", *state["fmap"])], levels)
    step = fake(
        "step",
        [*levels, tensor("coords", *coords), tensor("hidden", *state["hidden"]),
         tensor("context", *state["context"])],
        [tensor("coords_next", *coords), tensor("hidden_next", *state["hidden"])],
        lambda inputs: {"coords_next": inputs["coords"] + 1, "hidden_next": inputs["hidden"]},
    )  # fmt: skip
    upsample = fake(
        "upsample",
        [tensor("coords", *coords)],
        [tensor("flow", 1, 2, height, width)],
        None if flow is None else lambda inputs: {"flow": flow(inputs)},
    )
    return {"flow.encode": encode, "flow.corr": corr, "flow.step": step, "flow.upsample": upsample}


def depth_engine(size: Sides, function: Function | None = None) -> FakeEngine:
    return fake(
        "main",
        [tensor("image", 1, *size, 3, dtype="uint8")],
        [tensor("depth", 1, 1, *size)],
        function,
    )


def pose_engine(
    function: Function | None = None,
    size: Sides = (256, 192),
    heat: Sides = (64, 48),
    dense: bool = True,
) -> FakeEngine:
    inputs = [tensor("rgb", "N", *size, 3, dtype="uint8")]
    if dense:
        inputs += [tensor("flow", "N", 2, *size), tensor("depth", "N", 1, *size),
                   tensor("present", "N", 2)]  # fmt: skip
    return fake("main", inputs, [tensor("heatmaps", "N", 17, *heat)], function)


def lift_engine(
    function: Function | None = None, frames: int = 81, cues: bool = True
) -> FakeEngine:
    inputs = [tensor("keypoints", "N", frames, 17, 2)]
    if cues:
        inputs += [tensor("score", "N", frames, 17), tensor("depth", "N", frames, 17),
                   tensor("flow", "N", frames, 17, 2), tensor("present", "N", 3)]  # fmt: skip
    return fake("main", inputs, [tensor("xyz", "N", frames, 17, 3)], function)


def gaussians(xy: NDArray[np.floating], heat: Sides = (64, 48)) -> FloatArray:
    """(N, J, h, w) heatmaps, sigma 2, peak 1, at heatmap pixels xy (N, J, 2)."""
    y, x = np.mgrid[: heat[0], : heat[1]]
    square = (x - xy[..., 0, None, None]) ** 2 + (y - xy[..., 1, None, None]) ** 2
    heatmaps: FloatArray = np.exp(-square / 8).astype(np.float32)
    return heatmaps


def step_engine(function: Function | None = None) -> FakeEngine:
    """A causal lifter that counts: x, y of xyz are those of the joints, z is how many frames of the
    person came before; ``function`` replaces what it answers."""

    def count(inputs: Mapping[str, Array]) -> dict[str, Array]:
        before = inputs["count_state"]
        z = np.broadcast_to(before[:, None], (*inputs["score"].shape, 1))
        xyz = np.concatenate([inputs["keypoints"], z], -1)
        return {"xyz": xyz, "count_state_next": before + 1}

    inputs = [
        tensor("keypoints", "N", 17, 2),
        tensor("score", "N", 17),
        tensor("count_state", "N", 1),
    ]
    outputs = [tensor("xyz", "N", 17, 3), tensor("count_state_next", "N", 1)]
    return fake("step", inputs, outputs, function or count)
