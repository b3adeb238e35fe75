"""The folder of crops of real people: pictures in a tar, joints and boxes in arrays beside it."""

from __future__ import annotations

import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.errors import ExportError
from mambapose.runtime.types import ImageArray

FOLDER = "real-people"
FREE, SHARE_ALIKE = "people-free", "people-sa"
ARRAYS = ("xy", "ok", "box", "split", "source", "group", "tier", "part", "human_xy", "human_marked")
SHIPS = "A"  # the tier whose licences speak of the pictures


@dataclass(frozen=True)
class People:
    """N crops of real people.

    jpegs: the files; xy: (N, 17, 2) px of the picture; ok: (N, 17) where the teacher is sure;
    box: (N, 4) xyxy; split: ``train`` or ``val``; part: ``full``, ``half`` or ``bust``; human_xy,
    human_marked: (N, 17, 2) and (N, 17), joints that people marked.
    """

    jpegs: tuple[bytes, ...]
    xy: NDArray[np.float32]
    ok: NDArray[np.bool_]
    box: NDArray[np.float32]
    split: NDArray[np.str_]
    source: NDArray[np.str_]
    group: NDArray[np.str_]
    tier: NDArray[np.str_]
    part: NDArray[np.str_]
    human_xy: NDArray[np.float32]
    human_marked: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.jpegs)

    def image(self, number: int) -> ImageArray:
        """(H, W, 3) RGB of crop ``number``."""
        import cv2

        found = cv2.imdecode(np.frombuffer(self.jpegs[number], np.uint8), cv2.IMREAD_COLOR)
        if found is None:
            raise ExportError(
                f"a JPEG was wanted for person {number}, found other bytes; get the folder again"
            )
        return np.ascontiguousarray(found[..., ::-1])

    def annotated(self) -> NDArray[np.bool_]:
        """(N,) which crops belong to a group with somebody whose joints people marked."""
        groups = np.unique(self.group[self.human_marked.any(axis=1)])
        return np.asarray(np.isin(self.group, groups))

    def trained_on(self) -> NDArray[np.intp]:
        """The numbers of the crops for weights that ship: split train, tier A.

        Crops that people annotated are kept out too, because they are the only truth that does not
        come from the teacher.
        """
        wanted = (self.split == "train") & (self.tier == SHIPS) & ~self.annotated()
        return np.flatnonzero(wanted)


def read_people(folder: Path, name: str = FREE) -> People:
    """The people in ``name``.tar and ``name``.npz of the folder.

    ExportError when the two files do not fit together.
    """
    try:
        # Opened here: numpy leaves a file open whose archive it cannot read.
        with (folder / f"{name}.npz").open("rb") as stream, np.load(stream) as file:
            arrays = {key: file[key] for key in ARRAYS}
        with tarfile.open(folder / f"{name}.tar") as tar:
            jpegs = {member.name: _bytes(tar, member) for member in tar if member.isfile()}
        ordered = tuple(jpegs[f"{number:05d}.jpg"] for number in range(len(arrays["xy"])))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, tarfile.TarError) as err:
        raise ExportError(
            f"crops of people were wanted in {folder}/{name}.tar and .npz, they cannot be read "
            f"({err}); get the folder again"
        ) from err
    return People(ordered, **arrays)


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    return b"" if file is None else file.read()
