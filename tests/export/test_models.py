"""What every network of the registry offers, whichever module builds it."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from mambapose.export.build import stage_graphs, stage_options
from mambapose.export.models import NETWORKS, Network
from mambapose.export.plan import ExportOptions, Plan, make_plan
from mambapose.runtime.stages.joints import BODY_HEIGHTS, IMAGE_UNITS
from mambapose.runtime.targets import TARGETS

# Module -> a small configuration of it.
SMALL: dict[str, dict[str, Any]] = {
    "raft": {"variant": "small"},
    "depth_anything": {"size": "small", "version": 2},
    "vitpose": {"size": "s", "head": "simple"},
    "mambapose": {"width": 32, "depth": 1},
    "glsmamba": {"encoder": "s", "width": 32, "global_blocks": 1, "local_blocks": 1},
    "mambapose_nano": {},
    "posemamba": {"width": 16, "depth": 1},
    "mambapose3d": {"width": 16, "depth": 1},
    "posemagic": {"width": 16, "depth": 1, "out_width": 16},
}


def test_every_module_of_the_registry_is_covered_here() -> None:
    assert {network.module for network in NETWORKS.values()} == set(SMALL)


@pytest.mark.parametrize("module", SMALL)
def test_weights_follow_the_seed_and_leave_torch_alone(module: str) -> None:
    build = importlib.import_module(f"mambapose.export.models.{module}").build
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one, same, other = (build(**SMALL[module], seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(value, same[key]) for key, value in one.items())
    assert any(not torch.equal(value, other[key]) for key, value in one.items())
    assert not build(**SMALL[module]).training


FLOW, DEPTH = ("encode", "corr", "step", "upsample"), ("main",)


@pytest.mark.parametrize(
    ("network", "parts", "size", "suffixes"),
    [
        ("raft-small", FLOW, (144, 200), ["144x200", "200x144"]),
        ("raft-small", FLOW, (128, 128), ["128x128"]),
        ("depth-anything-v2-small", DEPTH, (28, 42), ["28x42", "42x28"]),
        ("depth-anything-v2-small", DEPTH, (28, 28), ["28x28"]),
    ],
)
def test_flow_and_depth_come_in_both_orientations_unless_square(
    network: str, parts: tuple[str, ...], size: tuple[int, int], suffixes: list[str]
) -> None:
    plan = planned(network, sizes={NETWORKS[network].stage: size})
    module = importlib.import_module(f"mambapose.export.models.{NETWORKS[network].module}")
    graphs = stage_graphs(module.build(**NETWORKS[network].config), plan.stages[0], plan)
    assert list(graphs) == [f"{part}@{suffix}" for suffix in suffixes for part in parts]
    assert all(spec.name == name for name, (_, spec) in graphs.items())


@pytest.mark.parametrize("network", [n for n in NETWORKS.values() if n.stage == "lift3d"])
def test_the_unit_of_a_lifter_is_told_to_the_runtime(network: Network) -> None:
    unit = IMAGE_UNITS if network.module == "posemamba" else BODY_HEIGHTS
    assert network.unit == unit
    assert stage_options(planned(network.name).stages[0], unit) == {"unit": unit}
    if not network.causal:  # which has no flip test
        flipped = planned(network.name, flip=True).stages[0]
        assert stage_options(flipped, unit) == {"unit": unit, "flip": True}


def test_other_stages_have_no_options() -> None:
    plan = make_plan(TARGETS["cpu"], ExportOptions(untrained=True, networks={"lift3d": "none"}))
    assert [stage_options(stage, stage.network.unit) for stage in plan.stages] == [{}] * 3


def planned(network: str, **options: Any) -> Plan:
    """The plan of one network."""
    stage = NETWORKS[network].stage
    asked = ExportOptions(networks={stage: network}, only=(stage,), untrained=True, **options)
    return make_plan(TARGETS["cpu"], asked)
