"""ViTPose against its official implementation: keys, features, exported heatmaps."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

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
def test_torch_agrees_with_the_official_code(golden, relative_error, name):
    case = golden(f"vitpose-{name}-256x192")
    model = network(case, name)
    module = vitpose.graphs(model)["main"][0]
    with torch.no_grad():
        crops = module.normalise(torch.from_numpy(case.arrays["images"]))
        tokens = model.backbone(crops, module.positions)
        heatmaps = module.head(tokens)
    features = tokens.transpose(1, 2).unflatten(2, vitpose.GRID)[:, :32]
    assert relative_error(features, case.arrays["features"]) <= LIMIT
    assert relative_error(heatmaps, case.arrays["heatmaps"]) <= LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_exported_graph_agrees_with_the_official_code(golden, chain, relative_error, name):
    case = golden(f"vitpose-{name}-256x192")
    images = case.arrays["images"]
    exported = chain(vitpose.graphs(network(case, name)))
    heatmaps = exported.run("main", images)[0]
    error = relative_error(heatmaps, case.arrays["heatmaps"])
    print(f"{case.name}: {error / LIMIT:.3f} of the limit")
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


def small(head: str, seed: int = 0) -> vitpose.VitPose:
    """Two narrow blocks, weights large enough that positions and head can be seen."""
    torch.manual_seed(seed)
    model = vitpose.VitPose(vitpose.Variant(32, 2, 2), head).eval()
    torch.nn.init.normal_(model.backbone.pos_embed)
    torch.nn.init.normal_(model.keypoint_head.final_layer.weight)
    return model


@pytest.mark.parametrize(("size", "head"), [("l", "simple"), ("h", "classic")])
def test_other_widths_export_what_torch_computes(chain, relative_error, size, head):
    """One block at a small crop, for one and three people."""
    torch.manual_seed(2)
    model = vitpose.VitPose(replace(vitpose.VARIANTS[size], depth=1), head).eval()
    graphs = vitpose.graphs(model, (64, 48))
    exported = chain(graphs)
    rgb = np.random.default_rng(1).integers(0, 256, (3, 64, 48, 3), dtype=np.uint8)
    with torch.no_grad():
        wanted = graphs["main"][0](torch.from_numpy(rgb))
    assert relative_error(exported.run("main", rgb)[0], wanted) <= 2e-5
    assert relative_error(exported.run("main", rgb[:1])[0], wanted[:1]) <= 2e-5


@pytest.mark.parametrize("head", vitpose.HEADS)
@pytest.mark.parametrize("size", [(384, 288), (80, 128)])
def test_another_crop_size_is_the_official_computation_on_another_grid(relative_error, head, size):
    """Step by step from the official definition, positions resized without the class token's."""
    model = small(head)
    ((module, spec),) = vitpose.graphs(model, size).values()
    assert spec.outputs[0].shape == ("N", 17, size[0] // 4, size[1] // 4)
    rgb = np.random.default_rng(1).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    grid = (size[0] // 16, size[1] // 16)
    with torch.no_grad():
        x = model.backbone.patch_embed(module.normalise(torch.from_numpy(rgb)))
        assert tuple(x.shape[2:]) == grid
        image = model.backbone.pos_embed[0, 1:].T.reshape(1, 32, *vitpose.GRID)
        image = functional.interpolate(image, grid, mode="bicubic", align_corners=False)
        first = model.backbone.pos_embed[0, 0].reshape(1, 32, 1, 1)
        tokens = (x + image + first).flatten(2).transpose(1, 2)
        for block in model.backbone.blocks:
            tokens = block(tokens)
        x = model.backbone.last_norm(tokens).transpose(1, 2).reshape(2, 32, *grid)
        if head == "classic":
            x = model.keypoint_head.deconv_layers(x)
        else:
            x = functional.interpolate(x.relu(), scale_factor=4, mode="bilinear")
        wanted = model.keypoint_head.final_layer(x)
        found = module(torch.from_numpy(rgb))
    assert found.shape == (2, 17, size[0] // 4, size[1] // 4)
    assert relative_error(found, wanted) <= 1e-5


@pytest.mark.parametrize("head", vitpose.HEADS)
def test_another_crop_size_exports_what_torch_computes(chain, relative_error, head):
    graphs = vitpose.graphs(small(head), (384, 288))
    rgb = np.random.default_rng(1).integers(0, 256, (2, 384, 288, 3), dtype=np.uint8)
    with torch.no_grad():
        wanted = graphs["main"][0](torch.from_numpy(rgb))
    assert relative_error(chain(graphs).run("main", rgb)[0], wanted) <= 2e-5


@pytest.mark.parametrize("size", [(250, 192), (256, 200), (16, 192)])
def test_a_size_that_is_no_multiple_of_the_patch_is_refused(size):
    with pytest.raises(ExportError, match=f"of 16 from 32 .* found {size[0]}x{size[1]}") as caught:
        vitpose.graphs(small("simple"), size)
    assert "\n" not in str(caught.value)


def test_the_other_head_is_refused_by_its_first_key(tmp_path):
    path = tmp_path / "classic.pth"
    torch.save(small("classic").state_dict(), path)
    model = small("simple")
    with pytest.raises(ExportError, match=r"unexpected \(first: keypoint_head\.deconv_layers\.0"):
        load_weights(model, path, vitpose.key_tables(model), network="vitpose-s-simple")
