"""GLSMamba's blocks against a slow and obvious form: loops over the orders, one scan at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from mambapose.export.models import glsmamba_blocks as blocks
from mambapose.export.models.folding import freeze
from mambapose.export.models.glsmamba_orders import ORDERS, order_table, window_table
from mambapose.export.models.seeds import seeded
from mambapose.plugins.reference import selective_scan_reference

T, GRID, WIDTH = 3, (4, 6), 32
INNER = blocks.EXPANSION * WIDTH
SHAPE = (2, T, GRID[0] * GRID[1])


def tokens(width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*SHAPE, width, generator=torch.Generator().manual_seed(seed))


def one_scan(routes: blocks.Routes, k: int, row: torch.Tensor) -> np.ndarray:
    """(S, D): direction k over the tokens (S, D) in the order in which they are given."""
    rank = routes.dt_projs_weight.shape[2]
    projected = row @ routes.x_proj_weight[k].T
    dt, b, c = projected.split([rank, 16, 16], -1)
    y, _ = selective_scan_reference(
        row[None],
        (dt @ routes.dt_projs_weight[k].T)[None],
        -torch.exp(routes.A_logs.reshape(routes.directions, INNER, 16)[k]),
        b[None],
        c[None],
        routes.Ds.reshape(routes.directions, INNER)[k],
        dt_bias=routes.dt_projs_bias[k],
    )
    return y[0]


def placed(routes: blocks.Routes, k: int, u: torch.Tensor, visited: np.ndarray) -> np.ndarray:
    """(L, D) of u (L, D): what direction k answers at each token it visits."""
    y = np.zeros((len(u), INNER))
    y[visited] = one_scan(routes, k, u[visited])
    return y


@pytest.fixture
def global_block() -> blocks.GlobalBlock:
    return seeded(lambda: blocks.GlobalBlock(WIDTH, T), 1)


@pytest.fixture
def local_block() -> blocks.LocalBlock:
    return seeded(lambda: blocks.LocalBlock(WIDTH), 2)


def differ(found: torch.Tensor, wanted: np.ndarray) -> float:
    return float(np.abs(found.numpy() - wanted).max() / np.abs(wanted).max())


def slow_global(block: blocks.GlobalBlock, x: torch.Tensor) -> torch.Tensor:
    """The whole block, sum by sum, with the walks written out."""
    inside = block.norm(x)
    pooled = inside.mean(2).reshape(len(x), -1)
    weights = block.attention.fc2(torch.relu(block.attention.fc1(pooled))).sigmoid()
    inside = inside * weights.reshape(len(x), T, 1, WIDTH)
    u = functional.silu(slow_stream(block.value, inside)).reshape(len(x), -1, INNER)
    h, w = GRID
    kinds = {order.kind: torch.zeros(*SHAPE, INNER) for order in ORDERS}
    for k, order in enumerate(ORDERS):
        sides = {"t": T, "h": h, "w": w}
        steps = [
            (a, b, c)
            for a in range(sides[order.axes[0]])
            for b in range(sides[order.axes[1]])
            for c in range(sides[order.axes[2]])
        ]
        places = [dict(zip(order.axes, step, strict=True)) for step in steps]
        visited = np.array([p["t"] * h * w + p["h"] * w + p["w"] for p in places])
        visited = visited[::-1].copy() if order.backward else visited
        for n in range(len(x)):
            y = placed(block.scan, k, u[n], visited)
            kinds[order.kind][n] += torch.from_numpy(y).float().reshape(*SHAPE[1:], INNER)
    merge = block.merge
    every = torch.cat([kinds["unified"], kinds["spatial"], kinds["temporal"]], -1)
    masks = merge.modulation(every).sigmoid().repeat_interleave(blocks.GROUP, -1)
    by_space, by_time = masks.chunk(2, -1)
    y = kinds["unified"] + by_space * slow_frames(merge.spatial, kinds["spatial"])
    padded = functional.pad(kinds["temporal"], (0, 0, 0, 0, 1, 1))
    taps = merge.temporal.weight[:, 0, :, 0]
    moved = sum(taps[:, k] * padded[:, k : k + T] for k in range(3)) + merge.temporal.bias
    return slow_rest(block, x, inside, y + by_time * moved)


def slow_stream(stream: blocks.Stream, x: torch.Tensor) -> torch.Tensor:
    return slow_frames(stream.mix, x @ stream.proj.weight[:, :, 0, 0].T)


def slow_frames(mix: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """A 3x3 depthwise convolution of every frame of tokens (B, T, P, D), tap by tap."""
    h, w = GRID
    padded = functional.pad(x.reshape(*x.shape[:2], h, w, -1), (0, 0, 1, 1, 1, 1))
    taps = mix.weight[:, 0]
    moved = [taps[:, i, j] * padded[:, :, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return (sum(moved) + mix.bias).reshape(x.shape)


def slow_rest(
    block: blocks.Block, x: torch.Tensor, inside: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    gate = functional.silu(block.gate_norm(slow_stream(block.gate, inside)))
    x = x + block.out_proj(block.out_norm(y) * gate)
    return x + block.fc2(functional.gelu(block.fc1(block.norm2(x))))


@torch.no_grad()
def test_the_six_scans_of_a_node_are_six_scans_of_the_oracle(global_block) -> None:
    u = tokens(INNER).flatten(1, 2)
    table = order_table(T, GRID)
    reverse = tuple(int(order.backward) for order in ORDERS)
    y = global_block.scan(u, torch.from_numpy(table), reverse, "none")
    found = y.reshape(*u.shape[:2], 6, INNER)
    for n in range(len(u)):
        for k, order in enumerate(ORDERS):
            visited = table[k, ::-1].copy() if order.backward else table[k]
            assert differ(found[n, :, k], placed(global_block.scan, k, u[n], visited)) < 1e-5


@torch.no_grad()
def test_the_global_block_is_what_its_description_says(global_block) -> None:
    x = tokens(WIDTH)
    wanted = slow_global(global_block, x)
    order = torch.from_numpy(order_table(T, GRID))
    for block in (global_block, freeze(global_block)):
        assert differ(block(x, GRID, order) - x, (wanted - x).numpy()) < 2e-5


@torch.no_grad()
def test_the_local_block_scans_every_window_by_itself_both_ways(local_block) -> None:
    x, window = tokens(WIDTH), (2, 3)
    h, w = GRID
    inside = local_block.norm(x)
    u = functional.silu(slow_stream(local_block.value, inside)).flatten(1, 2)
    y = np.zeros((*u.shape[:2], INNER))
    for n in range(len(x)):
        for top in range(0, h, window[0]):
            for left in range(0, w, window[1]):
                tube = np.array(
                    [
                        t * h * w + (top + i) * w + left + j
                        for t in range(T)
                        for i in range(window[0])
                        for j in range(window[1])
                    ]
                )
                y[n] += placed(local_block.scan, 0, u[n], tube)
                y[n] += placed(local_block.scan, 1, u[n], tube[::-1].copy())
    merged = torch.from_numpy(y).float().reshape(*SHAPE, INNER)
    wanted = slow_rest(local_block, x, inside, merged)
    table = torch.from_numpy(window_table(T, GRID, window))
    found = local_block(x, GRID, table, T * window[0] * window[1])
    assert differ(found - x, (wanted - x).numpy()) < 2e-5
    kept = local_block(x, GRID, table, T * window[0] * window[1], slice(1, 2))
    assert torch.allclose(kept, found[:, 1:2], atol=1e-5)


@torch.no_grad()
def test_a_window_sees_nothing_of_its_neighbours_behind_the_convolution(local_block) -> None:
    table = torch.from_numpy(window_table(T, GRID, (2, 3)))
    u = tokens(INNER).flatten(1, 2)
    changed = u.clone()
    inside = table[: T * 6].long()
    changed[:, inside] += 1
    found, other = (local_block.scan(v, table, (0, 1), "sum", segment=T * 6) for v in (u, changed))
    same = (found == other).all(-1).all(0)
    assert same.sum() == len(table) - T * 6
    assert not same[inside].any()


@torch.no_grad()
def test_every_parameter_of_a_block_matters(global_block, local_block) -> None:
    x = tokens(WIDTH)
    orders = torch.from_numpy(order_table(T, GRID))
    windows = torch.from_numpy(window_table(T, GRID, (2, 3)))
    for block, more in ((global_block, (orders,)), (local_block, (windows, T * 6))):
        wanted = block(x, GRID, *more)
        for name, parameter in block.named_parameters():
            before = parameter.clone()
            parameter.mul_(1.5).add_(0.1)
            assert not torch.allclose(block(x, GRID, *more), wanted, atol=1e-6), name
            parameter.copy_(before)
