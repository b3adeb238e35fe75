"""Readers of the public material: the CC0 MakeHuman body, its clothes, and frames of free films.

Formats: Wavefront .obj; .target (``index dx dy dz`` per line, gzip); .mhclo, which binds each
vertex of a garment to three body vertices (MakeHuman's clothes format); .json rigs of mpfb2.
Every reader raises ExportError with one sentence when a file is missing or damaged.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.errors import ExportError

Points = NDArray[np.float64]
Triangles = NDArray[np.int32]

BODY_FOLDER, MOTION_FOLDER, FILM_FOLDER = "makehuman-cc0", "cmu-17j", "sintel-frames"


@dataclass(frozen=True)
class Mesh:
    """A mesh of triangles.

    vertices (V, 3); triangles (F, 3); groups: (F,) the name of each triangle's group.
    """

    vertices: Points
    triangles: Triangles
    groups: NDArray[np.str_]

    def part(self, *names: str) -> Triangles:
        """(f, 3) triangles of the named groups."""
        return self.triangles[np.isin(self.groups, names)]


@dataclass(frozen=True)
class Binding:
    """How a garment sits on the body.

    indices, weights, offsets: (V, 3); scale: per axis (vertex, vertex, divisor), an axis that is
    absent keeps the decimetre; hidden: body vertices that the garment covers completely.
    """

    indices: NDArray[np.intp]
    weights: Points
    offsets: Points
    scale: dict[int, tuple[int, int, float]]
    hidden: NDArray[np.intp]

    def fit(self, body: Points) -> Points:
        """(V, 3) garment vertices on the shaped body (V_body, 3), in its unit."""
        unit = np.empty(3)
        for axis in range(3):
            if axis in self.scale:
                a, b, divisor = self.scale[axis]
                unit[axis] = abs(body[a, axis] - body[b, axis]) / divisor
            else:
                unit[axis] = 0.1  # offsets are decimetres, shaped bodies metres
        placed = np.einsum("vk,vkc->vc", self.weights, body[self.indices])
        return np.asarray(placed + self.offsets * unit)


def _refuse(path: Path, wanted: str, found: object) -> NoReturn:
    raise ExportError(
        f"{path}: {wanted} was wanted, found {found}; restore the file from the public material"
    )


def _lines(path: Path, wanted: str) -> list[str]:
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf8") as file:
                return file.read().splitlines()
        return path.read_text("utf8", errors="replace").splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as err:
        raise ExportError(f"{path}: {wanted} was wanted, it cannot be read ({err})") from err


def read_mesh(path: Path) -> Mesh:
    """The mesh of an .obj file; polygons are fanned into triangles, texture indices dropped."""
    vertices: list[list[str]] = []
    triangles: list[tuple[int, int, int]] = []
    groups: list[str] = []
    group = ""
    try:
        for line in _lines(path, "a mesh"):
            words = line.split()
            if not words:
                continue
            if words[0] == "v":
                vertices.append(words[1:4])
            elif words[0] == "g":
                group = words[1] if len(words) > 1 else ""
            elif words[0] == "f":
                corners = [int(word.split("/", 1)[0]) - 1 for word in words[1:]]
                for k in range(1, len(corners) - 1):
                    triangles.append((corners[0], corners[k], corners[k + 1]))
                    groups.append(group)
        points = np.array(vertices, np.float64).reshape(-1, 3)
    except ValueError as err:
        _refuse(path, "a mesh of numbers", str(err))
    faces = np.array(triangles, np.int32).reshape(-1, 3)
    if not len(faces) or not np.isfinite(points).all():
        _refuse(path, "a mesh", f"{len(points)} vertices and {len(faces)} triangles")
    if faces.min() < 0 or faces.max() >= len(points):
        _refuse(path, f"vertex numbers below {len(points)}", int(faces.max()))
    return Mesh(points, faces, np.array(groups))


def read_target(path: Path, count: int) -> tuple[NDArray[np.intp], Points]:
    """(vertex numbers (n,), offsets (n, 3) in decimetres) of a shape target; n may be 0."""
    rows = [line.split() for line in _lines(path, "a shape target")]
    rows = [row for row in rows if row and not row[0].startswith("#")]
    try:
        table = np.array(rows, np.float64).reshape(-1, 4)
    except ValueError as err:
        _refuse(path, "lines of four numbers", str(err))
    index = table[:, 0].astype(np.intp)
    if len(index) and (index.min() < 0 or index.max() >= count):
        _refuse(path, f"vertex numbers below {count}", int(index.max()))
    return index, table[:, 1:]


def read_binding(path: Path, count: int) -> Binding:
    """The binding of a .mhclo file to a body of ``count`` vertices."""
    rows: list[list[float]] = []
    hidden: list[int] = []
    scale: dict[int, tuple[int, int, float]] = {}
    section = ""
    try:
        for line in _lines(path, "a garment binding"):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if words[0] in ("x_scale", "y_scale", "z_scale"):
                axis = "xyz".index(words[0][0])
                scale[axis] = (int(words[1]), int(words[2]), float(words[3]))
            elif words[0] in ("verts", "delete_verts"):
                section = words[0]
            elif section == "verts" and words[0].isdigit():
                # Header keys may follow "verts 0", so only lines of numbers count.
                rows.append(_binding_row([float(word) for word in words]))
            elif section == "delete_verts":
                hidden += _ranges(words)
        table = np.array(rows, np.float64).reshape(-1, 9)
    except (ValueError, IndexError) as err:
        _refuse(path, "a garment binding", str(err))
    indices = table[:, :3].astype(np.intp)
    used = [*indices.ravel(), *hidden, *(n for a, b, _ in scale.values() for n in (a, b))]
    if not len(table) or min(used) < 0 or max(used) >= count:
        _refuse(path, f"bindings to vertices below {count}", max(used, default=0))
    gone = np.array(sorted(set(hidden)), np.intp)
    return Binding(indices, table[:, 3:6], table[:, 6:], scale, gone)


def _binding_row(numbers: list[float]) -> list[float]:
    if len(numbers) == 1:
        return [numbers[0]] * 3 + [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    if len(numbers) != 9:
        raise ValueError(f"a row of {len(numbers)} numbers")
    return numbers


def _ranges(words: list[str]) -> list[int]:
    """Numbers of ``3 7 - 9 12``: 3, 7, 8, 9, 12."""
    numbers: list[int] = []
    position = 0
    while position < len(words):
        if position + 2 < len(words) and words[position + 1] == "-":
            numbers += range(int(words[position]), int(words[position + 2]) + 1)
            position += 3
        else:
            numbers.append(int(words[position]))
            position += 1
    return numbers


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file."""
    try:
        document = json.loads("\n".join(_lines(path, "a JSON object")))
    except json.JSONDecodeError as err:
        _refuse(path, "a JSON object", str(err))
    if not isinstance(document, dict):
        _refuse(path, "a JSON object", type(document).__name__)
    return document


def read_films(folder: Path) -> list[NDArray[np.uint8]]:
    """Frames (H, W, 3) RGB of the free films; an empty list when the folder is absent."""
    from PIL import Image, UnidentifiedImageError

    frames = []
    for path in sorted(folder.glob("*.png")):
        try:
            with Image.open(path) as image:
                frames.append(np.asarray(image.convert("RGB"), np.uint8))
        except (OSError, UnidentifiedImageError) as err:
            raise ExportError(f"{path}: a picture was wanted, it cannot be read ({err})") from err
    return frames
