"""A store of shots on disk, which are set into new pictures many times.

``shots.bin`` holds the pictures of one shot after another, ``index.npz`` where each begins and
everything small. Flow and inverse depth are float16: flow below 32 px is kept to 0.016 px, inverse
depth to 0.05 %. A shot of a 230 px tall person with its shadow takes about 0.6 MB.
"""

from __future__ import annotations

import bisect
import itertools
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.errors import ExportError
from mambapose.train.world.camera import Camera
from mambapose.train.world.shot import PEOPLE, Shot

FORMAT_VERSION = 1
MAX_SIDE = 1 << 14  # px of a shot
# name, dtype, channels; in the order of the file. The last one is there in stores of pairs.
_PLANES: tuple[tuple[str, str, int], ...] = (
    ("rgba", "u1", 4),
    ("person", "u1", 1),
    ("inverse_depth", "f2", 1),
    ("flow_before", "f2", 2),
    ("flow_after", "f2", 2),
    ("rgba_before", "u1", 4),
)


def write_store(folder: Path, shots: Iterable[Shot], count: int) -> int:
    """The bytes written for ``count`` shots in a new folder.

    The index is written last: a folder without one is not a store.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    offset = 0
    with (folder / "shots.bin").open("wb") as file:
        for _, shot in zip(range(count), shots, strict=False):
            rows.append(_row(shot, offset))
            for name, dtype, _channels in _PLANES:
                plane = getattr(shot, name)
                if plane is not None:
                    offset += file.write(np.ascontiguousarray(plane, dtype).tobytes())
    if not rows:
        raise ExportError(f"{folder}: at least one shot was wanted, found none")
    table = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    table["format_version"] = np.array(FORMAT_VERSION)
    table["pair"] = np.array(shot.rgba_before is not None)
    arrays: dict[str, Any] = table
    np.savez(folder / "index.npz", **arrays)
    return offset


def _row(shot: Shot, offset: int) -> dict[str, Any]:
    marks = np.full((PEOPLE, *shot.marks.shape[1:]), np.nan)
    stature = np.full(PEOPLE, np.nan)
    marks[: len(shot.marks)], stature[: len(shot.marks)] = shot.marks, shot.stature
    return {
        "offset": np.int64(offset),
        "size": np.array(shot.rgba.shape[:2]),
        "people": np.int64(len(shot.marks)),
        "marks": marks,
        "stature": stature,
        "rotation": np.stack([camera.rotation for camera in shot.cameras]),
        "position": np.stack([camera.position for camera in shot.cameras]),
        "matrix": shot.cameras[1].matrix,
    }


# Name -> shape behind the axis of the shots, and kind of number; K points of marks.
_INDEX: dict[str, tuple[tuple[int | str, ...], str]] = {
    "offset": ((), "i"),
    "size": ((2,), "i"),
    "people": ((), "i"),
    "marks": ((PEOPLE, "K", "C"), "f"),
    "stature": ((PEOPLE,), "f"),
    "rotation": ((3, 3, 3), "f"),
    "position": ((3, 3), "f"),
    "matrix": ((3, 3), "f"),
}


def _problem(table: Mapping[str, NDArray[Any]]) -> str | None:
    """What is wrong with the arrays of an index, None when nothing is."""
    if missing := [name for name in (*_INDEX, "pair") if name not in table]:
        return f"no array {missing[0]}"
    if table["pair"].shape or table["pair"].dtype.kind != "b":
        return f"pair of {table['pair'].dtype} {table['pair'].shape}"
    count = table["offset"].shape[:1]
    if count in ((), (0,)):
        return "no shots"
    for name, (shape, kind) in _INDEX.items():
        have = table[name]
        fits = have.ndim == len(shape) + 1 and have.shape[:1] == count
        sides = zip(have.shape[1:], shape, strict=False)
        if not (fits and all(isinstance(b, str) or a == b for a, b in sides)):
            return f"{name} of shape {have.shape}"
        if have.dtype.kind != kind:
            return f"{name} of {have.dtype}"
    if (table["size"] < 1).any() or (table["size"] > MAX_SIDE).any():
        return f"pictures of {table['size'].min()} to {table['size'].max()} px"
    if (table["people"] < 1).any() or (table["people"] > PEOPLE).any():
        return f"{table['people'].min()} to {table['people'].max()} people in a shot"
    return "a first shot that does not begin at 0" if table["offset"][0] else None


class ShotStore:
    """A store opened for reading: ``store[k]`` is a Shot, ``len(store)`` their number.

    ExportError when the folder holds none, or a damaged one: every row of the index is checked, so
    that no shot fails hours into a training.
    """

    def __init__(self, folder: Path) -> None:
        try:
            # np.load leaves a file open that it opened itself when its zip is broken.
            with (
                (folder / "index.npz").open("rb") as stream,
                np.load(stream, allow_pickle=False) as file,
            ):
                self._table = {name: file[name] for name in file.files}
            self._bytes = np.memmap(folder / "shots.bin", np.uint8, "r")
        except (OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError,
                MemoryError, OverflowError, zipfile.BadZipFile, zlib.error) as err:  # fmt: skip
            raise ExportError(
                f"{folder}: a store of shots was wanted, it cannot be read ({err}); write it again"
            ) from err
        version = self._table.get("format_version")
        if version is None or version.shape or version != FORMAT_VERSION:
            raise ExportError(
                f"{folder}: a store of format {FORMAT_VERSION} was wanted, found "
                f"{'none' if version is None else repr(version)[:40]}; write it again"
            )
        if (problem := _problem(self._table)) is not None:
            raise ExportError(
                f"{folder}: an index of shots was wanted, found {problem}; write the store again"
            )
        self.pair = bool(self._table["pair"])
        wanted = self._end(len(self) - 1)
        if wanted != len(self._bytes) or any(
            self._end(number) != self._table["offset"][number + 1]
            for number in range(len(self) - 1)
        ):
            raise ExportError(
                f"{folder}: {wanted} bytes of shots were wanted, one behind the other, found "
                f"{len(self._bytes)}; write the store again"
            )

    def __len__(self) -> int:
        return len(self._table["offset"])

    def _planes(self) -> tuple[tuple[str, str, int], ...]:
        return _PLANES if self.pair else _PLANES[:-1]

    def _end(self, number: int) -> int:
        height, width = self._table["size"][number]
        per_pixel = sum(np.dtype(d).itemsize * c for _, d, c in self._planes())
        return int(self._table["offset"][number] + height * width * per_pixel)

    def __getitem__(self, number: int) -> Shot:
        row = {name: values[number] for name, values in self._table.items() if np.ndim(values) > 0}
        height, width = (int(value) for value in row["size"])
        start = int(row["offset"])
        planes: dict[str, NDArray[Any]] = {}
        for name, dtype, channels in self._planes():
            size = height * width * channels * np.dtype(dtype).itemsize
            plane = self._bytes[start : start + size].view(dtype)
            shape = (height, width, channels) if channels > 1 else (height, width)
            planes[name] = np.asarray(plane).reshape(shape)
            start += size
        before, now, after = (
            Camera(rotation, position, row["matrix"], (width, height))
            for rotation, position in zip(row["rotation"], row["position"], strict=True)
        )
        people = int(row["people"])
        return Shot(
            **planes, marks=row["marks"][:people], stature=row["stature"][:people],
            cameras=(before, now, after),
        )  # fmt: skip


class Stores(Sequence[Shot]):
    """Several stores as one. pair: whether all of them hold the picture before."""

    def __init__(self, folders: Sequence[Path]) -> None:
        if not folders:
            raise ExportError("a store of shots was wanted; make some with train.pose2d.render")
        self._stores = [ShotStore(folder) for folder in folders]
        self._ends = list(itertools.accumulate(map(len, self._stores)))
        self.pair = all(store.pair for store in self._stores)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, number: int) -> Shot:  # type: ignore[override]
        store = bisect.bisect_right(self._ends, number)
        return self._stores[store][number - (self._ends[store - 1] if store else 0)]
