"""Finished samples: the same seed gives the same bytes, and truth moves with the picture."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mambapose.runtime.errors import ExportError

pytest.importorskip("cv2", reason="opencv is not installed (extra train)")

from mambapose.train.world.background import Card, draw_backdrop
from mambapose.train.world.cache import ShotStore, write_store
from mambapose.train.world.camera import Camera, look_at, moved
from mambapose.train.world.effects import (
    apply_effects,
    estimated_depth,
    estimated_flow,
    identity_effects,
    random_effects,
)
from mambapose.train.world.sample import Mixture, Sample, SampleSource
from mambapose.train.world.textures import random_textures

CLEAN = Mixture(strength=0.0, mirror=0.0, others=0.0, occluders=0.0, edges=0.0)


def equal(a: Any, b: Any) -> bool:
    """Whether all fields hold the same bytes."""
    return all(
        np.array_equal(getattr(a, f.name), getattr(b, f.name))
        for f in fields(a)
        if f.name != "cameras"
    )


def test_same_seed_same_shots(world: Any, renderer: Any, shots: list[Any]) -> None:
    from mambapose.train.world.shot import shots as rendered

    again = list(islice(rendered(world, renderer, 11, pair=True, poses=2), 3))
    assert all(equal(a, b) for a, b in zip(again, shots, strict=False))
    assert not equal(shots[0], shots[1])
    other = next(rendered(world, renderer, 12, pair=True, poses=2))
    assert not equal(other, shots[0])


def test_samples_are_whole_and_repeatable(shots: list[Any]) -> None:
    source, again = SampleSource(shots, seed=4), SampleSource(shots, seed=4)
    drawn = [source.draw() for _ in range(12)]
    assert equal(drawn[7], again.sample(7))
    assert not equal(drawn[7], SampleSource(shots, seed=5).sample(7))
    for sample in drawn:
        assert sample.rgb.shape == (256, 192, 3)
        assert sample.rgb.dtype == np.uint8
        assert sample.flow.shape == sample.flow_after.shape == (2, 256, 192)
        assert sample.depth.shape == (1, 256, 192)
        assert {sample.flow.dtype, sample.depth.dtype} == {np.dtype(np.float32)}
        assert sample.rgb_before is not None
        assert sample.rgb_before.shape == sample.rgb.shape
        for field in fields(Sample):
            assert np.isfinite(getattr(sample, field.name)).all(), field.name
        assert (sample.depth >= 0).all()
        assert set(np.unique(sample.visibility)) <= {0, 1, 2}
        reprojected = sample.coco_xyz @ sample.matrix.T
        np.testing.assert_allclose(reprojected[:, :2] / reprojected[:, 2:], sample.coco_xy)
        reprojected = sample.h36m_xyz @ sample.matrix.T
        np.testing.assert_allclose(reprojected[:, :2] / reprojected[:, 2:], sample.h36m_xy)


def test_mirrored_people_change_sides(shots: list[Any]) -> None:
    plain = SampleSource(shots, seed=1, mixture=CLEAN)
    mirrored = SampleSource(
        shots,
        seed=1,
        mixture=Mixture(strength=0.0, mirror=1.0, others=0.0, occluders=0.0, edges=0.0),
    )
    for number in range(4):
        a, b = plain.sample(number), mirrored.sample(number)
        np.testing.assert_allclose(191 - a.coco_xy[6, 0], b.coco_xy[5, 0], atol=1e-6)
        np.testing.assert_allclose(a.coco_xy[6, 1], b.coco_xy[5, 1], atol=1e-6)
        assert b.matrix[0, 0] > 0
        assert np.linalg.det(b.matrix) > 0
        np.testing.assert_allclose(a.coco_xyz[6] * (-1, 1, 1), b.coco_xyz[5])
        agree = a.person[:, ::-1] == b.person
        assert agree.mean() > 0.99
        inside = agree & (b.person == 1)
        np.testing.assert_allclose(
            np.median(a.flow[0, :, ::-1][inside] + b.flow[0][inside]), 0, atol=0.02
        )


def test_truth_moves_with_the_picture(shots: list[Any]) -> None:
    """Turned and scaled crops: flow leads from the picture to the one before."""
    import cv2

    mixture = Mixture(strength=1.0, others=0.0, occluders=0.0, edges=0.0)
    source = SampleSource(shots, seed=2, mixture=mixture)
    compared = 0
    for number in range(8):
        sample = source.sample(number)
        grid = np.stack(np.meshgrid(np.arange(192), np.arange(256)), axis=-1)
        place = (grid + sample.flow.transpose(1, 2, 0)).astype(np.float32)
        # Effects change the colours, alike in both frames.
        warped = cv2.remap(sample.rgb_before, place, None, cv2.INTER_LINEAR).astype(float)
        inside = ((place > 1) & (place < (190, 254))).all(axis=2)
        moving = inside & (np.linalg.norm(sample.flow, axis=0) > 1.5)
        if moving.sum() < 2000:
            continue
        error = np.abs(warped - sample.rgb).mean(axis=2)[moving]
        still = np.abs(sample.rgb_before.astype(float) - sample.rgb).mean(axis=2)[moving]
        assert np.median(error) <= np.median(still)
        assert error.mean() < still.mean()
        compared += 1
    assert compared >= 2


def test_a_flow_network_sees_the_same_motion(shots: list[Any], assets: Path) -> None:
    """RAFT-small with its official weights, which saw none of this: the same motion, roughly."""
    torch = pytest.importorskip("torch", reason="torch is not installed (extra export)")
    from mambapose.export.checkpoints import load_weights
    from mambapose.export.models import raft

    weights = assets / "raft-small/raft-small.pth"
    if not weights.exists():
        pytest.skip("the assets folder has no raft-small")
    model = raft.build(variant="small")
    load_weights(model, weights, raft.key_tables(model))
    named = raft.graphs(model, (256, 192)).items()
    graphs = {name.split("@")[0]: graph for name, (graph, _) in named}
    source = SampleSource(shots, seed=3, mixture=CLEAN)
    drawn = [source.sample(k) for k in range(12)]
    fast = [s for s in drawn if 3 < np.linalg.norm(s.flow, axis=0)[s.person == 1].mean() < 15][:4]
    assert fast
    errors, lengths = [], []
    for sample in fast:
        with torch.no_grad():
            now, before = (torch.from_numpy(i)[None] for i in (sample.rgb, sample.rgb_before))
            features, hidden, context = graphs["encode"](now)
            pyramid = graphs["corr"](features, graphs["encode"](before)[0])
            coords = raft.identity_grid(*features.shape[2:])
            for _ in range(10):
                coords, hidden = graphs["step"](*pyramid, coords, hidden, context)
            found = graphs["upsample"](coords)[0].numpy()
        seen = sample.person == 1
        errors.append(np.linalg.norm(found - sample.flow, axis=0)[seen])
        lengths.append(np.linalg.norm(sample.flow, axis=0)[seen])
    error, length = np.concatenate(errors), np.concatenate(lengths)
    assert np.median(error) < 0.6 * np.median(length)
    assert (error < length).mean() > 0.75  # nearer to the truth than no motion is


def test_joint_depth_agrees_with_the_depth_picture(shots: list[Any]) -> None:
    source = SampleSource(shots, seed=3, mixture=CLEAN)
    compared = 0
    for number in range(6):
        sample = source.sample(number)
        for joint in np.flatnonzero(sample.visibility == 2):
            x, y = np.round(sample.coco_xy[joint]).astype(int)
            if sample.person[y, x] == 1:
                behind = sample.coco_xyz[joint, 2] - 1 / sample.depth[0, y, x]
                assert -0.2 < behind < 0.2
                compared += 1
    assert compared > 30


def test_store_gives_back_what_was_written(tmp_path: Path, shots: list[Any]) -> None:
    size = write_store(tmp_path / "store", iter(shots), 4)
    store = ShotStore(tmp_path / "store")
    assert len(store) == 4
    assert store.pair
    assert (tmp_path / "store/shots.bin").stat().st_size == size
    for shot, kept in zip(shots, (store[k] for k in range(4)), strict=False):
        np.testing.assert_array_equal(kept.rgba, shot.rgba)
        np.testing.assert_array_equal(kept.person, shot.person)
        np.testing.assert_array_equal(kept.rgba_before, shot.rgba_before)
        np.testing.assert_allclose(kept.marks, shot.marks)
        np.testing.assert_allclose(kept.flow_before, shot.flow_before, atol=0.016, rtol=1e-3)
        np.testing.assert_allclose(kept.inverse_depth, shot.inverse_depth, rtol=5e-4, atol=1e-7)
        for a, b in zip(kept.cameras, shot.cameras, strict=True):
            np.testing.assert_array_equal(a.matrix, b.matrix)
            np.testing.assert_array_equal(a.position, b.position)
            assert a.size == b.size
    SampleSource(store, seed=0).draw()


def test_damaged_stores_are_one_sentence(tmp_path: Path, shots: list[Any]) -> None:
    folder = tmp_path / "store"
    with pytest.raises(ExportError, match="a store of shots was wanted"):
        ShotStore(folder)
    write_store(folder, iter(shots), 2)
    whole = (folder / "shots.bin").read_bytes()
    (folder / "shots.bin").write_bytes(whole[:-7])
    with pytest.raises(ExportError, match="bytes of shots were wanted"):
        ShotStore(folder)
    (folder / "shots.bin").write_bytes(whole)
    with np.load(folder / "index.npz") as file:
        right = {name: file[name] for name in file.files}
    index = (folder / "index.npz").read_bytes()
    damages: list[tuple[dict[str, Any], str]] = [
        *(({name: None}, "was wanted") for name in right),
        ({"format_version": np.array([1, 2])}, "a store of format 1 was wanted"),
        ({"format_version": 99}, "a store of format 1 was wanted"),
        ({"offset": right["offset"][:0]}, "no shots"),
        ({"offset": np.array(0)}, "no shots"),
        ({"offset": right["offset"] + 1}, "does not begin at 0"),
        ({"offset": np.array([0, 5])}, "one behind the other"),
        ({"offset": np.array([0, -1])}, "one behind the other"),
        ({"size": right["size"].astype(float)}, "size of float64"),
        ({"size": right["size"] * -1}, "pictures of"),
        ({"size": right["size"] * (1 << 40)}, "pictures of"),
        ({"people": np.array([0, 9])}, "people in a shot"),
        ({"marks": right["marks"][:, :1]}, "marks of shape"),
        ({"rotation": right["rotation"][:1]}, "rotation of shape"),
        ({"matrix": np.array([["x"] * 3] * 3)}, "matrix of"),
        ({"pair": np.array("yes")}, "pair of"),
        ({"stature": np.array([{}], object)}, "cannot be read"),
    ]
    for damage, sentence in damages:
        table = {name: damage.get(name, array) for name, array in right.items()}
        kept = {name: array for name, array in table.items() if array is not None}
        np.savez(folder / "index.npz", **kept)
        with pytest.raises(ExportError, match=sentence) as caught:
            ShotStore(folder)
        assert "\n" not in str(caught.value)
    for number in range(0, len(index), 97):  # cut anywhere, and a bit turned anywhere
        turned = bytearray(index)
        turned[number] ^= 64
        for damaged in (index[:number], bytes(turned)):
            (folder / "index.npz").write_bytes(damaged)
            with suppress(ExportError):  # of a name of an array in the archive, say
                ShotStore(folder)[1]
    np.savez(folder / "index.npz", format_version=99)
    with pytest.raises(ExportError, match="format"):
        ShotStore(folder)
    with pytest.raises(ExportError, match="at least one shot"):
        write_store(tmp_path / "empty", iter([]), 3)


def test_backdrop_is_what_rays_see() -> None:
    rng = np.random.default_rng(0)
    eye = np.array([0.0, 1.5, -3.0])
    matrix = np.array([[180.0, 0, 95.5], [0, 180, 127.5], [0, 0, 1]])
    camera = Camera(look_at(eye, np.array([0, 1.0, 0.0])), eye, matrix, (192, 256))
    cameras = (moved(camera, np.array([0, 0.01, 0]), np.array([0.02, 0, 0])), camera, camera)
    texture = random_textures(1, rng)[0]
    x, y, z = np.eye(3)
    floor = Card(texture, np.zeros(3), x, z, repeat=True)
    board = Card(texture, np.array([-0.5, 2.0, 1.0]), x, -1.5 * y)
    drawn = draw_backdrop([floor, board], cameras, np.zeros((256, 192, 3), np.uint8))
    rays = camera.grid() @ camera.rotation
    for row, column in rng.integers(0, (256, 192), (200, 2)):
        ray = rays[row, column]
        depth = np.inf
        if ray[1] < 0:
            depth = -eye[1] / ray[1]
        to_board = (1.0 - eye[2]) / ray[2]
        at = eye + to_board * ray
        if to_board > 0 and abs(at[0]) < 0.5 and 0.5 < at[1] < 2.0:
            depth = min(depth, to_board)
        if depth > 900:
            continue
        assert drawn.inverse_depth[row, column] == pytest.approx(1 / depth, rel=1e-5)
        there = cameras[0].project(eye + depth * ray) - (column, row)
        np.testing.assert_allclose(drawn.flow_before[row, column], there, atol=1e-3)
        np.testing.assert_array_equal(drawn.flow_after[row, column], 0)


def test_effects_are_repeatable_and_none_is_nothing() -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (256, 192, 3)).astype(np.uint8)
    flow, depth = np.full((256, 192, 2), 3, np.float32), np.full((256, 192), 0.3, np.float32)
    same = apply_effects(rgb, identity_effects(), rng, flow=flow, inverse_depth=depth)
    np.testing.assert_array_equal(same, rgb)
    changed = 0
    for seed in range(25):
        effects = random_effects(np.random.default_rng(seed))
        made = [
            apply_effects(rgb, effects, np.random.default_rng(1), flow=flow, inverse_depth=depth,
                          head=(90.0, 40.0, 20.0))
            for _ in range(2)
        ]  # fmt: skip
        np.testing.assert_array_equal(*made)
        assert made[0].shape == rgb.shape
        assert made[0].dtype == np.uint8
        changed += not np.array_equal(made[0], rgb)
    assert changed == 25


def test_estimates_stay_near_the_truth() -> None:
    y, x = np.mgrid[0:256, 0:192].astype(np.float32)
    flow = np.stack([x / 30, -y / 40], axis=-1)
    inverse = 0.2 + y / 500
    for seed in range(6):
        rng = np.random.default_rng(seed)
        found = estimated_flow(flow, rng)
        assert found.shape == flow.shape
        assert np.abs(found - flow).mean() < 1.5
        depth = estimated_depth(inverse, rng)
        assert np.corrcoef(depth.ravel(), inverse.ravel())[0, 1] > 0.8
        assert np.isfinite(depth).all()


def test_preview_and_render_commands(
    tmp_path: Path, assets: Path, world: Any, renderer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    from mambapose.train.pose2d.render import main as render
    from mambapose.train.world.preview import main as preview

    out = tmp_path / "sheet.png"
    refused = CliRunner().invoke(preview, ["--assets", str(tmp_path), "--out", str(out)])
    assert refused.exit_code == 1
    assert "wanted" in refused.output
    assert refused.output.count("\n") == 1
    refused = CliRunner().invoke(
        render, ["--assets", str(tmp_path), "--out", str(tmp_path / "t"), "--count", "2"]
    )
    assert refused.exit_code == 1
    # Reading the body again would double the time of this test.
    monkeypatch.setattr("mambapose.train.world.shot.load_world", lambda *_, **__: world)
    done = CliRunner().invoke(
        preview, ["--assets", str(assets), "--out", str(out), "--count", "1", "--seed", "1"]
    )
    assert done.exit_code == 0, done.output
    with Image.open(out) as image:
        assert image.size == (2 * (5 * 192 + 8), 260)
    done = CliRunner().invoke(
        render, ["--assets", str(assets), "--out", str(tmp_path / "s"), "--count", "1"]
    )
    assert done.exit_code == 0, done.output
    assert len(ShotStore(tmp_path / "s")) == 1
