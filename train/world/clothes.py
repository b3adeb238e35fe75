"""A random dressed person: one mesh of body, clothes, shoes and hair, ready to pose.

Clothes are worn in three ways: mesh suits of the public material, layers cut from the base mesh's
``helper-tights`` and ``helper-skirt`` (clean borders, any length), or paint on the skin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mambapose.train.world.assets import Points, Triangles
from mambapose.train.world.body import DRAWN, Body, Shape, random_shape
from mambapose.train.world.colours import (
    Role,
    Table,
    cloth_colour,
    hair_colour,
    material,
    skin_colour,
)
from mambapose.train.world.mesh import Mesh
from mambapose.train.world.rig import skinned

_SUIT, _SHOE = "suit", "shoes"
_WITH_HEAD = ("afro01", "bob01", "bob02", "braid01", "long01", "ponytail01", "short01", "short02",
              "short03", "short04")  # fmt: skip
_LONG_HAIR = ("bob01", "bob02", "braid01", "long01", "ponytail01")


@dataclass(frozen=True)
class Part:
    """A mesh before it is joined: vertices, weights, triangles, coordinates for patterns."""

    rest: Points
    skin: NDArray[np.floating]
    triangles: Triangles
    base: Points
    limbs: NDArray[np.floating]
    material: NDArray[np.floating]


@dataclass(frozen=True)
class Person:
    """A dressed person, ready to pose.

    heads: (B, 3) bone heads of the rest pose; joint_rest (n, 3), joint_weights (n, B),
    joint_of (n,): the vertices whose mean is each of the 19 points (COCO-17, spine, crown);
    stature in metres.
    """

    mesh: Mesh
    heads: Points
    joint_rest: Points
    joint_weights: NDArray[np.float64]
    joint_of: NDArray[np.intp]
    stature: float
    shape: Shape

    def landmarks(self, transforms: NDArray[np.float64]) -> NDArray[np.float64]:
        """(19, 3) world points under transforms (B, 3, 4): COCO-17, spine, crown."""
        moved = skinned(self.joint_rest, self.joint_weights, transforms)
        total = np.zeros((self.joint_of[-1] + 1, 3))
        np.add.at(total, self.joint_of, moved)
        return np.asarray(total / np.bincount(self.joint_of)[:, None])


def random_person(body: Body, rng: np.random.Generator) -> Person:
    """A random adult in random clothes."""
    shape = random_shape(rng)
    vertices = body.shaped(shape)
    table = Table()
    dark_skin = float(shape.races[0])
    skin = skin_colour(rng)
    if dark_skin > 0.5:
        skin = skin * rng.uniform(0.35, 0.9)
    hair = hair_colour(rng, shape.old, dark_skin)
    parts: list[Part] = []
    hidden = np.zeros(len(vertices), bool)
    outfit = rng.choice(["suit", "layers", "paint"], p=[0.38, 0.50, 0.12])
    painted = _paint_rows(rng, table)
    look = _look(rng, table, shape, skin, hair, painted, str(outfit))
    if outfit == "suit":
        parts += _suit(body, vertices, shape, table, rng, hidden)
    elif outfit == "layers":
        parts += _layers(body, vertices, table, rng, painted, look, shape)
    if rng.random() < 0.85:
        parts.append(_shoes(body, vertices, table, rng, hidden))
    parts += _head(body, vertices, shape, table, rng, hair, look, painted)
    parts += _skin_parts(body, vertices, table, rng, skin, look, hidden)
    return _joined(body, shape, vertices, parts, table)


@dataclass(frozen=True)
class _Painted:
    """Rows of the materials that paint and layers share, and the row of painted hair."""

    upper: int
    lower: int
    foot: int
    glove: int


def _paint_rows(rng: np.random.Generator, table: Table) -> _Painted:
    def row(role: Role) -> int:
        return table.add(material(rng, role, cloth_colour(rng)))

    upper, lower = row(Role.UPPER), row(Role.LOWER)
    if rng.random() < 0.12:
        lower = upper
    return _Painted(upper, lower, row(Role.PLAIN), row(Role.PLAIN))


def _look(
    rng: np.random.Generator, table: Table, shape: Shape, skin: Points, hair: Points,
    painted: _Painted, outfit: str,
) -> int:  # fmt: skip
    """The number of the first of eight new rows, which place clothes and face on the body.

    Lengths along limbs: 0 shoulder or hip, 1 elbow or knee, 2 wrist or ankle. Heights: decimetres
    of the unshaped body (shoulders 5.3, waist 1.5, hips 0.5, eyes 7.3, hairline 7.8).
    """
    woman = shape.male < 0.5
    sleeve = float(
        rng.choice([-0.25, 0.12, 0.45, 0.75, 1.3, 1.95], p=[0.1, 0.1, 0.3, 0.1, 0.1, 0.3])
    )
    tucked = rng.random() < 0.35
    waist = float(rng.uniform(0.9, 2.0))
    hem = waist if tucked else waist - float(rng.uniform(0.2, 2.6))
    if woman and rng.random() < 0.08:
        hem = waist + 1.2  # bare midriff
    legs = float(rng.choice([0.15, 0.4, 0.8, 1.3, 1.95], p=[0.08, 0.14, 0.13, 0.1, 0.55]))
    bare_chest = not woman and outfit == "paint" and rng.random() < 0.3
    sock = float(rng.choice([9.0, 2.05, 1.85, 1.5], p=[0.15, 0.4, 0.3, 0.15]))
    glove = 1.97 if rng.random() < 0.05 else 9.0
    bald = not woman and rng.random() < 0.15
    lips = skin * (np.array([1.05, 0.62, 0.62]) if not woman else np.array([1.1, 0.5, 0.52]))
    if woman and rng.random() < 0.3:
        lips = np.array([0.45, 0.03, 0.05]) * rng.uniform(0.4, 1.2)
    brow = hair * 0.7 + skin * 0.12
    iris = np.array([[0.05, 0.03, 0.02], [0.10, 0.06, 0.03], [0.06, 0.12, 0.20]])[rng.integers(3)]
    stubble = float(rng.choice([0.0, 0.35, 0.95], p=[0.55, 0.25, 0.2])) if not woman else 0.0
    upper_on = 0.0 if outfit == "suit" or bare_chest else 1.0
    lower_on = 0.0 if outfit == "suit" else 1.0
    hair_row = table.add(material(rng, Role.HAIR, hair, patterned=False, shine=0.12, wrinkle=0.2))
    return table.add(
        [
            [sleeve, hem, float(rng.uniform(5.55, 5.95)), float(rng.choice([0, 0, 0.6, 1.3]))],
            [waist, legs, sock, glove],
            [
                9.0 if bald else float(rng.uniform(7.7, 8.0)),
                1.0,
                stubble,
                float(rng.uniform(0.7, 1.5)),
            ],
            [*lips, float(rng.uniform(-6.5, -1.5))],
            [*brow, 1.0 if woman else 0.35],
            [*iris, 0.0],
            [painted.upper, painted.lower, painted.foot, hair_row],
            [upper_on, lower_on, painted.glove, 0.0],
        ]
    )


def _suit(
    body: Body, vertices: Points, shape: Shape, table: Table, rng: np.random.Generator,
    hidden: NDArray[np.bool_],
) -> list[Part]:  # fmt: skip
    sex = "male" if shape.male > 0.5 else "female"
    names = [n for n in sorted(body.garments) if n.startswith(sex) and _SUIT in n]
    name = names[rng.integers(len(names))]
    garment = body.garments[name]
    # A piece keeps one colour; the largest two are shirt and trousers, the rest trimmings.
    rows = [table.add(material(rng, Role.PLAIN, cloth_colour(rng))) for _ in range(3)]
    number = np.minimum(garment.piece, 2)
    if garment.piece.max() == 0:  # shirt and trousers in one piece: parted at the waist
        number = (garment.base[:, 1] < 1.3).astype(np.int32)
    hidden[garment.binding.hidden] = True
    return [_garment_part(body, vertices, name, np.array(rows, np.float32)[number])]


def _garment_part(
    body: Body, vertices: Points, name: str, material_rows: NDArray[np.floating]
) -> Part:
    garment = body.garments[name]
    limbs = np.einsum("vk,vkc->vc", garment.binding.weights, body.limbs[garment.binding.indices])
    return Part(
        garment.binding.fit(vertices), garment.skin, garment.triangles, garment.base, limbs,
        material_rows,
    )  # fmt: skip


def _layers(
    body: Body, vertices: Points, table: Table, rng: np.random.Generator, painted: _Painted,
    look: int, shape: Shape,
) -> list[Part]:  # fmt: skip
    """Shirt and trousers as layers over the skin, tight or loose, or a shirt and a skirt."""
    tights = body.mesh.part("helper-tights")
    normals = vertex_normals(vertices, tights)
    legs, arms = body.limbs[:, 1].clip(0, 2), body.limbs[:, 0].clip(0, 2)
    for row in {painted.upper, painted.lower}:
        table.rows[row + 3][2] = look
    skirted = shape.male < 0.5 and rng.random() < 0.35
    loose_arm, loose_leg = rng.uniform(0, 0.012), rng.choice([0, 0, 0.006, 0.015, 0.03])
    tight = rng.uniform(0.002, 0.008)
    # A shirt hangs over the trousers, so it is wider than they are.
    over = tight + rng.uniform(0.003, 0.010) + loose_leg * legs
    upper = vertices + normals * (over + loose_arm * arms)[:, None]
    lower = vertices + normals * (tight + loose_leg * legs)[:, None]
    count = len(vertices)
    worn = [(upper, painted.upper)]
    parts = []
    if skirted:
        parts.append(_skirt(body, vertices, table, rng, painted, look, float(over.max())))
        table.rows[look + 7][1] = 0.0  # bare legs under it
    else:
        worn.append((lower, painted.lower))
    for rest, row in worn:
        parts.append(
            Part(rest, body.rig.weights, tights, body.base, body.limbs, np.full(count, row))
        )
    return parts


def _skirt(
    body: Body, vertices: Points, table: Table, rng: np.random.Generator, painted: _Painted,
    look: int, over: float,
) -> Part:  # fmt: skip
    """A skirt over everything else, or a dress: shirt and skirt of one cloth."""
    skirt = body.mesh.part("helper-skirt")
    row = table.add(material(rng, Role.SKIRT, cloth_colour(rng), look=look))
    if rng.random() < 0.5:
        for k in range(3):
            table.rows[row + k] = table.rows[painted.upper + k].copy()
        table.rows[row][3] = Role.SKIRT
    rest = vertices + vertex_normals(vertices, skirt) * (over + 0.006)
    return Part(rest, body.rig.weights, skirt, body.base, body.limbs, np.full(len(vertices), row))


def _shoes(
    body: Body, vertices: Points, table: Table, rng: np.random.Generator,
    hidden: NDArray[np.bool_],
) -> Part:  # fmt: skip
    names = [name for name in sorted(body.garments) if name.startswith(_SHOE)]
    name = names[rng.integers(len(names))]
    row = table.add(material(rng, Role.PLAIN, cloth_colour(rng), wrinkle=0.05, shine=0.12))
    hidden[body.garments[name].binding.hidden] = True
    return _garment_part(
        body, vertices, name, np.full(len(body.garments[name].base), row, np.float32)
    )


def _head(
    body: Body, vertices: Points, shape: Shape, table: Table, rng: np.random.Generator,
    hair: Points, look: int, painted: _Painted,
) -> list[Part]:  # fmt: skip
    """Hair, or a hat over painted hair."""
    bald = table.rows[look + 2][0] > 8.9
    if rng.random() < 0.06:
        row = table.add(material(rng, Role.PLAIN, cloth_colour(rng), patterned=False))
        size = len(body.garments["fedora"].base)
        return [_garment_part(body, vertices, "fedora", np.full(size, row, np.float32))]
    if bald or rng.random() < 0.10:
        return []
    names = [n for n in _WITH_HEAD if shape.male < 0.5 or n not in _LONG_HAIR]
    names = [n for n in names if n != "afro01" or shape.races[0] > 0.35]
    name = names[rng.integers(len(names))]
    row = table.add(material(rng, Role.HAIR, hair, patterned=False, shine=0.15, wrinkle=0.3))
    size = len(body.garments[name].base)
    return [_garment_part(body, vertices, name, np.full(size, row, np.float32))]


def _skin_parts(
    body: Body, vertices: Points, table: Table, rng: np.random.Generator, skin: Points, look: int,
    hidden: NDArray[np.bool_],
) -> list[Part]:  # fmt: skip
    row = table.add(
        material(rng, Role.BODY, skin, patterned=False, look=look, shine=float(rng.uniform(0, 0.1)),
                 wrinkle=0.04, grain=0.05)
    )  # fmt: skip
    table.rows[row + 3][0] = 0.35  # light goes some way into skin
    eye = table.add(
        material(
            rng, Role.EYE, np.full(3, 0.75), patterned=False, look=look, shine=0.5, wrinkle=0.0
        )
    )
    faces = body.mesh.part("body")
    faces = faces[~hidden[faces].all(axis=1)]
    count = len(vertices)
    eyes = body.mesh.part("helper-l-eye", "helper-r-eye")
    return [
        Part(vertices, body.rig.weights, faces, body.base, body.limbs, np.full(count, row)),
        Part(vertices, body.rig.weights, eyes, body.base, body.limbs, np.full(count, eye)),
    ]


def _joined(body: Body, shape: Shape, vertices: Points, parts: list[Part], table: Table) -> Person:
    """One mesh of all parts, without the vertices that no triangle uses."""
    pieces = []
    faces, start = [], 0
    for part in parts:
        used, corner = np.unique(part.triangles, return_inverse=True)
        normals = vertex_normals(part.rest, part.triangles)
        columns = (part.rest, normals, part.skin, part.base, part.limbs, part.material)
        pieces.append([column[used] for column in columns])
        faces.append(corner.reshape(-1, 3) + start)
        start += len(used)
    rest, normals, skin, base, limbs, rows = (
        np.concatenate(column) for column in zip(*pieces, strict=True)
    )
    points = [*body.anchors, body.rig.anchors[body.rig.index("Spine")], _crown(body)]
    index = np.concatenate(points)
    drawn = vertices[:DRAWN, 1]
    mesh = Mesh(
        np.asarray(rest, np.float64),
        np.asarray(normals, np.float64),
        np.asarray(skin, np.float64),
        np.concatenate(faces).astype(np.int32),
        base.astype(np.float32),
        limbs.astype(np.float32),
        rows.astype(np.float32),
        table.array(),
    )
    return Person(
        mesh,
        body.rig.heads(vertices),
        vertices[index],
        body.rig.weights[index],
        np.repeat(np.arange(len(points)), [len(p) for p in points]),
        float(drawn.max() - drawn.min()),
        shape,
    )


def _crown(body: Body) -> NDArray[np.intp]:
    """The number of the highest vertex of the unshaped head."""
    return np.array([int(body.base[:DRAWN, 1].argmax())])


def vertex_normals(vertices: Points, triangles: Triangles) -> Points:
    """(V, 3) unit normals, averaged over triangles by area; zero where no triangle is."""
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    face = np.cross(b - a, c - a)
    total = np.zeros_like(vertices)
    for k in range(3):
        for axis in range(3):
            total[:, axis] += np.bincount(triangles[:, k], face[:, axis], len(vertices))
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.asarray(total / np.maximum(length, 1e-12))
