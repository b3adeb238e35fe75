"""Chains of views become the shortest that do the same; constants and repeats are done once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from mambapose.export.rewrites import Removed, kinds, rewritten
from mambapose.export.rewrites.chains import shorten_chains
from mambapose.export.rewrites.constants import fold_constants
from mambapose.export.rewrites.emission import arranged, digits
from mambapose.export.rewrites.graph import Builder
from mambapose.export.rewrites.repeats import remove_repeats


@pytest.mark.parametrize("batch", ["N", 3])
def test_a_way_there_and_back_is_gone(new_draft, same, batch) -> None:
    """How mamba-ssm's B (N, states, L) comes to rows: three turns that undo each other."""
    draft = new_draft(x=(batch, 5, 4))
    one = draft.node("Unsqueeze", draft.turned(draft.node("Tanh", "x")), draft.const([1]))
    rows = draft.shaped(draft.node("Transpose", one, perm=[0, 3, 1, 2]), -1, 5, 4)
    changed, removed = same(shorten_chains, draft.model(draft.node("Exp", rows)))
    assert removed == 4
    assert [node.op_type for node in changed.graph.node] == ["Tanh", "Exp"]


def test_two_turns_are_one(new_draft, same) -> None:
    draft = new_draft(x=("N", 2, 3, 4))
    y = draft.node("Transpose", draft.node("Transpose", "x", perm=[0, 2, 1, 3]), perm=[0, 1, 3, 2])
    changed, removed = same(shorten_chains, draft.model(y))
    assert removed == 1
    assert [list(a.ints) for a in changed.graph.node[0].attribute] == [[0, 2, 3, 1]]


@pytest.mark.parametrize("kind", ["read between", "batch", "mixed", "picked", "as short"])
def test_chains_that_stay(new_draft, left, kind) -> None:
    draft = new_draft(x=("N", 4, 4))
    turned = draft.turned("x") if kind in ("read between", "picked", "as short") else ""
    outputs = []
    if kind == "read between":
        outputs.append(draft.node("Exp", turned))
        y = draft.shaped(turned, -1, 16)
    elif kind == "batch":
        y = draft.node("Transpose", draft.node("Transpose", "x", perm=[1, 0, 2]), perm=[0, 2, 1])
    elif kind == "mixed":
        y = draft.shaped(draft.node("Transpose", "x", perm=[1, 0, 2]), -1, 4, 4)
    elif kind == "picked":
        y = draft.turned(draft.flip(turned, axis=2))
    else:
        y = draft.shaped(turned, -1, 16)
    left(shorten_chains, draft.model(draft.node("Exp", y), *outputs))


def test_decays_are_numbers(new_draft, same, left) -> None:
    for start, folded in ((0.0, True), (-200.0, False)):  # exp(-200) is zero in float32
        draft = new_draft(x=("N", 4, 3))
        logs = draft.const(np.full((3, 2), start, np.float32))
        b = draft.node("MatMul", "x", draft.weight(3, 2))
        decay = draft.node("Neg", draft.node("Exp", logs))
        y = draft.scan("x", "x", b, b, shape=("N", 4, 3), states=2, decay=decay)
        model = draft.model(draft.node("Exp", y))
        if folded:
            changed, removed = same(fold_constants, model)
            assert removed == 2
            name = next(n for n in changed.graph.node if n.domain).input[2]
            found = next(i for i in changed.graph.initializer if i.name == name)
            assert (numpy_helper.to_array(found) == -1).all()
        else:
            graph = ir.from_proto(model)
            fold_constants(graph)
            assert "Neg" in [node.op_type for node in graph.graph]


def test_repeats_are_done_once(new_draft, same) -> None:
    draft = new_draft(x=("N", 4, 3))
    one, two = draft.turned("x"), draft.turned("x")
    y = draft.node("Add", draft.node("Exp", one), draft.node("Exp", two))
    changed, removed = same(remove_repeats, draft.model(y))
    assert removed == 2
    assert [node.op_type for node in changed.graph.node] == ["Transpose", "Exp", "Add"]


def test_two_outputs_stay_two(new_draft, same) -> None:
    draft = new_draft(x=("N", 4, 3))
    model = draft.model(draft.node("Exp", "x"), draft.node("Exp", "x"))
    changed, _ = same(remove_repeats, model)
    assert len(changed.graph.output) == 2


def test_digits_are_the_axes_of_a_view() -> None:
    memory = np.arange(24)
    assert digits(memory) == [(24, 1)]
    assert digits(memory.reshape(4, 6).T) == [(6, 1), (4, 6)]
    assert digits(memory.reshape(2, 3, 4).transpose(2, 0, 1)) == [(4, 1), (6, 4)]
    for other in (memory[::-1], memory[:12] * 2, np.roll(memory, 1), np.repeat(memory[:12], 2)):
        assert digits(other) is None


def test_arranged_makes_any_order_of_axes(run) -> None:
    random = np.random.default_rng(0)
    for _ in range(25):
        sides = random.integers(1, 5, random.integers(1, 5)).tolist()
        perm = random.permutation(len(sides))
        where = np.arange(np.prod(sides)).reshape(sides).transpose(perm)
        x = ir.Value(name="x", shape=ir.Shape([2, *sides]), type=ir.TensorType(ir.DataType.FLOAT))
        graph = ir.Graph([x], [], nodes=[], opset_imports={"": 18}, name="g")
        target = (2, where.size) if random.random() < 0.5 else (2, *where.shape)
        y = arranged(Builder(graph), x, where, target)
        assert y is not None
        assert len(graph) <= 3
        if y is x:
            assert target == (2, *sides)
            continue
        graph.outputs.append(y)
        found = run(ir.to_proto(ir.Model(graph, ir_version=10)))[0]
        given = np.random.default_rng(1).standard_normal([2, *sides]).astype(np.float32)
        wanted = given.reshape(2, -1)[:, where.reshape(-1)].reshape(target)
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("flips", "copies", "line"),
    [(48, 24, "rewrites: 48 flips, 24 copies removed (312 -> 204 nodes)"),
     (1, 1, "rewrites: 1 flip, 1 copy removed (312 -> 204 nodes)"),
     (0, 2, "rewrites: 2 copies removed (312 -> 204 nodes)"),
     (0, -1, "rewrites: 108 nodes removed (312 -> 204 nodes)")],
)  # fmt: skip
def test_what_is_said_of_it(flips, copies, line) -> None:
    assert str(Removed(312, 204, flips, copies, {"flips": 108})) == line


def test_a_graph_without_any_of_it_is_the_same_object(new_draft) -> None:
    draft = new_draft(x=("N", 3))
    model = draft.model(draft.node("Exp", "x"))
    changed, removed = rewritten(model)
    assert changed is model
    assert str(removed) == "rewrites: nothing to remove (1 nodes)"
    assert kinds(model) == {"all": 1, "flips": 0, "copies": 0}
