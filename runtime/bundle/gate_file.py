"""Gate arrays: the inputs and FP32 outputs of a graph, stored in the bundle as an .npz file.

The file is a stranger's like the rest of a bundle, so it is read by hand: the names, types, shapes
and sizes of all members are checked before any value is, and nothing but the members that the graph
declares is allowed in it. There is no pickle and no expression to evaluate in what is read here.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np

from mambapose.runtime.bundle import manifest as strict
from mambapose.runtime.bundle.entries import Bundle, GraphEntry
from mambapose.runtime.errors import BundleError
from mambapose.runtime.text import printable
from mambapose.runtime.types import Array, TensorSpec

# The largest array of ours is RAFT's correlation, 200 MiB at 440x1024. Beyond it any value does
# that a small board can hold.
MAX_ARRAY_MIB = 512
END_BYTES = 22  # of the record that ends a zip archive without comment
MAX_DIRECTORY = 1 << 20  # bytes of the table of contents
PLAIN, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
MAX_HEADER = 4096  # bytes
# What np.save writes before the values; anything else is not by us.
_HEADER = re.compile(
    rb"\{'descr': '([<|][a-z][0-9]{1,2})', 'fortran_order': (True|False), "
    rb"'shape': \(((?:[0-9]{1,18},? ?){0,32})\), \} *\n"
)
# Everything that zipfile and zlib are known to raise on damaged archives.
_DAMAGED = (
    OSError, ValueError, EOFError, NotImplementedError, RuntimeError, OverflowError, IndexError,
    UnicodeError, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error,
)  # fmt: skip


class _RefusedError(ValueError):
    """The archive is not one of ours."""


def read_gate(
    bundle: Bundle, graph: GraphEntry, *, max_mib: int = MAX_ARRAY_MIB
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The stored (inputs, FP32 outputs) of a graph, checked against its spec.

    max_mib: the largest array that is read, in MiB. BundleError when the file is missing or
    damaged, holds anything but the arrays that the graph declares, or a larger one.
    """
    if graph.gate is None:
        raise BundleError(f"graph {graph.spec.name} has no gate arrays; {strict.REMEDY}")
    path = bundle.file(graph.gate.path)
    wanted = {f"in.{tensor.name}": tensor for tensor in graph.spec.inputs}
    wanted |= {f"out.{tensor.name}": tensor for tensor in graph.spec.outputs}
    try:
        with path.open("rb") as stream:
            arrays = _arrays(stream, wanted, max_mib << 20)
    except _DAMAGED as err:
        raise BundleError(
            f"{printable(str(path))} cannot be read ({printable(str(err))}); {strict.REMEDY}"
        ) from err
    return (
        {tensor.name: arrays[f"in.{tensor.name}"] for tensor in graph.spec.inputs},
        {tensor.name: arrays[f"out.{tensor.name}"] for tensor in graph.spec.outputs},
    )


def write_gate(path: Path, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
    """Write the gate arrays of one graph."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {f"in.{name}": array for name, array in inputs.items()}
    arrays.update({f"out.{name}": array for name, array in outputs.items()})
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def _arrays(
    stream: IO[bytes], wanted: Mapping[str, TensorSpec], max_bytes: int
) -> dict[str, Array]:
    """The arrays of an archive that holds exactly the ``wanted`` ones."""
    _check_end(stream)
    with zipfile.ZipFile(stream) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        if len(members) != len(archive.infolist()) or set(members) != set(wanted):
            found = ", ".join(repr(name)[:60] for name in sorted(members)[:4]) or "none"
            raise _RefusedError(f"arrays {', '.join(wanted)} were wanted, found {found}")
        for name, member in members.items():
            if member.flag_bits & 1:
                raise _RefusedError(f"array {name} is encrypted")
            if member.compress_type not in (PLAIN, DEFLATED):
                raise _RefusedError(f"array {name} is compressed by method {member.compress_type}")
            if member.file_size > max_bytes:
                raise _RefusedError(
                    f"array {name}: at most {max_bytes >> 20} MiB were wanted, found "
                    f"{member.file_size >> 20} MiB; raise --gate-mib if you trust the bundle"
                )
        return {name: _array(archive, members[name], spec) for name, spec in wanted.items()}


def _check_end(stream: IO[bytes]) -> None:
    """Refuse an archive whose table of contents is too large to be read.

    ZipFile reads the whole table, so a file of millions of empty members would fill the memory.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(size - END_BYTES - 20, 0))
    tail = stream.read()
    end = tail[-END_BYTES:]
    if end[:4] != b"PK\5\6" or end[20:] != b"\0\0":
        raise _RefusedError("it is not an archive, or a damaged one")
    large = tail[:-END_BYTES].startswith(b"PK\6\7")  # a second, 64-bit end would be believed
    if large or int.from_bytes(end[12:16], "little") > MAX_DIRECTORY:
        raise _RefusedError("its table of contents is too large")
    stream.seek(0)


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, spec: TensorSpec) -> Array:
    """One array, after its header was compared with what the graph declares."""
    with archive.open(member) as stream:
        begin = stream.read(10)
        if begin[:8] != b"\x93NUMPY\x01\x00":
            raise _RefusedError(f"{spec.name} is no array of numpy's format 1")
        length = int.from_bytes(begin[8:], "little")
        header = stream.read(length) if length <= MAX_HEADER else b""
        found = _HEADER.fullmatch(header)
        if found is None:
            raise _RefusedError(f"{spec.name} has a header that np.save did not write")
        sides = tuple(int(side) for side in re.findall(rb"[0-9]+", found[3]))
        dtype = np.dtype(spec.dtype).newbyteorder("<")
        fits = len(sides) == len(spec.shape) and all(
            have == want if isinstance(want, int) else have > 0
            for have, want in zip(sides, spec.shape, strict=True)
        )
        if not fits or found[1].decode() != dtype.str:
            raise _RefusedError(f"{spec} was wanted, found {found[1].decode()} {sides}")
        nbytes = math.prod(sides) * dtype.itemsize
        if len(begin) + length + nbytes != member.file_size:
            raise _RefusedError(f"{spec.name}: {nbytes} bytes were wanted, found another number")
        data = stream.read(nbytes)
        if len(data) != nbytes or stream.read(1):  # the read past the end compares the checksum
            raise _RefusedError(f"{spec.name} ends too early")
    order = "F" if found[2] == b"True" else "C"
    array: Array = np.frombuffer(data, dtype).reshape(sides, order=order)  # type: ignore[call-overload]
    return array.astype(spec.dtype)  # writable, and in this machine's order
