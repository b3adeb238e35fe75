"""NOTICE and LICENSE of this project, which go into every bundle.

A bundle is given on by itself: with the weights that ship, made from other people's material, or
with official ones. So it carries the notices that all of them ask for.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from mambapose.runtime.bundle.bundle import file_entry
from mambapose.runtime.bundle.entries import FileEntry
from mambapose.runtime.errors import ExportError

FILES = ("NOTICE", "LICENSE")


def write_notices(folder: Path) -> tuple[FileEntry, ...]:
    """The entries of the FILES, after they were copied into a bundle's folder."""
    for name in FILES:
        (folder / name).write_bytes(notice_file(name).read_bytes())
    return tuple(file_entry(folder, name) for name in FILES)


def notice_file(name: str) -> Path:
    """Where NOTICE or LICENSE is: in the checkout, or beside the installed package's metadata.

    ExportError when it is in neither place.
    """
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "pyproject.toml").is_file() and (checkout / name).is_file():
        return checkout / name
    try:
        listed = metadata.files("mambapose") or []
    except metadata.PackageNotFoundError:
        listed = []
    for file in listed:
        path = Path(str(file.locate()))
        if file.name == name and ".dist-info" in str(file) and path.is_file():
            return path
    raise ExportError(
        f"{name} was wanted beside the installed package, found none: a bundle must carry it; "
        "install mambapose again"
    )
