"""A small bundle of one stage, written as an export does it, without a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mambapose.runtime.bundle.bundle import file_entry
from mambapose.runtime.bundle.entries import Bundle, GraphEntry, StageEntry, WeightsEntry
from mambapose.runtime.bundle.gate_file import write_gate
from mambapose.runtime.targets import Schedule
from mambapose.runtime.types import GraphSpec, TensorSpec

SPEC = GraphSpec(
    "main@28x42",
    (TensorSpec("image", "uint8", (1, 28, 42, 3)),),
    (TensorSpec("depth", "float32", (1, 1, 28, 42)),),
)
IMAGE = np.arange(28 * 42 * 3, dtype=np.uint32).astype(np.uint8).reshape(1, 28, 42, 3)
DEPTH = np.linspace(0, 1, 28 * 42, dtype=np.float32).reshape(1, 1, 28, 42)


def fill(folder: Path, *, marker: bytes = b"weights") -> Bundle:
    """Stage files as an export leaves them, without a network: the bytes do not matter here."""
    stages = folder / "stages"
    stages.mkdir()
    (stages / "depth.onnx").write_bytes(b"graph")
    (stages / "depth.data").write_bytes(marker * 1000)
    write_gate(folder / "gate" / "depth.npz", {"image": IMAGE}, {"depth": DEPTH})
    graph = GraphEntry(
        SPEC,
        {"onnx": file_entry(folder, "stages/depth.onnx")},
        file_entry(folder, "stages/depth.data"),
        file_entry(folder, "gate/depth.npz"),
    )
    entry = StageEntry(
        network="depth-anything-v2-small",
        precision="fp32",
        params=24_785_089,
        weights=WeightsEntry(
            "vits.pth", "ab" * 32, True, "Apache-2.0", "demonstration", {"PCK@0.2": 0.71}
        ),
        graphs={SPEC.name: graph},
        gate={"depth_relative": 1.5e-6},
        options={"flip": True, "layout": "yolox", "count": 3},
    )
    return Bundle(folder, "0.1.0", "2026-01-02T03:04:05Z", "cpu", Schedule(), {"depth": entry})


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every path below the folder, hidden ones too, with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"folder"
        for path in sorted(folder.rglob("*"))
    }
