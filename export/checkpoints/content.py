"""What a file is, judged by its bytes: its name says nothing.

Three kinds are checkpoints that are read here; every other one is named in the refusal, with what
to do instead.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mambapose.runtime.errors import ExportError

SAFETENSORS = "safetensors"
ZIPPED = "torch's zip archive"
PICKLED = "a pickle"  # torch's format before 1.6, or Python's own
HEAD_BYTES = 1024
MAX_HEADER = 100_000_000  # of a safetensors file, by its format
# torch stores tensors as they are; an archive that grows more than this when it is unpacked is a
# trap, not a checkpoint.
MAX_GROWTH, FREE_GROWTH = 16, 64 << 20


@dataclass(frozen=True)
class Foreign:
    """A kind of file that is no checkpoint. advice: what to do with it."""

    what: str
    advice: str


_AGAIN = "download it again"
_UNPACK = "unpack it and pass the checkpoint inside"
_HTML = Foreign(
    "an HTML page, which a server sends in place of a download that needs a click or a login",
    "open the address in a browser and save the file itself",
)
_TORCHSCRIPT = Foreign(
    "a TorchScript archive, a program with its weights",
    "in Python, torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth'), and pass that",
)
_TENSORFLOW = "TensorFlow", "convert its weights to PyTorch's names first"
_STARTS: tuple[tuple[bytes, Foreign], ...] = (
    (
        b"version https://git-lfs",
        Foreign("a Git LFS pointer, three lines in place of the file", "run: git lfs pull"),
    ),
    (b"\x1f\x8b", Foreign("a gzip archive", _UNPACK)),
    (b"BZh", Foreign("a bzip2 archive", _UNPACK)),
    (b"\xfd7zXZ\0", Foreign("an xz archive", _UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", Foreign("a 7z archive", _UNPACK)),
    (b"\x28\xb5\x2f\xfd", Foreign("a Zstandard archive", _UNPACK)),
    (b"Rar!", Foreign("a RAR archive", _UNPACK)),
    (
        b"\x93NUMPY",
        Foreign("a single NumPy array", "pass a checkpoint with a tensor for every key"),
    ),
    (
        b"\x89HDF\r\n",
        Foreign(f"an HDF5 file, as Keras and {_TENSORFLOW[0]} write", _TENSORFLOW[1]),
    ),
    (b"GGUF", Foreign("a GGUF file", "pass the checkpoint that it was made from")),
    (b"ftrt", Foreign("a TensorRT engine", "pass the checkpoint that it was built from")),
    (b"\x89PNG", Foreign("a PNG picture", _AGAIN)),
    (b"\xff\xd8\xff", Foreign("a JPEG picture", _AGAIN)),
    (b"%PDF", Foreign("a PDF document", _AGAIN)),
    (b"RIFF", Foreign("a video, sound or WebP file", _AGAIN)),
)


def is_file(path: Path) -> bool:
    """Whether it is a regular file; False also for a name that the system does not take."""
    try:
        return path.is_file()
    except OSError:
        return False


def kind_of(path: Path) -> str:
    """SAFETENSORS, ZIPPED or PICKLED; ExportError says what any other file is and what to do."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        size = path.stat().st_size
        if head[:4] == b"PK\x03\x04":
            found: str | Foreign = _kind_of_zip(path)
        else:
            found = _kind_of_head(head, size)
    except OSError as err:
        raise ExportError(
            f"{path}: a checkpoint was wanted, it cannot be read ({err.strerror or err}); check "
            "the file and its permissions"
        ) from err
    if isinstance(found, str):
        return found
    raise ExportError(f"{path}: a checkpoint was wanted, found {found.what}; {found.advice}")


def is_safetensors(path: Path) -> bool:
    """Whether the file begins as .safetensors files do; False for what cannot be read."""
    try:
        with path.open("rb") as file:
            return _kind_of_head(file.read(HEAD_BYTES), path.stat().st_size) == SAFETENSORS
    except OSError:
        return False


def _kind_of_head(head: bytes, size: int) -> str | Foreign:
    if not head:
        return Foreign("an empty file", _AGAIN)
    for start, foreign in _STARTS:
        if head.startswith(start):
            return foreign
    length, braced = int.from_bytes(head[:8], "little"), head[8:9] == b"{"
    if braced and 2 <= length <= size - 8:
        return SAFETENSORS
    if head[:1] == b"\x80" and len(head) > 1 and head[1] <= 5:
        return PICKLED
    if braced and 2 <= length <= MAX_HEADER:
        return Foreign("the beginning of a safetensors file that was cut short", _AGAIN)
    if head[257:262] == b"ustar":
        return Foreign("a tar archive", f"{_UNPACK}, or save it with PyTorch 1.6 or later")
    if head[4:8] == b"TFL3":
        return Foreign(f"a {_TENSORFLOW[0]} Lite model", _TENSORFLOW[1])
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<script")):
        return _HTML
    if text.startswith(b"<"):
        return Foreign("an XML text, such as a server's error", "open its address in a browser")
    if _begins_as_onnx(head):
        return Foreign("an ONNX graph", "pass the checkpoint that it was exported from")
    if head.startswith((b"\x08\x01\x12", b"\x0a")) and b"tensorflow" in head.lower():
        return Foreign(f"a graph of {_TENSORFLOW[0]}", _TENSORFLOW[1])
    if not any(head):
        return Foreign("zeros, as a download that broke off leaves them", _AGAIN)
    if all(9 <= byte <= 13 or 32 <= byte < 127 for byte in head):
        return Foreign("a text", "open it to see what it says, and download the file itself")
    return Foreign("a file of no known format", "pass a .pth, .pt, .bin or .safetensors file")


def _begins_as_onnx(head: bytes) -> bool:
    """The IR version first, then the name of the program that wrote it or an operator set."""
    return len(head) > 3 and head[0] == 8 and 1 <= head[1] <= 64 and head[2] in (0x12, 0x3A, 0x42)


def _kind_of_zip(path: Path) -> str | Foreign:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as err:  # damaged directories make the reader raise anything
        return Foreign(f"a zip archive that is broken or cut short ({shown(err)})", _AGAIN)
    names = [member.filename for member in members]
    unpacked = sum(member.file_size for member in members)
    if unpacked > MAX_GROWTH * path.stat().st_size + FREE_GROWTH:
        return Foreign(
            f"an archive that claims {unpacked / 1e9:.3g} GB from {path.stat().st_size / 1e6:.3g} "
            "MB, which no checkpoint does",
            "do not use it",
        )
    for test, found in _ZIPS:
        if any(test(name) for name in names):
            return found
    return Foreign("a zip archive without a checkpoint of PyTorch's as such", _UNPACK)


_ZIPS: tuple[tuple[Callable[[str], bool], str | Foreign], ...] = (
    (lambda name: name.endswith("/constants.pkl") or "/code/" in name, _TORCHSCRIPT),
    (lambda name: name == "data.pkl" or name.endswith("/data.pkl"), ZIPPED),
    (
        lambda name: name.endswith(".npy"),
        Foreign("an archive of NumPy arrays (.npz)", "save a dict of tensors with torch.save"),
    ),
    (
        lambda name: name.endswith(".weights.h5"),
        Foreign("a Keras model", _TENSORFLOW[1]),
    ),
)


def shown(what: object, limit: int = 200) -> str:
    """An error or a name from a file on one line, as text that a terminal does not act on."""
    text = str(what).strip()
    text = (text.splitlines() or ["no reason given"])[0][:limit]
    if isinstance(what, BaseException):
        text = f"{type(what).__name__}: {text}"
    return text if text.isprintable() else repr(text)[1:-1]
