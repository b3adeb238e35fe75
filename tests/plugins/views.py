"""The same values at another place in memory, for tests of strides and alignment."""

from __future__ import annotations

import numpy as np


def placed_inside(array, before, after):
    """The same values as a slice of a wider tensor full of NaN."""
    wide = np.full((*array.shape[:-1], before + array.shape[-1] + after), np.nan, array.dtype)
    view = wide[..., before : before + array.shape[-1]]
    view[...] = array
    return view


def placed_at(array, offset):
    """The same values `offset` bytes after a 64-byte boundary."""
    memory = np.zeros(array.nbytes + 128 + offset, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    view = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view
