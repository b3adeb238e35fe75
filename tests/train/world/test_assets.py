"""Readers: what is read is what the formats mean, and damage is one sentence."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mambapose.runtime.errors import ExportError
from mambapose.train.world.assets import (
    read_binding,
    read_films,
    read_json,
    read_mesh,
    read_target,
)
from mambapose.train.world.rig import rig_from_json

OBJ = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\ng a\nf 1/1 2/2 3/3 4/4\ng b\nf 1 2 3\n"
MHCLO = """# comment
x_scale 0 1 2.0
verts 0
material late.mhmat
0 1 2 0.5 0.25 0.25 0.1 0 0
3

delete_verts
0 2 - 3
"""


def test_mesh_fans_polygons_and_keeps_groups(tmp_path: Path) -> None:
    path = tmp_path / "m.obj"
    path.write_text(OBJ)
    mesh = read_mesh(path)
    assert mesh.triangles.tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 2]]
    assert mesh.part("b").tolist() == [[0, 1, 2]]
    assert mesh.vertices.shape == (4, 3)


def test_binding_scales_offsets_and_reads_ranges(tmp_path: Path) -> None:
    path = tmp_path / "g.mhclo"
    path.write_text(MHCLO)
    binding = read_binding(path, 4)
    assert binding.hidden.tolist() == [0, 2, 3]
    body = np.array([[0.0, 0, 0], [4, 0, 0], [0, 4, 0], [7, 8, 9]])
    # Offset 0.1 times |x0 - x1| / 2 on x; the single number is that vertex itself.
    np.testing.assert_allclose(binding.fit(body), [[1 + 0.1 * 2, 1, 0], [7, 8, 9]])


def test_target_may_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "t.target.gz"
    path.write_bytes(gzip.compress(b"# nothing\n"))
    index, offsets = read_target(path, 5)
    assert index.shape == (0,)
    assert offsets.shape == (0, 3)
    path.write_bytes(gzip.compress(b"3 0.5 -1 2\n"))
    index, offsets = read_target(path, 5)
    assert index.tolist() == [3]
    assert offsets.tolist() == [[0.5, -1, 2]]


def _text(text: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(text)


def _zipped(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data)


BROKEN = [
    ("a.obj", _text("v 0 0 x\nf 1 1 1\n"), read_mesh),
    ("a.obj", _text("v 0 0 0\n"), read_mesh),
    ("a.obj", _text("v 0 0 0\nf 1 2 9\n"), read_mesh),
    ("a.obj", _text("v 0 0 nan\nf 1 1 1\n"), read_mesh),
    ("a.obj", None, read_mesh),
    ("t.gz", _zipped(gzip.compress(b"1 2 3\n")), lambda p: read_target(p, 5)),
    ("t.gz", _zipped(gzip.compress(b"7 0 0 0\n")), lambda p: read_target(p, 5)),
    ("t.gz", _zipped(gzip.compress(b"1 0 0 0\n" * 99)[:-12]), lambda p: read_target(p, 5)),
    ("t.gz", _text("no gzip"), lambda p: read_target(p, 5)),
    ("g.mhclo", _text("verts 0\n0 1 2 0.5 0.5\n"), lambda p: read_binding(p, 5)),
    ("g.mhclo", _text("verts 0\n0 1 9 1 0 0 0 0 0\n"), lambda p: read_binding(p, 5)),
    ("g.mhclo", _text("verts 0\n"), lambda p: read_binding(p, 5)),
    ("g.mhclo", _text("x_scale 0\nverts 0\n1\n"), lambda p: read_binding(p, 5)),
    ("g.mhclo", _text("verts 0\n1\ndelete_verts\n3 - x\n"), lambda p: read_binding(p, 5)),
    ("r.json", _text("{"), read_json),
    ("r.json", _text("[]"), read_json),
]


@pytest.mark.parametrize(("name", "make", "read"), BROKEN)
def test_damage_is_one_sentence(
    tmp_path: Path, name: str, make: Callable[[Path], None] | None, read: Callable[[Path], object]
) -> None:
    path = tmp_path / name
    if make is not None:
        make(path)
    with pytest.raises(ExportError) as caught:
        read(path)
    message = str(caught.value)
    assert name in message
    assert "wanted" in message
    assert "\n" not in message


def test_films_may_be_absent_but_not_broken(tmp_path: Path) -> None:
    assert read_films(tmp_path / "none") == []
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ExportError, match="a picture was wanted"):
        read_films(tmp_path)


def test_rigs_with_wrong_weights_or_bones_are_refused() -> None:
    groups = {"c": np.array([0])}
    head = {"strategy": "CUBE", "cube_name": "c"}
    bones = {"a": {"parent": "", "head": head}, "b": {"parent": "a", "head": head}}
    good = {"weights": {"a": [[0, 0.25], [1, 1.0]], "b": [[0, 0.75]]}}
    rig = rig_from_json(json.loads(json.dumps(bones)), good, groups, 2)
    assert rig.names == ("a", "b")
    assert rig.parents == (-1, 0)
    with pytest.raises(ExportError, match="sum to 1"):
        rig_from_json(bones, {"weights": {"a": [[0, 1.0]]}}, groups, 2)
    loop = {"a": {"parent": "b", "head": head}, "b": {"parent": "a", "head": head}}
    with pytest.raises(ExportError, match="bones"):
        rig_from_json(loop, good, groups, 2)
    with pytest.raises(ExportError, match="bones"):
        rig_from_json({"a": {"parent": ""}}, good, groups, 2)
