"""What a bundle holds: its stages, their graphs, and the files of the graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mambapose.runtime.bundle import manifest as strict
from mambapose.runtime.errors import BundleError
from mambapose.runtime.targets import Schedule
from mambapose.runtime.types import GraphSpec

FORMAT_VERSION = 4
MANIFEST = "bundle.json"
ONNX, TENSORRT = "onnx", "trt"  # forms of a graph; the first is always there
SCAN_SPEC = 1  # version of what the selective scan means (docs/operator.md)


@dataclass(frozen=True)
class WeightsEntry:
    """Where the weights came from. file: name of the checkpoint, None when seeded random.

    label: "demonstration" for weights below their goals, else None. measured: headline numbers of
    the card of weights that ship, name -> number.
    """

    file: str | None
    sha256: str | None
    trained: bool
    licence: str | None = None
    label: str | None = None
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle. path: relative to the bundle's folder; sha256: hash of its content."""

    path: str
    sha256: str


@dataclass(frozen=True)
class GraphEntry:
    """One graph.

    forms: the same graph as files for different backends; ``onnx`` is always there, ``trt`` where
    a graph with selective scans was also written for TensorRT. data: external weights, which the
    graphs of a stage share. gate: .npz of ``in.<tensor>`` and ``out.<tensor>``.
    """

    spec: GraphSpec
    forms: Mapping[str, FileEntry]
    data: FileEntry | None = None
    gate: FileEntry | None = None

    @property
    def onnx(self) -> str:
        """The path of the ONNX file that any ONNX Runtime opens."""
        return self.forms[ONNX].path

    def files(self) -> list[FileEntry]:
        """Every file of this graph."""
        return [*self.forms.values(), *(file for file in (self.data, self.gate) if file)]


@dataclass(frozen=True)
class StageEntry:
    """One network with its graphs, keyed ``main``, ``encode@192x256`` and so on.

    params: true parameter count. gate: unit (``flow_px``) -> measured error of the export against
    torch. options: what the runtime must know beyond the tensors (``flip``, ``layout``). scan_spec:
    version of the selective scan inside, None without one.
    """

    network: str
    precision: str
    params: int
    weights: WeightsEntry
    graphs: Mapping[str, GraphEntry]
    gate: Mapping[str, float] = field(default_factory=dict)
    opset: int = 18
    scan_spec: int | None = None
    options: Mapping[str, str | int | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """A bundle folder.

    created: UTC, ISO 8601. notices: NOTICE and licences that go with it. hash: SHA-256 of
    bundle.json, set when read.
    """

    path: Path
    tool_version: str
    created: str
    target: str
    schedule: Schedule
    stages: Mapping[str, StageEntry]
    notices: tuple[FileEntry, ...] = ()
    format_version: int = FORMAT_VERSION
    hash: str = ""

    def listed_files(self) -> Iterator[tuple[str, FileEntry]]:
        """(where it is listed, file) of every file that bundle.json names, some of them twice."""
        yield from (("notices", file) for file in self.notices)
        for name, stage in self.stages.items():
            for graph in stage.graphs.values():
                yield from ((name, file) for file in graph.files())

    @property
    def trained(self) -> bool:
        """True when no stage has random weights."""
        return all(stage.weights.trained for stage in self.stages.values())

    @property
    def untrained_stages(self) -> list[str]:
        """The stages with random weights."""
        return [name for name, stage in self.stages.items() if not stage.weights.trained]

    def stage(self, name: str) -> StageEntry:
        """The stage of that name; BundleError tells which stages there are."""
        if name not in self.stages:
            present = ", ".join(self.stages) or "none"
            raise BundleError(
                f"stage {name} was wanted, {self.path} holds: {present}; {strict.REMEDY}"
            )
        return self.stages[name]

    def graph(self, stage: str, name: str) -> GraphEntry:
        """The graph of that name; BundleError tells which graphs the stage has."""
        graphs = self.stage(stage).graphs
        if name not in graphs:
            raise BundleError(
                f"graph {name} of stage {stage} was wanted, {self.path} holds: "
                f"{', '.join(graphs)}; {strict.REMEDY}"
            )
        return graphs[name]

    def file(self, name: str) -> Path:
        """The absolute path of a listed file."""
        return self.path / name
