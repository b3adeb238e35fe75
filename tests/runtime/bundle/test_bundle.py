"""Bundles: exact round trip, every lie refused in one sentence, complete or absent."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mambapose.runtime.bundle.bundle import read_bundle, write_bundle
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.bundle.gate_file import read_gate, write_gate
from mambapose.runtime.bundle.json import bundle_json
from mambapose.runtime.errors import BundleError
from mambapose.runtime.targets import Schedule

from .depth_bundle import DEPTH, IMAGE, SPEC, fill


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle", fill)


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


def test_a_missing_stage_or_graph_lists_what_is_there(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"stage flow was wanted.*holds: depth"):
        bundle.stage("flow")
    with pytest.raises(BundleError, match=r"graph main of stage depth.*main@28x42"):
        bundle.graph("depth", "main")


def graph_of(raw: Any) -> Any:
    return raw["stages"]["depth"]["graphs"]["main@28x42"]


def onnx_of(raw: Any) -> Any:
    return graph_of(raw)["forms"]["onnx"]


def rename_graph(raw: Any, name: str) -> None:
    graphs = raw["stages"]["depth"]["graphs"]
    graphs[name] = graphs.pop("main@28x42")


LIES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "newer": (lambda r: r.update(format_version=5), "newer than 4.*update mambapose"),
    "older": (lambda r: r.update(format_version=3), "version 3 is no longer read"),
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
    "label": (lambda r: r["stages"]["depth"]["weights"].update(label=3), "must be text"),
    "measured": (
        lambda r: r["stages"]["depth"]["weights"].update(measured={"a": "b"}),
        "finite number",
    ),
    "no label": (lambda r: r["stages"]["depth"]["weights"].pop("label"), "'label' is missing"),
    "size of three": (lambda r: r["schedule"].update(flow_size=[1, 2, 3]), "height, width"),
    "size negative": (lambda r: r["schedule"].update(flow_size=[-8, 8]), "whole number"),
    "size not list": (lambda r: r["schedule"].update(flow_size="192x256"), "must be a list"),
    "hop": (lambda r: r["schedule"].update(hop=82), "hop is longer"),
    "parent": (lambda r: onnx_of(r).update(path="../secret"), "leaves the bundle folder"),
    "inner parent": (lambda r: onnx_of(r).update(path="stages/../../x"), "leaves the bundle"),
    "absolute": (lambda r: onnx_of(r).update(path="/etc/passwd"), "leaves the bundle folder"),
    "backslash": (lambda r: onnx_of(r).update(path="..\\secret"), "leaves the bundle folder"),
    "drive": (lambda r: onnx_of(r).update(path="C:x"), "leaves the bundle folder"),
    "nul": (lambda r: onnx_of(r).update(path="stages/\0"), "leaves the bundle folder"),
    "empty path": (lambda r: onnx_of(r).update(path=""), "leaves the bundle folder"),
    "dot": (lambda r: onnx_of(r).update(path="./stages/depth.onnx"), "leaves the bundle"),
    "data path": (lambda r: graph_of(r)["data"].update(path="../x"), "leaves the bundle folder"),
    "absent": (lambda r: onnx_of(r).update(path="stages/no.onnx"), "no.onnx is missing"),
    "a folder": (lambda r: onnx_of(r).update(path="stages"), "not a regular file"),
    "short hash": (lambda r: onnx_of(r).update(sha256="ab"), "64 hexadecimal"),
    "other hash": (lambda r: onnx_of(r).update(sha256="0" * 64), "depth.onnx was changed"),
    "file without hash": (lambda r: graph_of(r)["data"].update(sha256=None), "must be text"),
    "file as text": (lambda r: graph_of(r).update(data="stages/depth.data"), "must be an object"),
    "file key": (lambda r: graph_of(r)["gate"].update(size=3), "unknown key 'size'"),
    "no form": (lambda r: graph_of(r).update(forms={}), "forms must be onnx.*found none"),
    "unknown form": (lambda r: graph_of(r)["forms"].update(x=onnx_of(r)), "found onnx, x"),
    "graph name": (lambda r: rename_graph(r, "main@28x²"), "a graph name such as main"),
    "newline in a form": (lambda r: graph_of(r).update(forms={"a\nb": 1}), r"found a\\x0ab"),
    "graph name with a bell": (lambda r: rename_graph(r, "main\a"), r"main\\x07"),
    "stage with escapes": (lambda r: r["stages"].update({"\x1b[2J": {}}), r"\\x1b\[2J"),
    "path with escapes": (lambda r: onnx_of(r).update(path="a\x1b]0;b"), r"a\\x1b\]0;b is missing"),
    "half a character": (lambda r: r.update(target="a\ud800"), r"half a character \(\\ud800\)"),
    "half a key": (lambda r: r.update({"\udcff": 1}), r"half a character \(\\udcff\)"),
    "another scan": (lambda r: r["stages"]["depth"].update(scan_spec=2), "scan_spec 1 was wanted"),
    "endless flow": (lambda r: r["schedule"].update(flow_iters=10**9), "at most 4096"),
    "endless window": (lambda r: r["schedule"].update(clip_frames=5000), "at most 4096"),
    "size huge": (lambda r: r["schedule"].update(pose_size=[1 << 20, 8]), "at most 4096"),
    "two inputs of a name": (
        lambda r: graph_of(r).update(inputs=graph_of(r)["inputs"] * 2),
        "two tensors are called 'image'",
    ),
    "no notices": (lambda r: r.pop("notices"), "'notices' is missing"),
    "notice outside": (
        lambda r: r["notices"].append({"path": "../NOTICE", "sha256": "0" * 64}),
        "leaves the bundle folder",
    ),
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
    with pytest.raises(BundleError, match=r"out\.depth were wanted, found .*out\.other"):
        read_gate(bundle, graph)
    write_gate(path, {"image": IMAGE[:, :, :3]}, {"depth": DEPTH})
    with pytest.raises(BundleError, match=r"image: uint8 .* was wanted"):
        read_gate(bundle, graph)
