"""The bundle: the folder ``mp-export`` writes and ``mp-run`` reads.

    bundle.json           everything below, parsed strictly
    stages/*.onnx, *.data graphs and the weights they share
    gate/*.npz            seeded inputs and FP32 outputs of every graph, for the device that runs it
    plugins/, engines/    optional, made per machine and not listed: operator, TensorRT engines

Every listed file carries its SHA-256. There is no pickle in a bundle.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile

from mambapose.runtime.bundle import manifest as strict
from mambapose.runtime.bundle.staging import staged_folder
from mambapose.runtime.errors import BundleError
from mambapose.runtime.stages.table import STAGES
from mambapose.runtime.targets import Schedule
from mambapose.runtime.types import Array, GraphSpec, Size, TensorSpec

FORMAT_VERSION = 2
NEW_IN_2 = ("label", "measured")  # of the weights; version 1 is read as if they said nothing
MANIFEST = "bundle.json"


@dataclass(frozen=True)
class WeightsEntry:
    """Where the weights came from. file: name of the checkpoint, None when seeded random.

    label: "demonstration" for weights below their goals, else None. measured: headline numbers of
    the card of weights that ship, name -> number.
    """

    file: str | None
    sha256: str | None
    trained: bool
    licence: str | None = None
    label: str | None = None
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GraphEntry:
    """One ONNX graph; paths are relative to the bundle.

    data: external weights, which graphs of a stage share. trt_file: the form for TensorRT, for
    graphs with selective scans. gate_file: .npz of ``in.<tensor>`` and ``out.<tensor>``.
    """

    spec: GraphSpec
    file: str
    sha256: str
    data: str | None = None
    data_sha256: str | None = None
    trt_file: str | None = None
    trt_sha256: str | None = None
    gate_file: str | None = None
    gate_sha256: str | None = None

    def files(self) -> dict[str, str]:
        """Relative path -> SHA-256 of every file of this graph."""
        pairs = (
            (self.file, self.sha256),
            (self.data, self.data_sha256),
            (self.trt_file, self.trt_sha256),
            (self.gate_file, self.gate_sha256),
        )
        return {name: digest for name, digest in pairs if name is not None and digest is not None}


@dataclass(frozen=True)
class StageEntry:
    """One network with its graphs, keyed ``main``, ``encode@192x256`` and so on.

    params: true parameter count. gate: measured errors of the export against torch, the unit in
    the name (``flow_px``). options: what the runtime must know beyond the tensors (``flip``,
    ``layout``). scan_spec: version of the selective scan inside, None without one.
    """

    network: str
    precision: str
    params: int
    weights: WeightsEntry
    graphs: Mapping[str, GraphEntry]
    gate: Mapping[str, float] = field(default_factory=dict)
    opset: int = 18
    scan_spec: int | None = None
    options: Mapping[str, str | int | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """A bundle folder. created: UTC, ISO 8601. hash: SHA-256 of bundle.json, set when read."""

    path: Path
    tool_version: str
    created: str
    target: str
    schedule: Schedule
    stages: Mapping[str, StageEntry]
    format_version: int = FORMAT_VERSION
    hash: str = ""

    @property
    def trained(self) -> bool:
        """True when no stage has random weights."""
        return all(stage.weights.trained for stage in self.stages.values())

    @property
    def untrained_stages(self) -> list[str]:
        """The stages with random weights."""
        return [name for name, stage in self.stages.items() if not stage.weights.trained]

    def stage(self, name: str) -> StageEntry:
        """The stage of that name; BundleError tells which stages there are."""
        if name not in self.stages:
            present = ", ".join(self.stages) or "none"
            raise BundleError(
                f"stage {name} was wanted, {self.path} holds: {present}; {strict.REMEDY}"
            )
        return self.stages[name]

    def graph(self, stage: str, name: str) -> GraphEntry:
        """The graph of that name; BundleError tells which graphs the stage has."""
        graphs = self.stage(stage).graphs
        if name not in graphs:
            raise BundleError(
                f"graph {name} of stage {stage} was wanted, {self.path} holds: "
                f"{', '.join(graphs)}; {strict.REMEDY}"
            )
        return graphs[name]

    def file(self, name: str) -> Path:
        """The absolute path of a listed file."""
        return self.path / name


def tool_version() -> str:
    """The installed version of mambapose, or ``source`` when run from a tree."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mambapose")
    except PackageNotFoundError:
        return "source"


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, read in pieces."""
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            state.update(piece)
    return state.hexdigest()


def read_bundle(path: Path | str, *, verify: bool = True) -> Bundle:
    """The bundle in folder ``path``; ``verify`` also hashes every file it lists.

    BundleError: anything missing, altered, unknown, outside the folder or of another version.
    """
    root = Path(path).absolute()
    manifest = root / MANIFEST
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise BundleError(f"a bundle folder was wanted, found {found} at {path}; run mp-export")
    if not manifest.is_file():
        raise BundleError(f"{path} holds no {MANIFEST}, so it is not a bundle; run mp-export")
    if manifest.stat().st_size > strict.MAX_BYTES:
        strict.refuse(str(manifest), f"larger than {strict.MAX_BYTES} bytes")
    data = manifest.read_bytes()
    raw = strict.manifest_from_bytes(data, MANIFEST)
    _check_version(raw)
    bundle = _bundle(root, raw, hashlib.sha256(data).hexdigest())
    _check_files(bundle, verify=verify)
    return bundle


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


def bundle_json(bundle: Bundle) -> bytes:
    """The text of bundle.json, stable for equal bundles."""
    raw = {
        "format_version": bundle.format_version,
        "tool_version": bundle.tool_version,
        "created": bundle.created,
        "target": bundle.target,
        "schedule": _plain(bundle.schedule),
        "stages": {
            name: _plain_stage(stage, bundle.format_version)
            for name, stage in bundle.stages.items()
        },
    }
    return (json.dumps(raw, indent=1, allow_nan=False) + "\n").encode()


def read_gate(bundle: Bundle, graph: GraphEntry) -> tuple[dict[str, Array], dict[str, Array]]:
    """The stored (inputs, FP32 outputs) of a graph, checked against its spec."""
    if graph.gate_file is None:
        raise BundleError(f"graph {graph.spec.name} has no gate arrays; {strict.REMEDY}")
    path = bundle.file(graph.gate_file)
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


# --- JSON -> dataclasses -----------------------------------------------------------------------


def _names(kind: type) -> list[str]:
    return [item.name for item in fields(kind)]


def _check_version(raw: Mapping[str, Any]) -> None:
    if "format_version" not in raw:
        strict.refuse(MANIFEST, "key 'format_version' is missing")
    version = strict.whole(raw, "format_version", MANIFEST)
    if version > FORMAT_VERSION:
        raise BundleError(
            f"{MANIFEST}: format version {version} is newer than {FORMAT_VERSION}, the newest this "
            "mambapose reads; update mambapose"
        )
    if version < 1:
        strict.refuse(MANIFEST, f"format version {version} is no longer read")


def _bundle(root: Path, raw: Mapping[str, Any], digest: str) -> Bundle:
    strict.check_keys(raw, [n for n in _names(Bundle) if n not in ("path", "hash")], MANIFEST)
    stages = strict.mapping(raw, "stages", MANIFEST)
    if unknown := [name for name in stages if name not in STAGES]:
        strict.refuse(MANIFEST, f"unknown stage {unknown[0]!r}, known are {', '.join(STAGES)}")
    if not stages:
        strict.refuse(MANIFEST, "there is no stage")
    version = strict.whole(raw, "format_version", MANIFEST)
    return Bundle(
        path=root,
        tool_version=strict.text(raw, "tool_version", MANIFEST),
        created=strict.text(raw, "created", MANIFEST),
        target=strict.text(raw, "target", MANIFEST),
        schedule=_schedule(strict.mapping(raw, "schedule", MANIFEST)),
        stages={
            name: _stage(strict.mapping(stages, name, "stages"), name, version) for name in stages
        },
        format_version=version,
        hash=digest,
    )


def _schedule(raw: Mapping[str, Any]) -> Schedule:
    where = "schedule"
    strict.check_keys(raw, _names(Schedule), where)
    values: dict[str, Any] = {}
    for name in _names(Schedule):
        if not name.endswith("_size"):
            values[name] = strict.whole(raw, name, where, low=1)
            continue
        size = strict.items(raw, name, where)
        if len(size) != 2:
            strict.refuse(where, f"{name} must be [height, width], found {size}")
        values[name] = Size(*(strict.whole({name: side}, name, where, low=1) for side in size))
    if values["hop"] > values["clip_frames"]:
        strict.refuse(where, "hop is longer than clip_frames")
    return Schedule(**values)


def _stage(raw: Mapping[str, Any], where: str, version: int) -> StageEntry:
    strict.check_keys(raw, _names(StageEntry), where)
    graphs = strict.mapping(raw, "graphs", where)
    if not graphs:
        strict.refuse(where, "there is no graph")
    return StageEntry(
        network=strict.text(raw, "network", where),
        precision=strict.text(raw, "precision", where),
        params=strict.whole(raw, "params", where),
        weights=_weights(strict.mapping(raw, "weights", where), f"{where}.weights", version),
        graphs={
            name: _graph(strict.mapping(graphs, name, where), name, f"{where}.{name}")
            for name in graphs
        },
        gate=strict.number_map(raw, "gate", where),
        opset=strict.whole(raw, "opset", where, low=1),
        scan_spec=None if raw["scan_spec"] is None else strict.whole(raw, "scan_spec", where),
        options=strict.option_map(raw, "options", where),
    )


def _weights(raw: Mapping[str, Any], where: str, version: int) -> WeightsEntry:
    names = [n for n in _names(WeightsEntry) if version > 1 or n not in NEW_IN_2]
    strict.check_keys(raw, names, where)
    file = strict.text_or_none(raw, "file", where)
    return WeightsEntry(
        file=file,
        sha256=None if file is None else strict.digest(raw, "sha256", where),
        trained=strict.flag(raw, "trained", where),
        licence=strict.text_or_none(raw, "licence", where),
        label=None if version == 1 else strict.text_or_none(raw, "label", where),
        measured={} if version == 1 else strict.number_map(raw, "measured", where),
    )


def _graph(raw: Mapping[str, Any], name: str, where: str) -> GraphEntry:
    strict.check_keys(raw, ["inputs", "outputs", *_names(GraphEntry)[1:]], where)
    values: dict[str, str | None] = {}
    for kind in ("file", "data", "trt_file", "gate_file"):
        key = "sha256" if kind == "file" else kind.replace("_file", "") + "_sha256"
        present = kind == "file" or raw[kind] is not None
        if not present and raw[key] is not None:
            strict.refuse(where, f"{key} is given without {kind}")
        values[kind] = strict.relative_path(raw, kind, where) if present else None
        values[key] = strict.digest(raw, key, where) if present else None
    tensors = (
        tuple(_tensor(item, f"{where}.{side}") for item in strict.items(raw, side, where))
        for side in ("inputs", "outputs")
    )
    return GraphEntry(GraphSpec(name, *tensors), **values)  # type: ignore[arg-type]


def _tensor(raw: Any, where: str) -> TensorSpec:
    if not isinstance(raw, dict):
        strict.refuse(where, "a tensor must be an object")
    strict.check_keys(raw, _names(TensorSpec), where)
    shape = strict.items(raw, "shape", where)
    for side in shape:
        if not isinstance(side, str):
            strict.whole({"shape": side}, "shape", where, low=1)
    dtype = strict.text(raw, "dtype", where)
    if dtype not in ("float32", "float16", "uint8", "int32", "int64", "bool"):
        strict.refuse(where, f"dtype {dtype!r} is not one a tensor can have")
    return TensorSpec(strict.text(raw, "name", where), dtype, tuple(shape))


def _check_files(bundle: Bundle, *, verify: bool) -> None:
    known: dict[str, str] = {}
    for name, stage in bundle.stages.items():
        for graph in stage.graphs.values():
            for file, digest in graph.files().items():
                if known.setdefault(file, digest) != digest:
                    strict.refuse(name, f"file {file} is listed with two hashes")
    for file, digest in known.items():
        path = strict.file_inside(bundle.path, file, MANIFEST)
        if verify and file_sha256(path) != digest:
            strict.refuse(MANIFEST, f"file {file} was changed after the export (its hash differs)")


# --- dataclasses -> JSON -----------------------------------------------------------------------


def _plain(item: Any) -> dict[str, Any]:
    return {name: getattr(item, name) for name in _names(type(item))}


def _plain_stage(stage: StageEntry, version: int) -> dict[str, Any]:
    raw = _plain(stage)
    weights = _plain(stage.weights) | {"measured": dict(stage.weights.measured)}
    raw["weights"] = {k: v for k, v in weights.items() if version > 1 or k not in NEW_IN_2}
    raw["gate"] = dict(stage.gate)
    raw["options"] = dict(stage.options)
    raw["graphs"] = {}
    for name, graph in stage.graphs.items():
        item = _plain(graph)
        spec = item.pop("spec")
        item["inputs"] = [_plain(tensor) for tensor in spec.inputs]
        item["outputs"] = [_plain(tensor) for tensor in spec.outputs]
        raw["graphs"][name] = item
    return raw
