"""The bundle that ships: what this version's weights give, small, and complete."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from mambapose.export.default_bundle import build_default
from mambapose.export.plan import ExportOptions, make_plan
from mambapose.export.weights import FOLDER, read_card, shipped_networks, shipped_weights
from mambapose.runtime.bundle.bundle import file_sha256, read_bundle
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.loading import SHIPPED, lift_unit
from mambapose.runtime.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
PACKAGE_MB = 25
# What decides the bytes of graphs and weight files.
MAKERS = ("torch", "onnx", "onnxscript", "onnx-ir", "safetensors")


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    if not (SHIPPED / "bundle.json").is_file():
        pytest.skip("no bundle ships yet: make weights")
    return read_bundle(SHIPPED)


def test_every_checkpoint_that_ships_is_that_of_its_card() -> None:
    if not shipped_networks():
        pytest.skip("no weights ship yet")
    for name in shipped_networks():
        path = shipped_weights(name)
        assert path is not None
        assert read_card(path).headline
        assert path.with_suffix(".md").is_file()


def test_the_bundle_is_made_from_the_weights_that_ship(shipped: Bundle) -> None:
    plan = make_plan(TARGETS["cpu"], ExportOptions())
    assert shipped.trained
    assert shipped.target == "cpu"
    assert lift_unit(shipped) == "body_height"
    assert {name: stage.network for name, stage in shipped.stages.items()} == {
        "detect": "yolox-nano",
        **{stage.stage: stage.network.name for stage in plan.stages},
    }
    assert shipped.stages["detect"].weights.licence == "Apache-2.0"
    for stage in plan.stages:
        entry = shipped.stages[stage.stage]
        assert stage.weights is not None
        assert stage.shipped
        assert entry.weights.sha256 == file_sha256(stage.weights), "make weights"
        card = read_card(stage.weights)
        assert (entry.weights.label, entry.weights.measured) == (card.label, card.headline)
        assert all(set(graph.forms) == {"onnx"} for graph in entry.graphs.values())


def test_the_package_stays_small(shipped: Bundle) -> None:
    files = [path for folder in (SHIPPED, FOLDER) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < PACKAGE_MB * 1e6


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


@pytest.mark.slow
def test_the_bundle_can_be_made_again_byte_for_byte(shipped: Bundle, tmp_path: Path) -> None:
    """Graphs and weights; the stored outputs may differ in the last digits elsewhere."""
    wanted = pinned()
    for name in MAKERS:
        found = version(name).partition("+")[0]
        if found != wanted[name]:
            pytest.skip(f"it is made with {name} {wanted[name]}, this is {found}")
    again = build_default(tmp_path / "cpu")
    for name, stage in shipped.stages.items():
        assert again.stages[name].weights == stage.weights
        assert again.stages[name].options == stage.options
        for key, graph in stage.graphs.items():
            made = again.graph(name, key)
            assert (made.spec, made.forms) == (graph.spec, graph.forms)
            assert made.data == graph.data
