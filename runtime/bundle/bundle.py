"""The bundle: the folder ``mp-export`` writes and ``mp-run`` reads.

    bundle.json           everything below, parsed strictly
    stages/*.onnx, *.data graphs and the weights they share
    gate/*.npz            seeded inputs and FP32 outputs of every graph, for the device that runs it
    plugins/, engines/    optional, made per machine and not listed: operator, TensorRT engines

Every listed file carries its SHA-256. There is no pickle in a bundle.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from mambapose.runtime.bundle import manifest as strict
from mambapose.runtime.bundle.entries import MANIFEST, Bundle, FileEntry, GraphEntry
from mambapose.runtime.bundle.json import bundle_from_json, bundle_json
from mambapose.runtime.bundle.staging import earlier_copy, staged_folder
from mambapose.runtime.errors import BundleError
from mambapose.runtime.types import Array


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

    BundleError: anything missing, altered, unknown, outside the folder or of another version.
    """
    root = Path(path).absolute()
    manifest = root / MANIFEST
    if not root.exists() and (earlier_copy(root) / MANIFEST).is_file():
        raise BundleError(
            f"a bundle folder was wanted at {path}, an export that was killed left the earlier one "
            f"at {earlier_copy(root)}; rename it, or export again"
        )
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise BundleError(f"a bundle folder was wanted, found {found} at {path}; run mp-export")
    if not manifest.is_file():
        raise BundleError(f"{path} holds no {MANIFEST}, so it is not a bundle; run mp-export")
    if manifest.stat().st_size > strict.MAX_BYTES:
        strict.refuse(str(manifest), f"larger than {strict.MAX_BYTES} bytes")
    bundle = bundle_from_json(manifest.read_bytes(), root)
    _check_files(bundle, verify=verify)
    return bundle


def _check_files(bundle: Bundle, *, verify: bool) -> None:
    known: dict[str, str] = {}
    for name, stage in bundle.stages.items():
        for graph in stage.graphs.values():
            for file in graph.files():
                if known.setdefault(file.path, file.sha256) != file.sha256:
                    strict.refuse(name, f"file {file.path} is listed with two hashes")
    for listed, digest in known.items():
        path = strict.file_inside(bundle.path, listed, MANIFEST)
        if verify and file_sha256(path) != digest:
            strict.refuse(
                MANIFEST, f"file {listed} was changed after the export (its hash differs)"
            )


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


def read_gate(bundle: Bundle, graph: GraphEntry) -> tuple[dict[str, Array], dict[str, Array]]:
    """The stored (inputs, FP32 outputs) of a graph, checked against its spec."""
    if graph.gate is None:
        raise BundleError(f"graph {graph.spec.name} has no gate arrays; {strict.REMEDY}")
    path = bundle.file(graph.gate.path)
    try:
        with path.open("rb") as stream:  # np.load leaves its own open when the zip is broken
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, NpzFile):
                raise ValueError("a single array, not an archive")
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as err:
        raise BundleError(f"{path} cannot be read ({err}); {strict.REMEDY}") from err
    inputs, outputs = (
        {key[len(kind) :]: array for key, array in arrays.items() if key.startswith(kind)}
        for kind in ("in.", "out.")
    )
    graph.spec.check_inputs(inputs)
    if {spec.name for spec in graph.spec.outputs} != set(outputs):
        strict.refuse(str(path), f"outputs {sorted(outputs)} do not match the graph")
    for spec in graph.spec.outputs:
        spec.check(outputs[spec.name])
    return inputs, outputs


def write_gate(path: Path, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
    """Write the gate arrays of one graph."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"in.{name}": array for name, array in inputs.items()}
    arrays.update({f"out.{name}": array for name, array in outputs.items()})
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
