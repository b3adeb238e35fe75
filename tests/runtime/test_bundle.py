"""Bundles: exact round trip, every lie refused in one sentence, complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mambapose.runtime.bundle import (
    Bundle,
    GraphEntry,
    StageEntry,
    WeightsEntry,
    bundle_json,
    file_sha256,
    graph_name,
    read_bundle,
    read_gate,
    write_bundle,
    write_gate,
)
from mambapose.runtime.errors import BundleError, EngineError
from mambapose.runtime.targets import Schedule
from mambapose.runtime.types import GraphSpec, TensorSpec

SPEC = GraphSpec(
    "main@28x42",
    (TensorSpec("image", "uint8", (1, 28, 42, 3)),),
    (TensorSpec("depth", "float32", (1, 1, 28, 42)),),
)
IMAGE = np.arange(28 * 42 * 3, dtype=np.uint32).astype(np.uint8).reshape(1, 28, 42, 3)
DEPTH = np.linspace(0, 1, 28 * 42, dtype=np.float32).reshape(1, 1, 28, 42)


def fill(folder: Path, *, marker: bytes = b"weights") -> Bundle:
    """Stage files as an export leaves them, without a network: the bytes do not matter here."""
    stages = folder / "stages"
    stages.mkdir()
    (stages / "depth.onnx").write_bytes(b"graph")
    (stages / "depth.data").write_bytes(marker * 1000)
    write_gate(folder / "gate" / "depth.npz", {"image": IMAGE}, {"depth": DEPTH})
    graph = GraphEntry(
        SPEC,
        "stages/depth.onnx",
        file_sha256(stages / "depth.onnx"),
        "stages/depth.data",
        file_sha256(stages / "depth.data"),
        gate_file="gate/depth.npz",
        gate_sha256=file_sha256(folder / "gate" / "depth.npz"),
    )
    entry = StageEntry(
        network="depth-anything-v2-small",
        precision="fp32",
        params=24_785_089,
        weights=WeightsEntry("vits.pth", "ab" * 32, True, "Apache-2.0"),
        graphs={SPEC.name: graph},
        gate={"depth_relative": 1.5e-6},
        options={"flip": True, "layout": "yolox", "count": 3},
    )
    return Bundle(folder, "0.1.0", "2026-01-02T03:04:05Z", "cpu", Schedule(), {"depth": entry})


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle", fill)


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every path below the folder, hidden ones too, with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"folder"
        for path in sorted(folder.rglob("*"))
    }


def rewrite(bundle: Bundle, change: Callable[[Any], None]) -> None:
    manifest = bundle.path / "bundle.json"
    raw = json.loads(manifest.read_bytes())
    change(raw)
    manifest.write_text(json.dumps(raw))


# --- reading -----------------------------------------------------------------------------------


def test_what_is_written_is_read_back(bundle: Bundle) -> None:
    found = read_bundle(bundle.path)
    assert found == bundle
    assert found.hash == hashlib.sha256((bundle.path / "bundle.json").read_bytes()).hexdigest()
    assert found.schedule == Schedule()
    assert found.graph("depth", "main@28x42").spec == SPEC
    assert found.stage("depth").options == {"flip": True, "layout": "yolox", "count": 3}
    assert found.trained
    assert bundle_json(found) == (bundle.path / "bundle.json").read_bytes()


def test_gate_arrays_come_back_exactly(bundle: Bundle) -> None:
    inputs, outputs = read_gate(bundle, bundle.graph("depth", "main@28x42"))
    np.testing.assert_array_equal(inputs["image"], IMAGE)
    np.testing.assert_array_equal(outputs["depth"], DEPTH)


def test_graph_names_carry_the_size() -> None:
    assert graph_name("encode", (192, 256)) == "encode@192x256"
    assert graph_name("main") == "main"


def test_a_missing_stage_or_graph_lists_what_is_there(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"stage flow was wanted.*holds: depth"):
        bundle.stage("flow")
    with pytest.raises(BundleError, match=r"graph main of stage depth.*main@28x42"):
        bundle.graph("depth", "main")


def graph_of(raw: Any) -> Any:
    return raw["stages"]["depth"]["graphs"]["main@28x42"]


LIES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "newer": (lambda r: r.update(format_version=2), "newer than 1.*update mambapose"),
    "older": (lambda r: r.update(format_version=0), "no longer read"),
    "version text": (lambda r: r.update(format_version="1"), "whole number"),
    "version true": (lambda r: r.update(format_version=True), "whole number"),
    "no version": (lambda r: r.pop("format_version"), "'format_version' is missing"),
    "unknown key": (lambda r: r.update(color=1), "unknown key 'color'"),
    "missing key": (lambda r: r.pop("target"), "'target' is missing"),
    "no stages": (lambda r: r.update(stages={}), "no stage"),
    "unknown stage": (lambda r: r["stages"].update(segment={}), "unknown stage 'segment'"),
    "stage not object": (lambda r: r["stages"].update(flow=3), "must be an object"),
    "stage key": (lambda r: r["stages"]["depth"].update(x=1), "unknown key 'x'"),
    "no graphs": (lambda r: r["stages"]["depth"].update(graphs={}), "no graph"),
    "params text": (lambda r: r["stages"]["depth"].update(params="9"), "whole number"),
    "params float": (lambda r: r["stages"]["depth"].update(params=1.5), "whole number"),
    "params huge": (lambda r: r["stages"]["depth"].update(params=10**30), "whole number"),
    "gate text": (lambda r: r["stages"]["depth"].update(gate={"a": "b"}), "finite number"),
    "gate huge": (lambda r: r["stages"]["depth"].update(gate={"a": 10**400}), "finite number"),
    "option list": (lambda r: r["stages"]["depth"].update(options={"a": []}), "text, a whole"),
    "trained text": (
        lambda r: r["stages"]["depth"]["weights"].update(trained="yes"),
        "true or false",
    ),
    "weights key": (lambda r: r["stages"]["depth"]["weights"].update(url="x"), "unknown key"),
    "size of three": (lambda r: r["schedule"].update(flow_size=[1, 2, 3]), "height, width"),
    "size negative": (lambda r: r["schedule"].update(flow_size=[-8, 8]), "whole number"),
    "size not list": (lambda r: r["schedule"].update(flow_size="192x256"), "must be a list"),
    "hop": (lambda r: r["schedule"].update(hop=82), "hop is longer"),
    "parent": (lambda r: graph_of(r).update(file="../secret"), "leaves the bundle folder"),
    "inner parent": (lambda r: graph_of(r).update(file="stages/../../x"), "leaves the bundle"),
    "absolute": (lambda r: graph_of(r).update(file="/etc/passwd"), "leaves the bundle folder"),
    "backslash": (lambda r: graph_of(r).update(file="..\\secret"), "leaves the bundle folder"),
    "drive": (lambda r: graph_of(r).update(file="C:x"), "leaves the bundle folder"),
    "nul": (lambda r: graph_of(r).update(file="stages/\0"), "leaves the bundle folder"),
    "empty path": (lambda r: graph_of(r).update(file=""), "leaves the bundle folder"),
    "dot": (lambda r: graph_of(r).update(file="./stages/depth.onnx"), "leaves the bundle"),
    "data path": (lambda r: graph_of(r).update(data="../secret"), "leaves the bundle folder"),
    "absent": (lambda r: graph_of(r).update(file="stages/no.onnx"), "no.onnx is missing"),
    "a folder": (lambda r: graph_of(r).update(file="stages"), "not a regular file"),
    "short hash": (lambda r: graph_of(r).update(sha256="ab"), "64 hexadecimal"),
    "other hash": (lambda r: graph_of(r).update(sha256="0" * 64), "depth.onnx was changed"),
    "hash without file": (lambda r: graph_of(r).update(data=None), "without data"),
    "file without hash": (lambda r: graph_of(r).update(data_sha256=None), "must be text"),
    "tensor": (lambda r: graph_of(r).update(inputs=[3]), "tensor must be an object"),
    "dtype": (lambda r: graph_of(r)["inputs"][0].update(dtype="object"), "dtype 'object'"),
    "side zero": (lambda r: graph_of(r)["inputs"][0].update(shape=[0]), "whole number"),
    "side null": (lambda r: graph_of(r)["inputs"][0].update(shape=[None]), "whole number"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_lies_is_refused(bundle: Bundle, lie: str) -> None:
    change, sentence = LIES[lie]
    rewrite(bundle, change)
    with pytest.raises(BundleError, match=sentence) as caught:
        read_bundle(bundle.path)
    assert "\n" not in str(caught.value)
    assert "mp-export" in str(caught.value) or "update mambapose" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "not valid JSON"),
        (b"[]", "an object was wanted, found list"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": 1, "a": 2}', "a key appears twice"),
        (b'{"a": NaN}', "not a number that JSON knows"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b" " * (17 << 20), "larger than"),
    ],
)
def test_text_that_is_no_manifest_is_refused(bundle: Bundle, text: bytes, sentence: str) -> None:
    (bundle.path / "bundle.json").write_bytes(text)
    with pytest.raises(BundleError, match=sentence):
        read_bundle(bundle.path)


def test_any_changed_byte_of_any_listed_file_is_noticed(bundle: Bundle) -> None:
    for path in sorted(bundle.path.rglob("*")):
        if path.is_file() and path.name != "bundle.json":
            before = path.read_bytes()
            changed = bytearray(before)
            changed[len(changed) // 2] ^= 1
            path.write_bytes(changed)
            with pytest.raises(BundleError, match=f"{path.name} was changed"):
                read_bundle(bundle.path)
            assert read_bundle(bundle.path, verify=False) == bundle
            path.write_bytes(before)
    assert read_bundle(bundle.path) == bundle


def test_random_damage_to_the_manifest_never_escapes_as_another_error(bundle: Bundle) -> None:
    """Each damage is refused as a BundleError, or harmless: it changed words nobody checks."""
    manifest = bundle.path / "bundle.json"
    before = manifest.read_bytes()
    generator = random.Random(5)
    refused = 0
    for _ in range(400):
        damaged = bytearray(before)
        for _ in range(generator.randint(1, 3)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        manifest.write_bytes(damaged[: generator.choice([len(damaged), len(damaged) // 2])])
        try:
            read_bundle(bundle.path)
        except BundleError:
            refused += 1
    assert refused > 300


def test_links_may_not_leave_the_folder(bundle: Bundle, tmp_path: Path) -> None:
    graph = bundle.path / "stages" / "depth.onnx"
    outside = tmp_path / "outside.onnx"
    outside.write_bytes(graph.read_bytes())
    graph.unlink()
    graph.symlink_to(outside)
    with pytest.raises(BundleError, match="link that leaves the bundle"):
        read_bundle(bundle.path)
    graph.unlink()
    graph.symlink_to("depth.onnx")  # to itself
    with pytest.raises(BundleError, match="is missing"):
        read_bundle(bundle.path)
    graph.unlink()
    (bundle.path / "copy").write_bytes(b"graph")
    graph.symlink_to("../copy")
    assert read_bundle(bundle.path) == bundle


def test_a_bundle_may_itself_be_reached_through_a_link(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle.path)
    assert read_bundle(tmp_path / "link").hash == bundle.hash


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"found nothing at .*run mp-export"):
        read_bundle(tmp_path / "absent")
    with pytest.raises(BundleError, match=r"no bundle\.json"):
        read_bundle(tmp_path)


def test_gate_arrays_that_hide_objects_or_differ_from_the_graph_are_refused(
    bundle: Bundle,
) -> None:
    graph = bundle.graph("depth", SPEC.name)
    path = bundle.path / "gate" / "depth.npz"
    np.savez(path, **{"in.image": np.array([{"code": 1}], dtype=object)})
    with pytest.raises(BundleError, match="cannot be read"):
        read_gate(bundle, graph)
    write_gate(path, {"image": IMAGE}, {"depth": DEPTH})
    whole = path.read_bytes()
    flipped = bytes(byte ^ (0xFF if 300 < at < 340 else 0) for at, byte in enumerate(whole))
    for damaged in (b"", b"not a zip", whole[:-40], whole[:200], flipped):
        path.write_bytes(damaged)
        with pytest.raises(BundleError, match="cannot be read"):
            read_gate(bundle, graph)
    with path.open("wb") as stream:
        np.save(stream, DEPTH)
    with pytest.raises(BundleError, match="not an archive"):
        read_gate(bundle, graph)
    write_gate(path, {"image": IMAGE}, {"other": DEPTH})
    with pytest.raises(BundleError, match="do not match the graph"):
        read_gate(bundle, graph)
    write_gate(path, {"image": IMAGE[:, :, :3]}, {"depth": DEPTH})
    with pytest.raises(EngineError, match="image: uint8"):
        read_gate(bundle, graph)


# --- writing: complete or absent -----------------------------------------------------------------


def test_an_existing_folder_is_refused_and_untouched(bundle: Bundle, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    with pytest.raises(BundleError, match=r"exists already.*--overwrite"):
        write_bundle(bundle.path, fill)
    assert snapshot(tmp_path) == before


def test_overwrite_replaces_a_bundle_and_nothing_else(bundle: Bundle, tmp_path: Path) -> None:
    newer = write_bundle(bundle.path, lambda folder: fill(folder, marker=b"newer"), overwrite=True)
    assert newer.hash != bundle.hash
    assert read_bundle(bundle.path) == newer
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]

    home = tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("dear")
    file = tmp_path / "file"
    file.write_text("x")
    for out in (home, file):
        with pytest.raises(BundleError, match="is not a bundle"):
            write_bundle(out, fill, overwrite=True)
    assert (home / "letter.txt").read_text() == "dear"
    assert file.read_text() == "x"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError(28, "No space left")])
@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_write_leaves_what_was_there(
    tmp_path: Path, error: BaseException, existing: bool
) -> None:
    out = tmp_path / "bundle"
    if existing:
        write_bundle(out, fill)
    before = snapshot(tmp_path)

    def stop(folder: Path) -> Bundle:
        fill(folder)
        raise error

    expected = BundleError if isinstance(error, OSError) else error
    with pytest.raises(expected):  # type: ignore[arg-type]
        write_bundle(out, stop, overwrite=True)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("failing", ["rename", "fsync"])
def test_a_disk_that_fails_at_the_end_leaves_the_old_bundle(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    before = snapshot(tmp_path)
    real: Any = getattr(os, failing)
    calls = []

    def fail(*args: Any) -> None:
        calls.append(args)
        if failing == "fsync" or len(calls) == 2:  # the second rename brings the new one in
            raise OSError(28, "No space left on device")
        real(*args)

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(BundleError, match="No space left on device; nothing was changed"):
        write_bundle(bundle.path, lambda f: fill(f, marker=b"newer"), overwrite=True)
    monkeypatch.undo()
    assert calls
    assert snapshot(bundle.path) == {
        name.removeprefix("bundle/"): data
        for name, data in before.items()
        if name.startswith("bundle/")
    }
    assert read_bundle(bundle.path) == bundle


def test_a_description_that_does_not_match_its_files_is_never_published(tmp_path: Path) -> None:
    def forget(folder: Path) -> Bundle:
        made = fill(folder)
        (folder / "stages" / "depth.data").unlink()
        return made

    with pytest.raises(BundleError, match=r"depth\.data is missing"):
        write_bundle(tmp_path / "bundle", forget)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_no_half_bundle(small_disk: Path) -> None:
    kept = write_bundle(small_disk / "kept", fill)
    before = snapshot(small_disk)
    for out, overwrite in ((small_disk / "new", False), (kept.path, True)):
        with pytest.raises(BundleError, match="No space left on device"):
            write_bundle(out, lambda f: fill(f, marker=b"x" * 300), overwrite=overwrite)
        assert snapshot(small_disk) == before
    assert read_bundle(kept.path) == kept


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a POSIX signal")
def test_what_a_killed_export_left_behind_goes_with_the_next_one(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path
        from mambapose.runtime.bundle import write_bundle
        def fill(folder):
            (folder / "half.onnx").write_bytes(b"half")
            print(folder.name, flush=True)
            sys.stdin.readline()
            os.kill(os.getpid(), 9)
        write_bundle(Path(sys.argv[1]), fill)
        """
    )
    out = tmp_path / "bundle"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    half = tmp_path / process.stdout.readline().strip()
    other = write_bundle(tmp_path / "other", fill)
    write_bundle(out, fill)  # while the other one is alive, its folder stays
    assert (half / "half.onnx").read_bytes() == b"half"
    process.communicate("go\n")
    assert process.returncode == -signal.SIGKILL
    assert half.is_dir()
    write_bundle(out, fill, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "other"]
    assert read_bundle(other.path) == other
