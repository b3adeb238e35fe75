"""bundle.json: a bundle's description as text, and back, strictly.

Every object has exactly the keys of its dataclass; anything missing, unknown or of another type is
a BundleError that names the place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from mambapose.runtime.bundle import manifest as strict
from mambapose.runtime.bundle.entries import (
    FORMAT_VERSION,
    MANIFEST,
    ONNX,
    SCAN_SPEC,
    TENSORRT,
    Bundle,
    FileEntry,
    GraphEntry,
    StageEntry,
    WeightsEntry,
)
from mambapose.runtime.errors import BundleError, EngineError
from mambapose.runtime.stages.table import MAX_SIDE, STAGES
from mambapose.runtime.targets import Schedule
from mambapose.runtime.types import GraphName, GraphSpec, Size, TensorSpec

DTYPES = ("float32", "float16", "uint8", "int32", "int64", "bool")
FORMS = (ONNX, TENSORRT)
# Of any number in the schedule. A loop or a window of more would be no better and never end.
MAX_STEPS = 4096


def bundle_json(bundle: Bundle) -> bytes:
    """The text of bundle.json, the same for equal bundles."""
    raw = asdict(bundle)
    del raw["path"], raw["hash"]
    raw = {"format_version": raw.pop("format_version"), **raw}
    for stage in raw["stages"].values():
        for name, graph in stage["graphs"].items():
            spec = graph.pop("spec")
            tensors = {"inputs": spec["inputs"], "outputs": spec["outputs"]}
            stage["graphs"][name] = {**tensors, **graph}
    return (json.dumps(raw, indent=1, allow_nan=False) + "\n").encode()


def bundle_from_json(data: bytes, root: Path) -> Bundle:
    """The bundle in folder ``root`` that bundle.json describes; its files are not looked at."""
    raw = strict.manifest_from_bytes(data, MANIFEST)
    _check_version(raw)
    strict.check_keys(raw, [n for n in _names(Bundle) if n not in ("path", "hash")], MANIFEST)
    stages = strict.mapping(raw, "stages", MANIFEST)
    if unknown := [name for name in stages if name not in STAGES]:
        strict.refuse(
            MANIFEST, f"unknown stage {strict.shown(unknown[0])}, known are {', '.join(STAGES)}"
        )
    if not stages:
        strict.refuse(MANIFEST, "there is no stage")
    return Bundle(
        path=root,
        tool_version=strict.text(raw, "tool_version", MANIFEST),
        created=strict.text(raw, "created", MANIFEST),
        target=strict.text(raw, "target", MANIFEST),
        schedule=_schedule(strict.mapping(raw, "schedule", MANIFEST)),
        stages={name: _stage(strict.mapping(stages, name, "stages"), name) for name in stages},
        notices=tuple(
            _file(strict.mapping({"file": file}, "file", "notices"), "notices")
            for file in strict.items(raw, "notices", MANIFEST)
        ),
        format_version=strict.whole(raw, "format_version", MANIFEST),
        hash=hashlib.sha256(data).hexdigest(),
    )


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
    if version < FORMAT_VERSION:
        strict.refuse(MANIFEST, f"format version {version} is no longer read")


def _schedule(raw: Mapping[str, Any]) -> Schedule:
    where = "schedule"
    strict.check_keys(raw, _names(Schedule), where)
    values: dict[str, Any] = {}
    for name in _names(Schedule):
        if not name.endswith("_size"):
            values[name] = strict.whole(raw, name, where, low=1, high=MAX_STEPS)
            continue
        size = strict.items(raw, name, where)
        if len(size) != 2:
            strict.refuse(where, f"{name} must be [height, width], found {strict.shown(size)}")
        sides = (strict.whole({name: side}, name, where, low=1, high=MAX_SIDE) for side in size)
        values[name] = Size(*sides)
    if values["hop"] > values["clip_frames"]:
        strict.refuse(where, "hop is longer than clip_frames")
    return Schedule(**values)


def _stage(raw: Mapping[str, Any], where: str) -> StageEntry:
    strict.check_keys(raw, _names(StageEntry), where)
    graphs = strict.mapping(raw, "graphs", where)
    if not graphs:
        strict.refuse(where, "there is no graph")
    return StageEntry(
        network=strict.text(raw, "network", where),
        precision=strict.text(raw, "precision", where),
        params=strict.whole(raw, "params", where),
        weights=_weights(strict.mapping(raw, "weights", where), f"{where}.weights"),
        graphs={
            name: _graph(strict.mapping(graphs, name, where), name, f"{where}.{name}")
            for name in graphs
        },
        gate=strict.number_map(raw, "gate", where),
        opset=strict.whole(raw, "opset", where, low=1),
        scan_spec=_scan_spec(raw, where),
        options=strict.option_map(raw, "options", where),
    )


def _scan_spec(raw: Mapping[str, Any], where: str) -> int | None:
    if raw["scan_spec"] is None:
        return None
    if (found := strict.whole(raw, "scan_spec", where)) != SCAN_SPEC:
        strict.refuse(where, f"scan_spec {SCAN_SPEC} was wanted, found {found}")
    return found


def _weights(raw: Mapping[str, Any], where: str) -> WeightsEntry:
    strict.check_keys(raw, _names(WeightsEntry), where)
    file = strict.text_or_none(raw, "file", where)
    return WeightsEntry(
        file=file,
        sha256=None if file is None else strict.digest(raw, "sha256", where),
        trained=strict.flag(raw, "trained", where),
        licence=strict.text_or_none(raw, "licence", where),
        label=strict.text_or_none(raw, "label", where),
        measured=strict.number_map(raw, "measured", where),
    )


def _graph(raw: Mapping[str, Any], name: str, where: str) -> GraphEntry:
    try:
        GraphName.parse(name)
    except EngineError as err:
        raise BundleError(f"{MANIFEST}, {strict.shown(where)}: {err}") from err
    strict.check_keys(raw, ["inputs", "outputs", *_names(GraphEntry)[1:]], where)
    forms = strict.mapping(raw, "forms", where)
    if FORMS[0] not in forms or set(forms) - set(FORMS):
        found = ", ".join(forms)[:60] or "none"
        strict.refuse(where, f"forms must be {FORMS[0]} and perhaps {FORMS[1]}, found {found}")
    tensors = (
        _distinct(
            [_tensor(item, f"{where}.{side}") for item in strict.items(raw, side, where)], where
        )
        for side in ("inputs", "outputs")
    )
    return GraphEntry(
        GraphSpec(name, *tensors),
        {form: _file(strict.mapping(forms, form, where), f"{where}.{form}") for form in forms},
        *(
            None
            if raw[kind] is None
            else _file(strict.mapping(raw, kind, where), f"{where}.{kind}")
            for kind in ("data", "gate")
        ),
    )


def _distinct(tensors: list[TensorSpec], where: str) -> tuple[TensorSpec, ...]:
    names = [tensor.name for tensor in tensors]
    if twice := [name for name in names if names.count(name) > 1]:
        strict.refuse(where, f"two tensors are called {strict.shown(twice[0])}")
    return tuple(tensors)


def _file(raw: Mapping[str, Any], where: str) -> FileEntry:
    strict.check_keys(raw, _names(FileEntry), where)
    return FileEntry(strict.relative_path(raw, "path", where), strict.digest(raw, "sha256", where))


def _tensor(raw: Any, where: str) -> TensorSpec:
    if not isinstance(raw, dict):
        strict.refuse(where, "a tensor must be an object")
    strict.check_keys(raw, _names(TensorSpec), where)
    shape = strict.items(raw, "shape", where)
    for side in shape:
        if not isinstance(side, str):
            strict.whole({"shape": side}, "shape", where, low=1)
    dtype = strict.text(raw, "dtype", where)
    if dtype not in DTYPES:
        strict.refuse(where, f"dtype {strict.shown(dtype)} is not one a tensor can have")
    return TensorSpec(strict.text(raw, "name", where), dtype, tuple(shape))
