"""The packaged clip: small, readable, and its truth is what its pictures show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mambapose.runtime.backends.loader import load_file
from mambapose.runtime.errors import VideoError
from mambapose.runtime.skeleton import COCO17, H36M17
from mambapose.runtime.stages.detect import Detector, overlaps
from mambapose.runtime.types import Frame, Where
from mambapose.runtime.video.sample import SAMPLE, Truth, read_truth, truth_file
from mambapose.runtime.video.sources import open_source

from ..drawn_clip import DrawnClip, write_clip


@pytest.fixture(scope="module")
def truth() -> Truth:
    return read_truth()


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    with open_source(str(SAMPLE)) as source:
        assert source.fps == pytest.approx(30)
        return list(source)


def test_clip_and_truth_belong_together(truth: Truth, frames: list[Frame]) -> None:
    assert SAMPLE.stat().st_size + truth_file(SAMPLE).stat().st_size < 500_000
    count = len(frames)
    assert count == 90
    assert {frame.image.shape[:2] for frame in frames} == {truth.size}
    joints = (truth.coco_xy, truth.visibility, truth.h36m_xyz, truth.box, truth.root)
    assert [len(values) for values in joints] == [count] * 5
    assert len(truth.map_frames) == len(truth.flow) == len(truth.person) == 6
    assert truth.map_frames.min() > 0
    assert truth.map_frames.max() < count


def test_both_skeletons_are_one_body(truth: Truth) -> None:
    focal, x, y = truth.camera
    xyz = truth.root[:, None] + truth.h36m_xyz * truth.stature
    projected = focal * xyz[..., :2] / xyz[..., 2:] + (x, y)
    for solid, flat in (("left_hip", "left_hip"), ("right_wrist", "right_wrist"),
                        ("right_foot", "right_ankle"), ("neck", "nose")):  # fmt: skip
        found = projected[:, H36M17.joints.index(solid)]
        np.testing.assert_allclose(found, truth.coco_xy[:, COCO17.joints.index(flat)], atol=2e-3)
    standing = truth.coco_xy[:, 15:17, 1].max(axis=1) - truth.coco_xy[:, :5, 1].min(axis=1)
    assert (standing < truth.height_px).all()
    assert (standing > 0.65 * truth.height_px).all()


def test_joints_lie_in_the_box_and_the_box_in_the_picture(truth: Truth) -> None:
    low, high = truth.box[:, :2], truth.box[:, 2:]
    assert (low >= 0).all()
    assert (high < truth.size[::-1]).all()
    assert (truth.visibility > 0).all()
    assert (truth.coco_xy >= low[:, None] - 1).all()
    assert (truth.coco_xy <= high[:, None] + 1).all()
    # Most is seen, so that the clip can measure anything; some is hidden, as in life.
    assert 0.7 < (truth.visibility == 2).mean() < 1


def test_flow_leads_back_to_the_same_colours(truth: Truth, frames: list[Frame]) -> None:
    grid = np.stack(np.meshgrid(truth.columns, truth.rows), axis=-1).astype(float)
    for number, t in enumerate(truth.map_frames):
        person = truth.person[number] & (np.abs(truth.flow[number]).max(axis=-1) > 1)
        if person.sum() < 40:
            continue
        there = np.round(grid + truth.flow[number]).astype(int)[person]
        here = grid.astype(int)[person]
        now, before = frames[t].image.astype(float), frames[t - 1].image.astype(float)
        seen = now[here[:, 1], here[:, 0]]
        moved = np.abs(before[there[:, 1], there[:, 0]] - seen).mean()
        still = np.abs(before[here[:, 1], here[:, 0]] - seen).mean()
        assert moved < 0.7 * still, t


def test_the_person_is_nearer_than_what_is_behind(truth: Truth) -> None:
    for number, t in enumerate(truth.map_frames):
        depth = 1 / truth.inverse_depth[number].astype(float)
        person = depth[truth.person[number]]
        assert np.abs(np.median(person) - truth.root[t, 2]) < 0.2
        top = depth[: len(depth) // 4]
        assert top[~truth.person[number][: len(depth) // 4]].min() > person.max()


def test_a_detector_of_others_sees_a_person_where_the_person_is(
    assets: Path, truth: Truth, frames: list[Frame]
) -> None:
    file = assets / "detector-yolox-nano" / "yolox_nano.onnx"
    with load_file(file, Where(threads=1)) as engine:
        detector = Detector(engine)
        for t in range(0, len(frames), 11):
            found = detector.run(frames[t].image)
            assert len(found) == 1
            assert found.scores[0] > 0.7
            assert overlaps(found.boxes, truth.box[t : t + 1].astype(float))[0, 0] > 0.75


def test_a_clip_without_its_truth_is_refused(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    write_clip(clip, DrawnClip(frames=2, size=(64, 48)))
    with pytest.raises(VideoError, match=r"the truth of clip\.mp4 was wanted"):
        read_truth(clip)
    np.savez(truth_file(clip), format_version=np.array(99))
    with pytest.raises(VideoError, match="version 99 instead of 1"):
        read_truth(clip)
    np.savez(truth_file(clip), format_version=np.array(1))
    with pytest.raises(VideoError, match="cannot be read"):
        read_truth(clip)
