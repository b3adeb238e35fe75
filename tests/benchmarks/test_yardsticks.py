"""The transformer that lifters stand beside: its size, its graph, and that it is no product."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mambapose.benchmarks import lift_baselines, yardsticks
from mambapose.export.models import NETWORKS
from mambapose.runtime.bundle.bundle import read_bundle


@pytest.mark.parametrize("pairs", [1, 3])
def test_the_number_of_parameters_is_the_true_one(pairs: int) -> None:
    model = yardsticks.build(f"transformer:{pairs}")
    found = sum(parameter.numel() for parameter in model.parameters())
    assert found == yardsticks.PARAMS + pairs * yardsticks.PARAMS_OF_A_PAIR


def test_it_is_as_large_as_the_network_beside_it() -> None:
    for name, expected in (("posemamba-s", 5), ("mambapose3d-nano", 1), ("posemamba-l", 36)):
        params = NETWORKS[name].params
        assert params is not None
        assert yardsticks.transformer_like(params) == f"transformer:{expected}"
        own = yardsticks.PARAMS + expected * yardsticks.PARAMS_OF_A_PAIR
        assert abs(own - params) <= yardsticks.PARAMS_OF_A_PAIR / 2
    assert yardsticks.transformer_like(10) == "transformer:1"


@pytest.mark.parametrize("name", ["transformer", "transformer:0", "transformer:x", "transformer:-1",
                                  "posemamba-s", ""])  # fmt: skip
def test_other_names_are_none(name: str) -> None:
    assert not yardsticks.is_transformer(name)


def test_it_answers_what_the_baseline_of_the_training_answers() -> None:
    keypoints = torch.randn(2, 9, 17, 2, generator=torch.Generator().manual_seed(1))
    trained = lift_baselines.build("transformer", seed=4, pairs=2)
    (module, _), *_ = yardsticks.graphs(yardsticks.build("transformer:2", seed=4), 9).values()
    with torch.no_grad():
        xyz, wanted = module(keypoints), trained(keypoints)
    torch.testing.assert_close(xyz[:, :, 1:], wanted[:, :, 1:], atol=1e-6, rtol=1e-5)
    assert not xyz[:, :, 0].any()


@pytest.mark.slow
def test_its_bundle_is_written_by_the_usual_export(tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    out = tmp_path / "bundle"
    done = CliRunner().invoke(
        yardsticks.command, ["transformer:1", "--clip-frames", "3", "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    bundle = read_bundle(out)
    (entry,) = bundle.stages.values()
    assert (entry.network, entry.params, entry.weights.trained) == ("transformer:1", 299_651, False)
    assert bundle.schedule.clip_frames == 3
    assert entry.gate["joint_mm"] < 0.1
    assert "transformer:1" not in NETWORKS
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3  # it warns that the saved file suits this machine only
    file = str(bundle.file(entry.graphs["main"].onnx))
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["Gelu"] + kinds["BiasGelu"] == 2  # a slower form would be no fair yardstick
    assert "Erf" not in kinds


def test_another_network_is_a_usage_error(tmp_path: Path) -> None:
    done = CliRunner().invoke(yardsticks.command, ["posemamba-s", "--out", str(tmp_path / "x")])
    assert done.exit_code == 2
    assert "transformer:PAIRS was wanted, found posemamba-s" in done.output
