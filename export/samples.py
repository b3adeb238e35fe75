"""Seeded inputs for every stage, similar to real ones: smooth, moving, in range."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.errors import ExportError
from mambapose.runtime.stages import table
from mambapose.runtime.stages.table import STAGES
from mambapose.runtime.types import Array, GraphSpec, TensorSpec

PEOPLE = 2  # of a free dimension
MOTION_PX = 3
# The largest value of each kind.
NOISE = {table.UNIT_NOISE: 1.0, table.SLIGHT_NOISE: 0.02}
MAPS = {table.MOTION_MAP: 2.0 * MOTION_PX, table.UNIT_MAP: 1.0, table.BYTE_MAP: 255.0}

# A standing figure, Human3.6M order, x and y in body heights from the hips, y down.
FIGURE = np.array(
    [
        (0.00, 0.00), (-0.07, 0.00), (-0.08, 0.25), (-0.08, 0.48), (0.07, 0.00), (0.08, 0.25),
        (0.08, 0.48), (0.00, -0.14), (0.00, -0.28), (0.00, -0.36), (0.00, -0.46), (0.11, -0.27),
        (0.16, -0.10), (0.18, 0.05), (-0.11, -0.27), (-0.16, -0.10), (-0.18, 0.05),
    ]
)  # fmt: skip


def smooth_field(
    generator: np.random.Generator, shape: tuple[int, int], cells: int = 12
) -> NDArray[np.float64]:
    """(H, W) values in [0, 1]: noise of about ``cells`` blobs per side, bilinearly enlarged."""
    coarse = generator.random((cells + 1, cells + 1))
    y, x = (np.linspace(0, cells, side, endpoint=False) for side in shape)
    y0, x0 = y.astype(int), x.astype(int)
    fy, fx = (y - y0)[:, None], (x - x0)[None]
    top = coarse[y0][:, x0] * (1 - fx) + coarse[y0][:, x0 + 1] * fx
    bottom = coarse[y0 + 1][:, x0] * (1 - fx) + coarse[y0 + 1][:, x0 + 1] * fx
    field: NDArray[np.float64] = top * (1 - fy) + bottom * fy
    return field


def image_pair(height: int, width: int, seed: int) -> tuple[Array, Array]:
    """Two uint8 RGB images (1, H, W, 3), the second MOTION_PX to the left of the first."""
    generator = np.random.default_rng(seed)
    wide = np.stack([smooth_field(generator, (height, width + MOTION_PX)) for _ in range(3)], -1)
    image = (255 * wide).astype(np.uint8)[None]
    return image[:, :, MOTION_PX:].copy(), image[:, :, :-MOTION_PX].copy()


def moving_pictures(height: int, width: int, frames: int, seed: int) -> list[Array]:
    """uint8 RGB pictures (N, H, W, 3), each MOTION_PX to the left of the one before it."""
    wide = width + MOTION_PX * (frames - 1)
    people = [image_pair(height, wide, seed + 7 * n)[0] for n in range(PEOPLE)]
    picture = np.concatenate(people)
    return [picture[:, :, MOTION_PX * t :][:, :, :width].copy() for t in range(frames)]


def walking_figure(people: int, frames: int, seed: int) -> Array:
    """(N, T, 17, 2) float32 keypoints of swinging figures one unit tall, in [-1, 1]."""
    generator = np.random.default_rng(seed)
    time = np.arange(frames)[None, :, None] / 12
    swing = np.sin(time + generator.random((people, 1, 17)) * 2 * np.pi)
    drift = 0.2 * np.sin(time / 5 + generator.random((people, 1, 1)) * 2 * np.pi)
    x = FIGURE[:, 0] * 1.06 + 0.05 * swing + drift
    y = np.broadcast_to(FIGURE[:, 1] * 1.06, swing.shape)
    return np.stack([x, y], axis=-1).astype(np.float32)


def sample_inputs(stage: str, spec: GraphSpec, seed: int) -> dict[str, Array]:
    """Sample inputs of a graph that needs no outputs of another graph.

    So not those of RAFT's inner graphs or of the window of a clip network.
    """
    kinds = STAGES[stage].samples
    return {
        tensor.name: _sample(stage, kinds.get(tensor.name, kinds.get("*", "")), tensor, seed, index)
        for index, tensor in enumerate(spec.inputs)
    }


def _sample(stage: str, kind: str, tensor: TensorSpec, seed: int, index: int) -> Array:
    """A sample of a tensor, the ``index``-th of its graph."""
    shape = tuple(PEOPLE if isinstance(side, str) else side for side in tensor.shape)
    if kind == table.PICTURE_BEFORE:
        return image_pair(shape[1], shape[2], seed)[1]
    if kind == table.PICTURE:
        images = [image_pair(shape[1], shape[2], seed + index + 7 * n)[0] for n in range(shape[0])]
        return np.concatenate(images)
    generator = np.random.default_rng(seed + index)
    if kind == table.FLAGS:
        flags = np.ones(shape)
        flags[1:, -1] = 0  # the second person lacks one modality
        return flags.astype(np.float32)
    if kind == table.WALK:
        return walking_figure(shape[0], shape[1], seed + index)
    if kind == table.ANYTHING:
        return of_any_meaning(tensor, shape, generator)
    if kind in NOISE:
        return (NOISE[kind] * generator.random(shape)).astype(np.float32)
    if kind not in MAPS or tensor.dtype != "float32" or len(shape) != 4:
        raise ExportError(
            f"images or maps were wanted as inputs of stage {stage}, found {tensor}; "
            "no sample can be made of it"
        )
    maps = [smooth_field(generator, shape[2:]) for _ in range(shape[0] * shape[1])]
    # In steps, which zip well: the arrays stay in the bundle. Pictures have whole numbers.
    steps = 1 if kind == table.BYTE_MAP else 64
    values = np.round(steps * MAPS[kind] * np.stack(maps)) / steps
    return values.reshape(shape).astype(np.float32)


def of_any_meaning(
    tensor: TensorSpec, shape: tuple[int, ...], generator: np.random.Generator
) -> Array:
    """Values for a tensor of unknown meaning: normal floats, bytes, and 0 or 1 for other integers.

    Those are small enough to be an index.
    """
    if tensor.dtype.startswith("float"):
        return generator.standard_normal(shape).astype(tensor.dtype)
    return generator.integers(0, 256 if tensor.dtype == "uint8" else 2, shape).astype(tensor.dtype)
