"""mambapose-nano: contract, absent modalities, the meaning of its heatmaps, export."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from mambapose.export.models import mambapose_nano as nano
from mambapose.runtime.errors import ExportError
from mambapose.runtime.stages.crop import crops_from_boxes
from mambapose.runtime.stages.decode import joints_from_heatmaps

from ..export_cache import cached_graph


@pytest.fixture(scope="module")
def model() -> nano.MambaPoseNano:
    made = nano.build()
    with torch.no_grad():  # so that nothing is hidden by a zero
        torch.nn.init.normal_(made.missing_embed)
        for module in made.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
    return made


def inputs(n: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    rgb = torch.randint(0, 256, (n, 256, 192, 3), dtype=torch.uint8)
    return rgb, 4 * torch.randn(n, 2, 256, 192), torch.rand(n, 1, 256, 192), torch.ones(n, 2)


def test_size_and_shape(model: nano.MambaPoseNano) -> None:
    assert sum(parameter.numel() for parameter in model.parameters()) < 3_000_000
    with torch.no_grad():
        assert model(*inputs()).shape == (2, 17, 64, 48)


def test_people_of_a_batch_do_not_mix(model: nano.MambaPoseNano) -> None:
    rgb, flow, depth, present = inputs(3)
    with torch.no_grad():
        together = model(rgb, flow, depth, present)
        alone = model(rgb[1:2], flow[1:2], depth[1:2], present[1:2])
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("which", [0, 1])
def test_what_an_absent_modality_holds_does_not_matter(
    model: nano.MambaPoseNano, which: int
) -> None:
    rgb, flow, depth, present = inputs()
    present[:, which] = 0
    planes = [flow, depth]
    with torch.no_grad():
        before = model(rgb, flow, depth, present)
        planes[which] = torch.full_like(planes[which], torch.nan)
        after = model(rgb, planes[0], planes[1], present)
        present[:, which] = 1
        there = model(rgb, flow, depth, present)
    assert torch.equal(before, after)
    assert not torch.allclose(before, there, atol=1e-4)


def test_depth_in_any_unit(model: nano.MambaPoseNano) -> None:
    rgb, flow, depth, present = inputs()
    with torch.no_grad():
        metres = model(rgb, flow, depth, present)
        other = model(rgb, flow, 1000 * depth + 7, present)
    torch.testing.assert_close(metres, other, atol=1e-4, rtol=1e-3)


def test_a_certain_answer_peaks_at_one_where_the_cell_is(model: nano.MambaPoseNano) -> None:
    """The target of the training, turned into a heatmap and decoded, is the joint again."""
    from mambapose.train.pose2d.loss import targets

    xy = torch.tensor([[20.3, 30.9], [100.0, 128.0], [171.2, 220.4]]).repeat(6, 1)[:17][None]
    inside = torch.ones(1, 17, dtype=torch.bool)
    inside[0, 3] = False
    logits = torch.log(targets(xy, inside, model.grid).clamp(min=1e-12))
    maps = model.heatmaps(logits)
    assert maps.shape == (1, 17, 64, 48)
    peaks = maps.flatten(2).amax(-1)[0]
    assert peaks[3] < 1e-6
    torch.testing.assert_close(peaks[inside[0]], torch.ones(16), atol=0.04, rtol=0)
    # A box whose crop is the picture itself, pixel for pixel.
    whole = crops_from_boxes(
        torch.tensor([[95.5 - 76.4, 127.5 - 102.0, 95.5 + 76.4, 127.5 + 102.0]]).numpy(), (256, 192)
    )
    found, score = joints_from_heatmaps(maps.numpy(), whole)
    there = inside[0].numpy()
    assert abs(found[0] - xy[0].numpy())[there].max() < 0.5
    assert (score[0][there] > 0.95).all()


def test_doubt_lowers_the_peak(model: nano.MambaPoseNano) -> None:
    """Half of the probability elsewhere, or on "not in this crop", halves the height."""
    cells = torch.zeros(1, 17, 32 * 24 + 1)
    cells[..., 100] = 1.0
    sure = model.heatmaps(torch.log(cells + 1e-12)).amax((2, 3))
    for other in (700, 768):
        torn = cells.clone()
        torn[..., 100] = torn[..., other] = 0.5
        peak = model.heatmaps(torch.log(torn + 1e-12)).amax((2, 3))
        torch.testing.assert_close(peak / sure, torch.full_like(peak, 0.5), atol=0.01, rtol=0)


def test_pairs_give_way_as_the_sum_over_both_joints_says(model: nano.MambaPoseNano) -> None:
    """Against the joint distribution of left and right written out, cell by cell."""
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(0, 3, (2, 17, 32 * 24 + 1)))
    whole = torch.softmax(logits, -1)
    found = copy.deepcopy(model).double().apart(whole[..., :-1].unflatten(2, model.grid)).flatten(2)
    row, column = np.divmod(np.arange(32 * 24), 24)
    squared = (row[:, None] - row) ** 2 + (column[:, None] - column) ** 2
    factor = np.ones((32 * 24 + 1,) * 2)  # "not in this crop" gives way to nobody
    factor[:-1, :-1] -= nano.GIVE_WAY * np.exp(-squared / (2 * nano.GIVE_WAY_SIGMA**2))
    for left, right in nano.LIMBS:
        both = whole[:, left, :, None].numpy() * factor * whole[:, right, None].numpy()
        for joint, axis in ((left, 2), (right, 1)):
            wanted = both.sum(axis)[:, :-1]
            wanted *= (whole[:, joint, :-1].sum(-1).numpy() / wanted.sum(-1))[:, None]
            np.testing.assert_allclose(found[:, joint], wanted, rtol=1e-5, atol=1e-12)
    face = found[:, :5]
    torch.testing.assert_close(face, whole[:, :5, :-1], rtol=1e-5, atol=1e-12)


def test_the_one_in_doubt_leaves_the_limb_of_the_other(model: nano.MambaPoseNano) -> None:
    """Left is sure of a cell, right prefers it to another: right goes there. Two that are sure
    stay, and a joint that is not in the crop moves nobody."""
    left, right = nano.LIMBS[1]
    cells = torch.full((3, 17, 32 * 24 + 1), 1e-7)
    cells[:, left, 100] = 1.0
    cells[:2, right, 100], cells[0, right, 700] = 0.55, 0.45
    cells[2, right, 100] = 1.0
    cells[1, right, -1] = 0.45
    maps = model.heatmaps(torch.log(cells))
    alone = model.down @ cells[..., :-1].unflatten(2, model.grid) @ model.across
    peak, before = maps.flatten(2).argmax(-1), alone.flatten(2).argmax(-1)
    assert peak[0, left] == before[0, left] == before[0, right] != peak[0, right]
    assert torch.equal(peak[1:, [left, right]], before[1:, [left, right]])
    height = maps.flatten(2).amax(-1) / alone.flatten(2).amax(-1)
    torch.testing.assert_close(height[:, left], torch.ones(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(height[1:, right], torch.ones(2), atol=1e-3, rtol=0)


def test_batch_norms_are_folded_exactly(model: nano.MambaPoseNano) -> None:
    fused = nano.fused(model)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    with torch.no_grad():
        torch.testing.assert_close(fused(*inputs()), model(*inputs()), atol=1e-5, rtol=1e-4)


def test_training_and_inference_agree(model: nano.MambaPoseNano) -> None:
    """The halved picture made by pooling is what ``planes`` takes; gradients change no value."""
    rgb, flow, depth, present = inputs(1)
    halves = [
        torch.nn.functional.avg_pool2d(maps, 2)
        for maps in (rgb.permute(0, 3, 1, 2).float(), flow, depth)
    ]
    with torch.no_grad():
        whole = model(rgb, flow, depth, present)
    trained = model.heatmaps(model.answer(model.planes(*halves, present), present).logits)
    assert trained.requires_grad
    torch.testing.assert_close(trained.detach(), whole, atol=1e-5, rtol=1e-4)


def test_other_sizes_are_refused(model: nano.MambaPoseNano) -> None:
    with pytest.raises(ExportError, match=r"256x192 were wanted.*found 384x288"):
        nano.graphs(model, (384, 288))


def test_exported_graph_agrees(tmp_path: object, model: nano.MambaPoseNano) -> None:
    from pathlib import Path

    from mambapose.export.build import compiled_operator
    from mambapose.export.onnx_export import has_scan, save_graphs
    from mambapose.export.verify import Exported, verify_stage

    assert isinstance(tmp_path, Path)
    module, spec = nano.graphs(model, (256, 192))["main"]
    graph = cached_graph(module, spec)
    assert sum(node.op_type == "SelectiveScan" for node in graph.graph.node) == nano.MIXED
    assert not any(node.op_type == "BatchNormalization" for node in graph.graph.node)
    file = save_graphs({"main": graph}, tmp_path, "pose2d")["main"]
    exported = {"main": Exported(module, spec, file, has_scan(graph))}
    verified = verify_stage("pose2d", exported, flow_iters=1, library=compiled_operator(), seed=0)
    assert verified.errors
