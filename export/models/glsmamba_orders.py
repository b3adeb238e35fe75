"""In which order GLSMamba's scans visit the tokens of a clip: the one place that decides it.

The public description names six scans, two of each kind:

    unified   the frames as one panorama, side by side: y1 along its rows, y4 along its columns
    spatial   one frame after the other: y2, y5
    temporal  one pixel after the other, each through all frames: y3, y6

It does not say whether y4 to y6 are y1 to y3 backwards or transposed. ``ORDERS`` is our reading:
"horizontal and vertical" for the panorama, backwards for the other two, because a scan along the
columns of each frame in turn would visit the tokens as the columns of the panorama do. To try
another reading, write another table here.

Letters: T frames, H W tokens of a frame, L = T*H*W; token t*H*W + h*W + w lies in frame t, row h,
column w.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KINDS = ("unified", "spatial", "temporal")
AXES = "thw"


@dataclass(frozen=True)
class Order:
    """One scan over the tokens.

    axes: "t" frame, "h" row and "w" column, the slowest first; backward: from the end.
    """

    kind: str
    axes: str
    backward: bool = False


# The k-th and the (k+3)-th are of one kind: their results are added.
ORDERS = (
    Order("unified", "htw"),
    Order("spatial", "thw"),
    Order("temporal", "hwt"),
    Order("unified", "twh"),
    Order("spatial", "thw", backward=True),
    Order("temporal", "hwt", backward=True),
)


def order_table(
    frames: int, grid: tuple[int, int], orders: Sequence[Order] = ORDERS
) -> NDArray[np.int32]:
    """(K, L) int32: the token visited at each step by a walk along the axes, before reversal.

    grid: (H, W).
    """
    tokens = np.arange(frames * grid[0] * grid[1], dtype=np.int32).reshape(frames, *grid)
    return np.stack([tokens.transpose([*map(AXES.index, o.axes)]).ravel() for o in orders])


def reverse_flags(orders: Sequence[Order] = ORDERS) -> tuple[int, ...]:
    """The node's flags: 1 where the table is walked from its end."""
    return tuple(int(order.backward) for order in orders)


def window_table(frames: int, grid: tuple[int, int], window: tuple[int, int]) -> NDArray[np.int32]:
    """(L,) int32 tokens, one window after another; inside a window frame by frame, row by row.

    window: (H, W) tokens; a window reaches through all frames, so frames*H*W steps are one window.
    grid: (H, W) tokens of a frame; both sides must be whole numbers of windows.
    """
    (height, width), (rows, columns) = grid, window
    tokens = np.arange(frames * height * width, dtype=np.int32)
    cells = tokens.reshape(frames, height // rows, rows, width // columns, columns)
    table: NDArray[np.int32] = cells.transpose(1, 3, 0, 2, 4).ravel()
    return table
