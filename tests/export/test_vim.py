"""Vision Mamba against its official implementation, in torch and through the exported graph."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from mambapose.export.models import vim
from mambapose.export.models.folding import freeze
from mambapose.runtime.types import GraphSpec, TensorSpec

from ..export_cache import cached_graph

SHORT = ("vim_tiny_d4_256x192", "vim_small_d2_224")
CASES = (*SHORT, pytest.param("vim_tiny_224", marks=pytest.mark.slow))
OUTPUT_LIMIT = 2e-5
MID_LIMIT = 1e-5


def network(case) -> vim.Vim:
    config = case.meta["config"]
    model = vim.build(
        width=config["embed_dim"],
        depth=config["depth"],
        image=tuple(config["img_size"]),
        classes=config["num_classes"],
    )
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == {
        key: list(shape) for key, shape in case.meta["shapes"].items()
    }
    model.load_state_dict({key: torch.from_numpy(value) for key, value in case.weights.items()})
    return model


class Encoded(torch.nn.Module):
    """The frozen network as a graph: every token, and the classes when there is a head."""

    def __init__(self, model: vim.Vim) -> None:
        super().__init__()
        self.model = freeze(model)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tokens = self.model(image)
        return (tokens,) if self.model.head is None else (tokens, self.model.classify(tokens))


def exported(model: vim.Vim, batch: int | str = 1):
    width = model.cls_token.shape[2]
    side = (256, 192) if model.patches == 192 else (224, 224)
    outputs = [TensorSpec("norm_f", "float32", (batch, model.patches + 1, width))]
    if model.head is not None:
        outputs.append(TensorSpec("y", "float32", (batch, model.head.out_features)))
    image = TensorSpec("image", "float32", (batch, 3, *side))
    return cached_graph(Encoded(model), GraphSpec("main", (image,), tuple(outputs)))


@pytest.fixture(scope="module", params=CASES)
def golden_graph(request, golden):
    """(case, exported graph); exported once for both forms of the scan."""
    case = golden(request.param)
    return case, exported(network(case))


def test_exported_graph_agrees_with_the_official_code(
    relative_error, golden_graph, run_onnx, scan_form
):
    case, graph = golden_graph
    outputs = run_onnx(graph, {"image": case.arrays["input.x"]}, scan_form)
    assert outputs.keys() == {key[7:-4] for key in case.arrays if key.endswith("_f64")}
    for output, found in outputs.items():
        error = relative_error(found, case.arrays[f"output.{output}_f64"])
        print(f"{case.name} {output}: {error / OUTPUT_LIMIT:.3f} of the limit")
        assert error <= OUTPUT_LIMIT, f"{output}: {error / OUTPUT_LIMIT:.2f} of the limit"


@pytest.mark.parametrize("name", SHORT)
def test_torch_in_float64_agrees_to_rounding(relative_error, golden, name):
    case = golden(name)
    with torch.no_grad():
        found = network(case).double()(torch.from_numpy(case.arrays["input.x"]).double())
    assert relative_error(found.numpy(), case.arrays["output.norm_f_f64"]) <= 1e-10


@pytest.mark.parametrize("name", SHORT)
def test_first_layer_agrees(relative_error, golden, name):
    case = golden(name)
    model = network(case)
    seen: list[tuple[torch.Tensor, ...]] = []
    model.layers[0].register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        model(torch.from_numpy(case.arrays["input.x"]))
    for key, found in zip(("hidden", "residual"), seen[0], strict=True):
        error = relative_error(found.numpy(), case.arrays[f"mid.layer0.{key}"])
        assert error <= MID_LIMIT, f"{key}: {error / MID_LIMIT:.2f} of the limit"


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("vim-tiny", 7_148_008), ("vim-small", 25_796_584), ("vim-base", 97_598_440)],
)
def test_released_sizes_have_the_true_parameter_counts(name, parameters):
    with torch.device("meta"):
        model = vim.Vim(**vim.CONFIGS[name])
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(model.state_dict()) == 24 * 17 + 7


def test_a_layer_is_one_scan_node_and_no_weight_arithmetic():
    """No flips, no slices of the gate, no padding nodes, constants folded.

    The two slices are the places before and after the class token.
    """
    model = vim.build(width=32, depth=3, image=(256, 192), classes=0)
    graph = exported(model).graph
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["SelectiveScan"] == 3
    assert kinds["Slice"] == 2
    assert not kinds.keys() & {"Exp", "Neg", "Pad", "Gather", "Softplus"}
    weights = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("MatMul", "Conv"):
            assert node.input[1] in weights, f"{node.op_type} of a computed weight: {node.name}"


def test_batches_give_what_single_images_give(run_onnx, scan_form):
    model = vim.build(width=32, depth=2, image=(256, 192), classes=0, seed=3)
    images = np.random.default_rng(0).standard_normal((3, 3, 256, 192)).astype(np.float32)
    graph = exported(model, "N")
    together = run_onnx(graph, {"image": images}, scan_form)["norm_f"]
    for index in range(3):
        alone = run_onnx(graph, {"image": images[index : index + 1]}, scan_form)["norm_f"]
        np.testing.assert_allclose(together[index : index + 1], alone, atol=2e-5)


def test_random_weights_follow_the_seed_and_leave_torch_alone():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one, same, other = (vim.build(width=32, depth=1, classes=0, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.pos_embed, same.pos_embed)
    assert not torch.equal(one.pos_embed, other.pos_embed)
    mixer = one.layers[0].mixer
    steps = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert steps.min() >= 0.9e-4
    assert steps.max() <= 0.11
    assert torch.allclose(mixer.A_log.exp(), torch.arange(1.0, 17).expand(64, 16))


def test_freezing_leaves_the_model_trainable():
    model = vim.build(width=32, depth=1, image=(32, 32), classes=0)
    image = torch.randn(1, 3, 32, 32)
    frozen = freeze(model)
    torch.testing.assert_close(frozen(image), model(image))
    model(image).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
