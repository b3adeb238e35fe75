"""PoseMamba against its official implementation, in torch and through the exported graph."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from mambapose.export.checkpoints import load_weights
from mambapose.export.models import NETWORKS, posemamba
from mambapose.runtime.backends.native import check_function_form
from mambapose.runtime.errors import ExportError

from ..export_cache import cached_graph

CASES = ["posemamba_s_t27", "posemamba_b_t27", "posemamba_l_t27"]
EXPORTED = [*CASES, "posemamba_s_t243"]
LIMIT = 5e-5
MID_LIMIT = 1e-5
SIZES = [
    ("posemamba-s", 1_470_211, 392),
    ("posemamba-b", 4_742_659, 392),
    ("posemamba-l", 9_450_499, 772),
]


def network(case) -> posemamba.PoseMamba:
    config = case.meta["config"]
    model = posemamba.build(width=config["dim_feat"], depth=config["depth"])
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == {
        key: list(shape) for key, shape in case.meta["shapes"].items()
    }
    model.load_state_dict({key: torch.from_numpy(value) for key, value in case.weights.items()})
    return model


def exported(model: torch.nn.Module, frames: int, **options: bool):
    return cached_graph(*posemamba.graphs(model, frames, **options)["main"])


def keypoints(people: int, frames: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.uniform(-1, 1, (people, frames, 17, 2)).astype(np.float32)


@pytest.fixture(scope="module", params=EXPORTED)
def golden_graph(request, golden):
    """(case, exported graph); exported once for both forms of the scan."""
    case = golden(request.param)
    return case, exported(network(case), case.arrays["input.x"].shape[1])


@pytest.mark.slow
def test_exported_graph_agrees_with_the_official_code(golden_graph, run_onnx, scan_form):
    case, graph = golden_graph
    found = run_onnx(graph, {"keypoints": case.arrays["input.x"]}, scan_form)["xyz"]
    wanted = case.arrays["output.y_f64"]
    assert not found[:, :, 0].any(), "joint 0 is the origin"
    error = float(np.abs(found[:, :, 1:] - wanted[:, :, 1:]).max() / np.abs(wanted).max())
    print(f"{case.name}: {error / LIMIT:.3f} of the limit")
    assert error <= LIMIT, f"{error / LIMIT:.2f} of the limit"


@pytest.mark.parametrize("name", CASES)
def test_torch_agrees_with_the_official_code(relative_error, golden, name):
    case = golden(name)
    with torch.no_grad():
        found = network(case)(torch.from_numpy(case.arrays["input.x"]))
    error = relative_error(found.numpy(), case.arrays["output.y_f64"])
    assert error <= LIMIT, f"{error / LIMIT:.2f} of the limit"


@pytest.mark.slow
def test_torch_in_float64_agrees_to_rounding(relative_error, golden):
    case = golden("posemamba_s_t27")
    with torch.no_grad():
        found = network(case).double()(torch.from_numpy(case.arrays["input.x"]).double())
    assert relative_error(found.numpy(), case.arrays["output.y_f64"]) <= 1e-10


def test_first_blocks_agree(relative_error, golden):
    case = golden("posemamba_s_t27")
    model = network(case)
    places = {
        "mid.block0.op": model.STEblocks[0].op,
        "mid.block0.out": model.STEblocks[0],
        "mid.tblock0.out": model.TTEblocks[0],
        "mid.features": model.Temporal_norm,
    }
    seen: dict[str, torch.Tensor] = {}
    for key, module in places.items():
        module.register_forward_hook(lambda *call, key=key: seen.__setitem__(key, call[2]))
    with torch.no_grad():
        model(torch.from_numpy(case.arrays["input.x"]))
    for key, found in seen.items():
        limit = LIMIT if key == "mid.features" else MID_LIMIT
        error = relative_error(found.numpy(), case.arrays[key])
        assert error <= limit, f"{key}: {error / limit:.2f} of the limit"


@pytest.mark.parametrize(("name", "parameters", "keys"), SIZES)
def test_registered_sizes_have_the_true_parameter_counts(name, parameters, keys):
    network = NETWORKS[name]
    assert network.params == parameters
    with torch.device("meta"):
        model = posemamba.PoseMamba(**network.config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(model.state_dict()) == keys


def test_an_official_file_loads_and_another_network_is_refused(tmp_path):
    """The official wrapping: model_pos, and every key prefixed with module."""
    source, target = posemamba.build(depth=1, seed=1), posemamba.build(depth=1, seed=2)
    wrapped = {f"module.{key}": value for key, value in source.state_dict().items()}
    file = tmp_path / "PoseMamba_S.bin"
    torch.save({"epoch": 3, "lr": 1e-4, "model_pos": wrapped, "min_loss": 40.0}, file)
    load_weights(target, file, posemamba.key_tables(target))
    assert all(
        torch.equal(value, target.state_dict()[key]) for key, value in source.state_dict().items()
    )
    with pytest.raises(ExportError, match=r"STEblocks\.1\.norm\.weight"):
        load_weights(posemamba.build(depth=2), file)


@pytest.fixture(scope="module", params=[1, 13])
def short_graph(request):
    """(frames, small network, its graph); exported once for both forms of the scan."""
    model = posemamba.build(width=16, depth=1, seed=5)
    return request.param, model, exported(model, request.param)


def test_a_block_is_two_scan_nodes_and_no_weight_arithmetic(short_graph):
    graph = short_graph[2].graph
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["SelectiveScan"] == 4
    assert kinds["Gather"] == 2, "the limb walk of each block and nothing else"
    assert not kinds.keys() & {"Exp", "Neg", "Pad", "Concat", "GatherND", "Softplus"}
    weights = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("MatMul", "Conv"):
            assert node.input[1] in weights, f"{node.op_type} of a computed weight: {node.name}"


def test_every_scan_has_the_same_function_body(short_graph):
    """Else the function form needs ONNX Runtime 1.27, and NVIDIA's parser takes the wrong one."""
    model = short_graph[2]
    assert len(model.functions) == 1
    check_function_form({entry.key: entry.value for entry in model.metadata_props}, "1.20.1")


def test_graph_agrees_with_torch_at_any_length(relative_error, short_graph, run_onnx, scan_form):
    frames, model, graph = short_graph
    x = keypoints(3, frames)
    with torch.no_grad():
        wanted = model(torch.from_numpy(x)).numpy()
    found = run_onnx(graph, {"keypoints": x}, scan_form)["xyz"]
    assert relative_error(found[:, :, 1:], wanted[:, :, 1:]) <= 1e-4


def test_a_centred_network_sees_the_person_not_the_picture(relative_error, run_onnx):
    """Weights of our own: in the graph joints are centred and scaled first (decision 0007)."""
    model = posemamba.build(width=16, depth=1, seed=5, centred=True)
    plain = posemamba.build(width=16, depth=1, seed=5)
    x = keypoints(2, 5)
    centre = x.mean(2, keepdims=True)
    size = np.sqrt(np.square(x - centre).mean((1, 2, 3), keepdims=True))
    with torch.no_grad():
        wanted = plain(torch.from_numpy(((x - centre) / size).astype(np.float32))).numpy()
        published = plain(torch.from_numpy(x)).numpy()
    wanted[:, :, 0] = published[:, :, 0] = 0
    graph = exported(model, 5)
    for moved in (x, (1.7 * x + 0.4).astype(np.float32)):
        found = run_onnx(graph, {"keypoints": moved}, None)["xyz"]
        assert relative_error(found, wanted) <= 1e-4
        assert relative_error(found, published) > 1e-2


def test_flip_is_the_average_with_the_mirrored_mirror_image(relative_error, run_onnx):
    model = posemamba.build(width=16, depth=1, seed=5)
    x = keypoints(2, 5)
    left, right = [4, 5, 6, 11, 12, 13], [1, 2, 3, 14, 15, 16]

    def mirrored(points: np.ndarray) -> np.ndarray:
        turned = points.copy()
        turned[..., 0] *= -1
        turned[..., left + right, :] = turned[..., right + left, :]
        return turned

    with torch.no_grad():
        straight, mirror = (model(torch.from_numpy(p)).numpy() for p in (x, mirrored(x)))
    wanted = (straight + mirrored(mirror)) / 2
    wanted[:, :, 0] = 0
    found = run_onnx(exported(model, 5, flip=True), {"keypoints": x}, None)["xyz"]
    assert relative_error(found, wanted) <= 1e-4
    assert relative_error(found, straight) > 1e-2


def test_a_clip_longer_than_the_embedding_is_refused():
    with pytest.raises(ExportError, match="1 to 243 frames was wanted, found 244"):
        posemamba.graphs(posemamba.build(width=16, depth=1), 244)
