"""Nothing in a bundle is loaded as code: the operator is installed, or named by the user."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mambapose.benchmarks.jobs import Job, job_from_dict, own_module, run_job
from mambapose.runtime import loading
from mambapose.runtime.backends import native
from mambapose.runtime.backends.native import LIBRARY_NAME, find_library, library_info
from mambapose.runtime.bundle.bundle import ignored_code, read_bundle, unlisted_files
from mambapose.runtime.check import cli as check_cli
from mambapose.runtime.check.machine import bundle_findings
from mambapose.runtime.cli import main as run_main
from mambapose.runtime.errors import EngineError, LoadError
from mambapose.runtime.loading import IgnoredCodeWarning, open_pipeline, shipped_bundle
from mambapose.runtime.types import Frame, Size, Where

PLACES = (f"plugins/{LIBRARY_NAME}", f"engines/{LIBRARY_NAME}", LIBRARY_NAME, "plugins/x.so.1",
          "numpy.py", "evil.pth", "engines/pose2d.engine", "a/b/c/x.DLL")  # fmt: skip


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The bundle that ships, as links to its files, with something of each kind of code in it.

    None of it is a library: whoever loads it fails.
    """
    folder = tmp_path / "bundle"
    for path in shipped_bundle().rglob("*"):
        if path.is_file():
            copy = folder / path.relative_to(shipped_bundle())
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    for name in PLACES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise SystemExit('code of a bundle ran')")
    return folder


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The libraries that are loaded from now on."""
    names: list[str] = []
    true = ctypes.CDLL

    def recorded(name: Any, *more: Any, **given: Any) -> ctypes.CDLL:
        names.append(str(name))
        return true(name, *more, **given)

    monkeypatch.setattr(ctypes, "CDLL", recorded)
    return names


def test_a_library_in_a_bundle_is_never_loaded_and_said_to_be_ignored(
    bundle: Path, loaded: list[str]
) -> None:
    pytest.importorskip("onnxruntime")
    frames = [Frame(np.full((96, 128, 3), 40 * k, np.uint8), k, k / 30) for k in range(2)]
    with (
        pytest.warns(IgnoredCodeWarning, match="never loaded") as said,
        open_pipeline(read_bundle(bundle), Size(96, 128)) as pipeline,
    ):
        assert len(list(pipeline.run(iter(frames)))) == 2
    assert LIBRARY_NAME in str(said[0].message)
    assert "and 5 more" in str(said[0].message)
    findings = list(bundle_findings(bundle))
    assert all(finding.ok is not False for finding in findings)
    assert any("ignored in the bundle" in str(finding) for finding in findings)
    assert not [name for name in loaded if str(bundle) in name]


def test_mp_run_notes_it(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("av")
    clip = str(loading.SHIPPED.parent / "sample.mp4")
    run = [clip, "--engine", str(bundle), "--range", "0:2", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as caught:
        run_main(run)
    assert not caught.value.code
    said = capsys.readouterr().err
    assert said.count("note: ignored in the bundle") == 1
    assert "--operator FILE" in said


def test_everything_that_is_not_listed_is_named(bundle: Path, tmp_path: Path) -> None:
    (bundle / "stages/\x1b[2J.txt").write_text("")
    (bundle / "away").symlink_to(tmp_path)
    found = read_bundle(bundle)
    assert set(unlisted_files(found)) == {*PLACES, "stages/\x1b[2J.txt", "away"}
    texts = [str(finding) for finding in bundle_findings(bundle)]
    (line,) = (text for text in texts if "not in bundle.json, so not used" in text)
    assert all(text.isprintable() for text in texts)
    assert "LIBRARY" not in line
    for name in PLACES:
        (bundle / name).unlink()
    assert ignored_code(found) is None


def test_a_library_is_taken_from_three_places_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(native.VARIABLE, raising=False)
    monkeypatch.setattr(native, "installed_folders", lambda: iter([tmp_path / "installed"]))
    monkeypatch.chdir(tmp_path)
    assert find_library() is None
    for folder in ("installed", "named", "given"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / LIBRARY_NAME).touch()
    assert find_library() == tmp_path / "installed" / LIBRARY_NAME
    monkeypatch.setenv(native.VARIABLE, str(tmp_path / "named" / LIBRARY_NAME))
    assert find_library() == tmp_path / "named" / LIBRARY_NAME
    given = Path("given") / LIBRARY_NAME
    assert find_library(given) == tmp_path / given  # absolute: a bare name is looked for elsewhere
    for wrong in ("no.so", "a" * 300, "a\0b"):
        with pytest.raises(LoadError, match="found no such file"):
            find_library(Path(wrong))


def test_the_operator_that_is_named_is_the_one_that_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By each command that loads a bundle: one that is no library fails and is named."""
    pytest.importorskip("onnxruntime")
    wrong = tmp_path / "operator.so"
    wrong.write_text("no library")
    with pytest.raises(EngineError, match=r"operator\.so"):
        open_pipeline(read_bundle(shipped_bundle()), Size(96, 128), where=Where(operator=wrong))
    with pytest.raises(SystemExit):
        check_cli.main(["--operator", str(wrong), str(shipped_bundle())])
    out = capsys.readouterr().out
    assert f"FAIL operator         a mambapose operator library was wanted at {wrong}" in out
    assert "FAIL pose2d           mambapose-nano on onnxruntime: a mambapose op" in out
    with pytest.raises(SystemExit):
        run_main([str(loading.SHIPPED.parent / "sample.mp4"), "--operator", str(wrong),
                  "--out", str(tmp_path / "out")])  # fmt: skip
    assert f"operator library was wanted at {wrong}" in capsys.readouterr().err
    job = Job("empty", where=Where("onnxruntime", operator=wrong))
    with pytest.raises(EngineError, match=r"fresh process failed: operator library .*operator\.so"):
        run_job(job)


def test_a_job_brings_the_operator_with_it() -> None:
    where = {"backend": "auto", "device": "cpu", "threads": 1, "operator": "a/b.so"}
    assert job_from_dict({"kind": "empty", "where": where}).where.operator == Path("a/b.so")


def test_a_fresh_process_imports_nothing_from_the_folder_it_is_started_in(tmp_path: Path) -> None:
    """mp-bench started inside a bundle: Python would look for modules there first."""
    for name in ("runpy", "json", "numpy", "mambapose"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('code of a bundle ran')")
    command = own_module("mambapose.benchmarks.worker", "{}")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "code of a bundle ran" not in done.stderr
    assert "KeyError: 'where'" in done.stderr  # it got as far as its own work


@pytest.mark.parametrize("value", [b"\xff", b"avx\xe9", b"bogus", b"\x1b[2J"])
def test_an_instruction_set_of_any_bytes_is_refused_in_one_line(value: bytes) -> None:
    library = find_library()
    if library is None:
        pytest.skip("the native library is not built")
    code = (
        "from mambapose.runtime.backends.native import *\n"
        "from mambapose.runtime.errors import LoadError\n"
        "try: library_info(find_library())\n"
        "except LoadError as err: print(ascii(str(err)))\n"
    )
    environment = {**os.environb, b"MAMBAPOSE_ISA": value}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.stdout.startswith(b'"instruction set '), done.stderr
    assert library_info(library).isa


def test_a_report_holds_variables_of_any_bytes(tmp_path: Path) -> None:
    report = tmp_path / "report.txt"
    code = (
        "from mambapose.runtime.check.machine import *\n"
        f"write_report(Path({str(report)!r}), [], 'v')"
    )
    environment = {**os.environb, b"MAMBAPOSE_ODD": b"a\xffb\x1b"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert r"MAMBAPOSE_ODD=a\udcffb\x1b" in report.read_text()
