"""ViTPose against its official implementation: keys, features, exported heatmaps."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mambapose.export.checkpoints import Rows, load_weights
from mambapose.export.models import NETWORKS, vitpose
from mambapose.runtime.errors import ExportError

CASES = ["s-classic", "s-simple", "b-classic", "b-simple"]
LIMIT = 5e-6


def network(case, name: str) -> vitpose.VitPose:
    model = vitpose.build(size=name[0], head=name[2:])
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == case.meta["keys"]
    assert sum(p.numel() for p in model.parameters()) == case.meta["parameters"]
    model.load_state_dict({key: torch.from_numpy(value) for key, value in case.weights.items()})
    return model


@pytest.mark.parametrize(
    "name", [*CASES[:2], *(pytest.param(name, marks=pytest.mark.slow) for name in CASES[2:])]
)
def test_agrees_with_the_official_code(golden, chain, relative_error, name):
    case = golden(f"vitpose-{name}-256x192")
    model = network(case, name)
    graphs = vitpose.graphs(model)
    module, images = graphs["main"][0], case.arrays["images"]
    with torch.no_grad():
        crops = module.normalise(torch.from_numpy(images))
        features = model.backbone(crops, module.positions)[:, :32]
    assert relative_error(features, case.arrays["features"]) <= LIMIT

    exported = chain(graphs)
    heatmaps = exported.run("main", images)[0]
    error = relative_error(heatmaps, case.arrays["heatmaps"])
    assert error <= LIMIT, f"{error / LIMIT:.2f} of the limit"
    alone = exported.run("main", images[1:])[0]
    assert relative_error(alone, case.arrays["heatmaps"][1:]) <= LIMIT

    mirrored = exported.run("main", images[:1, :, ::-1].copy())[0][..., ::-1].copy()
    pairs = np.array(case.meta["flip_pairs"])
    mirrored[:, pairs.ravel()] = mirrored[:, pairs[:, ::-1].ravel()]
    average = (heatmaps[:1] + mirrored) / 2
    assert relative_error(average, case.arrays["heatmaps_flip_avg"]) <= LIMIT

    assert not exported.operators() & {"Shape", "If", "Loop", "IsNaN", "Where"}
    operators = [node.op_type for node in exported.models["main"].graph.node]
    assert operators.count("LayerNormalization") == 2 * vitpose.VARIANTS[name[0]].depth + 1


@pytest.mark.parametrize("name", CASES[:2])
def test_transformers_names_load_and_change_nothing(golden, tmp_path, name):
    case = golden(f"vitpose-{name}-256x192")
    names = json.loads((case.folder / "vitpose-keymap.json").read_text())["maps"][name]
    model = vitpose.build(size=name[0], head=name[2:])
    assert vitpose.key_tables(model)[0] == {
        theirs: key if entry["op"] == "copy" else Rows(key, index, 3)
        for key, entry in names.items()
        for index, theirs in enumerate(entry["hf"])
    }
    theirs = {}
    for key, entry in names.items():
        if entry["op"] == "copy":
            theirs[entry["hf"][0]] = torch.from_numpy(case.weights[key])
        else:
            parts = np.split(case.weights[key], 3)
            theirs |= {n: torch.from_numpy(p) for n, p in zip(entry["hf"], parts, strict=True)}
    torch.save(theirs, tmp_path / "pytorch_model.bin")
    load_weights(model, tmp_path / "pytorch_model.bin", vitpose.key_tables(model))
    for key, value in model.state_dict().items():
        assert np.array_equal(value.numpy(), case.weights[key]), key


@pytest.mark.parametrize("name", [n for n in NETWORKS if n.startswith("vitpose")])
def test_registered_sizes_have_the_true_parameter_counts(name):
    row = NETWORKS[name]
    with torch.device("meta"):
        model = vitpose.build(**row.config)
    assert sum(p.numel() for p in model.parameters()) == row.params


@pytest.mark.parametrize(("size", "head"), [("l", "simple"), ("h", "classic")])
def test_other_sizes_export_what_torch_computes(chain, relative_error, size, head):
    """Their widths and heads, two blocks deep, for one and three people."""
    torch.manual_seed(2)
    variant = replace(vitpose.VARIANTS[size], depth=2)
    model = vitpose.VitPose(variant, vitpose.HEADS[head]).eval()
    graphs = vitpose.graphs(model)
    exported = chain(graphs)
    rgb = np.random.default_rng(1).integers(0, 256, (3, 256, 192, 3), dtype=np.uint8)
    with torch.no_grad():
        wanted = graphs["main"][0](torch.from_numpy(rgb))
    assert relative_error(exported.run("main", rgb)[0], wanted) <= 2e-5
    assert relative_error(exported.run("main", rgb[:1])[0], wanted[:1]) <= 2e-5


def test_another_crop_size_is_refused():
    with pytest.raises(ExportError, match="256x192 was wanted, found 384x288"):
        vitpose.graphs(vitpose.VitPose(vitpose.Variant(32, 1, 2), vitpose.SimpleHead), (384, 288))


def test_the_other_head_is_refused_by_its_first_key(tmp_path):
    path = tmp_path / "classic.pth"
    variant = vitpose.Variant(32, 1, 2)
    torch.save(vitpose.VitPose(variant, vitpose.ClassicHead).state_dict(), path)
    model = vitpose.VitPose(variant, vitpose.SimpleHead)
    with pytest.raises(ExportError, match=r"unexpected \(first: keypoint_head\.deconv_layers\.0"):
        load_weights(model, path, vitpose.key_tables(model), network="vitpose-s-simple")
