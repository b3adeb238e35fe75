"""What CI installs is locked: each package, each file of it by its hash."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .lock import EXTRAS, LEFT_OUT, LOCK, TENSORRT, TENSORRT_LOCK, entries

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    tomllib = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parent.parent


def versions(text: str) -> dict[str, str]:
    """Name -> version of ``name==version`` lines."""
    pinned = re.findall(r"^([\w.-]+)==([\w.+-]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pinned}


LOCKED = versions(LOCK.read_text())
WANTED = versions((ROOT / "constraints.txt").read_text())


@pytest.mark.parametrize("path", [LOCK, TENSORRT_LOCK], ids=lambda path: path.name)
def test_every_package_has_hashes_and_nothing_else(path: Path) -> None:
    text = path.read_text()
    assert "//" not in text  # no address of an index
    for name, entry in entries(text).items():
        first, *hashes = entry.splitlines()
        assert first == f"{name} \\"
        assert hashes
        for number, line in enumerate(hashes, 1):
            more = "" if number == len(hashes) else r" \\"
            assert re.fullmatch(rf"    --hash=sha256:[0-9a-f]{{64}}{more}", line), line


def test_the_versions_are_those_of_the_constraints() -> None:
    for name, version in {**LOCKED, **versions(TENSORRT_LOCK.read_text())}.items():
        assert WANTED.get(name, version) == version
    assert set(WANTED) - set(LOCKED) == {"torch", *TENSORRT}
    assert set(versions(TENSORRT_LOCK.read_text())) == set(TENSORRT)


@pytest.mark.skipif(tomllib is None, reason="tomllib came with Python 3.11")
def test_every_requirement_of_ci_is_locked_at_a_version_that_fits() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(text for name in EXTRAS for text in extras[name])]
    for requirement in map(Requirement, asked):
        if requirement.name != "torch":
            assert LOCKED[canonicalize_name(requirement.name)] in requirement.specifier


def test_what_the_packages_need_is_locked_too_and_so_is_what_torch_needs() -> None:
    """Of those installed here; what only a GPU needs is left out."""
    for name in ("torch", *LOCKED):
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, needed):
            marker, found = requirement.marker, canonicalize_name(requirement.name)
            if (marker is None or marker.evaluate({"extra": ""})) and not LEFT_OUT.match(
                f"{found}=="
            ):
                assert found in LOCKED, f"{name} needs {found}"
