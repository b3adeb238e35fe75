"""GLSMamba as a stage: sizes, graphs, both forms of the scans, weights, a bundle."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from mambapose.export.build import load_network
from mambapose.export.models import NETWORKS, glsmamba, vitpose
from mambapose.export.plan import ExportOptions, make_plan
from mambapose.export.samples import moving_pictures
from mambapose.export.verify import Exported, verify_stage
from mambapose.runtime.errors import ExportError
from mambapose.runtime.targets import TARGETS

from ..export_cache import cached_graph, reused_stages

SIZE = (64, 48)
ENCODER = vitpose.Variant(32, 1, 2)
SMALL = {"encoder": ENCODER, "width": 32, "global_blocks": 1, "local_blocks": 1}


@pytest.fixture(scope="module")
def model() -> glsmamba.GlsMamba:
    return glsmamba.build(**SMALL, seed=3)


@pytest.fixture(scope="module")
def exported(model) -> dict[str, onnx.ModelProto]:
    return {name: cached_graph(*graph) for name, graph in glsmamba.graphs(model, SIZE).items()}


def answers(model: glsmamba.GlsMamba, pictures: list[np.ndarray]) -> np.ndarray:
    """Heatmaps by torch of T pictures (N, H, W, 3)."""
    parts = glsmamba.graphs(model, pictures[0].shape[1:3])
    encode, main = (parts[name][0] for name in ("encode", "main"))
    with torch.no_grad():
        return main(torch.stack([encode(torch.from_numpy(p)) for p in pictures], 1)).numpy()


@pytest.mark.parametrize(
    ("name", "encoder", "beside"),
    [("glsmamba-s", "s", 4_230_513), ("glsmamba-b", "b", 9_721_553)],
)
def test_registered_sizes_have_the_true_parameter_counts(name, encoder, beside) -> None:
    network = NETWORKS[name]
    with torch.device("meta"):
        built = glsmamba.GlsMamba(
            vitpose.VARIANTS[encoder], network.config["width"], global_blocks=4, local_blocks=2
        )
    count = sum(parameter.numel() for parameter in built.parameters())
    encoder_count = sum(parameter.numel() for parameter in built.backbone.parameters())
    assert count == network.params
    # The paper: 9.8 M trainable parameters beside ViT-B.
    assert count - encoder_count == beside


def test_a_block_has_one_scan_node_with_its_orders(exported) -> None:
    graph = exported["main"].graph
    nodes = [node for node in graph.node if node.op_type == "SelectiveScan"]
    assert len(nodes) == SMALL["global_blocks"] + SMALL["local_blocks"]
    found = [{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in nodes]
    assert [(a["directions"], a["segment"], a["merge"]) for a in found] == [
        (6, 0, b"none"),
        (2, 240, b"sum"),
    ]
    assert not any(node.op_type == "SelectiveScan" for node in exported["encode"].graph.node)


def test_graphs_agree_with_torch_for_any_number_of_people(
    model, exported, run_onnx, scan_form
) -> None:
    pictures = moving_pictures(*SIZE, model.frames, 5)
    pictures = [np.concatenate([p, p[:1, ::-1]]) for p in pictures]
    for people in (3, 1):
        seen = [p[:people] for p in pictures]
        features = [
            run_onnx(exported["encode"], {"rgb": rgb}, scan_form)["features"] for rgb in seen
        ]
        window = {"features": np.stack(features, 1)}
        found, wanted = (
            run_onnx(exported["main"], window, scan_form)["heatmaps"],
            answers(model, seen),
        )
        assert found.shape == (people, 17, 16, 12)
        assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_every_frame_and_its_place_in_the_window_matter(model) -> None:
    pictures = moving_pictures(*SIZE, model.frames, 5)
    wanted = answers(model, pictures)
    for t in range(model.frames):
        changed = list(pictures)
        changed[t] = pictures[t][:, ::-1].copy()
        # With random weights the key frame itself counts most.
        assert np.abs(answers(model, changed) - wanted).max() > 1e-5 * np.abs(wanted).max()
    back = answers(model, pictures[::-1])
    assert np.abs(back - wanted).max() > 1e-5 * np.abs(wanted).max()


def test_verify_feeds_the_window_with_features_of_moving_pictures(
    model, exported, tmp_path
) -> None:
    from mambapose.runtime.backends.native import find_library, library_info

    library = find_library()
    if library is not None and not library_info(library).onnxruntime:
        library = None
    graphs = {}
    for name, (module, spec) in glsmamba.graphs(model, SIZE).items():
        path = tmp_path / f"{name}.onnx"
        onnx.save_model(exported[name], path)
        graphs[name] = Exported(module, spec, path, name == "main")
    verified = verify_stage("pose2d", graphs, library=library)
    assert set(verified.errors) >= {"relative", "joint_px"}
    assert verified.errors["joint_px"] < 0.01
    if library is not None:
        assert verified.errors["native_vs_function"] < 1e-4
    window = verified.gate["main"][0]["features"]
    assert all(np.abs(window[:, t] - window[:, t + 1]).max() > 0.1 for t in range(4))


@pytest.mark.parametrize("size", [(80, 48), (64, 64)])
def test_crops_that_make_no_whole_windows_are_refused(model, size) -> None:
    with pytest.raises(ExportError, match=r"multiples of 32x48 px for GLSMamba"):
        glsmamba.graphs(model, size)


def test_places_are_different_everywhere_and_alike_nearby() -> None:
    places = glsmamba.sine_cosine_places((16, 12), 32)
    assert places.shape == (192, 32)
    gap = torch.cdist(places, places)
    assert (gap + torch.eye(192) > 0.1).all()
    near, far = gap[0, 1], gap[0, 11]
    assert near < far
    assert torch.isclose(places[0, :8], torch.zeros(8)).all()


def saved(state: dict[str, torch.Tensor], path: Path) -> Path:
    torch.save({"state_dict": state}, path)
    return path


def other_vitpose(head: str) -> vitpose.VitPose:
    torch.manual_seed(11)
    return vitpose.VitPose(ENCODER, head)


@pytest.mark.parametrize("head", ["classic", "simple"])
@pytest.mark.parametrize("names", ["official", "transformers"])
def test_a_file_of_vitpose_gives_the_encoder(tmp_path, head, names) -> None:
    official = other_vitpose(head)
    state = official.state_dict()
    if names == "transformers":
        state = renamed(official)
    mine, before = glsmamba.build(**SMALL), glsmamba.build(**SMALL).state_dict()
    assert glsmamba.load_encoder(mine, saved(state, tmp_path / "vitpose.pth"))
    taken = {"backbone."} | ({"keypoint_head.deconv_layers."} if head == "classic" else set())
    for key, value in mine.state_dict().items():
        of_file = any(key.startswith(start) for start in taken)
        assert torch.equal(value, official.state_dict()[key] if of_file else before[key]), key


def renamed(official: vitpose.VitPose) -> dict[str, torch.Tensor]:
    """Its state dict under transformers' names."""
    state, out = official.state_dict(), {}
    for theirs, ours in vitpose.key_tables(official)[0].items():
        if isinstance(ours, str):
            out[theirs] = state[ours]
        else:
            out[theirs] = state[ours.key].chunk(ours.count)[ours.index]
    return out


def test_another_vitpose_is_refused_and_our_own_file_is_whole(tmp_path) -> None:
    mine = glsmamba.build(**SMALL)
    wider = vitpose.VitPose(vitpose.Variant(48, 1, 2), "classic")
    with pytest.raises(ExportError, match="the encoder of GLSMamba"):
        glsmamba.load_encoder(mine, saved(wider.state_dict(), tmp_path / "wide.pth"))
    own = saved(glsmamba.build(**SMALL, seed=9).state_dict(), tmp_path / "own.pth")
    assert not glsmamba.load_encoder(mine, own)


def planned(file: Path, monkeypatch: pytest.MonkeyPatch, *, untrained: bool):
    small = dataclasses.replace(NETWORKS["glsmamba-s"], config=SMALL)
    monkeypatch.setitem(NETWORKS, "glsmamba-s", small)
    options = ExportOptions(
        networks={"pose2d": "glsmamba-s"}, only=("pose2d",), weights={"pose2d": file},
        untrained=untrained,
    )  # fmt: skip
    return make_plan(TARGETS["cpu"], options).stages[0]


def test_the_encoders_file_alone_needs_untrained_and_is_marked(tmp_path, monkeypatch) -> None:
    file = saved(other_vitpose("classic").state_dict(), tmp_path / "vitpose.pth")
    with pytest.raises(ExportError, match=r"found those of its encoder alone; .*--untrained"):
        load_network(planned(file, monkeypatch, untrained=False), 0, lambda line: None)
    told: list[str] = []
    loaded = load_network(planned(file, monkeypatch, untrained=True), 0, told.append)
    assert not loaded.weights.trained
    assert loaded.weights.file == "vitpose.pth"
    assert told == [
        "pose2d  vitpose.pth: weights under state_dict",
        "pose2d  vitpose.pth: weights of the encoder, all others are random",
    ]
    own = saved(glsmamba.build(**SMALL, seed=9).state_dict(), tmp_path / "own.pth")
    loaded = load_network(planned(own, monkeypatch, untrained=False), 0, told.append)
    assert loaded.weights.trained
    assert torch.equal(loaded.model.time_embed, glsmamba.build(**SMALL, seed=9).time_embed)


@pytest.mark.parametrize("change", [{"width": 30}, {"frames": 4}, {"local_blocks": 0}])
def test_configurations_that_cannot_be_are_refused(change) -> None:
    with pytest.raises(ValueError, match="were wanted, found"):
        glsmamba.build(**{**SMALL, **change})


@pytest.mark.slow
def test_glsmamba_s_becomes_a_bundle_that_runs(tmp_path) -> None:
    """The real sizes: 15360 tokens, both forms of the scans, mp-check's gate, the runtime."""
    from mambapose.export.build import build_bundle
    from mambapose.runtime.check.machine import stage_finding
    from mambapose.runtime.loading import open_pipeline
    from mambapose.runtime.types import Frame, Size, Where

    options = ExportOptions(networks={"pose2d": "glsmamba-s"}, only=("pose2d",), untrained=True)
    plan = make_plan(TARGETS["cpu"], options)
    with reused_stages():
        bundle = build_bundle(plan, tmp_path / "bundle", overwrite=False, tell=lambda line: None)
    entry = bundle.stage("pose2d")
    assert list(entry.graphs) == ["encode", "main"]
    assert entry.params == NETWORKS["glsmamba-s"].params
    assert entry.gate.get("native_vs_function", 0.0) < 1e-4
    assert stage_finding(bundle, "pose2d", "onnxruntime").ok
    pictures = moving_pictures(120, 160, 4, 0)
    frames = [Frame(picture[0], k, k / 30) for k, picture in enumerate(pictures)]
    with open_pipeline(bundle, Size(120, 160), where=Where(threads=1)) as pipeline:
        found = list(pipeline.run(frames))
        assert pipeline.memory()["pose2d"]["weights"] > 4 * entry.params
        runs = {name: times["runs"] for name, times in pipeline.times.summary().items()}
    assert [result.frame.index for result in found] == [0, 1, 2, 3]
    assert (runs["encode"], runs["pose2d"]) == (4, 4)
