"""NOTICE and LICENSE go with the source, the wheel and every bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

from mambapose.export import notices
from mambapose.export.models import NETWORKS
from mambapose.export.notices import FILES, notice_file, write_notices
from mambapose.runtime.bundle.bundle import file_sha256, read_bundle
from mambapose.runtime.errors import ExportError
from mambapose.runtime.loading import SHIPPED

ROOT = Path(__file__).resolve().parents[2]


def test_the_bundle_that_ships_carries_them_and_their_hashes() -> None:
    bundle = read_bundle(SHIPPED)
    assert [file.path for file in bundle.notices] == list(FILES)
    for file in bundle.notices:
        assert file.sha256 == file_sha256(ROOT / file.path), "make weights"


@pytest.mark.parametrize(
    "words",
    [
        "MakeHuman", "CC0", "mocap.cs.cmu.edu", "EIA-0196217", "Sintel", "durian.blender.org",
        "https://creativecommons.org/licenses/by/3.0/", "MoveNet", "YOLOX", "Megvii", "RAFT",
        "princeton-vl", "Depth Anything", "ViTPose", "PoseMamba", "Human3.6M", "Vim",
        "Redistributions in binary form must reproduce",
    ],
)  # fmt: skip
def test_notice_names_everybody(words: str) -> None:
    assert words in (ROOT / "NOTICE").read_text()


def test_every_source_of_weights_is_named() -> None:
    from mambapose.export.official_files import SOURCES

    named = {"raft": "RAFT", "depth": "Depth Anything", "vitpose": "ViTPose", "yolox": "YOLOX",
             "posemamba": "PoseMamba", "vim": "Vision Mamba"}  # fmt: skip
    text = (ROOT / "NOTICE").read_text()
    for source in SOURCES:
        (name,) = (name for key, name in named.items() if source.startswith(key))
        assert name in text
    assert NETWORKS


def test_the_source_and_the_wheel_carry_them() -> None:
    tomllib = pytest.importorskip("tomllib")
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(table["project"]["license-files"]) == set(FILES)
    excluded = table["tool"]["scikit-build"]["sdist"]["exclude"]
    assert not [name for name in FILES if f"/{name}" in excluded]


def test_an_installed_package_finds_them_beside_its_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Listed:
        def __init__(self, path: Path) -> None:
            self.path, self.name = path, path.name

        def locate(self) -> Path:
            return self.path

        def __str__(self) -> str:
            return str(self.path)

    folder = tmp_path / "mambapose-0.1.0.dist-info" / "licenses"
    folder.mkdir(parents=True)
    other = tmp_path / "other" / "NOTICE"
    other.parent.mkdir()
    for path in (other, folder / "NOTICE", folder / "LICENSE"):
        path.write_text(str(path))
    files = [Listed(path) for path in (other, folder / "NOTICE", folder / "LICENSE")]
    monkeypatch.setattr(notices, "__file__", str(tmp_path / "mambapose/export/notices.py"))
    monkeypatch.setattr(notices.metadata, "files", lambda name: files)
    assert notice_file("NOTICE") == folder / "NOTICE"
    out = tmp_path / "bundle"
    out.mkdir()
    assert [entry.path for entry in write_notices(out)] == ["NOTICE", "LICENSE"]
    monkeypatch.setattr(notices.metadata, "files", lambda name: None)
    with pytest.raises(ExportError, match="install mambapose again"):
        notice_file("NOTICE")
