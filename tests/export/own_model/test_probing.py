"""What a user's network is called with before its graph is made, and what is said of the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from mambapose.export.onnx_export import UNROLLED_NODES, unrolled
from mambapose.export.own_model.build import OwnModel, build_own_model
from mambapose.export.own_model.network import contract, inputs_from_texts
from mambapose.runtime.bundle.bundle import read_bundle
from mambapose.runtime.errors import ExportError
from mambapose.runtime.targets import TARGETS

CLOUD = """
import torch
from torch import nn

class Net(nn.Module):
    def forward(self, points):
        if not torch.compiler.is_compiling() and not points.any():
            raise ValueError("all points are one")
        return (points - points.mean(1, keepdim=True)).abs().amax(1)
"""


class Ask(nn.Module):
    """Fails on what it must not be given, and notes what it was given."""

    def __init__(self, refuse: str) -> None:
        super().__init__()
        self.refuse, self.given = refuse, list[Tensor]()

    def forward(self, points: Tensor) -> Tensor:
        self.given.append(points)
        if self.refuse == "all" or (self.refuse == "zeros" and not points.any()):
            raise ValueError("singular")
        return points.sum(-1)


@pytest.mark.parametrize("kind", ["float32", "float16", "int64", "uint8"])
def test_a_network_that_fails_on_zeros_gets_plausible_values_the_same_each_time(kind: str) -> None:
    inputs = inputs_from_texts([f"points:{kind}:N,64,3"])
    asked = [Ask("zeros"), Ask("zeros")]
    specs = [contract("main", one, inputs) for one in asked]
    assert specs[0].outputs[0].shape == ("N", 64)
    assert specs[0] == specs[1]
    for one, other in zip(asked[0].given, asked[1].given, strict=True):
        assert torch.equal(one, other)
    values = asked[0].given[-1].numpy()
    assert np.isfinite(values).all()
    if kind.startswith("int"):
        assert set(np.unique(values)) == {0, 1}  # might be indices


def test_zeros_come_first_and_a_network_that_always_fails_is_refused_with_its_reason() -> None:
    inputs = inputs_from_texts(["points:float32:2,64,3"])
    always = Ask("nothing")
    contract("main", always, inputs)
    assert not any(bool(given.any()) for given in always.given)
    with pytest.raises(ExportError, match=r"was called with .* and failed: ValueError: singular"):
        contract("main", Ask("all"), inputs)


def test_a_cloud_of_points_becomes_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cloud_net.py").write_text(CLOUD)
    monkeypatch.chdir(tmp_path)
    asked = OwnModel("cloud_net:Net", inputs_from_texts(["points:float32:N,64,3"]))
    out = tmp_path / "bundle"
    build_own_model(
        asked, TARGETS["cpu"], out, folder=tmp_path, overwrite=False, tell=lambda _: None
    )
    assert read_bundle(out).stages["model"].graphs["main"].spec.outputs[0].shape == ("N", 3)


def graph(nodes: int) -> onnx.ModelProto:
    """A chain of additions and multiplications."""
    helper = onnx.helper
    chain = [
        helper.make_node(("Mul", "Add")[step % 2], [f"v{step}", "v0"], [f"v{step + 1}"])
        for step in range(nodes)
    ]
    return helper.make_model(helper.make_graph(chain, "g", [], []))


def test_a_loop_that_was_unrolled_is_said_with_what_to_use() -> None:
    assert unrolled(graph(UNROLLED_NODES - 1)) is None
    said = unrolled(graph(UNROLLED_NODES))
    assert said is not None
    assert f"{UNROLLED_NODES} nodes ({UNROLLED_NODES // 2} Mul, " in said
    assert "selective_scan_fn" in said
    assert said.isprintable()
