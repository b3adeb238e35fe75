"""Full-frame clips: the file shows the pictures, the truth beside it is theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mambapose.runtime.errors import ExportError


def test_written_clip_shows_the_pictures_and_carries_the_truth(tmp_path: Path, clip: Any) -> None:
    from mambapose.runtime.video.sample import read_truth
    from mambapose.runtime.video.sources import open_source
    from mambapose.train.world.sample_clip import STEP, write_clip

    beside = write_clip(tmp_path / "clip.mp4", clip)
    assert beside == tmp_path / "clip.truth.npz"
    with open_source(str(tmp_path / "clip.mp4")) as source:
        frames = list(source)
    assert len(frames) == clip.frames
    for t, frame in enumerate(frames):
        assert np.abs(frame.image.astype(float) - clip.image(t)).mean() < 8
    truth = read_truth(tmp_path / "clip.mp4")
    focal, x, y = truth.camera
    xyz = truth.root[:, None] + truth.h36m_xyz * truth.stature
    projected = focal * xyz[..., :2] / xyz[..., 2:] + (x, y)
    np.testing.assert_allclose(projected[:, 4], truth.coco_xy[:, 11], atol=2e-3)
    np.testing.assert_allclose(projected[:, 9], truth.coco_xy[:, 0], atol=2e-3)
    assert 0 not in truth.map_frames
    for k, t in enumerate(truth.map_frames):
        row, column = truth.rows[5], truth.columns[7]
        assert (row - STEP // 2, column - STEP // 2) == (5 * STEP, 7 * STEP)
        np.testing.assert_allclose(truth.flow[k, 5, 7], clip.flow(t)[row, column], atol=0.01)
        assert truth.inverse_depth[k, 5, 7] == pytest.approx(clip.depth(t)[row, column], rel=1e-3)
        assert truth.person[k].shape == truth.inverse_depth[k].shape
        assert (truth.person[k] == clip.mask(t)[truth.rows][:, truth.columns]).all()


def test_bones_keep_their_length(clip: Any) -> None:
    from mambapose.runtime.skeleton import H36M17

    rigid = [edge for edge in H36M17.edges if not {7, 8, 9, 10} & set(edge)]
    lengths = np.array(
        [[np.linalg.norm(clip.h36m_xyz(t)[a] - clip.h36m_xyz(t)[b]) for a, b in rigid]
         for t in range(clip.frames)]
    )  # fmt: skip
    # Joints are means of skinned vertices, so they give a little; the body moves as one piece.
    assert np.ptp(lengths, axis=0).max() < 0.02
    assert (np.linalg.norm(clip.coco_xy(3) - clip.coco_xy(0), axis=1) > 0).all()


def test_frames_and_motions_outside_the_clip_are_refused(
    clip: Any, world: Any, renderer: Any, tmp_path: Path
) -> None:
    from mambapose.train.world.clip import WorldClip
    from mambapose.train.world.sample_clip import main

    with pytest.raises(ValueError, match="t >= 1"):
        clip.flow(0)
    with pytest.raises(ValueError, match="t < 3"):
        clip.flow_after(3)
    with pytest.raises(ValueError, match="0 to 3"):
        clip.image(4)
    with pytest.raises(ExportError, match="motion clip none was wanted"):
        WorldClip(world, renderer, motions=("none",))
    with pytest.raises(ExportError, match="ask for fewer"):
        WorldClip(world, renderer, frames=5000)
    refused = CliRunner().invoke(
        main, ["--assets", str(tmp_path), "--out", str(tmp_path / "c.mp4")]
    )
    assert refused.exit_code == 1
    assert "wanted" in refused.output
