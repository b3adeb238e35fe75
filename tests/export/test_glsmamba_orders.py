"""The order tables of GLSMamba: permutations, with the meaning that their docstring claims."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from mambapose.export.models.glsmamba_orders import (
    KINDS,
    ORDERS,
    order_table,
    reverse_flags,
    window_table,
)

T, GRID = 3, (4, 5)
LENGTH = T * GRID[0] * GRID[1]


def walk(row: np.ndarray) -> list[tuple[int, int, int]]:
    """(frame, row, column) visited at each step."""
    return [tuple(map(int, np.unravel_index(token, (T, *GRID)))) for token in row]


def walks() -> list[list[tuple[int, int, int]]]:
    """The six walks, each in the direction in which it is scanned."""
    table = order_table(T, GRID)
    return [
        walk(row[::-1] if back else row) for row, back in zip(table, reverse_flags(), strict=True)
    ]


def test_every_order_visits_every_token_once() -> None:
    table = order_table(5, (64, 48))
    assert table.shape == (6, 15360)
    assert table.dtype == np.int32
    for row in table:
        assert np.array_equal(np.sort(row), np.arange(15360))


def test_there_are_two_different_orders_of_each_kind_three_apart() -> None:
    assert tuple(order.kind for order in ORDERS) == KINDS * 2
    assert len({tuple(found) for found in walks()}) == 6


def test_unified_orders_walk_the_panorama_along_its_rows_and_its_columns() -> None:
    # The panorama: frame beside frame, so its column is t * W + w.
    rows = [(h, t * GRID[1] + w) for t, h, w in walks()[0]]
    assert rows == sorted(rows)
    columns = [(t * GRID[1] + w, h) for t, h, w in walks()[3]]
    assert columns == sorted(columns)


def test_spatial_orders_finish_a_frame_before_the_next_row_by_row() -> None:
    assert walks()[1] == sorted(walks()[1])
    assert walks()[4] == walks()[1][::-1]


def test_temporal_orders_see_all_frames_of_a_pixel_in_a_row() -> None:
    forward = walks()[2]
    for first in range(0, LENGTH, T):
        steps = forward[first : first + T]
        assert len({(h, w) for _, h, w in steps}) == 1
        assert [t for t, _, _ in steps] == list(range(T))
    pixels = [(h, w) for _, h, w in forward]
    assert pixels == sorted(pixels)
    assert walks()[5] == forward[::-1]


@pytest.mark.parametrize("window", [(2, 5), (4, 1), (1, 1), GRID])
def test_windows_are_tubes_through_all_frames_one_after_the_other(window: tuple[int, int]) -> None:
    table = window_table(T, GRID, window)
    assert np.array_equal(np.sort(table), np.arange(LENGTH))
    steps = T * window[0] * window[1]
    tubes = []
    for first in range(0, LENGTH, steps):
        visited = walk(table[first : first + steps])
        corner = min((h, w) for _, h, w in visited)
        tubes.append(corner)
        wanted = {
            (t, corner[0] + h, corner[1] + w)
            for t in range(T)
            for h in range(window[0])
            for w in range(window[1])
        }
        assert set(visited) == wanted
        assert visited == sorted(visited)  # frame by frame, row by row
        assert corner[0] % window[0] == corner[1] % window[1] == 0
    assert all(one < other for one, other in pairwise(tubes))


def test_the_papers_windows_are_64_of_240_tokens() -> None:
    table = window_table(5, (64, 48), (8, 6))
    first = table[:240]
    assert len(table) // 240 == 64
    assert {(token % 3072) // 48 for token in first} == set(range(8))
    assert {token % 48 for token in first} == set(range(6))
