"""A bundle whose graphs are stand-ins: its manifest is real, its engines are fakes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from mambapose.runtime.backends.engine import Engine
from mambapose.runtime.backends.fake import FakeEngine
from mambapose.runtime.backends.loader import BACKENDS
from mambapose.runtime.bundle.bundle import write_bundle
from mambapose.runtime.bundle.entries import Bundle, FileEntry, GraphEntry, StageEntry, WeightsEntry
from mambapose.runtime.targets import Schedule
from mambapose.runtime.types import Where

NETWORKS = {
    "flow": "raft-small",
    "depth": "depth-anything-v2-small",
    "pose2d": "mambapose-tiny",
    "lift3d": "mambapose3d",
}
OPTIONS = {"lift3d": {"unit": "body_height"}}  # as mp-export says of every lifter


def write_fake_bundle(
    path: Path,
    engines: Mapping[str, FakeEngine],
    schedule: Schedule | None = None,
    *,
    trained: bool = True,
    networks: Mapping[str, str] | None = None,
    label: str | None = None,
    measured: Mapping[str, float] | None = None,
) -> Bundle:
    """A bundle of the engines' specs, keyed as the pipeline names them."""

    def fill(folder: Path) -> Bundle:
        (folder / "stages").mkdir()
        stages: dict[str, dict[str, GraphEntry]] = {}
        for key, engine in engines.items():
            stage, _, base = key.partition(".")
            file = f"stages/{key}.onnx"
            (folder / file).write_bytes(key.encode())
            digest = hashlib.sha256(key.encode()).hexdigest()
            graphs = stages.setdefault(stage, {})
            graphs[base or "main"] = GraphEntry(engine.spec, {"onnx": FileEntry(file, digest)})
        weights = WeightsEntry(None, None, False)
        if trained:
            weights = WeightsEntry("w.pth", "0" * 64, True, label=label, measured=measured or {})
        names = {**NETWORKS, **(networks or {})}
        entries = {
            stage: StageEntry(
                names[stage], "fp32", 1, weights, graphs, options=OPTIONS.get(stage, {})
            )
            for stage, graphs in stages.items()
        }
        return Bundle(folder, "0", "2026-01-01T00:00:00Z", "cpu", schedule or Schedule(), entries)

    return write_bundle(path, fill)


def use_fakes(monkeypatch: pytest.MonkeyPatch, engines: Mapping[str, FakeEngine]) -> None:
    """Make the onnxruntime backend hand out the fakes for what the bundle lists."""

    def load(bundle: Bundle, stage: str, graph: str, where: Where) -> FakeEngine:
        base = graph.partition("@")[0]
        engine = engines[stage if base == "main" else f"{stage}.{base}"]
        return FakeEngine(engine.spec, engine.function)

    use_backend(monkeypatch, load)


def use_backend(
    monkeypatch: pytest.MonkeyPatch, load: Callable[[Bundle, str, str, Where], Engine]
) -> None:
    """Make the onnxruntime backend load graphs of bundles by ``load``."""
    monkeypatch.setitem(BACKENDS, "onnxruntime", replace(BACKENDS["onnxruntime"], load=load))
