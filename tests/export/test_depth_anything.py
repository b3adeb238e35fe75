"""Depth Anything against its official implementation: keys, middle results, exported depth."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mambapose.export.checkpoints import Rows, load_weights
from mambapose.export.models import NETWORKS, depth_anything
from mambapose.runtime.errors import ExportError

CASES = [
    "depth-v2-reduced-140x196",
    pytest.param("depth-v2-small-252x336", marks=pytest.mark.slow),
    pytest.param("depth-v1-small-252x336", marks=pytest.mark.slow),
    pytest.param("depth-v2-small-308x308", marks=pytest.mark.slow),
    pytest.param("depth-v2-small-518x518", marks=pytest.mark.slow),
]
DEPTH_LIMIT = 5e-5
FEATURE_LIMIT = 2e-5
POSITION_LIMIT = 1e-6


def variant_of(case) -> depth_anything.Variant:
    config = case.meta["config"]
    found = depth_anything.Variant(
        width=config["dim"],
        depth=config["depth"],
        heads=config["heads"],
        features=config["features"],
        out_channels=tuple(config["out_channels"]),
        taps=tuple(config["taps"]),
    )
    if "small" in case.name:
        assert found == depth_anything.VARIANTS["small", 1 if "v1" in case.name else 2]
    return found


def network(case) -> depth_anything.DepthAnything:
    model = depth_anything.DepthAnything(variant_of(case)).eval()
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == case.meta["keys"]
    assert sum(p.numel() for p in model.parameters()) == case.meta["parameters"]
    model.load_state_dict({key: torch.from_numpy(value) for key, value in case.weights.items()})
    return model


def graphs_of(case, model):
    size = case.meta["height"], case.meta["width"]
    return depth_anything.graphs(model, size)


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_official_code(golden, chain, relative_error, name):
    """Depth through the exported graph; what lies before it through the same torch module."""
    case = golden(name)
    model = network(case)
    graphs = graphs_of(case, model)
    (module, _) = next(iter(graphs.values()))
    image, crop, arrays = case.arrays["image"][None], case.meta["crop"], case.arrays
    cut = np.s_[:, crop["y"] : crop["y"] + crop["size"], crop["x"] : crop["x"] + crop["size"]]
    exported = chain(graphs)
    depth = exported.run("main", image)[0][:, 0]
    with torch.no_grad():
        tapped = module.tapped(torch.from_numpy(image))
        maps = module.maps(torch.from_numpy(image))
        coarse = model.depth_head.paths(maps)[0]
        before = model.depth_head(maps, module.size)[:, 0].numpy()
    cells = module.size[0] // 14, module.size[1] // 14
    embedding = model.pretrained.positions(*cells)[0, :, :16]
    assert np.abs(embedding.numpy() - arrays["pos_embed_interp"]).max() <= POSITION_LIMIT
    rows = torch.stack([x[0, 1:][case.meta["tap_row_indices"]] for x in tapped])
    for found, key in (
        (rows, "tap_rows"),
        (torch.stack([x[0, 0] for x in tapped]), "tap_cls"),
        (coarse[:, :8], "path4_slice"),
    ):
        assert np.abs(found.numpy() - arrays[key]).max() <= FEATURE_LIMIT, key
    for found, key in (
        (depth[:, ::4, ::4], "depth_sub4"),
        (depth[cut], "depth_crop"),
        (before[:, ::4, ::4], "pre_relu_sub4"),
        (before[cut], "pre_relu_crop"),
    ):
        error = relative_error(found, arrays[key])
        assert error <= DEPTH_LIMIT, f"{key}: {error / DEPTH_LIMIT:.2f} of the limit"
    if "depth" in arrays:
        assert relative_error(depth, arrays["depth"]) <= DEPTH_LIMIT
    assert not exported.operators() & {"Shape", "If", "Loop", "IsNaN", "Where"}
    attention = variant_of(case).depth
    operators = [n.op_type for m in exported.models.values() for n in m.graph.node]
    assert operators.count("LayerNormalization") == 2 * attention + 4
    assert operators.count("Softmax") == attention
    assert operators.count("Resize") == 5, "the position embedding is a constant"


@pytest.mark.parametrize("version", ["hf4", "hf5"])
def test_transformers_names_are_covered(golden, version):
    case = golden("depth-v2-reduced-140x196")
    names = json.loads((case.folder / "depth-anything-keymap.json").read_text())["maps"]["small"]
    with torch.device("meta"):
        model = depth_anything.build(size="small", version=2)
    wanted = {
        theirs: key if entry["op"] == "copy" else Rows(key, index, 3)
        for key, entry in names.items()
        for index, theirs in enumerate(entry[version])
    }
    table = depth_anything.key_tables(model)[("hf4", "hf5").index(version)]
    assert table == wanted


@pytest.mark.parametrize(("version", "suffix"), [("hf4", ".pth"), ("hf5", ".safetensors")])
def test_transformers_files_load(golden, tmp_path, version, suffix):
    from safetensors.torch import save_file

    case = golden("depth-v2-reduced-140x196")
    names = json.loads((case.folder / "depth-anything-keymap.json").read_text())["maps"]["reduced"]
    theirs = {}
    for key, entry in names.items():
        parts = np.split(case.weights[key], len(entry[version]))
        theirs |= {
            n: torch.from_numpy(p.copy()) for n, p in zip(entry[version], parts, strict=True)
        }
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(theirs, path)
    model = depth_anything.DepthAnything(variant_of(case))
    load_weights(model, path, depth_anything.key_tables(model))
    for key, value in model.state_dict().items():
        assert np.array_equal(value.numpy(), case.weights[key]), key


@pytest.mark.parametrize("name", [n for n in NETWORKS if n.startswith("depth-anything")])
def test_registered_sizes_have_the_true_parameter_counts(name):
    row = NETWORKS[name]
    with torch.device("meta"):
        model = depth_anything.build(**row.config)
    assert sum(p.numel() for p in model.parameters()) == row.params


@pytest.mark.slow
@pytest.mark.parametrize("size", ["base", "large"])
def test_other_sizes_export_what_torch_computes(chain, relative_error, size):
    """Their widths and heads, four blocks deep."""
    torch.manual_seed(3)
    whole = depth_anything.VARIANTS[size, 2]
    model = depth_anything.DepthAnything(replace(whole, depth=4, taps=(0, 1, 2, 3))).eval()
    graphs = depth_anything.graphs(model, (70, 98))
    image = np.random.default_rng(0).integers(0, 256, (1, 70, 98, 3), dtype=np.uint8)
    (module, _) = next(iter(graphs.values()))
    with torch.no_grad():
        wanted = module(torch.from_numpy(image))
    assert wanted.max() > 0
    assert relative_error(chain(graphs).run("main", image)[0], wanted) <= DEPTH_LIMIT


@pytest.mark.parametrize("size", [(250, 336), (252, 330), (0, 14)])
def test_sizes_that_are_no_multiple_of_the_patch_are_refused(size):
    model = depth_anything.DepthAnything(
        depth_anything.Variant(12, 4, 2, 8, (4, 4, 4, 4), (0, 1, 2, 3))
    )
    with pytest.raises(ExportError, match=f"multiples of 14 from 14 .* found {size[0]}x{size[1]}"):
        depth_anything.graphs(model, size)


def test_normalisation_is_that_of_the_official_preprocessing(golden, relative_error):
    """The official cubic resize in float, then our normalisation and network: infer_image."""
    from torch.nn import functional

    case = golden("depth-v2-preprocess")
    arrays, size = case.arrays, (252, 336)
    model = network(case)
    module = depth_anything.graphs(model, size)["main@252x336"][0]
    pixels = torch.from_numpy(arrays["image"])[None].permute(0, 3, 1, 2).double()
    large = functional.interpolate(pixels, size, mode="bicubic", align_corners=False)
    with torch.no_grad():
        tensor = module.normalise(large.permute(0, 2, 3, 1).float())
        depth = module(large.permute(0, 2, 3, 1).float())
        back = functional.interpolate(depth, (120, 160), mode="bilinear", align_corners=True)
    assert np.abs(tensor[:, :, ::4, ::4].numpy() - arrays["tensor_sub4"]).max() <= 1e-3
    assert np.abs(tensor[:, :, :48, :48].numpy() - arrays["tensor_crop"]).max() <= 1e-3
    assert relative_error(back[0, 0], arrays["depth_image"]) <= 1e-3
