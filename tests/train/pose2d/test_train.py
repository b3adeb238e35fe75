"""Training of pose2d: batches, loss, exact resumption, learning, starting from shipped weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

pytest.importorskip("cv2", reason="opencv is not installed (extra train)")

from mambapose.export.models import mambapose_nano as nano
from mambapose.runtime.errors import ExportError
from mambapose.train.pose2d import measure as pose2d_measure
from mambapose.train.pose2d import state as pose2d_state
from mambapose.train.pose2d import train as pose2d
from mambapose.train.pose2d.data import HALF, BatchSource, Recipe, batch_of_rows, row_of
from mambapose.train.pose2d.loss import losses, side_vectors, targets
from mambapose.train.pose2d.measure import CLEAN, combination_metrics, held_out_source
from mambapose.train.pose2d.state import Settings
from mambapose.train.run_loop import Limits
from mambapose.train.world.cache import Stores, write_store
from mambapose.train.world.sample import SampleSource

from ...runtime.fakes import pose_engine
from ..pose2d_shots import drawn_shot

CPU = torch.device("cpu")
GRID = nano.MambaPoseNano.grid


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("stores")
    for name, seeds in (("a", range(2)), ("b", range(2, 5))):
        write_store(folder / name, map(drawn_shot, seeds), len(seeds))
    return str(folder / "a"), str(folder / "b")


def test_several_stores_are_one(stores: tuple[str, ...]) -> None:
    both = Stores([Path(store) for store in stores])
    assert len(both) == 5
    for number in range(5):
        np.testing.assert_array_equal(both[number].marks, drawn_shot(number).marks)


def test_a_batch_is_a_function_of_its_number(stores: tuple[str, ...]) -> None:
    recipe = Recipe(stores, None, 3, 6)
    source = BatchSource(recipe)
    source.batch(0)
    once, again = source.batch(700), BatchSource(recipe).batch(700)
    assert once.rgb.shape == (6, 3, *HALF)
    for name in once.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(once, name), getattr(again, name))
    assert not np.array_equal(once.rgb, source.batch(701).rgb)


def test_what_is_absent_is_zero(stores: tuple[str, ...]) -> None:
    batch = BatchSource(Recipe(stores, None, 3, 24)).batch(5)
    assert set(map(tuple, batch.present)) >= {(0, 0), (1, 0), (1, 1)}
    for flags, flow, depth in zip(batch.present, batch.flow, batch.depth, strict=True):
        assert bool(flow.any()) <= bool(flags[0])
        assert bool(depth.any()) == bool(flags[1])


def test_joints_and_flow_are_in_pixels_of_the_whole_crop(
    stores: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clean figure is as tall in the crop as the runtime's boxes make it."""
    monkeypatch.setattr(pose2d_measure, "estimated_flow", lambda flow, _: flow)
    source = SampleSource(Stores([Path(stores[0])]), seed=1, mixture=CLEAN, size=HALF)
    sample = source.sample(0)
    present = np.ones((1, 2), np.float32)
    batch = batch_of_rows([row_of(sample, present[0], np.random.default_rng(0))], present)
    assert batch.rgb.shape == (1, 3, *HALF)
    ankles, eyes = batch.xy[0, 15:17, 1].mean(), batch.xy[0, 1:3, 1].mean()
    assert 256 / 1.25 * 0.8 < ankles - eyes < 256 / 1.25
    assert sample.flow.any()
    np.testing.assert_allclose(batch.flow[0], 2 * sample.flow)


def test_targets_by_hand() -> None:
    xy = torch.tensor([[[11.5, 19.5], [0.0, 0.0]]])
    inside = torch.tensor([[True, False]])
    maps = targets(xy, inside, (4, 3))
    torch.testing.assert_close(maps.sum(-1), torch.ones(1, 2))
    assert maps[0, 1, -1] == 1
    assert maps[0, 1, :-1].sum() == 0
    grid = maps[0, 0, :-1].reshape(4, 3)
    assert (grid == grid.max()).nonzero().tolist() == [[2, 1]]  # cell centres at 3.5, 11.5, 19.5
    ratio = grid[2, 2] / grid[2, 1]
    torch.testing.assert_close(ratio, torch.exp(torch.tensor(-1 / (2 * nano.CELL_SIGMA**2))))


def test_loss_is_least_at_the_truth() -> None:
    torch.manual_seed(0)
    xy = torch.rand(3, 17, 2) * torch.tensor([191.0, 255.0])
    inside = torch.rand(3, 17) > 0.3
    right = nano.Answer(
        torch.log(targets(xy, inside, GRID) + 1e-12), side_vectors(xy) / nano.SIDE_UNIT_PX
    )
    best = losses(right, xy, inside, GRID)
    assert best["side"] == 0
    swapped = xy[:, [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]]
    wrong = losses(right, swapped, torch.ones_like(inside), GRID)
    assert wrong["place"] > best["place"] + 1
    assert wrong["side"] > 0.5


def test_vectors_of_joints_outside_do_not_count() -> None:
    xy = torch.rand(1, 17, 2) * 100
    inside = torch.ones(1, 17, dtype=torch.bool)
    inside[0, 15] = False
    sides = side_vectors(xy) / nano.SIDE_UNIT_PX
    sides[0, 7] += 100
    answer = nano.Answer(torch.zeros(1, 17, 32 * 24 + 1), sides)
    assert losses(answer, xy, inside, GRID)["side"] < 1e-5


@pytest.mark.slow
def test_resumes_exactly_and_learns(stores: tuple[str, ...], tmp_path: Path) -> None:
    """20 steps in one go, and in two with a new process's worth of state between."""
    plan = Settings(batch=6, warmup=5, rate=1e-3)
    whole = pose2d_state.fresh(plan, CPU)
    pose2d.train(whole, whole.recipe(stores, None), tmp_path / "whole", Limits(steps=20))
    half = pose2d_state.fresh(plan, CPU)
    pose2d.train(half, half.recipe(stores, None), tmp_path / "half", Limits(steps=8))
    again = pose2d_state.resumed(tmp_path / "half", CPU)
    assert (again.step, again.samples) == (8, 48)
    pose2d.train(again, again.recipe(stores, None), tmp_path / "half", Limits(steps=12))
    for name, tensor in whole.average.items():
        assert torch.equal(tensor, again.average[name]), name
    lines = (tmp_path / "half" / "curve.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == [8, 20]
    assert rows[1]["place"] < rows[0]["place"] - 0.4


def test_better_answers_measure_better(stores: tuple[str, ...]) -> None:
    """The measure of held-out crops: an oracle is perfect, a constant pose is not."""
    source = held_out_source([Path(stores[1])], None, CLEAN)
    samples = [source.sample(k) for k in range(4)]

    def heatmaps(xy: torch.Tensor) -> np.ndarray:
        inside = torch.ones(xy.shape[:2], dtype=torch.bool)
        return nano.build().heatmaps(torch.log(targets(xy, inside, GRID) + 1e-12)).numpy()

    truth = heatmaps(torch.from_numpy(np.stack([s.coco_xy for s in samples])).float())
    right = combination_metrics(pose_engine(lambda _: {"heatmaps": truth}), source, 4)["rgb"]
    assert right.median < 0.004
    assert right.pck10 == 1
    middle = heatmaps(torch.full((4, 17, 2), 96.0))
    wrong = combination_metrics(pose_engine(lambda _: {"heatmaps": middle}), source, 4)["rgb"]
    assert wrong.median > 0.1
    assert wrong.collapsed == 1


def test_starts_from_shipped_weights(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    shipped = {name: t.half() for name, t in nano.build(seed=5).state_dict().items()}
    path = tmp_path / "mambapose-nano.safetensors"
    save_file(shipped, path, {"training": json.dumps({"step": 40, "offset": 2})})
    state = pose2d_state.started_from(path, Settings(), CPU)
    assert (state.step, state.offset) == (0, 42)
    for name, tensor in state.model.state_dict().items():
        assert torch.equal(tensor.half(), shipped[name])
    save_file({"stem.0.weight": torch.zeros(1)}, path)
    with pytest.raises(
        ExportError, match=r"weights of mambapose-nano were wanted in .*found others"
    ):
        pose2d_state.started_from(path, Settings(), CPU)
    path.write_bytes(b"nothing")
    with pytest.raises(ExportError, match="cannot be read"):
        pose2d_state.started_from(path, Settings(), CPU)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--resume"], "a checkpoint of this command was wanted"),
        (["--start-from", "{tmp}/absent"], "a checkpoint of this command was wanted"),
        (["--store", "{tmp}"], "a store of shots was wanted"),
    ],
)
def test_bad_input_is_one_line(
    stores: tuple[str, ...], tmp_path: Path, extra: list[str], message: str
) -> None:
    words = ["--store", stores[0], "--out", str(tmp_path / "run"), "--steps", "1", "--batch", "1"]
    result = CliRunner().invoke(pose2d.main, words + [word.format(tmp=tmp_path) for word in extra])
    assert result.exit_code == 1
    assert message in result.output
    assert result.output.strip().splitlines()[-1].startswith("error: ")


def test_a_run_is_not_overwritten(stores: tuple[str, ...], tmp_path: Path) -> None:
    words = ["--store", stores[0], "--out", str(tmp_path), "--steps", "1", "--batch", "2"]
    assert CliRunner().invoke(pose2d.main, words).exit_code == 0
    before = (tmp_path / "checkpoint.pt").read_bytes()
    result = CliRunner().invoke(pose2d.main, words)
    assert result.exit_code == 1
    assert "go on with --resume" in result.output
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert CliRunner().invoke(pose2d.main, [*words, "--resume"]).exit_code == 0
    assert pose2d_state.resumed(tmp_path, CPU).step == 2
