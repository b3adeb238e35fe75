"""Rows in token order that could be computed, and the numbers of their columns.

A source is a tensor of rows (N, L, C) in token order that no node of the graph holds yet;
`emission` makes nodes for the columns that are wanted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from mambapose.export.rewrites.graph import Array
from mambapose.export.rewrites.movement import Sizes

Columns = tuple[int, ...]


@dataclass(frozen=True)
class Given:
    """A value of the graph as a source.

    tokens: the axes that are the tokens, in order; the other axes are columns. shape: without the
    batch.
    """

    value: ir.Value
    tokens: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def others(self) -> tuple[int, ...]:
        return tuple(axis for axis in range(1, len(self.shape) + 1) if axis not in self.tokens)

    def where(self) -> Array:
        """(L, C) position of each element in one batch element."""
        inner = np.arange(math.prod(self.shape)).reshape(self.shape)
        length = math.prod(self.shape[axis - 1] for axis in self.tokens)
        turned = inner.transpose([axis - 1 for axis in (*self.tokens, *self.others)])
        rows: Array = turned.reshape(length, -1)
        return rows


@dataclass(frozen=True)
class Pointwise:
    """The operator of a node, applied to columns; a constant operand is one number per column."""

    node: ir.Node
    operands: tuple[Columns | Array, ...]


@dataclass(frozen=True)
class Linear:
    """inputs @ weight (I, C) + bias (C)."""

    inputs: Columns
    weight: Array
    bias: Array | None


@dataclass(frozen=True)
class Stencil:
    """Depthwise convolution along the tokens: taps (C, T), zeros before and after."""

    inputs: Columns
    taps: Array
    bias: Array | None
    pads: tuple[int, int]


RowSource = Given | Pointwise | Linear | Stencil


@dataclass(frozen=True)
class Table:
    """The sources and their columns, numbered in the order in which they are found.

    place: column number -> source and column within it.
    """

    sizes: Sizes
    length: int
    preferred: dict[int, int]  # of the ways to read a value's axes as tokens; the first otherwise
    sources: list[RowSource] = field(default_factory=list)
    place: list[tuple[int, int]] = field(default_factory=list)
    seen: dict[tuple[int, bool], Array | None] = field(default_factory=dict)
    given: dict[int, Array | None] = field(default_factory=dict)
    ways: dict[int, int] = field(default_factory=dict)  # how many there are, where several

    @property
    def stride(self) -> int:
        return self.sizes.count * self.length


def new_columns(table: Table, source: RowSource, width: int) -> Array:
    """Add a source of ``width`` columns; returns the numbers of its columns."""
    first = len(table.place)
    table.place.extend((len(table.sources), column) for column in range(width))
    table.sources.append(source)
    return np.arange(first, first + width)
