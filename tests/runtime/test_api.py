"""The public API: every name is there, README's example runs, a Result saves and goes."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import mambapose.runtime as mp
from mambapose.runtime.errors import BundleError, OutputError, VideoError
from mambapose.runtime.loading import SHIPPED
from mambapose.runtime.results.files import WRITERS
from mambapose.runtime.video.sample import SAMPLE

README = Path(__file__).resolve().parents[2] / "README.md"
API = README.parent / "docs" / "api.md"

needs_bundle = pytest.mark.skipif(
    not (SHIPPED / "bundle.json").is_file(), reason="no bundle ships yet: make weights"
)


def test_every_public_name_is_there_and_every_name_that_is_there_is_public() -> None:
    code = (
        "import mambapose.runtime as mp\n"
        "for name in mp.__all__: assert getattr(mp, name) is not None, name\n"
        "assert dir(mp) == sorted(mp.__all__)\n"
        "import mambapose.runtime.running, mambapose.runtime.cli\n"
        "assert all(callable(getattr(mp, n)) for n in mp.__all__ if n != '__version__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_documented_names_are_the_public_ones() -> None:
    headings = re.findall(r"^### `(\w+)", API.read_text(), flags=re.MULTILINE)
    assert sorted(headings) == sorted(mp.__all__)


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'walk'"):
        _ = mp.walk


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


@needs_bundle
@pytest.mark.parametrize("page", [README, API], ids=lambda page: page.name)
def test_examples_run(page: Path, tmp_path: Path) -> None:
    """The clip is the sample, cut to its first frames."""
    from mambapose.runtime.results.overlay import Overlay
    from mambapose.runtime.types import Size

    with mp.open_source(SAMPLE, frame_range="0:12") as source:
        frames = list(source)
    with Overlay(tmp_path / "walk.mp4", Size(*frames[0].image.shape[:2]), 30) as video:
        for frame in frames:
            video.write(frame.image, frame.timestamp)
    blocks = python_blocks(page)
    assert blocks
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", block], cwd=tmp_path, capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stderr}"


@needs_bundle
def test_a_result_holds_what_poses_json_holds(tmp_path: Path) -> None:
    result = mp.run(SAMPLE, tmp_path / "out", frame_range="0:6")
    document = json.loads((tmp_path / "out" / "poses.json").read_text())
    assert result.to_dict() == document
    people = [person for frame in document["frames"] for person in frame["people"]]
    assert len(result.poses) == len(people) > 0
    for pose, person in zip(result.poses, people, strict=True):
        np.testing.assert_allclose(pose.xy, person["xy"], atol=1e-3)
        np.testing.assert_allclose(pose.xyz, person["xyz"], atol=1e-5)
        assert pose.track == person["id"]
    assert (tmp_path / "out" / "poses.csv").is_file()
    with pytest.raises(OutputError, match="--overwrite"):
        mp.run(SAMPLE, tmp_path / "out", frame_range="0:6")


@needs_bundle
def test_without_out_nothing_stays(tmp_path: Path) -> None:
    before = set(Path(tempfile.gettempdir()).glob("mambapose-*"))
    result = mp.run(str(SAMPLE), frame_range="0:4")
    assert set(Path(tempfile.gettempdir()).glob("mambapose-*")) == before
    assert result.folder is None
    assert repr(result) == f"Result({len(result.poses)} poses in 4 frames of {SAMPLE})"
    for name in ("poses.json", "p.npz", "p.csv"):
        assert result.save(str(tmp_path / name)) == tmp_path / name
    assert json.loads((tmp_path / "poses.json").read_text()) == result.to_dict()
    assert pickle.loads(pickle.dumps(result)).to_dict() == result.to_dict()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "p.npz", "poses.json"]
    known = ", ".join(f".{name}" for name in WRITERS)
    with pytest.raises(OutputError, match=f"suffix {known} was wanted"):
        result.save(tmp_path / "poses.xyz")
    with pytest.raises(OutputError, match="cannot be written"):
        result.save(tmp_path / "none" / "p.csv")


@needs_bundle
def test_a_video_that_breaks_off_gives_what_there_was(tmp_path: Path) -> None:
    whole = SAMPLE.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(mp.IncompleteError, match="could be decoded") as caught:
        mp.run(tmp_path / "cut.mp4")
    assert 0 < len(caught.value.result.poses) < 90


@needs_bundle
def test_an_error_has_no_result_of_an_earlier_run(tmp_path: Path) -> None:
    mp.run(SAMPLE, tmp_path / "out", frame_range="0:2")
    with pytest.raises(VideoError) as caught:
        mp.run(tmp_path / "none.mp4", tmp_path / "out", overwrite=True)
    assert not isinstance(caught.value, mp.IncompleteError)
    assert len(json.loads((tmp_path / "out" / "poses.json").read_text())["frames"]) == 2


@needs_bundle
def test_an_interrupt_is_raised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mambapose.runtime import api

    monkeypatch.setattr(api, "run_video", lambda asked: 130)
    with pytest.raises(KeyboardInterrupt):
        mp.run(SAMPLE, tmp_path / "out")


@needs_bundle
def test_an_open_bundle_and_a_folder_with_a_suffix_will_do(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    result = mp.run(SAMPLE, tmp_path / "run.json", bundle=mp.open_bundle(), frame_range="0:2")
    assert result.folder == tmp_path / "run.json"


def test_bad_input_is_one_of_our_errors(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        mp.open_bundle(tmp_path)
    with pytest.raises(VideoError):
        mp.open_source(tmp_path / "none.mp4")
    with pytest.raises(OutputError, match="a folder was wanted as out"):
        mp.run(SAMPLE, tmp_path / "poses.json")
    for wrong, sentence in (
        ({"height": 175}, r"0.3 to 3.0 m was wanted, found 175"),
        ({"max_people": 1.5}, "max_people of at least 1 was wanted, found 1.5"),
        ({"height": "1.75"}, "found '1.75'"),
        ({"max_people": 0}, "max_people of at least 1"),
        ({"lookahead": -1}, "lookahead of at least 0"),
        ({"detect": str(tmp_path / "none.onnx")}, "an ONNX file was wanted"),
        ({"formats": ("xml",)}, "can be written, found xml"),
    ):
        with pytest.raises(mp.MambaPoseError, match=sentence):
            mp.run(SAMPLE, frame_range="0:2", **wrong)


@needs_bundle
def test_the_parts_work_together() -> None:
    size = mp.Size(360, 640)
    with mp.open_source(SAMPLE, frame_range="0:4") as source:
        assert source.size == size
        with mp.open_pipeline(size=source.size, where=mp.Where(threads=1)) as pipeline:
            found = [pose for result in pipeline.run(source) for pose in result.poses]
    assert len(found) == 4


def test_a_source_is_read_once() -> None:
    with mp.open_source(SAMPLE, frame_range="0:3") as source:
        assert len(list(source)) == 3
        with pytest.raises(mp.MambaPoseError, match="has been read; open it again"):
            list(source)
