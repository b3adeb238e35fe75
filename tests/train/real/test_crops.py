"""Crops of real people as training samples: who is trained on, where joints go, what is unknown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

pytest.importorskip("cv2", reason="opencv is not installed (extra train)")

from mambapose.export.models import mambapose_nano as nano
from mambapose.runtime.errors import ExportError
from mambapose.runtime.stages.crop import crops_from_boxes
from mambapose.train.pose2d import train as pose2d
from mambapose.train.pose2d.data import HALF, BatchSource, Recipe
from mambapose.train.pose2d.loss import losses
from mambapose.train.real.crops import RealSource, widened
from mambapose.train.real.people import FOLDER, FREE, SHARE_ALIKE, read_people
from mambapose.train.world.cache import write_store
from mambapose.train.world.sample import CROP, Mixture, random_affine
from mambapose.train.world.truth import OUTSIDE, SEEN, UNKNOWN

from ..pose2d_shots import drawn_shot
from .made_up_people import colour, write

STILL = Mixture(strength=0.0, mirror=0.0, others=0.0, occluders=0.0, edges=0.0, far=0.0, empty=0.0)
ROWS = [
    ("train", "A", "one", False),
    ("train", "A", "two", False),
    ("train", "B", "three", False),
    ("val", "A", "four", False),
    ("train", "A", "five", True),
    ("train", "A", "five", False),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("people"), FREE, ROWS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("stores") / "drawn"
    write_store(path, map(drawn_shot, range(2)), 2)
    return str(path)


def test_only_what_may_ship_is_trained_on(folder: Path) -> None:
    """Not tier B, not what is held out, nobody in a picture with annotated people."""
    assert read_people(folder).trained_on().tolist() == [0, 1]


def test_a_folder_that_cannot_be_read_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="crops of people were wanted"):
        read_people(tmp_path)
    for name in ("tar", "npz"):
        (tmp_path / f"{FREE}.{name}").write_bytes((folder / f"{FREE}.{name}").read_bytes())
    (tmp_path / f"{FREE}.tar").write_bytes(b"nothing")
    with pytest.raises(ExportError, match="cannot be read"):
        read_people(tmp_path)


@pytest.mark.parametrize("mirror", [0.0, 1.0])
def test_joints_move_with_the_picture(folder: Path, mirror: float) -> None:
    """Discs of the left joints are the left ones' in a mirror too: their colours change places."""
    source = RealSource(folder, CROP)
    sample = source.sample(0, replace(STILL, mirror=mirror))
    assert sample.visibility.tolist() == [SEEN] * 15 + [UNKNOWN] * 2
    pairs = [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13]
    for joint, (x, y) in enumerate(sample.xy[:15]):
        drawn = colour(pairs[joint] if mirror else joint)
        found = sample.rgb[round(y), round(x)].astype(int)
        assert np.abs(found - drawn).max() < 40, joint


def test_half_a_crop_is_the_crop_halved(folder: Path) -> None:
    whole, half = (RealSource(folder, size).sample(3, STILL) for size in (CROP, HALF))
    assert half.rgb.shape == (*HALF, 3)
    means = whole.rgb.reshape(HALF[0], 2, HALF[1], 2, 3).mean(axis=(1, 3))
    assert np.abs(half.rgb - means).mean() < 6
    np.testing.assert_allclose(2 * half.xy + 0.5, whole.xy, atol=0.8)


def test_known_joints_leave_unknown_ones_do_not(folder: Path) -> None:
    """Beyond the crop or cut by the frame a known joint is outside; an unknown one stays so."""
    source = RealSource(folder, HALF, seed=1)
    cut = replace(STILL, edges=1.0)
    seen = np.stack([source.sample(number, cut).visibility for number in range(40)])
    assert (seen[:, 15:] == UNKNOWN).all()
    assert 0.05 < (seen[:, :15] == OUTSIDE).mean() < 0.6
    shifted = np.stack(
        [source.sample(k, replace(STILL, strength=1.0, shift=0.3)).visibility for k in range(40)]
    )
    assert (shifted[:, 15:] == UNKNOWN).all()
    assert (shifted[:, :15] == OUTSIDE).any()


def test_a_sample_is_a_function_of_its_number(folder: Path) -> None:
    one, other = RealSource(folder, HALF, seed=4), RealSource(folder, HALF, seed=4)
    one.sample(1, Mixture())
    again, once = one.sample(9, Mixture()), other.sample(9, Mixture())
    np.testing.assert_array_equal(again.rgb, once.rgb)
    np.testing.assert_array_equal(again.xy, once.xy)


def test_boxes_are_as_large_as_asked() -> None:
    box = np.array([10.0, 20.0, 60.0, 150.0])
    right = crops_from_boxes(box[None], CROP).matrices[0, 0, 0]
    mixture = Mixture(strength=0.5, mirror=0.0, turned=0.0, far=0.0, box=(0.75, 1.35))
    rng = np.random.default_rng(0)
    sizes = right / np.array([random_affine(box, mixture, CROP, rng)[0][0, 0] for _ in range(300)])
    assert 0.75 <= sizes.min() < 0.78
    assert 1.30 < sizes.max() <= 1.35


def test_black_is_only_beyond_a_photograph() -> None:
    """The folder cuts at 0.3 of the box; a side nearer than that is the photograph's own edge."""
    image = np.full((160, 130, 3), 200, np.uint8)
    out, shift = widened(image, np.array([30.0, 30.0, 90.0, 130.0]))
    # 75 x 100 is the box's place in 3:4: 22 px are wanted on the left, there are 22; below 30,
    # there are 30; above 30; on the right 22, there are 32.
    assert shift[0] > 0
    assert shift[1] > 0
    assert out.shape[0] > 160
    assert out.shape[1] > 130
    out, shift = widened(image[10:140], np.array([30.0, 20.0, 90.0, 120.0]))
    assert shift[1] == 0
    assert out.shape[0] == 130


def test_unknown_joints_teach_nothing() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 17, 32 * 24 + 1, requires_grad=True)
    sides = torch.randn(2, 8, 2, requires_grad=True)
    known = torch.ones(2, 17, dtype=torch.bool)
    known[0, 9], known[1] = False, False
    xy = torch.rand(2, 17, 2) * 180
    inside = torch.ones_like(known) & known
    grid = nano.MambaPoseNano.grid
    found = losses(nano.Answer(logits, sides), xy, inside, grid, known)
    found["total"].backward()
    assert logits.grad is not None
    assert sides.grad is not None
    assert (logits.grad.abs().sum(-1) > 0).equal(known)
    assert (sides.grad[0].abs().sum(-1) > 0).tolist() == [True] * 4 + [False] + [True] * 3
    assert not sides.grad[1].any()
    everything = torch.ones_like(known)
    whole = losses(nano.Answer(logits, sides), xy, everything, grid, everything)
    plain = losses(nano.Answer(logits, sides), xy, everything, grid)
    torch.testing.assert_close(whole["total"], plain["total"])


def test_a_batch_mixes_by_the_share(folder: Path, store: str) -> None:
    recipe = Recipe((store,), None, 3, 8, None, str(folder), 0.25, (0.75, 1.35))
    batch = BatchSource(recipe).batch(700)
    again = BatchSource(recipe).batch(700)
    unknown = (batch.visibility == UNKNOWN).any(axis=1)
    assert unknown.tolist() == [True] * 2 + [False] * 6
    assert not batch.present[:2].any()
    assert not batch.flow[:2].any()
    for name in batch.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(batch, name), getattr(again, name))


def test_the_command_trains_on_both(folder: Path, store: str, tmp_path: Path) -> None:
    words = ["--store", store, "--out", str(tmp_path / "run"), "--steps", "1", "--batch", "4"]
    words += ["--real", str(folder), "--box-scale", "0.75", "1.35"]
    result = CliRunner().invoke(pose2d.main, words)
    assert result.exit_code == 0, result.output
    words = [*words[:3], str(tmp_path / "other"), *words[4:8], "--real", str(tmp_path)]
    result = CliRunner().invoke(pose2d.main, words)
    assert result.exit_code == 1
    assert "crops of people were wanted" in result.output


def test_the_real_folder(assets: Path) -> None:
    if not (assets / FOLDER).is_dir():
        pytest.skip(f"the assets folder has no {FOLDER}")
    free, alike = read_people(assets / FOLDER), read_people(assets / FOLDER, SHARE_ALIKE)
    chosen = free.trained_on()
    assert 1000 < len(chosen) < len(free)
    assert set(free.tier[chosen]) == {"A"}
    assert set(free.source[chosen]) & {"maxsport", "ovms", "tfjs", "missingmaps"} == set()
    assert set(alike.tier) == {"SA"}
    assert free.image(int(chosen[0])).shape[2] == 3
