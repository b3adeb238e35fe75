"""Verification: right exports pass with small measured errors, wrong ones are refused by stage."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mambapose.export import verify
from mambapose.export.onnx_export import save_graphs
from mambapose.export.samples import image_pair, sample_inputs, walking_figure
from mambapose.export.verify import Exported, other_inputs, verify_stage
from mambapose.plugins.torch_op import selective_scan
from mambapose.runtime.backends.native import find_library, library_info
from mambapose.runtime.errors import ExportError
from mambapose.runtime.types import GraphSpec, TensorSpec

from ..export_cache import cached_graph

SIZE = (16, 24)
DEPTH_SPEC = GraphSpec(
    "main",
    (TensorSpec("image", "uint8", (1, *SIZE, 3)),),
    (TensorSpec("depth", "float32", (1, 1, *SIZE)),),
)


class Brightness(nn.Module):
    """A depth network: the weighted brightness of every pixel."""

    def __init__(self, weight: float = 0.3) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, image: Tensor) -> Tensor:
        return (image.float() * self.weight).sin().mean(-1)[:, None]


class Encode(nn.Module):
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grey = image.float().mean(-1)[:, None] / 255
        coarse = nn.functional.avg_pool2d(grey, 8)
        return coarse, coarse.tanh(), coarse * 2


class Corr(nn.Module):
    def forward(self, fmap1: Tensor, fmap2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        product = fmap1 * fmap2
        return product, product * 0.5, product * 0.25, product * 0.125


class Step(nn.Module):
    """Moves the coordinates along the features, and the hidden state with them."""

    def __init__(self, stride: float = 0.1) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, *parts: Tensor) -> tuple[Tensor, Tensor]:
        corr0, corr1, corr2, corr3, coords, hidden, context = parts
        pull = (corr0 + corr1 + corr2 + corr3 + context + hidden).expand(-1, 2, -1, -1)
        return coords + self.stride * pull, 0.9 * hidden


class Upsample(nn.Module):
    def forward(self, coords: Tensor) -> Tensor:
        return nn.functional.interpolate(coords, scale_factor=8.0) * 8


class Scan(nn.Module):
    """A lifter of one selective scan over the frames."""

    def forward(self, keypoints: Tensor) -> Tensor:
        n, frames = keypoints.shape[:2]
        u = keypoints.reshape(n, frames, 34)
        b = u[..., :4]
        decay = -torch.arange(1.0, 5.0).repeat(34, 1)
        y, _ = selective_scan(u, u, decay, b, b + 1)
        xyz = torch.cat([u, y[..., :17]], -1)
        return xyz.reshape(n, frames, 17, 3)


def tensor(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, dtype, shape)


def flow_graphs(step: nn.Module) -> dict[str, tuple[nn.Module, GraphSpec]]:
    """The four graphs of a flow network of one channel at 16 x 24."""
    cells = (1, 1, 2, 3)
    image = tensor("image", 1, *SIZE, 3, dtype="uint8")
    pyramid = tuple(tensor(f"corr{i}", *cells) for i in range(4))
    coords, hidden, context = tensor("coords", 1, 2, 2, 3), tensor("hidden", *cells), "context"
    after = (tensor("coords_next", 1, 2, 2, 3), tensor("hidden_next", *cells))
    state = (*pyramid, coords, hidden, tensor(context, *cells))
    fmaps = (tensor("fmap1", *cells), tensor("fmap2", *cells))
    encoded = (tensor("fmap", *cells), hidden, tensor(context, *cells))
    modules = {
        "encode": (Encode(), (image,), encoded),
        "corr": (Corr(), fmaps, pyramid),
        "step": (step, state, after),
        "upsample": (Upsample(), (coords,), (tensor("flow", 1, 2, *SIZE),)),
    }
    return {
        f"{name}@16x24": (module, GraphSpec(f"{name}@16x24", inputs, outputs))
        for name, (module, inputs, outputs) in modules.items()
    }


def exported(
    folder: Path,
    graphs: dict[str, tuple[nn.Module, GraphSpec]],
    claimed: dict[str, nn.Module] | None = None,
) -> dict[str, Exported]:
    """The graphs as files; ``claimed`` modules stand in as what they were exported from."""
    models = {name: cached_graph(module, spec) for name, (module, spec) in graphs.items()}
    files = save_graphs(models, folder, "stage")
    return {
        name: Exported(
            (claimed or {}).get(name, module),
            spec,
            files[name],
            any(node.op_type == "SelectiveScan" for node in models[name].graph.node),
        )
        for name, (module, spec) in graphs.items()
    }


def test_a_right_export_passes_and_leaves_its_arrays(tmp_path: Path) -> None:
    graphs = exported(tmp_path, {"main": (Brightness(), DEPTH_SPEC)})
    found = verify_stage("depth", graphs, seed=4)
    assert set(found.errors) == {"depth_relative"}
    assert 0 <= found.errors["depth_relative"] < 1e-5
    inputs, outputs = found.gate["main"]
    wanted = np.sin(inputs["image"].astype(np.float64) * 0.3).mean(-1)[:, None]
    np.testing.assert_allclose(outputs["depth"], wanted, atol=1e-4)
    again = verify_stage("depth", graphs, seed=4)
    np.testing.assert_array_equal(again.gate["main"][0]["image"], inputs["image"])
    other = verify_stage("depth", graphs, seed=5)
    assert (other.gate["main"][0]["image"] != inputs["image"]).any()


@pytest.mark.parametrize("weight", [0.3005, float("nan")])
def test_a_wrong_export_is_refused_naming_the_stage(tmp_path: Path, weight: float) -> None:
    graphs = exported(tmp_path, {"main": (Brightness(weight), DEPTH_SPEC)}, {"main": Brightness()})
    with pytest.raises(ExportError, match=r"stage depth: .*depth_relative .* > 0\.001"):
        verify_stage("depth", graphs)


class Constant(nn.Module):
    """A depth network whose last layer is all zeros, so that only its bias is left."""

    def __init__(self, depth: float, share: float = 0.0) -> None:
        super().__init__()
        self.depth, self.share = depth, share

    def forward(self, image: Tensor) -> Tensor:
        seen = image.float().mean(-1)[:, None] / 255
        return self.depth + self.share * seen


@pytest.mark.parametrize("depth", [0.0, 0.7])
def test_a_network_that_answers_the_same_to_everything_is_refused(
    tmp_path: Path, depth: float
) -> None:
    """Its gate would pass with an error of 0 and hold nothing."""
    graphs = exported(tmp_path, {"main": (Constant(depth), DEPTH_SPEC)})
    with pytest.raises(ExportError, match="stage depth, graph main: an answer that depends on"):
        verify_stage("depth", graphs)


def test_an_answer_that_varies_little_is_one(tmp_path: Path) -> None:
    graphs = exported(tmp_path, {"main": (Constant(0.7, 1e-3), DEPTH_SPEC)})
    assert verify_stage("depth", graphs).errors["depth_relative"] < 1e-5


def test_other_inputs_are_as_plausible_and_leave_the_samples_alone() -> None:
    inputs = {
        "picture": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        "share": np.linspace(0, 1, 6, dtype=np.float32),
        "place": np.array([[3, 1, 2]]),
        "flag": np.array([True, False]),
        "one": np.float32(0.5).reshape(()),
    }
    kept = {name: array.copy() for name, array in inputs.items()}
    for name, other in other_inputs(inputs).items():
        np.testing.assert_array_equal(inputs[name], kept[name])
        assert (other.shape, other.dtype) == (kept[name].shape, kept[name].dtype)
        assert not np.array_equal(other, kept[name])
        assert 0 <= other.min() <= other.max() <= kept[name].max()
    assert sorted(other_inputs(inputs)["place"].ravel()) == [1, 2, 3]


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    return exported(tmp_path_factory.mktemp("flow"), flow_graphs(Step()))


def test_flow_is_verified_graph_by_graph_and_as_a_chain(flow: dict[str, Exported]) -> None:
    found = verify_stage("flow", flow, flow_iters=5)
    assert set(found.errors) == {"flow_px", "relative"}
    assert found.errors["flow_px"] < 1e-4
    assert found.errors["relative"] < 1e-6
    assert set(found.gate) == set(flow)
    step_inputs = found.gate["step@16x24"][0]
    cells = np.stack(np.mgrid[: SIZE[0] // 8, : SIZE[1] // 8][::-1])
    assert (step_inputs["coords"] != cells[None]).any()  # taken from inside the chain


def test_an_error_that_only_the_chain_shows_is_refused(flow: dict[str, Exported]) -> None:
    """A step that is off by 0.1 % passes once or twice; the sum of sixty does not."""
    off = {**flow, "step@16x24": replace(flow["step@16x24"], module=Step(0.1001))}
    assert 1e-4 < verify_stage("flow", off, flow_iters=1).errors["flow_px"] < 0.02
    with pytest.raises(ExportError, match=r"stage flow: .*flow_px"):
        verify_stage("flow", off, flow_iters=60)


SCAN_SPEC = GraphSpec(
    "main", (tensor("keypoints", "N", 9, 17, 2),), (tensor("xyz", "N", 9, 17, 3),)
)


def test_a_scan_is_verified_in_function_form_without_the_compiled_operator(tmp_path: Path) -> None:
    found = verify_stage("lift3d", exported(tmp_path, {"main": (Scan(), SCAN_SPEC)}))
    assert set(found.errors) == {"joint_mm"}
    assert found.errors["joint_mm"] < 0.05
    assert found.gate["main"][1]["xyz"].shape == (2, 9, 17, 3)


def test_native_and_function_are_compared_and_a_difference_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = find_library()
    if library is None or not library_info(library).onnxruntime:
        pytest.skip("the compiled ONNX Runtime operator is not built")
    graphs = exported(tmp_path, {"main": (Scan(), SCAN_SPEC)})
    found = verify_stage("lift3d", graphs, library=library)
    assert set(found.errors) == {"joint_mm", "native_vs_function"}
    assert found.errors["native_vs_function"] < 1e-5

    class Off:
        """The function form, 0.02 % larger."""

        def __init__(self, engine: Any) -> None:
            self.engine = engine

        def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
            return {name: output * 1.0002 for name, output in self.engine.run(inputs).items()}

    real = verify.open_graph
    monkeypatch.setattr(
        verify,
        "open_graph",
        lambda file, library=None: real(file, library) if library else Off(real(file)),
    )
    with pytest.raises(ExportError, match=r"stage lift3d: .*native_vs_function 0\.0002 > 0\.0001"):
        verify_stage("lift3d", graphs, library=library)


def test_a_file_that_is_no_graph_is_an_export_error(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match=r"x\.onnx does not load in ONNX Runtime"):
        verify.open_graph(tmp_path / "x.onnx")


# --- the inputs ----------------------------------------------------------------------------------


def test_the_image_pair_shows_one_texture_that_moved() -> None:
    now, before = image_pair(128, 160, 3)
    assert now.shape == before.shape == (1, 128, 160, 3)
    np.testing.assert_array_equal(now[:, :, :-3], before[:, :, 3:])
    assert now.std() > 20


def test_the_figure_is_one_unit_tall_and_moves() -> None:
    figure = walking_figure(2, 27, 1)
    height = np.ptp(figure[..., 1], axis=-1)
    np.testing.assert_allclose(height, 1.0, atol=0.01)
    assert np.abs(figure).max() < 1
    assert np.abs(np.diff(figure, axis=1)).max() > 0.001
    assert (figure[0] != figure[1]).any()


def test_every_input_of_the_pose_and_lift_stages_has_samples() -> None:
    pose = GraphSpec(
        "main",
        (
            tensor("rgb", "N", 32, 16, 3, dtype="uint8"),
            tensor("flow", "N", 2, 32, 16),
            tensor("depth", "N", 1, 32, 16),
            tensor("present", "N", 2),
        ),
        (),
    )
    made = sample_inputs("pose2d", pose, 0)
    pose.check_inputs(made)
    assert made["present"].tolist() == [[1, 1], [1, 0]]
    lift = GraphSpec(
        "main",
        (
            tensor("keypoints", "N", 9, 17, 2),
            tensor("score", "N", 9, 17),
            tensor("depth", "N", 9, 17),
            tensor("flow", "N", 9, 17, 2),
            tensor("present", "N", 3),
        ),
        (),
    )
    made = sample_inputs("lift3d", lift, 0)
    lift.check_inputs(made)
    assert np.abs(made["flow"]).max() < 0.1
    with pytest.raises(ExportError, match="no sample can be made"):
        sample_inputs("depth", GraphSpec("main", (tensor("ids", 1, dtype="int64"),), ()), 0)


# --- a causal lifter -----------------------------------------------------------------------------


class Fading(nn.Module):
    """xyz of joints mixed with a fading memory of those before; whole: a sequence at once."""

    def __init__(self, fading: float = 0.5) -> None:
        super().__init__()
        self.fading = fading

    def forward(
        self, keypoints: Tensor, score: Tensor, joint_state: Tensor
    ) -> tuple[Tensor, Tensor]:
        after = self.fading * joint_state + keypoints
        return torch.cat([after, score[..., None]], -1), after

    def whole(self, keypoints: Tensor, score: Tensor) -> Tensor:
        state, poses = torch.zeros_like(keypoints[:, 0]), []
        for frame in range(keypoints.shape[1]):
            xyz, state = self(keypoints[:, frame], score[:, frame], state)
            poses.append(xyz)
        return torch.stack(poses, 1)


STEP_SPEC = GraphSpec(
    "step",
    (tensor("keypoints", "N", 17, 2), tensor("score", "N", 17), tensor("joint_state", "N", 17, 2)),
    (tensor("xyz", "N", 17, 3), tensor("joint_state_next", "N", 17, 2)),
)


@pytest.fixture(scope="module")
def fading(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(tmp_path_factory.mktemp("step"), {"step": (Fading(), STEP_SPEC)})["step"]


def test_a_causal_lifter_is_verified_from_inside_a_sequence_and_as_one(fading: Exported) -> None:
    found = verify_stage("lift3d", {"step": fading}, seed=2)
    assert set(found.errors) == {"joint_mm", "relative", "steps_vs_sequence"}
    assert found.errors["steps_vs_sequence"] < 1e-6
    inputs, outputs = found.gate["step"]
    STEP_SPEC.check_inputs(inputs)
    assert len(inputs["keypoints"]) == 1
    assert inputs["joint_state"].any()  # a state as it occurs, not the zeros of a start
    wanted = 0.5 * inputs["joint_state"] + inputs["keypoints"]
    np.testing.assert_allclose(outputs["joint_state_next"], wanted, atol=1e-6)


def test_a_state_that_only_the_sequence_shows_to_be_wrong_is_refused(fading: Exported) -> None:
    """A step whose state fades 0.1 % slower than that of the sequence."""

    class Slower(Fading):
        def whole(self, keypoints: Tensor, score: Tensor) -> Tensor:
            return Fading(0.5005).whole(keypoints, score)

    with pytest.raises(ExportError, match=r"stage lift3d: .*steps_vs_sequence"):
        verify_stage("lift3d", {"step": replace(fading, module=Slower())})
