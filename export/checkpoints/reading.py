"""A checkpoint file in any of its formats: first what it describes, then the tensors asked for."""

from __future__ import annotations

import contextlib
import io
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mambapose.export.checkpoints.content import PICKLED, SAFETENSORS, is_file, kind_of, shown
from mambapose.export.checkpoints.pickles import Bytes, Machine, WouldRunCode
from mambapose.export.checkpoints.tensors import (
    CALLS,
    OF_TORCH,
    Array,
    Described,
    Entries,
    Storage,
    bytes_of_array,
    tensor_of_array,
    tensor_of_bytes,
    width_of,
)
from mambapose.runtime.errors import ExportError

if TYPE_CHECKING:
    import torch

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first value in a file of torch's before 1.6
ReadStorage = Callable[[Storage], bytearray]


@dataclass(frozen=True)
class Contents:
    """What a file describes.

    root: dictionaries, lists and placeholders, with a description for every tensor. of_torch:
    torch itself reads the file as data. storages: opens the file for reading storages from it.
    """

    path: Path
    root: Any
    of_torch: bool
    storages: Callable[[], AbstractContextManager[ReadStorage]]


def contents_of(path: Path) -> Contents:
    """What the file describes; no tensor is read yet, except from a .safetensors file.

    ExportError when the file is absent, broken, no checkpoint, or would run code.
    """
    if not is_file(path):
        raise ExportError(f"a checkpoint file was wanted, found none at {path}; check the path")
    kind = kind_of(path)
    if kind == SAFETENSORS:
        return Contents(path, _safetensors(path), True, _no_storages)
    try:
        return _legacy(path) if kind == PICKLED else _zipped(path)
    except WouldRunCode as err:
        raise ExportError(
            f"{path}: weights were wanted, found a file that would run code ({shown(str(err))}), "
            "refused unread; get the weights from a source you trust, as .safetensors"
        ) from err
    except Exception as err:  # damaged bytes make readers raise anything, e.g. IndexError
        raise _broken(path, err) from err


def tensors_of(contents: Contents, route: Iterable[str]) -> dict[str, torch.Tensor]:
    """Key -> CPU tensor of the dictionary at the end of the route of keys from the root.

    ExportError for tensors that cannot be read, or that claim more than the file holds.
    """
    import torch

    described = contents.root
    for key in route:
        described = entries(described)[key]
    for key, value in entries(described).items():
        if isinstance(value, (Described, Array)) and (problem := value.problem()):
            advice = "" if ";" in problem else "; save the weights as plain tensors"
            raise ExportError(
                f"{contents.path}: a tensor of numbers was wanted under {shown(key)!r}, found "
                f"{shown(problem)}{advice}"
            )
    try:
        if contents.of_torch and not isinstance(next(iter(described.values())), torch.Tensor):
            with contextlib.suppress(pickle.UnpicklingError):  # it lacks some instructions
                return _as_described(_by_torch(contents.path, route), entries(described))
        held: dict[str | tuple[int, str], bytearray] = {}
        with contents.storages() as read:
            return {key: _tensor(value, held, read) for key, value in entries(described).items()}
    except Exception as err:
        raise _broken(contents.path, err) from err


def entries(value: Any) -> dict[Any, Any]:
    """The entries of a dictionary, or of a placeholder that was filled like one."""
    found = value if isinstance(value, dict) else getattr(value, "items", {})
    return found if isinstance(found, dict) else {}


def _tensor(
    value: Any, held: dict[str | tuple[int, str], bytearray], read: ReadStorage
) -> torch.Tensor:
    """The tensor that is described; those of one storage share its bytes in ``held``."""
    import torch

    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, Array):
        key = id(value.data), value.dtype
        if key not in held:
            held[key] = bytes_of_array(value)
        return tensor_of_array(value, held[key])
    storage = value.storage
    if storage.key not in held:
        held[storage.key] = read(storage)
    return tensor_of_bytes(value, held[storage.key])


def _safetensors(path: Path) -> Mapping[str, torch.Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except Exception as err:  # not only SafetensorError: an unknown dtype is a KeyError
        raise ExportError(
            f"{path}: a safetensors file was wanted, found a broken one ({shown(err)}); "
            "download it again"
        ) from err


def _by_torch(path: Path, route: Iterable[str]) -> dict[str, torch.Tensor]:
    import torch

    with warnings.catch_warnings(), path.open("rb") as file:  # torch judges paths by the suffix
        warnings.simplefilter("ignore")
        found = torch.load(file, map_location="cpu", weights_only=True)
    for key in route:
        found = found[key]
    return dict(found)


def _as_described(
    found: dict[str, torch.Tensor], described: Mapping[str, Described]
) -> dict[str, torch.Tensor]:
    """What torch found, unless it is other than what was described: two readers of one archive.

    Of two members of one name, for example, each might read another.
    """
    import torch

    for key, tensor in found.items():
        alike = tuple(tensor.shape) == tuple(described[key].size)
        if not alike or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ValueError(f"tensor {key!r} can be read in two ways")
    return found


def _zipped(path: Path) -> Contents:
    """torch's zip archive: a pickle, and a member for each storage."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.split("/")[-1] == "data.pkl"]
        folder = names[0][: -len("data.pkl")]
        byteorder = f"{folder}byteorder"
        order = archive.read(byteorder) if byteorder in archive.namelist() else b"little"
        size = archive.getinfo(names[0]).file_size
        with archive.open(names[0]) as file:
            machine, _ = _machine()
            root = machine.load(Bytes(io.BytesIO(file.read()), size))

    @contextlib.contextmanager
    def storages() -> Iterator[ReadStorage]:
        with zipfile.ZipFile(path) as archive:

            def read(storage: Storage) -> bytearray:
                data = bytearray(archive.read(f"{folder}data/{storage.key}"))
                return _checked(storage, data, order.strip() == b"big")

            yield read

    return Contents(path, root, _is_of_torch(machine), storages)


def _legacy(path: Path) -> Contents:
    """torch's format before 1.6, several pickles and then the storages; or a pickle of Python's."""
    with path.open("rb") as file:
        stream = Bytes(file, path.stat().st_size)
        machine, described = _machine()
        root = machine.load(stream)
        if root != LEGACY_MAGIC:
            return Contents(path, root, False, _no_storages)
        _machine()[0].load(stream)  # the version of the format
        system = _machine()[0].load(stream)
        big = isinstance(system, dict) and system.get("little_endian") is False
        root = machine.load(stream)
        keys = _machine()[0].load(stream)
        places = _places(file, path.stat().st_size, keys, described)

    @contextlib.contextmanager
    def storages() -> Iterator[ReadStorage]:
        with path.open("rb") as file:

            def read(storage: Storage) -> bytearray:
                file.seek(places[storage.key])
                data = bytearray(file.read(storage.count * (width_of(storage.dtype) or 0)))
                return _checked(storage, data, big)

            yield read

    return Contents(path, root, _is_of_torch(machine), storages)


def _places(file: BinaryIO, size: int, keys: Any, described: Entries) -> dict[str, int]:
    """Key -> where the bytes of its storage begin: each follows the number of its elements."""
    places: dict[str, int] = {}
    for key in keys if isinstance(keys, list) else []:
        storage = described.found[key]
        count, width = int.from_bytes(file.read(8), "little"), width_of(storage.dtype)
        if count != storage.count or width is None:
            raise ValueError(f"storage {key!r} of {count} elements, {storage.count} were described")
        if file.tell() + count * width > size:
            raise ValueError(f"storage {key!r} ends behind the end of the file")
        places[key] = file.tell()
        file.seek(count * width, 1)
    return places


def _machine() -> tuple[Machine, Entries]:
    described = Entries()
    return Machine(CALLS, described.persistent), described


def _is_of_torch(machine: Machine) -> bool:
    """Whether torch reads the file as data: it names nothing else, and has torch's protocol."""
    return machine.named <= OF_TORCH and machine.protocol == 2


def _no_storages() -> AbstractContextManager[ReadStorage]:
    """Of a file without any: what asks for one finds nothing."""
    return contextlib.nullcontext(lambda _: bytearray())


def _checked(storage: Storage, data: bytearray, big_endian: bool) -> bytearray:
    width = width_of(storage.dtype)
    if width is None or len(data) < storage.count * width:
        raise ValueError(f"{len(data)} bytes for {storage.count} elements of {storage.dtype}")
    if big_endian and width > 1:
        import numpy as np

        part = 8 if storage.dtype == "complex128" else 4 if storage.dtype == "complex64" else width
        data = bytearray(np.frombuffer(data, f"u{part}").byteswap().tobytes())
    return data


def _broken(path: Path, err: BaseException) -> ExportError:
    return ExportError(
        f"{path}: a torch checkpoint was wanted, found a broken one ({shown(err)}); download it "
        "again"
    )
