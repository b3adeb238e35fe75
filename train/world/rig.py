"""Bones and linear blend skinning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.errors import ExportError

Vectors = NDArray[np.float64]


@dataclass(frozen=True)
class Rig:
    """The bones of a body.

    names: parents come first; parents: -1 for the root; anchors: for each bone the vertices whose
    mean is its head; weights: (V, B) float64, rows sum to 1.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    anchors: tuple[NDArray[np.intp], ...]
    weights: Vectors

    def index(self, name: str) -> int:
        """The number of a bone."""
        return self.names.index(name)

    def heads(self, vertices: NDArray[np.floating[Any]]) -> Vectors:
        """(B, 3) heads of all bones in the unposed body (V, 3)."""
        return np.stack([vertices[index].mean(axis=0) for index in self.anchors])


@dataclass(frozen=True)
class BonePose:
    """Where each bone is. rotation: (B, 3, 3), unposed body to world; head: (B, 3) metres."""

    rotation: Vectors
    head: Vectors

    def transforms(self, rest: Vectors) -> Vectors:
        """(B, 3, 4) matrices that move unposed points; rest: (B, 3) unposed heads."""
        shift = self.head - np.einsum("bij,bj->bi", self.rotation, rest)
        return np.concatenate([self.rotation, shift[:, :, None]], axis=2)

    def moved(self, offset: Vectors) -> BonePose:
        """The same pose moved by offset (3,) metres."""
        return BonePose(self.rotation, self.head + offset)


def posed(rig: Rig, rotation: Vectors, rest: Vectors, root: Vectors) -> BonePose:
    """The pose with these rotations (B, 3, 3), in which bones keep their lengths.

    root (3,) is the place of the pelvis.
    """
    head = np.empty_like(rest)
    for bone, parent in enumerate(rig.parents):
        if parent < 0:
            head[bone] = root
        else:
            head[bone] = head[parent] + rotation[parent] @ (rest[bone] - rest[parent])
    return BonePose(rotation, head)


def skinned(
    points: NDArray[Any], weights: NDArray[Any], transforms: NDArray[Any]
) -> NDArray[np.floating[Any]]:
    """(V, 3) posed points; points (V, 3), weights (V, B), transforms (B, 3, 4), all one dtype."""
    matrices = (weights @ transforms.reshape(len(transforms), 12)).reshape(-1, 3, 4)
    return np.asarray((matrices[:, :, :3] @ points[:, :, None])[:, :, 0] + matrices[:, :, 3])


def turned(
    normals: NDArray[Any], weights: NDArray[Any], transforms: NDArray[Any]
) -> NDArray[np.floating[Any]]:
    """(V, 3) posed normals, not renormalised: the blended rotation turns them."""
    rotations = np.ascontiguousarray(transforms[:, :, :3]).reshape(len(transforms), 9)
    matrices = (weights @ rotations).reshape(-1, 3, 3)
    return np.asarray((matrices @ normals[:, :, None])[:, :, 0])


def rig_from_json(
    document: dict[str, Any],
    weights: dict[str, Any],
    groups: dict[str, NDArray[np.intp]],
    count: int,
) -> Rig:
    """The rig of mpfb2's rig and weight files, for a mesh of ``count`` vertices."""
    bones = document.get("bones", document)
    try:
        names = _parents_first({name: bone["parent"] for name, bone in bones.items()})
        parents = tuple(
            names.index(bones[name]["parent"]) if bones[name]["parent"] else -1 for name in names
        )
        anchors = tuple(_anchor(bones[name]["head"], groups) for name in names)
        table = np.zeros((count, len(names)))
        for column, name in enumerate(names):
            pairs = weights["weights"].get(name, [])
            if pairs:
                index, value = np.array(pairs, np.float64).T
                table[index.astype(np.intp), column] = value
    except (KeyError, TypeError, ValueError, IndexError) as err:
        raise ExportError(f"a rig with bones, heads and weights was wanted: {err!r}") from err
    total = table.sum(axis=1, keepdims=True)
    if np.abs(total - 1).max() > 0.05:
        worst = float(total[np.abs(total - 1).argmax(), 0])
        raise ExportError(f"bone weights that sum to 1 were wanted, found a sum of {worst:.3g}")
    return Rig(names, parents, anchors, table / total)


def _parents_first(parents: dict[str, str]) -> tuple[str, ...]:
    names: list[str] = []
    while len(names) < len(parents):
        ready = [n for n, p in parents.items() if n not in names and (not p or p in names)]
        if not ready:
            raise ValueError("bones without a root")
        names += ready
    return tuple(names)


def _anchor(entry: dict[str, Any], groups: dict[str, NDArray[np.intp]]) -> NDArray[np.intp]:
    if entry["strategy"] == "CUBE":
        return groups[entry["cube_name"]]
    return np.array(entry["vertex_indices"], np.intp)
