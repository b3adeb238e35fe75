"""Bundles that a stranger changed, with all hashes right, seen by mp-check and by loading."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mambapose.runtime.backends.loader import load_engine, load_file
from mambapose.runtime.bundle.bundle import read_bundle
from mambapose.runtime.check.cli import main
from mambapose.runtime.check.machine import bundle_findings
from mambapose.runtime.errors import BundleError, EngineError, LoadError
from mambapose.runtime.loading import open_pipeline, shipped_bundle
from mambapose.runtime.types import Size

pytest.importorskip("onnxruntime")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(shipped_bundle(), tmp_path / "bundle")
    return tmp_path / "bundle"


def rewrite(folder: Path, change: Callable[[Any], object]) -> None:
    """Change bundle.json, and put right the hash of every file in it."""
    path = folder / "bundle.json"
    raw = json.loads(path.read_text())
    change(raw)
    for stage in raw["stages"].values():
        for graph in stage["graphs"].values():
            for file in (*graph["forms"].values(), graph["data"], graph["gate"]):
                if file is not None:
                    file["sha256"] = hashlib.sha256(
                        (folder / file["path"]).read_bytes()
                    ).hexdigest()
    path.write_text(json.dumps(raw))


def other_data(folder: Path, name: str = "pose2d.onnx") -> bytes:
    """The 2D graph with the weights of another file, which lies in the bundle and is listed too."""
    content = (folder / "stages/pose2d.onnx").read_bytes()
    assert b"pose2d.data" in content
    (folder / "stages" / name).write_bytes(content.replace(b"pose2d.data", b"lift3d.data"))
    return content


def failures(folder: Path) -> list[str]:
    return [str(finding) for finding in bundle_findings(folder) if finding.ok is False]


def test_weights_of_another_file_are_refused_though_all_hashes_match(folder: Path) -> None:
    other_data(folder)
    rewrite(folder, lambda raw: None)
    bundle = read_bundle(folder)
    sentence = r"no file but 'pose2d\.data' was wanted in the graph.*'lift3d\.data'"
    with pytest.raises(BundleError, match=sentence):
        load_engine(bundle, "pose2d", "main")
    with pytest.raises(BundleError, match=sentence):
        open_pipeline(bundle, Size(96, 128))
    (line,) = failures(folder)
    assert line.startswith("FAIL pose2d")
    assert "it names 'lift3d.data'" in line


def test_the_form_for_tensorrt_is_looked_at_though_nothing_here_runs_it(folder: Path) -> None:
    other_data(folder, "pose2d.trt.onnx")

    def change(raw: Any) -> None:
        forms = raw["stages"]["pose2d"]["graphs"]["main"]["forms"]
        forms["trt"] = {"path": "stages/pose2d.trt.onnx", "sha256": ""}

    rewrite(folder, change)
    load_engine(read_bundle(folder), "pose2d", "main").close()
    (line,) = failures(folder)
    assert "stages/pose2d.trt.onnx: no file but 'pose2d.data' was wanted" in line


def test_a_detector_may_keep_its_weights_beside_it_only(folder: Path, tmp_path: Path) -> None:
    load_file(folder / "stages/lift3d.onnx").close()
    (tmp_path / "alone").mkdir()
    lone = tmp_path / "alone/lone.onnx"
    shutil.copyfile(folder / "stages/lift3d.onnx", lone)
    with pytest.raises(LoadError, match=r"a regular file beside it were wanted.*'lift3d\.data'"):
        load_file(lone)
    lone.with_name("lift3d.data").symlink_to(folder / "stages/lift3d.data")
    with pytest.raises(LoadError, match="a regular file beside it"):
        load_file(lone)


def test_a_file_is_read_as_onnx_whatever_its_name(folder: Path) -> None:
    """ONNX Runtime would take a name that ends in .ort for its own format, and not find it."""
    shutil.copyfile(folder / "stages/lift3d.onnx", folder / "stages/lift3d.ort")
    load_file(folder / "stages/lift3d.ort").close()


def test_a_lifter_without_keypoints_fails_in_mp_check_too(folder: Path) -> None:
    def change(raw: Any) -> None:
        (keypoints,) = (
            item
            for item in raw["stages"]["lift3d"]["graphs"]["main"]["inputs"]
            if item["name"] == "keypoints"
        )
        keypoints["name"] = "joints"

    rewrite(folder, change)
    with pytest.raises(EngineError, match="stage lift3d, graph main: inputs keypoints"):
        open_pipeline(read_bundle(folder), Size(96, 128))
    (line,) = failures(folder)
    assert line.startswith("FAIL lift3d")
    assert "was wanted for the pipeline, found joints" in line


def test_no_text_of_a_bundle_is_obeyed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J\x1b]0;title\x07\nok   all checks passed\u202e\x9b"

    def change(raw: Any) -> None:
        raw["target"] = raw["created"] = raw["tool_version"] = evil
        for stage in raw["stages"].values():
            stage["network"] += evil
            stage["weights"].update(label=evil, licence=evil, file=evil)
            stage["weights"]["measured"] = {evil: 1.0}
            stage["gate"] = {evil: 1.0}

    rewrite(folder, change)
    main([str(folder)])
    lines = capsys.readouterr().out.split("\n")[:-1]
    assert all(line.isprintable() for line in lines)
    assert [line for line in lines if line.startswith("ok   all checks")] == []
    assert lines[-1] == "all checks passed"
    assert any("\\x1b[2J" in line for line in lines)
