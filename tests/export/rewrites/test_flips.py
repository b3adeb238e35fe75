"""A flip in front of a scan and one behind it become its reverse flag."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from mambapose.export.rewrites import kinds
from mambapose.export.rewrites.flips import remove_flips

STATES = 3


def backward(new_draft, length=7, width=4, batch="N", taps=4, pads=None, gated=True, change=""):
    """A backward Mamba layer on rows (N, L, E), as public code writes it; change: what is not."""
    draft = new_draft(x=(batch, length, 5))
    before = (taps - 1, 0) if pads is None else pads
    row = draft.turned(draft.node("MatMul", "x", draft.weight(5, 2 * width)))  # (N, 2D, L)
    if change != "nothing flipped":
        row = draft.flip(row, axis=1 if change == "channels" else 2)
    x, z = draft.part(row, 1, 0, width), draft.part(row, 1, width, 2 * width)
    groups = 1 if change == "dense" else width
    kernel = draft.weight(width, width // groups, taps)
    x = draft.node(
        "Conv", x, kernel, draft.weight(width), group=groups, pads=before,
        dilations=[2 if change == "dilated" else 1],
    )  # fmt: skip
    if sum(before) >= taps:
        x = draft.part(x, 2, 0, length)
    x = draft.silu(x)
    if change == "position":
        x = draft.node("Add", x, draft.weight(1, 1, length))
    if change == "softmax":
        x = draft.node("Softmax", x, axis=2)
    u = draft.turned(x)
    dt, b, c = draft.projected(u, width, STATES)
    if change == "dt not flipped":
        dt = draft.node("MatMul", "x", draft.weight(5, width))
    options = {"segment": 2} if change == "segments" else {}
    options = {"reverse": [1]} if change == "reversed" else options
    y = draft.scan(
        u, dt, b, c, draft.turned(z) if gated else "", shape=(batch, length, width),
        states=STATES, **options,
    )  # fmt: skip
    y = draft.turned(y)
    if change != "not flipped back":
        y = draft.flip(y, axis=2)
    if change == "half":
        y = draft.part(y, 2, 0, length // 2)
    outputs = [draft.node("MatMul", draft.turned(y), draft.weight(width, 2))]
    if change == "also read as it is":
        outputs.append(draft.node("Exp", draft.nodes[-4].output[0]))
    if change == "last state":
        outputs.append(next(n for n in draft.nodes if n.op_type == "SelectiveScan").output[1])
    return draft.model(*outputs)


def test_a_backward_layer_has_no_flip_left(new_draft, same, scans) -> None:
    model = backward(new_draft)
    changed, removed = same(remove_flips, model)
    assert kinds(model)["flips"] == 2
    assert kinds(changed)["flips"] == 0
    assert (kinds(model)["all"], removed) == (20, 4)
    (scan,) = scans(changed)
    assert (scan["directions"], scan["reverse"], scan["groups"]) == (1, [1], 1)
    assert len(scan["inputs"]) == 8  # no order: the flag says it
    conv = next(node for node in changed.graph.node if node.op_type == "Conv")
    assert next(list(a.ints) for a in conv.attribute if a.name == "pads") == [0, 3]


@pytest.mark.parametrize("batch", ["N", 1, 3])
@pytest.mark.parametrize(
    ("length", "width", "taps", "pads"),
    [(1, 2, 4, None), (2, 3, 4, None), (5, 5, 3, (1, 1)), (9, 4, 4, (3, 3)), (13, 1, 2, None),
     (4, 4, 1, None), (16, 8, 4, (3, 0))],
)  # fmt: skip
def test_any_size(new_draft, same, batch, length, width, taps, pads) -> None:
    model = backward(new_draft, length, width, batch, taps, pads, gated=width % 2 == 0)
    changed, _ = same(remove_flips, model, batch=4)
    # One token has no order: its flips are no longer seen as such.
    assert kinds(changed)["flips"] == (2 if length == 1 else 0)


def test_the_flag_is_what_makes_it_equal(new_draft, run) -> None:
    """Without the flag the rewritten graph answers something else: these tests can fail."""

    graph = ir.from_proto(backward(new_draft))
    remove_flips(graph)
    changed = ir.to_proto(graph)
    right = run(changed)[0]
    scan = next(node for node in changed.graph.node if node.op_type == "SelectiveScan")
    next(entry for entry in scan.attribute if entry.name == "reverse").ints[:] = [0]
    assert np.abs(run(changed)[0] - right).max() > 1e-3


def around(new_draft, length=6, width=4, batch="N", change=""):
    """flip, a whole layer with its gate and output projection, flip: around a forward layer."""
    draft = new_draft(x=(batch, length, width))
    flipped = draft.flip("x", axis=1)
    x = draft.node("MatMul", flipped, draft.weight(width, width))
    u = draft.turned(draft.silu(draft.node(
        "Conv", draft.turned(x), draft.weight(width, 1, 4), group=width, pads=[3, 0]
    )))  # fmt: skip
    dt, b, c = draft.projected(u, width, STATES)
    y = draft.scan(u, dt, b, c, shape=(batch, length, width), states=STATES)
    gate = draft.silu("x" if change == "gate not flipped" else flipped)
    y = draft.node("Mul", y, gate)
    if change == "norm over tokens":
        y = draft.node("Softmax", y, axis=1)
    y = draft.node("MatMul", y, draft.weight(width, 3))
    back = draft.node("Add", draft.flip(y, axis=1), draft.weight(3))
    outputs = [draft.node("Tanh", back)]
    if change == "also read before":
        outputs.append(draft.node("Exp", y))
    return draft.model(*outputs)


def test_a_part_of_the_result_is_enough(new_draft, same) -> None:
    changed, _ = same(remove_flips, backward(new_draft, change="half"))
    assert kinds(changed)["flips"] == 0


@pytest.mark.parametrize(("batch", "length", "width"), [("N", 6, 4), (2, 5, 5), (1, 9, 3)])
def test_flips_around_a_layer_meet_across_what_follows_the_scan(
    new_draft, same, scans, batch, length, width
) -> None:
    model = around(new_draft, length, width, batch)
    changed, removed = same(remove_flips, model)
    assert (kinds(model)["flips"], kinds(changed)["flips"]) == (2, 0)
    assert (kinds(model)["all"], removed) == (20, 3)
    assert scans(changed)[0]["reverse"] == [1]


@pytest.mark.parametrize("change", ["gate not flipped", "norm over tokens", "also read before"])
def test_a_layer_whose_flips_do_not_meet_stays(new_draft, left, change) -> None:
    left(remove_flips, around(new_draft, change=change))


def test_a_flip_by_index_and_any_other_order(new_draft, same, scans) -> None:
    order = np.array([3, 0, 4, 1, 2, 5])
    for index in (order, np.arange(6)[::-1].copy()):
        draft = new_draft(x=("N", 6, 4))
        mixed = draft.node("Gather", "x", draft.const(index), axis=1)
        u = draft.node("Tanh", mixed)
        y = draft.scan(u, *draft.projected(u, 4, STATES), shape=("N", 6, 4), states=STATES)
        back = draft.node("Gather", y, draft.const(np.argsort(index)), axis=1)
        changed, removed = same(remove_flips, draft.model(draft.node("Exp", back)))
        assert not any(node.op_type == "Gather" for node in changed.graph.node)
        assert removed == 3  # both gathers; three products in place of one with two slices
        (scan,) = scans(changed)
        is_flip = index[0] == 5
        assert scan["reverse"] == [int(is_flip)]
        assert len(scan["inputs"]) == (8 if is_flip else 9)


@pytest.mark.parametrize(
    "change",
    ["nothing flipped", "channels", "dense", "dilated", "position", "softmax", "dt not flipped",
     "segments", "reversed", "not flipped back", "also read as it is", "last state"],
)  # fmt: skip
def test_what_only_looks_alike_stays(new_draft, left, change) -> None:
    left(remove_flips, backward(new_draft, length=6, width=6, change=change))


def test_a_free_length_stays(new_draft, left) -> None:
    draft = new_draft(x=(1, "L", 4))
    u = draft.flip("x", axis=1)
    y = draft.scan(u, *draft.projected(u, 4, STATES), shape=(1, "L", 4), states=STATES)
    left(remove_flips, draft.model(draft.flip(y, axis=1)))
