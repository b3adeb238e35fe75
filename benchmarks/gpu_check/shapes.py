"""The scans that are timed, and their random inputs.

Letters: B batch, L length, K directions, D channels of one direction, N states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DEVICE = "cuda"  # where everything runs; tests without a GPU name another one


@dataclass(frozen=True)
class Shape:
    """One timed scan; with ``grid`` it is a cross scan over an image, else a pair of directions.

    A pair (as in Vim): u of each direction, z, D, bias; the second direction backwards. A cross
    scan (as in VMamba): u shared, D, bias, no gate; rows, columns, and both backwards; ``K`` 6 has
    three maps, the third a random permutation. Directions are summed.
    """

    name: str
    K: int
    D: int
    N: int
    L: int
    grid: tuple[int, int] | None = None
    B: int = 1

    def __str__(self) -> str:
        batch = f"B {self.B} " if self.B > 1 else ""
        return f"{batch}K {self.K} D {self.D} N {self.N} L {self.L}"

    @property
    def reverse(self) -> list[int]:
        """A flag per direction: the second half walks backwards."""
        return [int(k >= self.K // 2) for k in range(self.K)]


SHAPES = (
    Shape("pair-384", 2, 384, 16, 197),
    Shape("cross-128", 4, 128, 16, 4131, grid=(51, 81)),
    Shape("pair-768", 2, 768, 16, 1024),
    Shape("cross-n1", 4, 384, 1, 1024, grid=(32, 32)),
    Shape("cross-six", 6, 128, 16, 15360, grid=(120, 128)),
)
TRAINING = Shape("training", 2, 384, 16, 197, B=8)


def options(shape: Shape) -> dict[str, Any]:
    """The attributes of the operator."""
    return {
        "directions": shape.K, "groups": 1, "reverse": shape.reverse, "delta_softplus": True,
        "segment": 0, "merge": "sum", "gate": "silu",
    }  # fmt: skip


def maps(shape: Shape, generator: torch.Generator) -> Tensor | None:
    """(K, L) int32: the token each direction visits at each step before it is reversed."""
    if shape.grid is None:
        return None
    rows = torch.arange(shape.L)
    columns = rows.reshape(shape.grid).T.reshape(-1)
    different = [rows, columns, torch.randperm(shape.L, generator=generator)][: shape.K // 2]
    return torch.stack(different * 2).to(torch.int32)


def inputs(shape: Shape, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor | None]:
    """Random arguments: steps of about 0.001 to 0.5 after softplus, A from -1 to -N."""
    generator = torch.Generator().manual_seed(seed)
    wide = shape.K * shape.D

    def normal(*size: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(size, generator=generator).to(kind)

    pair = shape.grid is None
    found: dict[str, Tensor | None] = {
        "u": normal(shape.B, shape.L, wide if pair else shape.D),
        "dt": normal(shape.B, shape.L, wide),
        "A": -torch.arange(1.0, shape.N + 1).repeat(wide, 1),
        "B": normal(shape.B, shape.L, shape.K * shape.N),
        "C": normal(shape.B, shape.L, shape.K * shape.N),
        "D": normal(wide, kind=torch.float32),
        "z": normal(shape.B, shape.L, shape.D) if pair else None,
        "dt_bias": normal(wide, kind=torch.float32) - 3,
        "order": maps(shape, generator),
        "initial_state": None,
    }
    return {name: None if t is None else t.to(DEVICE) for name, t in found.items()}
