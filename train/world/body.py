"""The MakeHuman base body: shapes of adults, joints, and the fields that place clothes on it.

Vertex, bone and group names are those of the hm08 base mesh and of mpfb2's ``cmu_mb`` rig.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.errors import ExportError
from mambapose.train.world.assets import (
    Binding,
    Mesh,
    Points,
    Triangles,
    read_binding,
    read_json,
    read_mesh,
    read_target,
)
from mambapose.train.world.rig import Rig, rig_from_json

DRAWN = 13380  # vertices below are skin; above are helpers, eyes and joint cubes
_NOSE = (297, 7063)  # tail of the openpose rig's Neck, its nose
_COCO_TAILS = tuple(
    side + part
    for part in ("Eye", "Ear", "Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle")
    for side in "LR"
)
_RACES, _SEXES, _AGES = ("african", "asian", "caucasian"), ("male", "female"), ("young", "old")


@dataclass(frozen=True)
class Garment:
    """A mesh worn by the body.

    skin: (V, B) bone weights; piece: (V,) number of the connected piece of each vertex, 0 the
    largest; base: (V, 3) decimetres, where it sits on the unshaped body.
    """

    triangles: Triangles
    binding: Binding
    skin: NDArray[np.float32]
    piece: NDArray[np.int32]
    base: Points


@dataclass(frozen=True)
class Shape:
    """MakeHuman's main parameters of a body.

    male, old, muscle, weight: 0..1; races: (3,) sum 1; height: -1..1.
    """

    male: float
    old: float
    muscle: float
    weight: float
    races: NDArray[np.float64]
    height: float


@dataclass(frozen=True)
class Body:
    """The unshaped body. anchors: for each COCO joint the vertices whose mean it is."""

    mesh: Mesh
    rig: Rig
    anchors: tuple[NDArray[np.intp], ...]
    limbs: NDArray[np.float32]
    targets: dict[str, tuple[NDArray[np.intp], Points]]
    garments: dict[str, Garment]

    @property
    def base(self) -> Points:
        """(V, 3) vertices of the unshaped body in decimetres."""
        return self.mesh.vertices

    def shaped(self, shape: Shape) -> Points:
        """(V, 3) vertices of an adult in metres: race x sex x age, then build, then height."""
        vertices = self.base.copy()
        for name, factor in _factors(shape):
            if abs(factor) > 1e-3:
                index, offsets = self.targets[name]
                vertices[index] += factor * offsets
        return np.asarray(vertices * 0.1)


def random_shape(rng: np.random.Generator) -> Shape:
    """A random adult: mostly clearly male or female, with common ages and builds."""
    male = rng.random() if rng.random() < 0.25 else float(rng.random() < 0.5)
    return Shape(
        male,
        float(rng.beta(1.0, 2.0)),
        float(rng.beta(2.0, 2.0)),
        float(rng.beta(2.0, 2.2)),
        rng.dirichlet([0.6] * 3),
        float(np.clip(rng.normal(0, 0.35), -0.9, 0.9)),
    )


def _thirds(x: float, name: str) -> dict[str, float]:
    """MakeHuman's weights of min, average and max."""
    return {
        f"min{name}": max(0.0, 1 - 2 * x),
        f"average{name}": 1 - abs(2 * x - 1),
        f"max{name}": max(0.0, 2 * x - 1),
    }


def _factors(shape: Shape) -> list[tuple[str, float]]:
    factors = []
    sexes = dict(zip(_SEXES, (shape.male, 1 - shape.male), strict=True))
    ages = dict(zip(_AGES, (1 - shape.old, shape.old), strict=True))
    for sex, s in sexes.items():
        for age, a in ages.items():
            for race, r in zip(_RACES, shape.races, strict=True):
                factors.append((f"{race}-{sex}-{age}", s * a * float(r)))
            for muscle, m in _thirds(shape.muscle, "muscle").items():
                for weight, w in _thirds(shape.weight, "weight").items():
                    factors.append((f"universal-{sex}-{age}-{muscle}-{weight}", s * a * m * w))
        end = "max" if shape.height > 0 else "min"
        tall = f"{sex}-young-averagemuscle-averageweight-{end}height"
        factors.append((tall, s * abs(shape.height)))
    return factors


def load_body(folder: Path) -> Body:
    """The body from base mesh, targets, rig, clothes and hair; ExportError on any damage."""
    mesh = read_mesh(folder / "base.obj")
    count = len(mesh.vertices)
    groups = {
        name: np.concatenate([np.arange(first, last + 1) for first, last in ranges])
        for name, ranges in read_json(folder / "vertex_groups.json").items()
    }
    rig = rig_from_json(
        read_json(folder / "rigs/rig.cmu_mb.json"),
        read_json(folder / "rigs/weights.cmu_mb.json"),
        groups,
        count,
    )
    tails = read_json(folder / "rigs/rig.openpose.json")["bones"]
    anchors = (np.array(_NOSE), *(_tail(tails[name]["tail"], groups) for name in _COCO_TAILS))
    targets = {}
    for path in sorted([*folder.glob("targets/*.gz"), *folder.glob("targets/height/*.gz")]):
        targets[path.name.removesuffix(".target.gz")] = read_target(path, count)
    missing = sorted({name for name, _ in _factors(_ANY_SHAPE)} - set(targets))
    if missing:
        raise ExportError(f"{folder}: shape target {missing[0]} was wanted, it is not there")
    worn = sorted([*folder.glob("clothes/*/*.mhclo"), *folder.glob("hair/*/*.mhclo")])
    garments = {path.stem: _garment(path, mesh, rig) for path in worn}
    return Body(mesh, rig, anchors, _limb_fields(mesh.vertices, rig), targets, garments)


_ANY_SHAPE = Shape(0.5, 0.5, 0.5, 0.5, np.full(3, 1 / 3), 0.5)


def _tail(entry: dict[str, Any], groups: dict[str, NDArray[np.intp]]) -> NDArray[np.intp]:
    if entry["strategy"] == "CUBE":
        return groups[entry["cube_name"]]
    return np.array(entry["vertex_indices"])


def _garment(path: Path, mesh: Mesh, rig: Rig) -> Garment:
    binding = read_binding(path, len(mesh.vertices))
    garment = read_mesh(path.with_suffix(".obj"))
    if len(garment.vertices) != len(binding.indices):
        raise ExportError(
            f"{path}: {len(garment.vertices)} bound vertices were wanted, "
            f"found {len(binding.indices)}; restore the pair of files"
        )
    skin = np.einsum("vk,vkb->vb", binding.weights, rig.weights[binding.indices]).clip(0)
    skin /= skin.sum(axis=1, keepdims=True)
    base = binding.fit(mesh.vertices * 0.1) * 10
    piece = _pieces(garment.triangles, len(garment.vertices))
    return Garment(garment.triangles, binding, skin.astype(np.float32), piece, base)


def _pieces(triangles: Triangles, count: int) -> NDArray[np.int32]:
    """(V,) number of the connected piece of each vertex, the largest first."""
    label = np.arange(count)
    while True:
        low = label[triangles].min(axis=1)
        fresh = label.copy()
        np.minimum.at(fresh, triangles.ravel(), np.repeat(low, 3))
        fresh = fresh[fresh]
        if (fresh == label).all():
            break
        label = fresh
    _, number, size = np.unique(label, return_inverse=True, return_counts=True)
    rank = np.argsort(np.argsort(-size, kind="stable"), kind="stable")
    return np.asarray(rank[number], np.int32)


def _limb_fields(base: Points, rig: Rig) -> NDArray[np.float32]:
    """(V, 2) smooth fields on the base mesh: along the arm, along the leg.

    0 at shoulder or hip, 1 at elbow or knee, 2 at wrist or ankle, more beyond; -0.4 on the trunk.
    Clothes end at values of these fields, so their borders are clean between vertices.
    """
    rest = rig.heads(base)
    out = np.empty((len(base), 2), np.float32)
    chains = (("Arm", "ForeArm", "Hand", ("FingerBase", "HandFinger1", "Thumb")),
              ("UpLeg", "Leg", "Foot", ("ToeBase",)))  # fmt: skip
    for column, (upper, lower, end, beyond) in enumerate(chains):
        total = np.zeros(len(base))
        field = np.full(len(base), -0.4)
        for side in ("Left", "Right"):
            a, b, c = (rest[rig.index(side + bone)] for bone in (upper, lower, end))
            tips = [side + bone for bone in beyond if side + bone in rig.names]
            tips += [f"{side[0]}Thumb"] * (column == 0)
            share = rig.weights[:, [rig.index(n) for n in (side + lower, side + end, *tips)]]
            whole = share.sum(axis=1) + rig.weights[:, rig.index(side + upper)]
            along = ((base - a) @ (b - a) / ((b - a) @ (b - a))).clip(-0.4, 1)
            below = ((base - b) @ (c - b) / ((c - b) @ (c - b))).clip(0, 1.6)
            value = np.where(below > 0, np.maximum(along, 1 + below), along)
            past = share[:, 1:].sum(axis=1)
            value = np.where(past > 0.5, np.maximum(value, 2 + 0.5 * (past - 0.5)), value)
            field += np.where(whole > total, whole * (value + 0.4) - (field + 0.4), 0)
            total = np.maximum(total, whole)
        out[:, column] = field
    return out
