"""The nouns of a running pipeline.

Letters used in every shape comment: B batch, N people (or SSM states inside the scan),
T frames, L scan length, D channels, J joints, H W pixels, K scan directions. ``xy`` is pixels of
the original frame, ``xyxy`` a box in the same pixels; images are RGB uint8 (H, W, 3).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.errors import EngineError, RunError
from mambapose.runtime.text import printable

Array = NDArray[np.generic]
FloatArray = NDArray[np.float32]
ImageArray = NDArray[np.uint8]
Boxes = NDArray[np.float64]  # (N, 4) xyxy px

MAX_SHOWN = 200  # characters of a tensor in a message: its names are those of a file
_GRAPH_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)(?:@([1-9][0-9]{0,5})x([1-9][0-9]{0,5}))?")


class Size(NamedTuple):
    """Height and width in px, in this order everywhere; written ``192x256``."""

    height: int
    width: int

    @property
    def portrait(self) -> bool:
        """Whether it is higher than wide."""
        return self.height > self.width

    @property
    def turned(self) -> Size:
        """The other orientation."""
        return Size(self.width, self.height)

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


class GraphName(NamedTuple):
    """The name of a graph of a stage: ``main``, or ``encode@192x256`` for one of fixed size."""

    base: str
    size: Size | None = None

    @classmethod
    def parse(cls, text: str) -> GraphName:
        """The name that ``text`` spells; EngineError when it spells none."""
        found = _GRAPH_NAME.fullmatch(text)
        if found is None:
            raise EngineError(
                f"a graph name such as main or encode@192x256 was wanted, found {text!r}; "
                "export the bundle again with mp-export"
            )
        base, height, width = found.groups()
        return cls(base, Size(int(height), int(width)) if height else None)

    def __str__(self) -> str:
        return self.base if self.size is None else f"{self.base}@{self.size}"


MOST_THREADS = 1024  # far above any machine; each takes memory, and a hundred thousand all of it


@dataclass(frozen=True)
class Where:
    """Where graphs run.

    backend: its name, or ``auto``; device: ``cpu`` or ``cuda``; threads: None for all cores that
    this process may use. operator: file of the compiled selective scan, which is loaded as code;
    None for the one that the environment names, or the installed one. It never comes from a bundle.
    """

    backend: str = "auto"
    device: str = "cpu"
    threads: int | None = None
    operator: Path | None = None

    def __post_init__(self) -> None:
        """EngineError for a number of threads that no machine has."""
        if self.threads is not None and not (
            isinstance(self.threads, int) and 1 <= self.threads <= MOST_THREADS
        ):
            raise EngineError(
                f"1 to {MOST_THREADS} threads were wanted, found {self.threads}; leave the number "
                "out for one per core"
            )

    @property
    def thread_count(self) -> int:
        """How many threads an engine uses: those asked for, else one per core of this process."""
        return self.threads or len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Subjects:
    """The people to look at in one frame. ids: one for each person; boxes: (N, 4) xyxy px."""

    ids: tuple[int, ...]
    boxes: Boxes


class Stretch(NamedTuple):
    """Where a picture of the file lies in its frame, whose pixels are square.

    A pixel of the picture is ``wide`` x ``high`` px of the frame, and the picture begins at
    ``left``, ``top``. Pixels count from 0 at their centres, in both.
    """

    wide: float = 1.0
    high: float = 1.0
    left: float = 0.0
    top: float = 0.0

    def stored(self, xy: FloatArray) -> FloatArray:
        """Points (..., 2) of the frame in px of the picture that the file holds, upright."""
        if self == Stretch():
            return xy
        scale, start = np.array(self[:2]), np.array(self[2:])
        stored: FloatArray = ((xy + 0.5 - start) / scale - 0.5).astype(np.float32)
        return stored

    def shown(self, xy: FloatArray) -> FloatArray:
        """Points (..., 2) of the file's picture in px of the frame: undoes ``stored``."""
        if self == Stretch():
            return xy
        scale, start = np.array(self[:2]), np.array(self[2:])
        shown: FloatArray = ((xy + 0.5) * scale + start - 0.5).astype(np.float32)
        return shown


UNSTRETCHED = Stretch()


@dataclass(frozen=True)
class Frame:
    """One decoded image. image: uint8 RGB (H, W, 3); timestamp in seconds from the start.

    corrupt: the decoder says that parts of it are made up; stretch: how the picture of the file
    was made one of square pixels.
    """

    image: ImageArray
    index: int
    timestamp: float
    corrupt: bool = False
    stretch: Stretch = UNSTRETCHED


@dataclass(frozen=True)
class Pose:
    """One person in one frame.

    box: (4,) xyxy px; xy: (J, 2) px of the original frame; score: (J,) heatmap peaks;
    xyz: (17, 3) Human3.6M order, root-relative, y down, body heights, or None without a lifter.
    """

    frame: int
    track: int
    box: FloatArray
    xy: FloatArray
    score: FloatArray
    xyz: FloatArray | None = None


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and dimensions of one tensor; a str dimension is free (``N`` people)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        text = printable(f"{self.name}: {self.dtype} ({', '.join(map(str, self.shape))})")
        return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."

    def check(self, array: Array) -> None:
        """Raise EngineError unless the array has this dtype and these dimensions."""
        fits = array.ndim == len(self.shape) and all(
            isinstance(want, str) or want == have
            for want, have in zip(self.shape, array.shape, strict=True)
        )
        if not fits or array.dtype != np.dtype(self.dtype):
            raise RunError(
                f"tensor {self} was wanted, found {array.dtype} {tuple(array.shape)}; "
                "pass exactly the tensors the bundle declares"
            )


@dataclass(frozen=True)
class GraphSpec:
    """Inputs and outputs of one ONNX graph of a stage."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def check_inputs(self, inputs: Mapping[str, Array]) -> None:
        """Raise EngineError unless the mapping holds exactly the declared inputs."""
        wanted = {spec.name for spec in self.inputs}
        if wanted != set(inputs):
            raise RunError(
                f"graph {self.name}: inputs {sorted(wanted)} were wanted, found {sorted(inputs)}"
            )
        for spec in self.inputs:
            spec.check(inputs[spec.name])
