"""A deeper lifter begins with the answers of the one it starts from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mambapose.benchmarks.truth.motion import clips_from_file
from mambapose.benchmarks.truth.windows import Batch, Motions
from mambapose.export.models.posemamba import PoseMamba
from mambapose.train.lift import growth as lift_growth
from mambapose.train.lift import state as lift_state
from mambapose.train.lift import train as lift
from mambapose.train.lift.data import training_batch
from mambapose.train.lift.networks import lifted
from mambapose.train.lift.state import Settings

CPU = torch.device("cpu")
SHALLOW = Settings("posemamba-s", seed=3, frames=(9,), batch=1, warmup=4, pairs=1)


def _batch(folder: Path, seed: int, windows: int = 16) -> Batch:
    return training_batch(Motions(clips_from_file(folder)), seed, 0, windows, 9, cues=False)


def _answer(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return lifted(model, {"keypoints": torch.from_numpy(batch.inputs["keypoints"])}, False)


def _uneven_norms(model: PoseMamba) -> None:
    """As trained ones are: weights of 0.7 to 1.3, shifted."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in (model.Spatial_norm, model.Temporal_norm):
            norm.weight.copy_(0.7 + 0.6 * torch.rand(norm.weight.shape, generator=generator))
            norm.bias.copy_(0.2 * torch.randn(norm.bias.shape, generator=generator))


@pytest.mark.parametrize("pairs", [2, 4])
def test_a_settled_network_answers_as_before(
    pairs: int, motion_folder: Path, tmp_path: Path
) -> None:
    state = lift_state.fresh(SHALLOW, CPU)
    assert isinstance(state.model, PoseMamba)
    _uneven_norms(state.model)
    state.average = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    lift_state.save(state, tmp_path)
    deeper = lift_state.started_from(tmp_path, replace(SHALLOW, pairs=pairs), CPU).model
    other = _batch(motion_folder, seed=8)  # not the windows it is settled on
    wanted, unsettled = _answer(state.model, other), _answer(deeper, other)
    assert lift_growth.added_pairs(deeper) == list(range(1, pairs))
    assert lift_growth.settle(deeper, _batch(motion_folder, seed=7), False) == pairs - 1
    found = _answer(deeper, other)
    off, moved = (float((x - wanted).square().mean().sqrt()) for x in (found, unsettled))
    assert off < 0.05 * float(wanted.std())
    assert off < 0.1 * moved
    assert lift_growth.added_pairs(deeper) == []  # and stays as it is from now on
    assert lift_growth.settle(deeper, other, False) == 0


def test_an_mlp_can_be_linear() -> None:
    block = PoseMamba(8, 1).STEblocks[0]
    generator = torch.Generator().manual_seed(1)
    matrix, bias = torch.randn(8, 8, generator=generator), torch.randn(8, generator=generator)
    x = 3 * torch.randn(50, 8, generator=generator)
    with torch.no_grad():
        lift_growth._make_linear(block, matrix, bias)
        torch.testing.assert_close(block.mlp(x), x @ matrix + bias, rtol=1e-4, atol=1e-5)


def test_the_command_settles_new_pairs(motion_folder: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    base = ["--data", str(motion_folder), "--network", "posemamba-s", "--frames", "5", "--batch"]
    first = run(
        lift.main, [*base, "1", "--pairs", "1", "--out", str(tmp_path / "a"), "--steps", "1"]
    )
    assert first.exit_code == 0, first.output
    assert "new pairs" not in first.output
    words = ["1", "--pairs", "2", "--out", str(tmp_path / "b"), "--steps", "1"]
    second = run(lift.main, [*base, *words, "--start-from", str(tmp_path / "a")])
    assert second.exit_code == 0, second.output
    assert "1 new pairs of blocks pass on" in second.output
    fc1 = lift_state.read(tmp_path / "b")["average"]["TTEblocks.1.mlp.fc1.weight"]
    np.testing.assert_allclose(fc1[:64], np.eye(64), atol=0.02)
