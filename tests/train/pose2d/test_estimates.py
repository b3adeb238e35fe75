"""Samples finished once with a flow network: file, mirror image, and their share of the batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("cv2", reason="opencv is not installed (extra train)")

from mambapose.benchmarks.truth.pose_metrics import MIRROR
from mambapose.runtime.errors import ExportError
from mambapose.runtime.stages.flow import FlowStage
from mambapose.runtime.stages.resize import letterbox_from_sizes
from mambapose.train.pose2d import estimates as module
from mambapose.train.pose2d.data import BatchSource, Recipe
from mambapose.train.pose2d.estimates import Estimates, read_estimates, write_estimates
from mambapose.train.world.cache import Stores, write_store
from mambapose.train.world.sample import SampleSource

from ..pose2d_shots import drawn_shot


class ConstantFlow(FlowStage):
    """Stands for a flow network: every point was 3 px to the right and 1 above."""

    def __init__(self) -> None:
        self.seen = 0

    def forget(self) -> None:
        self.seen = 0

    def run(self, image: np.ndarray):  # type: ignore[no-untyped-def]
        from mambapose.runtime.stages.flow import DenseMap

        self.seen += 1
        if self.seen == 1:
            return None
        size = image.shape[:2]
        values = np.empty((2, *size), np.float32)
        values[0], values[1] = 3, -1
        return DenseMap(values, letterbox_from_sizes(size, size))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    shots = (replace(shot, rgba_before=shot.rgba) for shot in map(drawn_shot, range(3)))
    write_store(folder, shots, 3)
    return folder


@pytest.fixture(scope="module")
def file(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = SampleSource(Stores([pairs]), seed=2)
    path = tmp_path_factory.mktemp("estimates") / "made.npz"
    made = module.estimated_samples(source, ConstantFlow(), 4, seed=2)
    assert write_estimates(path, made) == 4
    return path


def test_finished_samples_hold_the_networks_flow(file: Path, pairs: Path) -> None:
    made = read_estimates(file)
    assert len(made) == 4
    assert made.rgb.shape == (4, 128, 96, 3)
    inner = made.flow[:, :, 8:-8, 8:-8].astype(np.float32)
    np.testing.assert_allclose(inner[:, 0], 3, atol=0.01)
    np.testing.assert_allclose(inner[:, 1], -1, atol=0.01)
    source = SampleSource(Stores([pairs]), seed=2)
    strengths = [np.random.default_rng([2, 4, k]).uniform(0.3, 1.0) for k in range(4)]
    for number, strength in enumerate(strengths):
        source.mixture = replace(source.mixture, strength=float(strength))
        sample = source.sample(number)
        np.testing.assert_allclose(made.xy[number], sample.coco_xy, rtol=1e-5)
        np.testing.assert_array_equal(made.visibility[number], sample.visibility)
        mean = sample.rgb.reshape(128, 2, 96, 2, 3).mean(axis=(1, 3))
        assert np.abs(made.rgb[number] - mean).max() <= 1


def test_the_mirror_image_twice_is_the_sample(file: Path) -> None:
    made = read_estimates(file)
    once = made.mirrored(1)
    np.testing.assert_array_equal(once.rgb[0], made.rgb[1, :, ::-1])
    assert float(once.flow[0, 0, 60, 40]) == -3
    assert float(once.flow[0, 1, 60, 40]) == -1
    np.testing.assert_allclose(once.xy[0, MIRROR, 0], 191 - made.xy[1, :, 0], rtol=1e-6)
    np.testing.assert_array_equal(once.visibility[0], made.visibility[1, MIRROR])
    twice = once.mirrored(0)
    for name in ("rgb", "flow", "depth", "visibility"):
        np.testing.assert_array_equal(getattr(twice, name)[0], getattr(made, name)[1])
    np.testing.assert_allclose(twice.xy[0], made.xy[1], atol=1e-4)


def test_a_share_of_the_samples_with_flow_is_estimated(
    file: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe((str(pairs),), None, 3, 24, str(file))
    batch = BatchSource(recipe).batch(2)
    again = BatchSource(recipe).batch(2)
    for name in batch.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(batch, name), getattr(again, name))
    with_flow = batch.present[:, 0] > 0
    inner = np.abs(batch.flow[:, :, 8:-8, 8:-8])
    constant = (np.ptp(inner, axis=(2, 3)).max(axis=1) < 0.01) & (inner[:, 0, 0, 0] > 2.9)
    assert constant.any()
    assert not constant[~with_flow].any()
    assert not constant[with_flow].all()
    assert not batch.depth[batch.present[:, 1] == 0].any()
    for share, wanted in ((0.0, False), (1.0, True)):
        monkeypatch.setattr("mambapose.train.pose2d.data.ESTIMATED", share)
        batch = BatchSource(recipe).batch(2)
        inner = np.abs(batch.flow[batch.present[:, 0] > 0][:, :, 8:-8, 8:-8])
        assert (np.ptp(inner, axis=(2, 3)).max(axis=1) < 0.01).all() == wanted


def test_bad_files_are_one_sentence(file: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"PK nothing")
    with pytest.raises(ExportError, match="estimated samples were wanted"):
        read_estimates(bad)
    with np.load(file) as arrays:
        content = dict(arrays)
    np.savez(bad, **{**content, "format_version": np.array(9)})
    with pytest.raises(ExportError, match=r"format 1 were wanted, found 9"):
        read_estimates(bad)
    del content["flow"]
    np.savez(bad, **content)
    with pytest.raises(ExportError, match="cannot be read"):
        read_estimates(bad)


def test_the_command_wants_pairs_and_a_flow_stage(pairs: Path, tmp_path: Path) -> None:
    single = tmp_path / "single"
    write_store(single, map(drawn_shot, range(2)), 2)
    out = tmp_path / "out.npz"
    from mambapose.runtime.loading import shipped_bundle

    for store, message in ((single, "--pair"), (pairs, "a flow stage was wanted")):
        words = ["--store", str(store), "--engine", str(shipped_bundle()), "--out", str(out)]
        result = CliRunner().invoke(module.main, words)
        assert result.exit_code == 1
        assert message in result.output
        assert len(result.output.strip().splitlines()) == 1
    assert not out.exists()


def test_mixed_rows_are_a_batch_of_one_kind(file: Path, pairs: Path) -> None:
    batch = BatchSource(Recipe((str(pairs),), None, 3, 16, str(file))).batch(0)
    assert batch.rgb.shape == (16, 3, 128, 96)
    assert (batch.rgb.dtype, batch.flow.dtype, batch.depth.dtype) == (
        np.uint8, np.float32, np.float32,
    )  # fmt: skip
    assert batch.xy.dtype == np.float32
    assert isinstance(read_estimates(file), Estimates)
