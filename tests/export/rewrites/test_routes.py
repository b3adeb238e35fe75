"""Routes over an image, packed as groups of one scan, become directions with orders."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from mambapose.export.rewrites import kinds
from mambapose.export.rewrites.routes import remove_routes

STATES = 3


def stacked(draft, rows, columns, channels, length):
    """(N, 4, C, L): rows, columns and both backwards, by stacking."""
    axis = draft.const(np.array([1], np.int64))
    both = draft.node(
        "Concat", *(draft.node("Unsqueeze", r, axis) for r in (rows, columns)), axis=1
    )
    return draft.node("Concat", both, draft.flip(both), axis=1)


def written(draft, rows, columns, channels, length):
    """The same, each route written into its place of a tensor of zeros."""
    axis = draft.const(np.array([1], np.int64))
    whole = draft.const(np.zeros((1, 4, channels, length), np.float32))
    for at, route in enumerate((rows, columns)):
        index = draft.const(np.full((1, 1, channels, length), at))
        route = draft.node("Unsqueeze", route, axis)
        whole = draft.node("ScatterElements", whole, index, route, axis=1)
    swapped = draft.node("Transpose", whole, perm=[1, 0, 2, 3])
    backwards = draft.flip(draft.part(whole, 1, 0, 2))
    backwards = draft.node("Transpose", backwards, perm=[1, 0, 2, 3])
    index = draft.const(np.array([[2], [3]]))
    return draft.node(
        "Transpose", draft.node("ScatterND", swapped, index, backwards), perm=[1, 0, 2, 3]
    )


def by_einsum(draft, routes, length, channels, rank=2):
    """dt (N, 4D, L), B and C (N, 4, N, L) of the routes."""
    width = rank + 2 * STATES
    parts = draft.node(
        "Einsum", routes, draft.weight(4, width, channels), equation="bkdl,kcd->bkcl"
    )
    sizes = draft.const(np.array([rank, STATES, STATES]))
    steps, b, c = draft.node("Split", parts, sizes, axis=2, outputs=3)
    dt = draft.node("Einsum", steps, draft.weight(4, channels, rank), equation="bkrl,kdr->bkdl")
    return draft.shaped(dt, -1, 4 * channels, length), b, c


def by_convolution(draft, routes, length, channels, rank=2):
    """The same with convolutions that see one step, a group for each route."""
    width = rank + 2 * STATES
    row = draft.shaped(routes, -1, 4 * channels, length)
    parts = draft.node(
        "Conv", row, draft.weight(4 * width, channels, 1), draft.weight(4 * width), group=4
    )
    sizes = draft.const(np.array([rank, STATES, STATES]))
    parts = draft.shaped(parts, -1, 4, width, length)
    steps, b, c = draft.node("Split", parts, sizes, axis=2, outputs=3)
    steps = draft.shaped(steps, -1, 4 * rank, length)
    return draft.node("Conv", steps, draft.weight(4 * channels, rank, 1), group=4), b, c


def image(new_draft, copy, project, height=3, width=4, channels=5, batch=1, change=""):
    """Four routes over an image (N, C, H, W), scanned and added up; change: what is not."""
    length = height * width
    draft = new_draft(x=(batch, channels, height, width))
    x = draft.silu("x")
    other = draft.node("Mul", x, draft.weight(1, channels, 1, 1)) if change == "two" else x
    rows = draft.shaped(x, -1, channels, length)
    perm = [0, 1, 2, 3] if change == "rows twice" else [0, 1, 3, 2]
    columns = draft.shaped(draft.node("Transpose", other, perm=perm), -1, channels, length)
    routes = copy(draft, rows, columns, channels, length)
    if change == "position":
        routes = draft.node("Add", routes, draft.weight(1, 4, 1, length))
    if change == "step lost":
        index = np.arange(length)
        index[1] = 0
        routes = draft.node("Gather", routes, draft.const(index), axis=3)
    dt, b, c = project(draft, routes, length, channels)
    sides = (batch, length, 4 * channels)
    b, c = (
        draft.shaped(draft.node("Transpose", part, perm=[0, 3, 1, 2]), -1, length, 4 * STATES)
        for part in (b, c)
    )
    y = draft.scan(
        draft.turned(draft.shaped(routes, -1, 4 * channels, length)), draft.turned(dt), b, c,
        shape=sides, states=STATES, groups=4,
    )  # fmt: skip
    y = draft.shaped(draft.turned(y), -1, 4, channels, length)
    if change == "weighed":
        y = draft.node("Mul", y, draft.weight(1, 4, 1, 1))
    behind = draft.part(y, 1, 2, 4)
    both = draft.node("Add", draft.part(y, 1, 0, 2),
                      behind if change == "not flipped back" else draft.flip(behind))  # fmt: skip
    first, second = (draft.node("Gather", both, draft.const(np.array(at)), axis=1) for at in (0, 1))
    if change != "columns not turned back":
        second = draft.node(
            "Transpose", draft.shaped(second, -1, channels, width, height), perm=[0, 1, 3, 2]
        )
        second = draft.shaped(second, -1, channels, length)
    total = first if change == "one left out" else draft.node("Add", first, second)
    return draft.model(draft.shaped(total, -1, channels, height, width))


COPIES = {"stacked": stacked, "written": written}
PROJECTIONS = {"einsum": by_einsum, "convolution": by_convolution}


@pytest.mark.parametrize(
    ("copy", "project", "nodes", "lost"),
    [("stacked", "einsum", 35, 24), ("stacked", "convolution", 37, 23),
     ("written", "einsum", 40, 29), ("written", "convolution", 42, 28)],
)  # fmt: skip
def test_four_routes_are_one_scan(new_draft, same, scans, copy, project, nodes, lost) -> None:
    model = image(new_draft, COPIES[copy], PROJECTIONS[project])
    changed, removed = same(remove_routes, model)
    assert (kinds(model)["flips"], kinds(changed)["flips"]) == (2, 0)
    assert (kinds(model)["all"], removed) == (nodes, lost)
    (scan,) = scans(changed)
    assert (scan["directions"], scan["groups"], scan["merge"]) == (4, 1, b"sum")
    assert scan["reverse"] == [0, 0, 1, 1]
    shapes = {value.name: value.type.tensor_type.shape for value in changed.graph.value_info}
    assert [side.dim_value for side in shapes[scan["inputs"][0]].dim] == [1, 12, 5]  # shared
    order = next(i for i in changed.graph.initializer if i.name == scan["inputs"][8])
    assert list(order.dims) == [4, 12]
    # Nothing is copied but the turn to rows and back.
    assert kinds(changed)["copies"] == 2


@pytest.mark.parametrize("project", PROJECTIONS.values(), ids=PROJECTIONS)
@pytest.mark.parametrize("batch", ["N", 2])
@pytest.mark.parametrize(
    ("height", "width", "channels"), [(1, 2, 3), (2, 2, 4), (5, 3, 1), (3, 7, 2), (4, 4, 16)]
)
def test_any_size(new_draft, same, project, batch, height, width, channels) -> None:
    model = image(new_draft, stacked, project, height, width, channels, batch)
    changed, removed = same(remove_routes, model, batch=3)
    assert kinds(changed)["flips"] == 0
    assert removed > 20


def test_routes_over_two_tensors_are_two_scans(new_draft, same, scans) -> None:
    """As in PoseMamba, where rows are read from other values than columns."""
    changed, _ = same(remove_routes, image(new_draft, stacked, by_einsum, change="two"))
    assert kinds(changed)["flips"] == 0
    made = scans(changed)
    assert [(scan["directions"], scan["reverse"], scan["merge"]) for scan in made] == [
        (2, [0, 1], b"sum"), (2, [0, 1], b"sum"),
    ]  # fmt: skip
    # The rows have one as well, so that both nodes share a function body.
    orders = {i.name: numpy_helper.to_array(i) for i in changed.graph.initializer}
    rows, columns = (orders[scan["inputs"][8]] for scan in made)
    assert (rows == np.arange(12)).all()
    assert (columns == np.arange(12).reshape(3, 4).T.reshape(-1)).all()


def test_equal_routes_have_no_order(new_draft, same, scans) -> None:
    model = image(new_draft, stacked, by_einsum, change="rows twice")
    # As the second route is read as rows, it is not to be turned back as columns.
    assert kinds(model)["flips"] == 2
    changed, removed = same(remove_routes, model)
    assert removed == 0
    assert scans(changed)[0]["directions"] == 1


@pytest.mark.parametrize(
    "change",
    ["position", "step lost", "weighed", "not flipped back", "columns not turned back",
     "one left out"],
)  # fmt: skip
def test_what_only_looks_alike_stays(new_draft, left, change) -> None:
    left(remove_routes, image(new_draft, stacked, by_einsum, 3, 3, change=change))


def test_a_free_height_stays(new_draft, left) -> None:
    draft = new_draft(x=(1, 2, "L"))
    axis = draft.const(np.array([1], np.int64))
    parts = [draft.node("Unsqueeze", part, axis) for part in ("x", draft.flip("x"))]
    routes = draft.shaped(draft.node("Concat", *parts, axis=1), 1, 4, -1)
    u = draft.turned(routes)
    dt, b, c = draft.projected(u, 4, 2 * STATES)
    y = draft.scan(u, dt, b, c, shape=(1, "L", 4), states=STATES, groups=2)
    left(remove_routes, draft.model(draft.node("Exp", y)))
