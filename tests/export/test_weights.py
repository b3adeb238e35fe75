"""Weights that ship: found, believed only with their card, shown in the bundle, stored in FP16."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file

from mambapose.export import build, weights
from mambapose.export.cli import main
from mambapose.export.half import halved, rounded
from mambapose.export.models import NETWORKS, posemamba
from mambapose.export.plan import ExportOptions, StagePlan, make_plan
from mambapose.export.weights import (
    facts_from_file,
    read_card,
    shipped_networks,
    shipped_weights,
)
from mambapose.runtime.backends.loader import load_engine
from mambapose.runtime.bundle.bundle import read_bundle
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.bundle.gate_file import read_gate
from mambapose.runtime.errors import ExportError
from mambapose.runtime.loading import lift_unit
from mambapose.runtime.targets import TARGETS
from mambapose.runtime.types import Where

NAME = "posemamba-s"
SMALL = {"width": 16, "depth": 1}
LIFTER = ("--only", "lift3d", "--lift3d", NAME, "--clip-frames", "9")
METADATA = {"unit": "body_height", "label": "demonstration", "licence": "Apache-2.0"}
HEADLINE = {"PA-MPJPE mm, pose2sim": 57.5}


def ship(folder: Path, metadata: dict[str, str] | None = None, **changes: Any) -> Path:
    """The weights of a small lifter with their card, as the training writes them."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{NAME}.safetensors"
    state = posemamba.build(seed=5, **SMALL).state_dict()
    save_file({key: value.half() for key, value in state.items()}, path, metadata or METADATA)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    card = {
        "label": "demonstration",
        "file": {"name": path.name, "sha256": digest},
        "headline": HEADLINE,
        "seed": 5,
    }
    card = {key: value for key, value in {**card, **changes}.items() if value is not None}
    path.with_suffix(".json").write_text(json.dumps(card))
    return path


@pytest.fixture(scope="module", autouse=True)
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of weights that ship, with those of a lifter that exports in seconds."""
    folder = tmp_path_factory.mktemp("shipped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, NAME, replace(NETWORKS[NAME], config=SMALL))
        patch.setattr(weights, "FOLDER", folder)
        ship(folder)
        yield folder


def lifter(**options: Any) -> StagePlan:
    asked = ExportOptions(only=("lift3d",), networks={"lift3d": NAME}, clip_frames=9, **options)
    (stage,) = make_plan(TARGETS["cpu"], asked).stages
    return stage


def export(out: Path, *args: object) -> Bundle:
    main([*LIFTER, "--out", str(out), *map(str, args)])
    return read_bundle(out)


@pytest.fixture(scope="module")
def bundle(shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(tmp_path_factory.mktemp("export") / "bundle")


# --- finding and believing -----------------------------------------------------------------------


def test_weights_are_found_by_the_name_of_the_network(shipped: Path) -> None:
    assert shipped_networks() == [NAME]
    assert shipped_weights(NAME) == shipped / f"{NAME}.safetensors"
    assert shipped_weights("mambapose-tiny") is None


def test_a_card_says_label_and_numbers(tmp_path: Path) -> None:
    card = read_card(ship(tmp_path / "a"))
    assert (card.label, card.headline) == ("demonstration", HEADLINE)
    assert read_card(ship(tmp_path / "b", label="trained")).label is None


BAD_CARDS: dict[str, tuple[dict[str, Any], str]] = {
    "no label": ({"label": None}, "'label' is missing"),
    "no numbers": ({"headline": None}, "'headline' is missing"),
    "no file": ({"file": None}, "'file' is missing"),
    "label": ({"label": "best"}, "one of demonstration, trained .* found 'best'"),
    "empty": ({"headline": {}}, "1 to 8 headline numbers were wanted, found .* and 0"),
    "text": ({"headline": {"PCK": "high"}}, "finite number"),
    "other file": ({"file": {"sha256": "0" * 64}}, "of its card were wanted"),
    "short hash": ({"file": {"sha256": "00"}}, "SHA-256 of 64"),
}


@pytest.mark.parametrize("case", BAD_CARDS)
def test_a_card_that_cannot_be_believed_is_refused(tmp_path: Path, case: str) -> None:
    changes, sentence = BAD_CARDS[case]
    path = ship(tmp_path / "w", **changes)
    with pytest.raises(ExportError, match=rf"{sentence}.*install mambapose again") as caught:
        read_card(path)
    assert "\n" not in str(caught.value)


def test_a_missing_or_damaged_card_is_refused(tmp_path: Path) -> None:
    path = ship(tmp_path / "w")
    path.with_suffix(".json").write_text("{")
    with pytest.raises(ExportError, match=r"not valid JSON.*install mambapose again"):
        read_card(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(ExportError, match=r"card of posemamba-s.safetensors was wanted at .*again"):
        read_card(path)


def test_a_damaged_checkpoint_stops_the_export(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "w")
    path = ship(tmp_path / "w")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ExportError, match="of its card were wanted, found"):
        build.load_network(lifter(), 0, print)
    path.write_bytes(content[:-100])
    with pytest.raises(ExportError, match="found a broken one"):
        build.load_network(lifter(), 0, print)


# --- what a checkpoint says of itself ------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "unit", "label"),
    [
        ({"unit": "body_height", "label": "demonstration"}, "body_height", "demonstration"),
        ({"unit": "image", "label": "trained"}, "image", None),
        ({"format": "pt"}, "image", None),  # as PoseMamba's published weights
    ],
)
def test_the_unit_is_that_of_the_weights(
    tmp_path: Path, metadata: dict[str, str], unit: str, label: str | None
) -> None:
    loaded = build.load_network(
        lifter(weights={"lift3d": ship(tmp_path / "w", metadata)}), 0, print
    )
    assert (loaded.unit, loaded.weights.label) == (unit, label)
    assert loaded.weights.measured == {}  # of a file given by hand no card is believed
    assert loaded.half


def test_joints_are_those_the_weights_were_trained_on(tmp_path: Path) -> None:
    file = ship(tmp_path / "w", {"unit": "body_height", "joints": "person"})
    model = build.load_network(lifter(weights={"lift3d": file}), 0, print).model
    assert model.centred
    file = ship(tmp_path / "v", {"unit": "body_height"})
    assert not build.load_network(lifter(weights={"lift3d": file}), 0, print).model.centred
    with pytest.raises(ExportError, match=r"joints person or none were wanted .* found 'hip'"):
        facts_from_file(ship(tmp_path / "u", {"joints": "hip"}))


def test_a_unit_nobody_knows_is_refused(tmp_path: Path) -> None:
    path = ship(tmp_path / "w", {"unit": "inch"})
    with pytest.raises(ExportError, match=r"body_height or image was wanted .* found 'inch'"):
        facts_from_file(path)


def test_only_fp16_files_count_as_half(tmp_path: Path) -> None:
    state = posemamba.build(**SMALL).state_dict()
    save_file(state, tmp_path / "full.safetensors")
    assert facts_from_file(tmp_path / "full.safetensors") == weights.Facts()
    torch.save(state, tmp_path / "w.pth")
    assert facts_from_file(tmp_path / "w.pth") == weights.Facts()


# --- the bundle ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_bundle_and_the_output_say_what_the_weights_are(
    bundle: Bundle, shipped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = bundle.stage("lift3d")
    assert bundle.trained
    assert entry.weights.trained
    assert entry.weights.file == f"{NAME}.safetensors"
    assert (entry.weights.label, entry.weights.licence) == ("demonstration", "Apache-2.0")
    assert entry.weights.measured == HEADLINE
    assert lift_unit(bundle) == "body_height"
    # --untrained means the stages that have no weights.
    again = export(tmp_path / "bundle", "--untrained")
    assert again.trained
    line = next(line for line in capsys.readouterr().out.splitlines() if "ships" in line)
    assert (
        line.split()
        == (
            f"lift3d {NAME}.safetensors, which ships: demonstration, PA-MPJPE mm, pose2sim 57.5"
        ).split()
    )
    # The same weights give the same files.
    for graph in (bundle.graph("lift3d", "main"),):
        assert again.graph("lift3d", "main") == graph


def test_other_weights_take_the_place_of_those_that_ship(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.pth"
    torch.save(posemamba.build(seed=8, **SMALL).state_dict(), file)
    entry = export(tmp_path / "bundle", "--weights", f"lift3d={file}").stage("lift3d")
    assert entry.weights.file == "mine.pth"
    assert (entry.weights.label, entry.weights.measured) == (None, {})
    assert entry.options == {"unit": "image"}
    assert "ships" not in capsys.readouterr().out


def initializers(bundle: Bundle) -> dict[str, np.ndarray]:
    model = onnx.load(bundle.file(bundle.graph("lift3d", "main").onnx))
    return {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}


def test_half_weights_are_stored_in_half_and_computed_in_full(bundle: Bundle) -> None:
    stored = initializers(bundle)
    big = {name: array for name, array in stored.items() if array.nbytes >= 512}
    short = [name for name, array in big.items() if array.dtype == np.float16]
    assert sum(big[name].size for name in short) > 0.95 * sum(
        array.size for array in big.values() if array.dtype.kind == "f"
    )
    module, _ = posemamba.graphs(posemamba.build(seed=5, **SMALL), 9)["main"]
    inputs, gate = read_gate(bundle, bundle.graph("lift3d", "main"))
    with torch.no_grad():
        exact = rounded(module)(torch.from_numpy(inputs["keypoints"])).numpy()
        unrounded = module(torch.from_numpy(inputs["keypoints"])).numpy()
    with load_engine(bundle, "lift3d", "main", Where("onnxruntime")) as engine:
        found = engine.run(inputs)["xyz"]
    scale = np.abs(exact).max()
    assert np.abs(found - exact).max() < 1e-5 * scale
    assert np.abs(gate["xyz"] - exact).max() < 1e-5 * scale
    assert np.abs(found - unrounded).max() < 5e-3 * scale


def test_rounding_spares_what_fp16_cannot_hold() -> None:
    module = torch.nn.Linear(8, 8)
    with torch.no_grad():
        module.weight.fill_(1 / 3)
        module.bias.fill_(1e-8)
    copy = rounded(module)
    assert copy.weight[0, 0].item() == float(np.float16(1 / 3))
    assert copy.bias[0].item() == pytest.approx(1e-8)
    assert module.weight[0, 0].item() == pytest.approx(1 / 3, abs=1e-8)


@pytest.mark.parametrize(
    ("values", "fits"),
    [([0.5, -3.0, 65504.0], True), ([1 / 3], False), ([70000.0], False), ([float("nan")], False)],
)
def test_an_array_is_halved_without_loss_or_not_at_all(values: list[float], fits: bool) -> None:
    array = np.array(values, np.float32)
    half = halved(array)
    assert (half is not None) == fits
    if half is not None:
        assert half.astype(np.float32).tolist() == values
    assert halved(np.arange(3)) is None


def date(monkeypatch: pytest.MonkeyPatch, value: str) -> Callable[[], str]:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", value)
    return build.created_now


def test_the_date_can_be_given_for_a_reproducible_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    assert date(monkeypatch, "0")() == "1970-01-01T00:00:00Z"
    with pytest.raises(ExportError, match="SOURCE_DATE_EPOCH, found 'today'"):
        date(monkeypatch, "today")()
