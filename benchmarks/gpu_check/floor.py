"""The least time a scan can take on a GPU: for moving its bytes, or for its exponentials.

Every input is read once and y written once. The units for special functions give 16 results per
clock on each multiprocessor (all GPUs from sm_80 on).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from mambapose.benchmarks.gpu_check.shapes import Shape

SPECIAL_PER_CLOCK = 16


@dataclass(frozen=True)
class Device:
    """What was measured about this GPU. bandwidth: bytes read plus bytes written, per second."""

    name: str
    capability: int
    multiprocessors: int
    clock_hz: float
    exponentials_per_s: float
    bandwidth: float

    def asdict(self) -> dict[str, float | int | str]:
        """The fields for the JSON lines."""
        return asdict(self)


def exponentials(shape: Shape) -> int:
    """How many special functions a scan computes.

    One for each update of a state; the softplus takes two, the gate two.
    """
    steps = shape.B * shape.L * shape.D
    gated = 0 if shape.grid else 2 * steps
    return steps * shape.K * (shape.N + 2) + gated


def bytes_moved(shape: Shape, dtype: torch.dtype) -> int:
    """How many bytes a scan moves.

    u, dt, B, C, z and y are in this type, A, D and the bias in float32, the order in int32.
    """
    rows = shape.B * shape.L
    wide = shape.K * shape.D
    columns = wide + 2 * shape.K * shape.N + shape.D  # dt, B and C, y
    columns += shape.D if shape.grid else wide + shape.D  # u; with z
    order = 4 * shape.K * shape.L if shape.grid else 0
    return rows * columns * dtype.itemsize + 4 * wide * (shape.N + 2) + order


def floor_us(shape: Shape, dtype: torch.dtype, device: Device) -> float:
    """The least time in microseconds: the larger of the two."""
    special = device.multiprocessors * SPECIAL_PER_CLOCK * device.clock_hz
    by_exponentials = exponentials(shape) / special
    by_bytes = bytes_moved(shape, dtype) / device.bandwidth
    return max(by_exponentials, by_bytes) * 1e6
