"""The bundle: the folder ``mp-export`` writes and ``mp-run`` reads.

    bundle.json           everything below, parsed strictly
    stages/*.onnx, *.data graphs and the weights they share
    gate/*.npz            seeded inputs and FP32 outputs of every graph, for the device that runs it
    NOTICE, LICENSE       of this project, and of what the weights that ship were made with

Every listed file carries its SHA-256. A bundle is data: nothing in it is ever loaded as code, and
there is no pickle in it. Files that bundle.json does not list are not used; what is made for one
machine (operator, TensorRT's plugin and engines) comes from the installed package or an explicit
path.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from mambapose.runtime.bundle import manifest as strict
from mambapose.runtime.bundle.entries import MANIFEST, Bundle, FileEntry
from mambapose.runtime.bundle.json import bundle_from_json, bundle_json
from mambapose.runtime.bundle.staging import earlier_copy, staged_folder
from mambapose.runtime.edges import edge
from mambapose.runtime.errors import BundleError
from mambapose.runtime.text import printable


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, read in pieces."""
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            state.update(piece)
    return state.hexdigest()


def file_entry(folder: Path, name: str) -> FileEntry:
    """The entry of the file ``name`` in a bundle's folder, with its hash."""
    return FileEntry(name, file_sha256(folder / name))


def read_bundle(path: Path | str, *, verify: bool = True) -> Bundle:
    """The bundle in folder ``path``; ``verify`` also hashes every file it lists.

    BundleError: anything missing, altered, unknown, unreadable, outside the folder or of another
    version.
    """
    root = Path(path).absolute()
    wanted = f"a bundle that can be read was wanted at {printable(str(path))}"
    with edge(BundleError, wanted, "check the path and its rights"):
        bundle = bundle_from_json(_manifest_bytes(root, path), root)
        _check_files(bundle, verify=verify)
    return bundle


def _manifest_bytes(root: Path, path: Path | str) -> bytes:
    """The text of the bundle's manifest, at most as many bytes as one may have."""
    manifest = root / MANIFEST
    shown = printable(str(path))
    if not root.exists() and (earlier_copy(root) / MANIFEST).is_file():
        raise BundleError(
            f"a bundle folder was wanted at {shown}, an export that was killed left the earlier "
            f"one at {printable(str(earlier_copy(root)))}; rename it, or export again"
        )
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise BundleError(f"a bundle folder was wanted, found {found} at {shown}; run mp-export")
    if not manifest.is_file():
        raise BundleError(f"{shown} holds no {MANIFEST}, so it is not a bundle; run mp-export")
    with manifest.open("rb") as stream:  # its size is not asked for: what is no file has none
        data = stream.read(strict.MAX_BYTES + 1)
    if len(data) > strict.MAX_BYTES:
        strict.refuse(str(manifest), f"larger than {strict.MAX_BYTES} bytes")
    return data


def _check_files(bundle: Bundle, *, verify: bool) -> None:
    known: dict[str, str] = {}
    for name, file in bundle.listed_files():
        if known.setdefault(file.path, file.sha256) != file.sha256:
            strict.refuse(name, f"file {file.path} is listed with two hashes")
    for listed, digest in known.items():
        path = strict.file_inside(bundle.path, listed, MANIFEST)
        if verify and file_sha256(path) != digest:
            strict.refuse(
                MANIFEST, f"file {listed} was changed after the export (its hash differs)"
            )


# Names of files that an operating system, Python or TensorRT loads as code.
_CODE = re.compile(r".*\.(so(\.[0-9]+)*|dylib|dll|pyd|py|pyc|pth|engine|plan)", re.IGNORECASE)
MAX_UNLISTED = 10_000  # files of a bundle's folder that are looked at


def unlisted_files(bundle: Bundle) -> list[str]:
    """Paths of what lies in a bundle's folder and is not in bundle.json: none of it is used.

    Links are named, not followed. At most MAX_UNLISTED files are looked at.
    """
    listed = {MANIFEST, *(file.path for _, file in bundle.listed_files())}
    found: list[str] = []
    for looked_at, name in enumerate(_names_below(bundle.path)):
        if looked_at == MAX_UNLISTED:
            break
        if name not in listed:
            found.append(name)
    return sorted(found)


def _names_below(root: Path) -> Iterator[str]:
    """Everything below the folder that is not itself a folder, as a path from there."""
    for folder, folders, files in os.walk(root):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in (*files, *links):
            yield Path(folder, name).relative_to(root).as_posix()


def ignored_code(bundle: Bundle) -> str | None:
    """A sentence on the libraries and programs in a bundle's folder, None when there are none."""
    code = [name for name in unlisted_files(bundle) if _CODE.fullmatch(name)]
    if not code:
        return None
    return (
        f"ignored in the bundle: {short_list(code)}. A bundle is data, its files are never loaded "
        "as code; a compiled operator is taken from the installed package or from --operator FILE"
    )


def short_list(names: list[str], most: int = 3) -> str:
    """The first names, each safe to print, and how many more there are."""
    shown = [printable(name if len(name) <= 80 else name[:77] + "...") for name in names[:most]]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shown) + more


def write_bundle(
    out: Path | str, fill: Callable[[Path], Bundle], *, overwrite: bool = False
) -> Bundle:
    """The bundle that ``fill`` made, complete at ``out``, or nothing at all.

    ``fill`` writes the stage files below the (temporary) folder it is given and returns the
    description; its ``path`` and ``hash`` are ignored. The folder is read back and every hash
    checked before it is renamed. BundleError: ``out`` exists without ``overwrite``, disk full.
    """
    with staged_folder(Path(out), overwrite=overwrite, marker=MANIFEST) as folder:
        bundle = fill(folder)
        (folder / MANIFEST).write_bytes(bundle_json(bundle))
        written = read_bundle(folder)
    return replace(written, path=Path(out).absolute())
