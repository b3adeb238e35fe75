"""RAFT against its official implementation: keys, middle results, flow through the graphs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mambapose.export.checkpoints import load_weights, read_state_dict
from mambapose.export.models import raft
from mambapose.runtime.errors import ExportError

VARIANTS = ("small", "large")
CASES = [
    ("small", (128, 160)),
    pytest.param("large", (128, 160), marks=pytest.mark.slow),
    *(pytest.param(variant, (192, 256), marks=pytest.mark.slow) for variant in VARIANTS),
]
INSTANCE_NORMS = {"small": 21, "large": 15}
FLOW_LIMITS = {4: 5e-5, 12: 1e-4}
WARM_LIMIT = 1e-4
TRAINED_LIMIT_PX = 2e-3
TRAINED_HALF_LIMIT_PX = 8e-3


def network(case) -> raft.Raft:
    model = raft.build(variant="small" if case.meta["config"]["small"] else "large")
    model.load_state_dict({key: torch.from_numpy(value) for key, value in case.weights.items()})
    return model


def exported(chain, model: raft.Raft, size: tuple[int, int], key: str):
    return chain(raft.graphs(model, size), key=(key, size))


def flows(chain, image1, image2, wanted: tuple[int, ...], start=None) -> dict[int, tuple]:
    """Iterations -> (flow, flow at 1/8), driven through the graphs as the runtime does."""
    fmap1, hidden, context = chain.run("encode", image1[None])
    fmap2 = chain.run("encode", image2[None])[0]
    pyramid = chain.run("corr", fmap1, fmap2)
    grid = raft.identity_grid(*fmap1.shape[2:]).numpy()
    coords = grid if start is None else grid + start
    found = {}
    for step in range(1, max(wanted) + 1):
        coords, hidden = chain.run("step", *pyramid, coords, hidden, context)
        if step in wanted:
            needed = len(chain.sessions["upsample"].get_inputs())
            flow = chain.run("upsample", *(coords, hidden)[:needed])[0]
            found[step] = (flow, coords - grid)
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_keys_shapes_and_parameters_are_the_official_ones(golden, variant):
    meta = golden(f"raft-{variant}-192x256").meta
    model = raft.build(variant=variant)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == meta["keys"]
    assert sum(parameter.numel() for parameter in model.parameters()) == meta["parameters"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_torchvision_names_load_and_change_nothing(golden, variant, tmp_path):
    case = golden(f"raft-{variant}-128x160")
    names = json.loads((case.folder / "raft-keymap.json").read_text())["maps"][f"raft_{variant}"]
    theirs = names["princeton_to_torchvision"]
    path = tmp_path / "torchvision.pth"
    torch.save({theirs[k]: torch.from_numpy(case.weights[k]) for k in theirs}, path)
    model = raft.build(variant=variant)
    load_weights(model, path, raft.key_tables(model))
    for key, value in model.state_dict().items():
        assert np.array_equal(value.numpy(), case.weights[key]), key


@pytest.mark.parametrize(("variant", "size"), CASES)
def test_middle_results(golden, relative_error, variant, size):
    case = golden(f"raft-{variant}-{size[0]}x{size[1]}")
    model = network(case)
    graphs = raft.graphs(model, size)
    encode, corr, step = (
        graphs[f"{name}@{size[0]}x{size[1]}"][0] for name in ("encode", "corr", "step")
    )
    image1, image2 = (torch.from_numpy(case.arrays[f"image{i}"])[None] for i in (1, 2))
    with torch.no_grad():
        fmap1, fmap2 = encode(image1)[0], encode(image2)[0]
        context = model.cnet(encode.normalise(image1))
        lookup = step.lookup(corr(fmap1, fmap2), step.grid)
    rows = case.arrays["cnet"].shape[2]
    assert relative_error(fmap1, case.arrays["fmap1"]) <= 5e-5
    assert relative_error(lookup, case.arrays["lookup0"]) <= 5e-5
    assert relative_error(context[:, :, :rows], case.arrays["cnet"]) <= 1e-5


@pytest.mark.parametrize(("variant", "size"), CASES)
def test_exported_flow_agrees_with_the_official_code(golden, chain, relative_error, variant, size):
    case = golden(f"raft-{variant}-{size[0]}x{size[1]}")
    graphs = exported(chain, network(case), size, variant)
    images = case.arrays["image1"], case.arrays["image2"]
    for iterations, (flow, low) in flows(graphs, *images, (4, 12)).items():
        limit = FLOW_LIMITS[iterations]
        for found, name in ((flow, "flow"), (low, "flow_low")):
            error = relative_error(found, case.arrays[f"{name}_iters{iterations}"])
            assert error <= limit, f"{name}, {iterations}: {error / limit:.2f} of the limit"
    if "flow_warm_iters4" in case.arrays:
        start = case.arrays["flow_low_iters4"]
        warm = flows(graphs, *images, (4,), start)[4][0]
        assert relative_error(warm, case.arrays["flow_warm_iters4"]) <= WARM_LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["kitti", "sintel"])
def test_padded_odd_size(golden, chain, relative_error, mode):
    case = golden("raft-small-pad-133x171")
    left, right, top, bottom = case.meta["pads"][mode]["left_right_top_bottom"]
    margins = ((top, bottom), (left, right), (0, 0))
    padded = [np.pad(case.arrays[f"image{i}"], margins, mode="edge") for i in (1, 2)]
    size = padded[0].shape[:2]
    assert list(size) == case.meta["pads"][mode]["padded"]
    graphs = exported(chain, network(case), size, "small")
    flow = flows(graphs, *padded, (4,))[4][0]
    flow = flow[:, :, top : size[0] - bottom, left : size[1] - right]
    assert relative_error(flow, case.arrays[f"flow_{mode}"]) <= FLOW_LIMITS[4]


@pytest.mark.slow
def test_trained_weights_on_sintel(golden, assets, chain):
    """The roles are the golden case's: image 1 is frame 16, the opposite of a running video."""
    from PIL import Image

    case = golden("raft-small-trained-sintel-0016-0017")
    model = raft.build(variant="small")
    load_weights(model, assets / "raft-small" / "raft-small.pth", raft.key_tables(model))
    frames = [np.array(Image.open(assets / "sintel-frames" / n)) for n in case.meta["frames"]]
    _, _, top, bottom = case.meta["pad"]["left_right_top_bottom"]
    padded = [np.pad(frame, ((top, bottom), (0, 0), (0, 0)), mode="edge") for frame in frames]
    graphs = exported(chain, model, padded[0].shape[:2], "trained")
    crop = case.meta["crop"]
    rows = slice(crop["y"], crop["y"] + crop["size"])
    columns = slice(crop["x"], crop["x"] + crop["size"])
    for iterations, (found, _) in flows(graphs, *padded, (4, 12, 32)).items():
        flow = found[0, :, top : found.shape[2] - bottom]
        error = np.abs(flow[:, rows, columns] - case.arrays[f"flow_crop_iters{iterations}"]).max()
        assert error <= TRAINED_LIMIT_PX, f"{iterations} iterations: {error} px"
        half = case.arrays[f"flow_half_iters{iterations}"].astype(np.float32)
        assert np.abs(flow[:, ::2, ::2] - half).max() <= TRAINED_HALF_LIMIT_PX


@pytest.mark.parametrize("variant", VARIANTS)
def test_graphs_follow_the_export_rules(golden, chain, variant):
    case = golden(f"raft-{variant}-128x160")
    graphs = exported(chain, network(case), (128, 160), variant)
    assert not graphs.operators() & {"Shape", "If", "Loop", "Scan", "BatchNormalization"}
    encode = graphs.models["encode@128x160"]
    norms = sum(node.op_type == "InstanceNormalization" for node in encode.graph.node)
    assert norms == INSTANCE_NORMS[variant]
    step = graphs.models["step@128x160"]
    shapes = {v.name: len(v.type.tensor_type.shape.dim) for v in step.graph.value_info}
    shapes |= {v.name: len(v.type.tensor_type.shape.dim) for v in step.graph.input}
    samples = [node for node in step.graph.node if node.op_type == "GridSample"]
    assert len(samples) == raft.LEVELS
    for node in samples:
        assert [shapes[name] for name in node.input] == [4, 4]
        options = {attribute.name: attribute for attribute in node.attribute}
        assert options["mode"].s == b"bilinear"
        assert options["padding_mode"].s == b"zeros"
        assert options["align_corners"].i == 1


def test_graphs_are_named_by_their_size():
    graphs = raft.graphs(raft.build(variant="small"), (160, 128))
    assert set(graphs) == {f"{kind}@160x128" for kind in ("encode", "corr", "step", "upsample")}
    assert all(spec.name == name for name, (_, spec) in graphs.items())
    assert graphs["upsample@160x128"][1].outputs[0].shape == (1, 2, 160, 128)


@pytest.mark.parametrize("size", [(120, 160), (160, 120), (128, 164), (64, 64)])
def test_sizes_that_cannot_work_are_refused(size):
    with pytest.raises(ExportError, match=f"found {size[0]}x{size[1]}"):
        raft.graphs(raft.build(variant="small"), size)


def test_the_other_size_is_refused_by_its_first_keys(assets):
    path = assets / "raft-small" / "raft-small.pth"
    assert len(read_state_dict(path)) == 106
    model = raft.build(variant="large")
    with pytest.raises(ExportError) as caught:
        load_weights(model, path, raft.key_tables(model), network="raft-large")
    message = str(caught.value)
    assert "\n" not in message
    for part in ("raft-large (179 keys)", "missing (first: ", "unexpected (first: ", "misshaped"):
        assert part in message
