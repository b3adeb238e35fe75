"""Graph rewrites for networks of the user's own: flips and copies of tokens become orders of scans.

    model, removed = rewritten(model)      # before the scans get their function bodies

Each rewrite rests on an equality, stated at the head of its file, and acts only where that equality
is proven on the graph: constant orders, known sizes, every reader of a result accounted for.
Everything else stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

VIEWS = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")


@dataclass(frozen=True)
class Removed:
    """What the rewrites took out of a graph.

    nodes: rewrite -> number of nodes removed; flips, copies: how many nodes of that kind are gone;
    before, after: number of nodes in the graph.
    """

    before: int
    after: int
    flips: int
    copies: int
    nodes: dict[str, int]

    def __str__(self) -> str:
        """``rewrites: 48 flips, 24 copies removed (312 -> 204 nodes)``."""
        if not any(self.nodes.values()):
            return f"rewrites: nothing to remove ({self.before} nodes)"
        kinds = (("flip", "flips", self.flips), ("copy", "copies", self.copies))
        words = [f"{count} {many if count > 1 else one}" for one, many, count in kinds if count > 0]
        what = ", ".join(words) or f"{self.before - self.after} nodes"
        return f"rewrites: {what} removed ({self.before} -> {self.after} nodes)"


def rewritten(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Removed]:
    """The model after all rewrites; the given model itself, unchanged, when none applies."""
    import onnx_ir as ir

    from mambapose.export.rewrites.chains import shorten_chains
    from mambapose.export.rewrites.constants import fold_constants
    from mambapose.export.rewrites.directions import merge_directions
    from mambapose.export.rewrites.flips import remove_flips
    from mambapose.export.rewrites.repeats import remove_repeats
    from mambapose.export.rewrites.routes import remove_routes

    rewrites: dict[str, Callable[[ir.Model], int]] = {
        "constants": fold_constants,
        "directions": merge_directions,
        "routes": remove_routes,
        "flips": remove_flips,
        "chains": shorten_chains,
        "repeats": remove_repeats,
    }
    before = kinds(model)
    graph = ir.from_proto(model)
    nodes = {name: rewrite(graph) for name, rewrite in rewrites.items()}
    if not any(nodes.values()):
        return model, Removed(before["all"], before["all"], 0, 0, nodes)
    changed = ir.to_proto(graph)
    after = kinds(changed)
    gone = {kind: before[kind] - after[kind] for kind in before}
    return changed, Removed(before["all"], after["all"], gone["flips"], gone["copies"], nodes)


def kinds(model: onnx.ModelProto) -> dict[str, int]:
    """How many nodes there are, how many flip an axis, and how many reorder or copy otherwise."""
    import onnx_ir as ir

    from mambapose.export.rewrites.movement import is_flip, is_movement

    nodes: list[Any] = list(ir.from_proto(model).graph)
    flips = sum(is_flip(node) for node in nodes)
    moving = sum(is_movement(node) and node.op_type not in VIEWS for node in nodes)
    return {"all": len(nodes), "flips": flips, "copies": moving - flips}
