"""Scans in both directions whose results are added become one node."""

from __future__ import annotations

import pytest

from mambapose.export.rewrites import kinds
from mambapose.export.rewrites.directions import merge_directions
from mambapose.export.rewrites.flips import remove_flips

STATES = 3


def way(draft, row, width, length, batch, states=STATES, **options):
    """One direction of Vim's layer on rows (N, 2D, L), before the sum."""
    x, z = draft.node("Split", row, axis=1, num_outputs=2, outputs=2)
    x = draft.node(
        "Conv", x, draft.weight(width, 1, 4), draft.weight(width), group=width, pads=[3, 0]
    )
    u = draft.turned(draft.silu(x))
    dt, b, c = draft.projected(u, width, states)
    y = draft.scan(
        u, dt, b, c, draft.turned(z), shape=(batch, length, width), states=states, **options
    )
    return draft.turned(y)


def both_ways(new_draft, length=6, width=4, batch="N", change=""):
    """Vim's bidirectional layer (type v2); change: what is not as there."""
    draft = new_draft(x=(batch, length, 5))
    row = draft.turned(draft.node("MatMul", "x", draft.weight(5, 2 * width)))
    other = draft.turned(draft.node("MatMul", "x", draft.weight(5, 2 * width)))
    ahead = way(draft, row, width, length, batch)
    options = {"delta_softplus": 0} if change == "options" else {}
    states = STATES + 1 if change == "states" else STATES
    source = other if change == "gates" else row
    back = way(draft, draft.flip(source), width, length, batch, states, **options)
    back = draft.flip(back)
    if change == "weighed":
        back = draft.node("Mul", back, draft.weight(1))
    if change == "residual":
        ahead = draft.node("Add", ahead, draft.node("Exp", ahead))
    y = (
        draft.node("Concat", ahead, back, axis=1)
        if change == "joined"
        else draft.node("Add", ahead, back)
    )
    wide = 2 * width if change == "joined" else width
    outputs = [draft.node("MatMul", draft.turned(y), draft.weight(wide, 5))]
    if change == "also one of them":
        outputs.append(draft.node("Exp", ahead))
    return draft.model(*outputs)


def shared(new_draft, length=6, width=4):
    """Vim's layer of type v1: the rows of one scan, flipped one by one for the other."""
    draft = new_draft(x=("N", length, width), z=("N", length, width))
    u = draft.silu("x")
    rows = (u, *draft.projected(u, width, STATES), "z")
    sides = {"shape": ("N", length, width), "states": STATES}
    ahead = draft.scan(*rows, **sides)
    back = draft.scan(*(draft.flip(row, 1) for row in rows), **sides)
    return draft.model(draft.node("Add", ahead, draft.flip(back, 1)))


def test_both_ways_are_one_scan(new_draft, same, scans) -> None:
    model = both_ways(new_draft)
    changed, removed = same(merge_directions, model)
    assert (kinds(model)["flips"], kinds(changed)["flips"]) == (2, 0)
    assert (kinds(model)["all"], removed) == (35, 5)
    (scan,) = scans(changed)
    assert (scan["directions"], scan["reverse"], scan["merge"]) == (2, [0, 1], b"sum")
    assert len(scan["inputs"]) == 8


def test_shared_rows_are_read_in_place(new_draft, same, scans) -> None:
    model = shared(new_draft)
    changed, removed = same(merge_directions, model)
    assert (kinds(model)["flips"], kinds(changed)["flips"]) == (6, 0)
    assert (kinds(model)["all"], removed) == (16, 5)
    (scan,) = scans(changed)
    assert scan["directions"] == 2
    shapes = {value.name: value.type.tensor_type.shape for value in changed.graph.value_info}
    assert shapes[scan["inputs"][0]].dim[2].dim_value == 4  # u, once
    assert scan["inputs"][6] == "z"


@pytest.mark.parametrize("batch", ["N", 1, 3])
@pytest.mark.parametrize(("length", "width"), [(2, 3), (5, 5), (11, 4), (16, 2), (31, 1)])
def test_any_size(new_draft, same, scans, batch, length, width) -> None:
    changed, _ = same(merge_directions, both_ways(new_draft, length, width, batch), batch=5)
    assert kinds(changed)["flips"] == 0
    assert len(scans(changed)) == 1


@pytest.mark.parametrize("change", ["gates", "options", "states", "weighed", "residual", "joined",
                                    "also one of them"])  # fmt: skip
def test_what_cannot_be_one_scan_still_loses_its_flips(
    new_draft, same, left, scans, change
) -> None:
    model = both_ways(new_draft, change=change)
    left(merge_directions, model)
    changed, _ = same(remove_flips, model)
    assert kinds(changed)["flips"] == 0
    assert [scan["reverse"] for scan in scans(changed)] == [[0], [1]]
