"""Reading motion capture: labels, repairs, splits, and refusal of what is broken."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mambapose.benchmarks.truth.motion import (
    FILE,
    HELD_OUT,
    clips_from_file,
    repaired,
    split_from_clips,
)
from mambapose.runtime.errors import ExportError


def test_clips_carry_activity_and_skeleton(motion_folder: Path) -> None:
    found = {clip.name: (clip.activity, clip.skeleton) for clip in clips_from_file(motion_folder)}
    assert found == {
        "asf_01_01": ("climbing", "asf"),
        "asf_02_03": ("running", "asf"),
        "asf_02_10": ("washing", "asf"),
        "exp_jumping__jumping_2": ("jumping", "exp"),
        "exp_soccer__soccer_1": ("soccer", "exp"),
        "exp_walking_extra__walking_5": ("walking", "exp"),
    }


def test_missing_lumbar_segment_is_put_back(lift_motion: ModuleType) -> None:
    whole, short = (lift_motion.clip(5, 3, lumbar=lumbar) for lumbar in (True, False))
    np.testing.assert_array_equal(repaired(whole), whole)
    np.testing.assert_allclose(repaired(short), whole, atol=1e-6)


def test_repeated_capture_is_left_out(tmp_path: Path, lift_motion: ModuleType) -> None:
    one = lift_motion.clip(60, 1)
    names = {
        "asf_02_01": one,
        "exp_walking__walking_1": one + 1e-4,
        "asf_01_01": lift_motion.clip(60, 2),
    }
    np.savez(tmp_path / FILE, **names)
    assert [clip.name for clip in clips_from_file(tmp_path)] == ["asf_01_01", "asf_02_01"]


def test_splits_share_no_clip(motion_folder: Path) -> None:
    clips = clips_from_file(motion_folder)
    for name in ("activities", "asf", "exp", "all"):
        split = split_from_clips(clips, name)
        names = [clip.name for clip in (*split.train, *split.test)]
        assert sorted(names) == sorted(clip.name for clip in clips)
    split = split_from_clips(clips)
    assert {clip.activity for clip in split.test} == set(HELD_OUT)
    assert not {clip.activity for clip in split.train} & set(HELD_OUT)
    assert {clip.skeleton for clip in split_from_clips(clips, "exp").test} == {"asf"}
    assert split_from_clips(clips, "all").test == ()


def test_unknown_split_is_refused(motion_folder: Path) -> None:
    with pytest.raises(ExportError, match="a split of activities, asf, exp, all was wanted"):
        split_from_clips(clips_from_file(motion_folder), "half")


def _broken(lift_motion: ModuleType) -> dict[str, dict[str, np.ndarray]]:
    good = lift_motion.clip(20, 0)
    hole, far = good.copy(), good.copy()
    hole[3, 4, 1], far[0] = np.nan, 1e3
    return {
        "hole": {"asf_01_01": hole},
        "far": {"asf_01_01": far},
        "joints": {"asf_01_01": good[:, :16]},
        "one frame": {"asf_01_01": good[:1]},
        "integers": {"asf_01_01": good.astype(np.int32)},
        "name": {"clip7": good},
        "number": {"asf_02_77": good},
        "nothing": {},
    }


@pytest.mark.parametrize(
    "fault", ["hole", "far", "joints", "one frame", "integers", "name", "number", "nothing"]
)
def test_broken_clip_is_refused_in_a_sentence(
    fault: str, tmp_path: Path, lift_motion: ModuleType
) -> None:
    np.savez(tmp_path / FILE, **_broken(lift_motion)[fault])
    with pytest.raises(ExportError, match="wanted") as found:
        clips_from_file(tmp_path)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut short", b"text"])
def test_unreadable_file_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ExportError, match="cannot be read"):
        clips_from_file(tmp_path)


def test_capture_as_it_is(assets: Path) -> None:
    """The real file: 115 clips, one of them twice; every activity known."""
    clips = clips_from_file(assets / "cmu-17j")
    assert len(clips) == 114
    assert len({clip.activity for clip in clips}) == 12
    for clip in clips:
        lumbar = np.linalg.norm(clip.xyz[:, 7] - clip.xyz[:, 0], axis=-1)
        assert 0.2 < np.median(lumbar) < 0.26, clip.name
    test = split_from_clips(clips).test
    assert sum(len(clip.xyz) for clip in test) == 4463
