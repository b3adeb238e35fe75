"""Gate archives of strangers: names, sizes, types and shapes are checked before a value is read."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mambapose.runtime.bundle.bundle import write_bundle
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.bundle.gate_file import read_gate, write_gate
from mambapose.runtime.errors import BundleError

from .depth_bundle import DEPTH, IMAGE, SPEC, fill


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle", fill)


def npy(array: np.ndarray[Any, Any], header: bytes | None = None) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    data = stream.getvalue()
    if header is None:
        return data
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + array.tobytes()


def archive(
    members: dict[str, bytes] | list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED
) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        for name, data in dict(members).items() if isinstance(members, dict) else members:
            file.writestr(name, data)
    return stream.getvalue()


RIGHT = {"in.image.npy": npy(IMAGE), "out.depth.npy": npy(DEPTH)}
HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 28, 42), }"


def with_depth(data: bytes) -> bytes:
    return archive({**RIGHT, "out.depth.npy": data})


def test_arrays_come_back_writable_and_in_either_order(bundle: Bundle) -> None:
    path = bundle.path / "gate/depth.npz"
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path.write_bytes(archive(RIGHT, method))
        inputs, outputs = read_gate(bundle, bundle.graph("depth", SPEC.name))
        np.testing.assert_array_equal(inputs["image"], IMAGE)
        np.testing.assert_array_equal(outputs["depth"], DEPTH)
        outputs["depth"] += 1
    turned = np.asfortranarray(DEPTH.reshape(1, 1, 28, 42))
    write_gate(path, {"image": IMAGE}, {"depth": turned})
    found = read_gate(bundle, bundle.graph("depth", SPEC.name))[1]["depth"]
    np.testing.assert_array_equal(found, DEPTH)


def encrypted(data: bytes) -> bytes:
    """The archive with the flag of encryption set in every header."""
    changed = bytearray(data)
    for mark, place in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        at = -1
        while (at := changed.find(mark, at + 1)) >= 0:
            changed[at + place] |= 1
    return bytes(changed)


def lying_size(data: bytes, size: int) -> bytes:
    """The archive whose table of contents gives another size of the last member."""
    changed = bytearray(data)
    at = changed.rfind(b"PK\1\2")
    changed[at + 24 : at + 28] = struct.pack("<I", size)
    return bytes(changed)


def many_members(count: int) -> bytes:
    return archive([(f"in.{number:07}.npy", b"") for number in range(count)], zipfile.ZIP_STORED)


def behind_a_large_end(data: bytes) -> bytes:
    """The archive with the locator of a 64-bit end before its end."""
    return data[:-22] + b"PK\6\7" + bytes(16) + data[-22:]


LIES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a member nobody declared": (
        lambda: archive({**RIGHT, "in.more.npy": npy(DEPTH)}), "found 'in.image', 'in.more'",
    ),
    "a member of the outer folder": (
        lambda: archive({**RIGHT, "../x.npy": npy(DEPTH)}), r"'\.\./x'",
    ),
    "a name with escapes": (lambda: archive({"\x1b[2J": b""}), r"\\x1b\[2J"),
    "one missing": (lambda: archive({"in.image.npy": npy(IMAGE)}), "were wanted, found 'in.image'"),
    "one twice": (
        lambda: archive([*RIGHT.items(), ("out.depth", npy(DEPTH))]), "were wanted",
    ),
    "encrypted": (lambda: encrypted(archive(RIGHT)), "is encrypted"),
    "another method": (lambda: archive(RIGHT, zipfile.ZIP_LZMA), "compressed by method 14"),
    "objects": (
        lambda: with_depth(npy(np.array([[1, None]], object))), "header that np.save did not write",
    ),
    "an expression": (
        lambda: with_depth(npy(DEPTH, b"{'descr': __import__('os').system('true'), }\n")),
        "header that np.save did not write",
    ),
    "a deep header": (
        lambda: with_depth(npy(DEPTH, b"(" * 60000)), "header that np.save did not write",
    ),
    "a field dtype": (
        lambda: with_depth(npy(np.zeros(3, [("a", "f4")]))), "header that np.save did not write",
    ),
    "format 3": (
        lambda: with_depth(b"\x93NUMPY\x03\x00" + npy(DEPTH)[8:]), "no array of numpy's format 1",
    ),
    "a huge shape": (
        lambda: with_depth(npy(DEPTH, HEADER.replace("28", "9" * 15).encode() + b"\n")),
        "was wanted, found <f4",
    ),
    "nobody": (
        lambda: with_depth(npy(DEPTH, HEADER.replace("28", "0").encode() + b"\n")), "was wanted",
    ),
    "another type": (lambda: with_depth(npy(DEPTH.astype(">f4"))), "did not write|was wanted"),
    "float64": (lambda: with_depth(npy(DEPTH.astype("f8"))), "was wanted, found <f8"),
    "too short": (lambda: with_depth(npy(DEPTH)[:-4]), "another number"),
    "too long": (lambda: with_depth(npy(DEPTH) + b"more"), "another number"),
    "a size that lies": (lambda: lying_size(archive(RIGHT), 100), "another number|early|CRC"),
    "a size that lies upward": (lambda: lying_size(archive(RIGHT), 5000), "another number|early"),
    "a large size": (lambda: lying_size(archive(RIGHT), 1 << 31), "at most 512 MiB .* --gate-mib"),
    "many members": (lambda: many_members(30_000), "table of contents is too large"),
    "a 64-bit end": (lambda: behind_a_large_end(archive(RIGHT)), "too large"),
    "a comment": (lambda: archive(RIGHT)[:-2] + b"\1\0x", "not an archive"),
    "not a zip": (lambda: b"\x93NUMPY", "not an archive"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_an_archive_that_is_not_as_declared_is_refused_in_one_line(
    bundle: Bundle, lie: str
) -> None:
    made, sentence = LIES[lie]
    (bundle.path / "gate/depth.npz").write_bytes(made())
    with pytest.raises(BundleError, match=sentence) as caught:
        read_gate(bundle, bundle.graph("depth", SPEC.name))
    assert str(caught.value).isprintable()


def test_a_bomb_is_not_unpacked(bundle: Bundle) -> None:
    """64 MiB of zeros in 64 KiB of file, under a name that is declared."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("in.image.npy", npy(IMAGE))
        with file.open("out.depth.npy", "w", force_zip64=True) as member:
            member.write(npy(DEPTH))
            for _ in range(64):
                member.write(bytes(1 << 20))
    (bundle.path / "gate/depth.npz").write_bytes(stream.getvalue())
    graph = bundle.graph("depth", SPEC.name)
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match="another number"):
            read_gate(bundle, graph)
        with pytest.raises(BundleError, match="at most 32 MiB were wanted"):
            read_gate(bundle, graph, max_mib=32)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_missing_gate_is_one_line(bundle: Bundle) -> None:
    (bundle.path / "gate/depth.npz").unlink()
    with pytest.raises(BundleError, match=r"depth\.npz cannot be read"):
        read_gate(bundle, bundle.graph("depth", SPEC.name))
