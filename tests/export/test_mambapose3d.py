"""mambapose3d: cues that may be absent, depth without a scale, both forms of the scan."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mambapose.export.models import NETWORKS, mambapose3d, posemamba

from ..export_cache import cached_graph

FRAMES = 5


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return mambapose3d.build(width=16, depth=1, seed=4)


def sample(people: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    arrays = {
        "keypoints": generator.uniform(-1, 1, (people, FRAMES, 17, 2)),
        "score": generator.uniform(0, 1, (people, FRAMES, 17)),
        "depth": generator.uniform(3, 9, (people, FRAMES, 17)),
        "flow": 0.1 * generator.standard_normal((people, FRAMES, 17, 2)),
        "present": np.ones((people, 3)),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def lifted(model: torch.nn.Module, arrays: dict[str, np.ndarray], **options: bool) -> np.ndarray:
    graph, spec = mambapose3d.graphs(model, FRAMES, **options)["main"]
    with torch.no_grad():
        return graph(*(torch.from_numpy(arrays[tensor.name]) for tensor in spec.inputs)).numpy()


def test_parameters_and_keys():
    network = NETWORKS["mambapose3d"]
    assert network.params == 1_470_851
    full = mambapose3d.build(**network.config)
    assert sum(parameter.numel() for parameter in full.parameters()) == network.params
    small = posemamba.build(**network.config)
    assert full.state_dict().keys() - small.state_dict().keys() == {"missing_embed"}
    assert full.Spatial_patch_to_embedding.weight.shape == (64, 9)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "flip"])
def exported(model, request):
    """(flip, graph); exported once for both forms of the scan."""
    flip = request.param
    return flip, cached_graph(*mambapose3d.graphs(model, FRAMES, flip=flip)["main"])


def test_graph_agrees_with_torch(model, exported, run_onnx, scan_form):
    flip, graph = exported
    assert len(graph.functions) == 1
    arrays = sample()
    arrays["present"][1] = (1, 0, 1)
    found, wanted = run_onnx(graph, arrays, scan_form)["xyz"], lifted(model, arrays, flip=flip)
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()
    assert not found[:, :, 0].any()


@pytest.mark.parametrize("cue", mambapose3d.CUES)
def test_an_absent_cue_does_not_matter_and_a_present_one_does(model, cue):
    arrays = sample()
    present = lifted(model, arrays)
    arrays["present"][:, mambapose3d.CUES.index(cue)] = 0
    absent = lifted(model, arrays)
    arrays[cue] = np.full_like(arrays[cue], np.nan)
    assert np.array_equal(lifted(model, arrays), absent)
    assert np.abs(present - absent).max() > 1e-4


def test_scale_and_offset_of_depth_do_not_matter(model):
    arrays = sample()
    wanted = lifted(model, arrays)
    arrays["depth"] = 0.01 * arrays["depth"] + 2
    np.testing.assert_allclose(lifted(model, arrays), wanted, atol=1e-3 * np.abs(wanted).max())
    arrays["depth"][:] = 4.2
    assert np.isfinite(lifted(model, arrays)).all()


def test_where_and_how_large_a_person_is_enters_by_channels_of_its_own(model):
    """Without their weights, place and size in the picture do not matter; with them they do."""
    arrays = sample()
    moved = {**arrays, "keypoints": 0.3 * arrays["keypoints"] + np.float32([0.5, -0.2]),
             "flow": 0.3 * arrays["flow"]}  # fmt: skip
    assert np.abs(lifted(model, arrays) - lifted(model, moved)).max() > 1e-3
    blind = mambapose3d.build(width=16, depth=1, seed=4)
    blind.Spatial_patch_to_embedding.weight.data[:, 6:] = 0
    wanted = lifted(blind, arrays)
    np.testing.assert_allclose(lifted(blind, moved), wanted, atol=1e-3 * np.abs(wanted).max())
    arrays["keypoints"][:] = 0.25  # nobody's joints are all in one place, but nothing breaks
    assert np.isfinite(lifted(model, arrays)).all()


def test_flip_mirrors_every_cue(model):
    """A clip and its mirror image give mirror images of the same pose."""
    arrays = sample()
    mirrored = {name: array.copy() for name, array in arrays.items()}
    mirrored["keypoints"][..., 0] *= -1
    mirrored["flow"][..., 0] *= -1
    order = list(posemamba.MIRROR)
    for name in ("keypoints", "score", "depth", "flow"):
        mirrored[name] = mirrored[name][:, :, order]
    wanted = lifted(model, arrays, flip=True)
    found = lifted(model, mirrored, flip=True)[:, :, order] * np.float32([-1, 1, 1])
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
