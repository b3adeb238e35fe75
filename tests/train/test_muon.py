"""Muon beside AdamW: who trains what, the update itself, and exact resumption."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mambapose.export.models import mambapose_nano
from mambapose.runtime.errors import ExportError
from mambapose.train.muon import MuonAdamW, matrix
from mambapose.train.pose2d.state import ENDS, Settings

PLAN = Settings(rate=1e-2, weight_decay=0.0, muon=True)


def small(memory_format: torch.memory_format = torch.channels_last) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 24, 3), nn.Flatten(), nn.Linear(24, 24)
    )
    return made.to(memory_format=memory_format)  # type: ignore[call-overload]


def descend(model: nn.Module, optimiser: MuonAdamW, steps: int = 1) -> float:
    torch.manual_seed(1)
    x, wanted = torch.randn(96, 16, 5, 5), torch.randn(96, 24)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = (model(x) - wanted).square().mean()
        loss.backward()
        optimiser.step()
    return float(loss.detach())


def test_an_update_is_orthogonal_and_of_the_size_of_adamws() -> None:
    """All singular values near one another; root mean square 0.2 of the rate (Liu and others)."""
    model = small()
    before = copy.deepcopy(model)
    descend(model, MuonAdamW(PLAN, model, ("4",)))
    for layer in (0, 2):
        moved = model[layer].weight - before[layer].weight
        values = torch.linalg.svdvals(moved.detach().flatten(1))
        assert values.min() > 0.4 * values.max()
        rms = float(moved.detach().square().mean().sqrt())
        assert 0.1 * PLAN.rate < rms < 0.3 * PLAN.rate
    moved = (model[4].weight - before[4].weight).detach()
    assert moved.abs().max() < 1.001 * PLAN.rate  # AdamW's first step is the rate everywhere
    assert moved.abs().median() > 0.999 * PLAN.rate


def test_the_order_of_memory_does_not_matter() -> None:
    """Up to the bfloat16 in which torch makes a matrix orthogonal."""
    start = small()
    one, other = small(torch.channels_last), small(torch.contiguous_format)
    for model in (one, other):
        descend(model, MuonAdamW(PLAN, model, ()))
    for name, parameter in start.named_parameters():
        moved, also = (m.get_parameter(name).detach() - parameter.detach() for m in (one, other))
        assert (moved - also).norm() < 0.05 * moved.norm(), name


def test_matrices_share_the_memory_of_kernels() -> None:
    for memory_format in (torch.channels_last, torch.contiguous_format):
        kernel = small(memory_format)[0].weight.data
        assert matrix(kernel, kernel).data_ptr() == kernel.data_ptr()
        assert matrix(kernel, kernel).shape == (32, 144)


def test_every_parameter_of_nano_has_one_optimiser() -> None:
    model = mambapose_nano.build().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = MuonAdamW(Settings(muon=True), model, ENDS)
    sizes = [p.numel() for group in optimiser.param_groups for p in group["params"]]
    assert sum(sizes) == sum(p.numel() for p in model.parameters())
    muon = optimiser.param_groups[0]["params"]
    assert sum(p.numel() for p in muon) > 0.9 * sum(sizes)
    addresses = {p.data_ptr() for p in muon}
    for name, parameter in model.named_parameters():
        if name.startswith(ENDS) or name.endswith("A_log") or parameter.ndim < 2:
            assert parameter.data_ptr() not in addresses, name


def test_resumes_exactly() -> None:
    whole, half = small(), small()
    descend(whole, MuonAdamW(PLAN, whole, ()), steps=6)
    first = MuonAdamW(PLAN, half, ())
    descend(half, first, steps=3)
    again = small()
    again.load_state_dict(half.state_dict())
    second = MuonAdamW(PLAN, again, ())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    descend(again, second, steps=3)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_learns() -> None:
    model = small()
    optimiser = MuonAdamW(PLAN, model, ())
    first = descend(model, optimiser)
    assert descend(model, optimiser, steps=30) < 0.3 * first


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ExportError, match="matrices for Muon were wanted"):
        MuonAdamW(PLAN, nn.Linear(3, 3), ())
    model = small()
    other = torch.optim.AdamW(model.parameters()).state_dict()
    with pytest.raises(KeyError):
        MuonAdamW(PLAN, model, ()).load_state_dict(other)
