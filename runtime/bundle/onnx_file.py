"""Which other files an ONNX file names, read from the file itself, without the onnx package.

An ONNX file is a protobuf message. A tensor in it may keep its values in another file (external
data), under a name that the graph gives, and ONNX Runtime opens whatever file that is. So before a
backend sees a graph, all its tensors are looked through, also those in attributes, in subgraphs and
in functions. Values are skipped, not read, and no more than MAX_FIELDS fields are looked at, so the
time does not grow with what a stranger wrote.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from mambapose.runtime.bundle import manifest as strict
from mambapose.runtime.bundle.entries import MANIFEST, GraphEntry
from mambapose.runtime.errors import BundleError, LoadError
from mambapose.runtime.text import printable

# The graphs that ship have about 10,000; this many take a second.
MAX_FIELDS = 2_000_000
MAX_NAME = 4096  # bytes of a name in a graph that is looked at
# Message -> number of a field -> the message in it: every way from a model to a tensor's external
# data in onnx.proto (a test compares it with the onnx package).
MESSAGES: Mapping[str, Mapping[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {4: "op_type", 5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto", 6: "GraphProto", 10: "TensorProto", 11: "GraphProto",
        22: "SparseTensorProto", 23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
    "StringStringEntryProto": {},
}  # fmt: skip
ENTRY, OPERATOR = "StringStringEntryProto", "op_type"
# A node of ONNX Runtime that is a compiled part of a graph: it names a file, or holds the code of
# some device, which the library of that device loads.
COMPILED = b"EPContext"
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class _NotOnnxError(ValueError):
    """The file is not a protobuf message, or one of more fields than are looked at."""


def check_graph_files(root: Path, graph: GraphEntry, form: str) -> None:
    """BundleError unless one file of a graph of the bundle in ``root`` names no file but its data.

    form: which of the graph's files. The data is the file that bundle.json lists for the graph, by
    its path from the folder of the graph's file. LoadError when the file is no ONNX file.
    """
    listed = graph.forms[form].path
    strict.file_inside(root, listed, MANIFEST)
    allowed = None
    if graph.data is not None:
        strict.file_inside(root, graph.data.path, MANIFEST)
        data, folder = PurePosixPath(graph.data.path), PurePosixPath(listed).parent
        if data.is_relative_to(folder):
            allowed = data.relative_to(folder).as_posix()
    for name in external_names(root / listed):
        if name != allowed:
            wanted = "no other file" if allowed is None else f"no file but {allowed!r}"
            strict.refuse(
                listed, f"{wanted} was wanted in the graph (bundle.json), it names {name!r}"
            )


def check_single_file(path: Path) -> None:
    """LoadError unless an ONNX file outside any bundle names only regular files of its folder."""
    for name in external_names(path):
        try:
            strict.relative_path({"file": name}, "file", str(path))
            strict.file_inside(path.parent, name, str(path))
        except BundleError as err:
            raise LoadError(
                f"{printable(str(path))}: weights in a regular file beside it were wanted, the "
                f"graph names {name!r}; export it again, as one file"
            ) from err


def external_names(path: Path) -> set[str]:
    """The names of the files in which tensors of the ONNX file at ``path`` keep their values.

    LoadError when the file cannot be read as one message, has a compiled part (COMPILED) or more
    than MAX_FIELDS fields.
    """
    try:
        with path.open("rb") as stream:
            if not path.stat().st_size:
                raise _NotOnnxError("it is empty")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _external_names(data)
    except (OSError, ValueError) as err:
        raise LoadError(
            f"{printable(str(path))} cannot be loaded: an ONNX file was wanted, found something "
            f"else ({printable(str(err))}); export it again"
        ) from err


def _external_names(data: mmap.mmap) -> set[str]:
    """A walk over all messages with a list of those to come: a deep file needs no deep stack."""
    names: set[str] = set()
    left = MAX_FIELDS
    waiting = [("ModelProto", 0, len(data))]
    while waiting:
        message, start, stop = waiting.pop()
        inner = MESSAGES[message]
        texts: tuple[list[bytes], list[bytes]] = ([], [])
        for number, kind, begin, end in _fields(data, start, stop):
            left -= 1
            if left < 0:
                raise _NotOnnxError(f"at most {MAX_FIELDS} fields are looked at")
            if kind != BYTES:
                continue
            if message == ENTRY and number in (1, 2):
                texts[number - 1].append(_name(data, begin, end))
            elif (child := inner.get(number)) == OPERATOR:
                if data[begin : min(end, begin + MAX_NAME)] == COMPILED:
                    raise _NotOnnxError("it has a node EPContext, a compiled part of a graph")
            elif child is not None:
                waiting.append((child, begin, end))
        keys, values = texts
        # Of a field that is there twice protobuf takes the last; each is taken here, so that no
        # reader can take one that was not looked at.
        if b"location" in keys:
            names.update(value.decode() for value in values or [b""])
    return names


def _name(data: mmap.mmap, begin: int, end: int) -> bytes:
    if end - begin > MAX_NAME:
        raise _NotOnnxError(f"a name in it is longer than {MAX_NAME} bytes")
    return data[begin:end]


def _fields(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, kind, begin, end) of the fields of the message in data[start:stop]."""
    place = start
    while place < stop:
        tag, place = _varint(data, place, stop)
        kind, number, begin = tag & 7, tag >> 3, place
        if kind == VARINT:
            _, place = _varint(data, place, stop)
        elif kind == BYTES:
            length, begin = _varint(data, place, stop)
            place = begin + length
        elif kind in (FIXED64, FIXED32):
            place += 8 if kind == FIXED64 else 4
        else:
            raise _NotOnnxError(f"a field of kind {kind} at byte {begin}")
        # Protobuf's own reader drops the bits above 32 of a tag, which would make it another field.
        if place > stop or not number or tag >> 32:
            raise _NotOnnxError(f"a field that does not fit at byte {begin}")
        yield number, kind, begin, place


def _varint(data: mmap.mmap, place: int, stop: int) -> tuple[int, int]:
    """The number of variable length at ``place``, and the place behind it."""
    value = shift = 0
    while place < stop and shift < 70:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (1 << 64) - 1, place
        shift += 7
    raise _NotOnnxError(f"a number without an end at byte {place}")
