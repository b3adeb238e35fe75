"""README's pictures come from results, its table goes where the marks are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mambapose.benchmarks import readme
from mambapose.runtime.errors import OutputError
from mambapose.runtime.video.sample import read_truth

ROOT = Path(__file__).parents[2]


def test_the_table_goes_between_the_marks() -> None:
    text = f"above\n{readme.START}\nold\n{readme.END}\nbelow\n"
    assert readme.with_table(text, "| new |") == text.replace("old", "| new |")
    shipped = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.with_table(shipped, "| new |") != shipped


def test_a_readme_without_marks_is_left_alone() -> None:
    with pytest.raises(OutputError, match="marks"):
        readme.with_table("no marks", "table")


def test_plot_of_3d_joints(tmp_path: Path) -> None:
    """The true joints, handed in as results, are plotted; absent frames are left out."""
    truth = read_truth().h36m_xyz
    frames = np.array([3, 5])
    np.savez(tmp_path / "poses.npz", frame_index=frames, xyz=truth[frames])
    out = tmp_path / "pose3d.png"
    readme.pose_plot(tmp_path, [3, 4, 5], out, truth=truth)
    with Image.open(out) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
        wide = picture.width
    red = (pixels[..., 0] > 150) & (pixels[..., 1:].max(axis=-1) < 90)
    for half in (red[:, : wide // 2], red[:, wide // 2 :]):
        assert half.sum() > 50  # the left limbs of each of the two frames
    with pytest.raises(OutputError, match=r"3D joints of frames \[9\] were wanted"):
        readme.pose_plot(tmp_path, [9], out, truth=None)


def test_a_run_without_overlay_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="an overlay video was wanted"):
        readme.overlay_picture(tmp_path, 0, tmp_path / "x.png")
