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
    Bundle,
    FileEntry,
    GraphEntry,
    StageEntry,
    WeightsEntry,
)
from mambapose.runtime.errors import BundleError, EngineError
from mambapose.runtime.stages.table import STAGES
from mambapose.runtime.targets import Schedule
from mambapose.runtime.types import GraphName, GraphSpec, Size, TensorSpec

DTYPES = ("float32", "float16", "uint8", "int32", "int64", "bool")
FORMS = ("onnx", "trt")  # of a graph; the first is always there


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
        strict.refuse(MANIFEST, f"unknown stage {unknown[0]!r}, known are {', '.join(STAGES)}")
    if not stages:
        strict.refuse(MANIFEST, "there is no stage")
    return Bundle(
        path=root,
        tool_version=strict.text(raw, "tool_version", MANIFEST),
        created=strict.text(raw, "created", MANIFEST),
        target=strict.text(raw, "target", MANIFEST),
        schedule=_schedule(strict.mapping(raw, "schedule", MANIFEST)),
        stages={name: _stage(strict.mapping(stages, name, "stages"), name) for name in stages},
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
            values[name] = strict.whole(raw, name, where, low=1)
            continue
        size = strict.items(raw, name, where)
        if len(size) != 2:
            strict.refuse(where, f"{name} must be [height, width], found {size}")
        values[name] = Size(*(strict.whole({name: side}, name, where, low=1) for side in size))
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
        scan_spec=None if raw["scan_spec"] is None else strict.whole(raw, "scan_spec", where),
        options=strict.option_map(raw, "options", where),
    )


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
        raise BundleError(f"{MANIFEST}, {where!r}: {err}") from err
    strict.check_keys(raw, ["inputs", "outputs", *_names(GraphEntry)[1:]], where)
    forms = strict.mapping(raw, "forms", where)
    if FORMS[0] not in forms or set(forms) - set(FORMS):
        found = ", ".join(forms) or "none"
        strict.refuse(where, f"forms must be {FORMS[0]} and perhaps {FORMS[1]}, found {found}")
    tensors = (
        tuple(_tensor(item, f"{where}.{side}") for item in strict.items(raw, side, where))
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
        strict.refuse(where, f"dtype {dtype!r} is not one a tensor can have")
    return TensorSpec(strict.text(raw, "name", where), dtype, tuple(shape))
