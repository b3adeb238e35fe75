"""All rewrites together on graphs drawn at random, right and wrong ones: nothing may change.

``MAMBAPOSE_FUZZ=5000`` draws as many graphs.
"""

from __future__ import annotations

import os

import numpy as np

from mambapose.export.rewrites import kinds, rewritten

STATES = 2
DRAWN = min(int(os.environ.get("MAMBAPOSE_FUZZ", "0")), 5000) or 25


def order_of(random, height, width):
    """A permutation of the tokens of an image: rows, columns, either backwards, or any."""
    tokens = np.arange(height * width)
    kind = random.integers(0, 6)
    found = tokens.reshape(height, width).T.reshape(-1) if kind in (1, 3) else tokens
    found = found[::-1] if kind in (2, 3) else found
    return random.permutation(tokens) if kind == 4 else found.copy()


def mixed(draft, random, row, width, taps):
    """Rows (N, L, D) after a few operators, most of which see one token."""
    for _ in range(random.integers(0, 3)):
        kind = random.integers(0, 6)
        if kind == 0:
            row = draft.silu(row)
        elif kind == 1:
            row = draft.node("Add", row, draft.weight(width))
        elif kind == 2:
            row = draft.node("MatMul", row, draft.weight(width, width))
        elif kind == 3:
            turned = draft.node(
                "Conv", draft.turned(row), draft.weight(width, 1, taps), group=width,
                pads=[taps - 1, 0] if random.random() < 0.7 else [0, taps - 1],
            )  # fmt: skip
            row = draft.turned(turned)
        elif kind == 4:
            row = draft.node("Tanh", draft.node("Mul", row, draft.weight(1)))
        elif random.random() < 0.2:
            row = draft.node("LayerNormalization", row, draft.weight(width), axis=-1)
    return row


def scanned(draft, random, row, orders, width, length, z):
    """y (N, L, K*D) of one scan over the rows in each of the orders, packed as groups."""
    lanes = []
    for order in orders:
        lane = row
        if (order == np.arange(length)[::-1]).all() and random.random() < 0.5:
            lane = draft.flip(row, axis=1)
        elif (order != np.arange(length)).any() or random.random() < 0.5:
            lane = draft.node("Gather", row, draft.const(order), axis=1)
        lane = mixed(draft, random, lane, width, 3)
        parts = (lane, *draft.projected(lane, width, STATES))
        lanes.append(
            (*parts, *([draft.node("Gather", z, draft.const(order), axis=1)] if z else []))
        )
    joined = [
        parts[0] if len(parts) == 1 else draft.node("Concat", *parts, axis=2)
        for parts in zip(*lanes, strict=True)
    ]
    shape = ("N", length, width * len(orders))
    return draft.scan(*joined, shape=shape, states=STATES, groups=len(orders))


def drawn(new_draft, seed):
    """A graph of one or two scans with one to three orders each, put back or not, added or not."""
    random = np.random.default_rng(seed)
    height, width, channels = (int(size) for size in random.integers(1, 5, 3))
    length = height * width
    draft = new_draft(seed=seed, x=("N", length, channels))
    row = mixed(draft, random, "x", channels, 3)
    z = row if random.random() < 0.3 else ""
    results = []
    for _ in range(random.integers(1, 3)):
        orders = [order_of(random, height, width) for _ in range(random.integers(1, 4))]
        y = scanned(draft, random, row, orders, channels, length, z)
        for at, order in enumerate(orders):
            alone = len(orders) == 1
            part = y if alone else draft.part(y, 2, at * channels, (at + 1) * channels)
            if random.random() < 0.3:
                part = mixed(draft, random, part, channels, 3)
            back = np.argsort(order)
            if random.random() < 0.1:
                back = random.permutation(back)
            if random.random() < 0.8 or (back != np.arange(length)).any():
                part = draft.node("Gather", part, draft.const(back), axis=1)
            if random.random() < 0.05:
                part = draft.node("Mul", part, draft.weight(1))
            results.append(part)
    total = results[0]
    for part in results[1:]:
        total = draft.node("Add", total, part)
    outputs = [draft.node("MatMul", total, draft.weight(channels, 2))]
    if random.random() < 0.1:
        outputs.append(draft.node("Exp", results[0]))
    return draft.model(*outputs)


def test_nothing_changes(new_draft, run) -> None:
    fired = 0
    for seed in range(DRAWN):
        model = drawn(new_draft, seed)
        changed, removed = rewritten(model)
        assert kinds(changed)["all"] == removed.after
        fired += any(removed.nodes[name] for name in ("directions", "routes", "flips"))
        for one, other in zip(run(model, 3), run(changed, 3), strict=True):
            scale = max(np.abs(one).max(), 1e-3)
            np.testing.assert_allclose(other, one, rtol=0, atol=3e-6 * scale, err_msg=str(seed))
    assert fired > DRAWN // 4
