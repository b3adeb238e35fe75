"""mambapose: the edge of the network, absent modalities, the decoder, both forms of the scan."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from mambapose.export.models import NETWORKS, mambapose, vim
from mambapose.export.models.images import IMAGENET_MEAN, IMAGENET_STD
from mambapose.export.models.simple_head import SimpleHead
from mambapose.runtime.errors import ExportError

from ..export_cache import cached_graph

SIZE = (64, 48)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    """Small, with a decoder whose weights are large enough to see."""
    built = mambapose.build(width=32, depth=2, seed=2)
    with torch.no_grad():
        built.keypoint_head.final_layer.weight.mul_(100)
    return built


@pytest.fixture(scope="module")
def graph(model):
    """The small network exported, for both forms of the scan and several tests."""
    return cached_graph(*mambapose.graphs(model, SIZE)["main"])


def sample(people: int = 2, size: tuple[int, int] = SIZE, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "rgb": generator.integers(0, 256, (people, *size, 3), dtype=np.uint8),
        "flow": (4 * generator.standard_normal((people, 2, *size))).astype(np.float32),
        "depth": generator.uniform(2, 30, (people, 1, *size)).astype(np.float32),
        "present": np.ones((people, 2), np.float32),
    }


def heatmaps(model: torch.nn.Module, arrays: dict[str, np.ndarray]) -> np.ndarray:
    size = arrays["rgb"].shape[1:3]
    graph, spec = mambapose.graphs(model, size)["main"]
    with torch.no_grad():
        return graph(*(torch.from_numpy(arrays[tensor.name]) for tensor in spec.inputs)).numpy()


@pytest.mark.parametrize(
    ("name", "parameters"), [("mambapose-tiny", 7_131_089), ("mambapose-small", 25_763_729)]
)
def test_registered_sizes_have_the_true_parameter_counts(name, parameters):
    network = NETWORKS[name]
    assert network.params == parameters
    with torch.device("meta"):
        built = mambapose.MambaPose(**network.config)
    assert sum(parameter.numel() for parameter in built.parameters()) == parameters


def test_graph_agrees_with_torch_for_any_number_of_people(model, graph, run_onnx, scan_form):
    for people in (1, 3):
        arrays = sample(people)
        arrays["present"][0] = (0, 1)
        found, wanted = run_onnx(graph, arrays, scan_form)["heatmaps"], heatmaps(model, arrays)
        assert found.shape == (people, 17, SIZE[0] // 4, SIZE[1] // 4)
        assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.slow
def test_native_and_function_agree_at_full_size(run_onnx):
    """The real depth and size, where errors of 24 layers add up."""
    from mambapose.runtime.backends.native import find_library

    library = find_library()
    if library is None:
        pytest.skip("the operator was not compiled")
    built = mambapose.build(**NETWORKS["mambapose-tiny"].config)
    graph = cached_graph(*mambapose.graphs(built, mambapose.IMAGE)["main"])
    arrays = sample(1, mambapose.IMAGE)
    native, function = (run_onnx(graph, arrays, form)["heatmaps"] for form in (library, None))
    assert native.shape == (1, 17, 64, 48)
    assert np.abs(native - function).max() <= 1e-4 * np.abs(function).max()


@pytest.mark.parametrize("modality", mambapose.MODALITIES)
def test_an_absent_modality_does_not_matter_and_a_present_one_does(model, modality):
    arrays = sample()
    present = heatmaps(model, arrays)
    arrays["present"][:, mambapose.MODALITIES.index(modality)] = 0
    absent = heatmaps(model, arrays)
    arrays[modality] = np.full_like(arrays[modality], np.nan)
    assert np.array_equal(heatmaps(model, arrays), absent)
    assert np.abs(present - absent).max() > 1e-3 * np.abs(absent).max()


def test_exported_graph_ignores_absent_modalities(graph, run_onnx, scan_form):
    arrays = sample(1)
    arrays["present"][:] = 0
    wanted = run_onnx(graph, arrays, scan_form)["heatmaps"]
    arrays["flow"][:], arrays["depth"][:] = np.nan, np.inf
    assert np.array_equal(run_onnx(graph, arrays, scan_form)["heatmaps"], wanted)


def test_depth_has_neither_scale_nor_offset_and_may_be_constant(model):
    arrays = sample()
    wanted = heatmaps(model, arrays)
    arrays["depth"] = 0.02 * arrays["depth"] + 1
    found = heatmaps(model, arrays)
    np.testing.assert_allclose(found, wanted, atol=2e-3 * np.abs(wanted).max())
    arrays["depth"][:] = 7.3
    constant = heatmaps(model, arrays)
    arrays["depth"][:] = 0
    np.testing.assert_allclose(heatmaps(model, arrays), constant, atol=1e-2 * np.abs(wanted).max())


def test_patches_are_the_convolution_of_normalised_channels(model):
    arrays = {name: torch.from_numpy(array) for name, array in sample().items()}
    rgb = arrays["rgb"].permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    channels = torch.cat([(rgb - mean) / std, arrays["flow"] / 16, arrays["depth"]], 1)
    with torch.no_grad():
        wanted = model.patch_embed.proj(channels).flatten(2).transpose(1, 2)
        found = model.patch_embed(arrays["rgb"], arrays["flow"], arrays["depth"])
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("grid", [(16, 12), (1, 3)])
def test_the_head_is_enlarge_then_convolve(grid):
    torch.manual_seed(0)
    head = SimpleHead(24, grid)
    torch.nn.init.normal_(head.final_layer.weight)
    torch.nn.init.normal_(head.final_layer.bias)
    tokens = torch.randn(2, grid[0] * grid[1], 24)
    image = tokens.relu().transpose(1, 2).unflatten(2, grid)
    large = functional.interpolate(image, scale_factor=4, mode="bilinear", align_corners=False)
    with torch.no_grad():
        wanted, found = head.final_layer(large), head(tokens)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_encoder_from_an_official_vim_sees_what_vim_saw(model):
    official = vim.build(width=32, depth=2, classes=0, seed=9)
    mine = mambapose.build(width=32, depth=2)
    mambapose.encoder_from_vim(mine, official.state_dict())
    assert torch.equal(mine.layers[1].mixer.A_b_log, official.layers[1].mixer.A_b_log)
    assert torch.equal(mine.norm_f.weight, official.norm_f.weight)
    image = torch.randint(0, 256, (1, 224, 224, 3), dtype=torch.uint8)
    square = mambapose.at_size(mine, (224, 224))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        wanted = official.patch_embed.proj((image.permute(0, 3, 1, 2) / 255 - mean) / std)
        flow, depth = torch.randn(1, 2, 224, 224), torch.randn(1, 1, 224, 224)
        found = square.patch_embed(image, flow, depth)
    torch.testing.assert_close(found, wanted.flatten(2).transpose(1, 2), atol=1e-4, rtol=1e-4)
    # 14x14 -> 16x12 -> 14x14 keeps smooth positions; the class token's place is gone.
    ramp = torch.linspace(0, 1, 14)[:, None].expand(14, 14).flatten()
    state = official.state_dict()
    state["pos_embed"] = torch.cat([ramp[:98], torch.tensor([5.0]), ramp[98:]])[
        None, :, None
    ].expand(1, 197, 32)
    mambapose.encoder_from_vim(mine, state)
    columns = mine.pos_embed.detach().reshape(16, 12, 32)
    assert columns.max() < 1.1
    assert (columns.diff(dim=0)[1:-1] > 0).all()
    assert columns.diff(dim=1).abs().max() < 1e-5


@pytest.mark.parametrize(
    "absent", ["patch_embed.proj.weight", "patch_embed.proj.bias", "pos_embed"]
)
def test_a_vim_that_lacks_its_first_layers_is_refused(absent):
    state = vim.build(width=32, depth=2, classes=0).state_dict()
    del state[absent]
    with pytest.raises(ExportError, match=f"{absent} of shape .* was wanted in the Vim, found"):
        mambapose.encoder_from_vim(mambapose.build(width=32, depth=2), state)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"width": 48, "depth": 2}, "was wanted in the Vim"),
        ({"width": 32, "depth": 3}, "a Vim of 2 layers was wanted"),
        ({"width": 32, "depth": 1}, r"layers\.1\..* was wanted in the Vim, found None"),
        ({"width": 32, "depth": 2, "image": (256, 192)}, r"side\*side \+ 1"),
    ],
)
def test_another_vim_is_refused_and_changes_nothing(options, match):
    mine = mambapose.build(width=32, depth=2)
    before = {key: value.clone() for key, value in mine.state_dict().items()}
    with pytest.raises(ExportError, match=match):
        mambapose.encoder_from_vim(mine, vim.build(classes=0, **options).state_dict())
    assert all(torch.equal(value, before[key]) for key, value in mine.state_dict().items())


def test_a_size_that_is_no_multiple_of_the_patch_is_refused(model):
    with pytest.raises(ExportError, match=r"multiples of 16 from 32 .* found 250x192"):
        mambapose.graphs(model, (250, 192))
