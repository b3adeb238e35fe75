"""One mutated bundle per number: its manifest, a graph, a gate archive, or what its files are.

Graphs and gates are damaged with their hashes put right, so that the damage reaches their readers.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from mambapose.runtime.backends import onnxruntime as backend
from mambapose.runtime.backends.loader import load_engine
from mambapose.runtime.backends.native import find_library
from mambapose.runtime.bundle.bundle import (
    ignored_code,
    read_bundle,
    unlisted_files,
    write_bundle,
)
from mambapose.runtime.bundle.entries import (
    SCAN_SPEC,
    Bundle,
    FileEntry,
    GraphEntry,
    StageEntry,
    WeightsEntry,
)
from mambapose.runtime.bundle.gate_file import read_gate, write_gate
from mambapose.runtime.check.machine import PROBE, bundle_findings, probe_case, stage_finding
from mambapose.runtime.errors import MambaPoseError
from mambapose.runtime.loading import IgnoredCodeWarning, open_pipeline
from mambapose.runtime.targets import Schedule
from mambapose.runtime.types import Array, Frame, GraphSpec, Size, Where

from .worker import check_line, preparing, serve

# A library is loaded once, before the watch begins: later loads would be noted.
backend.library_info = functools.cache(backend.library_info)  # type: ignore[attr-defined]
WHERE = Where("onnxruntime", threads=1)
SIZE = Size(48, 64)
Path_ = tuple[str | int, ...]


def make_seed(folder: Path) -> None:
    """Write the whole bundle: small graphs of three stages, one with a scan, one with own data."""
    import onnx

    from ..runtime import small_graphs as small

    def fill(out: Path) -> Bundle:
        (out / "stages").mkdir()
        rng = np.random.default_rng(0)
        keypoints = rng.random((1, 9, 17, 2), np.float32)
        crops = {
            "rgb": rng.integers(0, 256, (1, 32, 32, 3), np.uint8),
            "flow": np.zeros((1, 2, 32, 32), np.float32),
            "depth": rng.random((1, 1, 32, 32), np.float32),
            "present": np.ones((1, 2), np.float32),
        }
        made: dict[str, tuple[Any, dict[str, Array], dict[str, Any]]] = {
            "depth": (small.depth((28, 42)), {"image": np.full((1, 28, 42, 3), 9, np.uint8)}, {}),
            "pose2d": (small.pose((32, 32), (8, 8)), crops, {}),
            "lift3d": (
                small.lift(9), {"keypoints": keypoints}, {"options": {"unit": "body_height"}},
            ),
            "model": (onnx.load(str(PROBE)), probe_case()[0], {"scan_spec": SCAN_SPEC}),
        }  # fmt: skip
        stages = {}
        for name, (model, inputs, more) in made.items():
            file = out / f"stages/{name}.onnx"
            if name == "pose2d":
                onnx.save(
                    model, str(file), location="pose2d.data", save_as_external_data=True,
                    size_threshold=1024,
                )  # fmt: skip
            else:
                onnx.save(model, str(file))
            with backend.engine_from_file(file, WHERE, find_library()) as engine:
                spec = GraphSpec("main", engine.spec.inputs, engine.spec.outputs)
                write_gate(out / f"gate/{name}.npz", inputs, engine.run(inputs))
            data = entry(out, "stages/pose2d.data") if name == "pose2d" else None
            graph = GraphEntry(
                spec,
                {"onnx": entry(out, f"stages/{name}.onnx")},
                data,
                entry(out, f"gate/{name}.npz"),
            )
            weights = WeightsEntry("w.pth", "0" * 64, True, "MIT", "demonstration", {"PCK": 0.5})
            stages[name] = StageEntry("small", "fp32", 3, weights, {"main": graph}, **more)
        (out / "NOTICE").write_text("notice")
        schedule = Schedule(pose_size=Size(32, 32), depth_size=Size(28, 42), clip_frames=9, hop=3)
        return Bundle(out, "0", "2026-01-01T00:00:00Z", "cpu", schedule, stages,
                      (entry(out, "NOTICE"),))  # fmt: skip

    write_bundle(folder, fill)


def entry(folder: Path, name: str) -> FileEntry:
    return FileEntry(name, hashlib.sha256((folder / name).read_bytes()).hexdigest())


HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**62 - 1, 2**62, 2**64, 10**30, 10**400, 1.5, -0.0, 1e308,
    float("nan"), float("inf"), "", "x", "\0", "../../etc/passwd", "/etc/passwd", "stages/../../x",
    "..", ".", "a" * 5000, "\ud800", "\udcff", "\x1b[31mRED\x1b[0m\x1b]0;title\x07", "\u202e", "💥",
    "ｓｔａｇｅｓ", [], [1], [None], [[1, 2], [3]], {}, {"a": 1}, {"": ""}, [256, 192], ["H", "W"],
    ["N", 9, 17, 2], "main@²x²", "main@9x9", "٣", "file:///etc/passwd", "C:\\x", "stages", "gate",
    "stages/", "./stages/pose2d.onnx", "stages//pose2d.onnx", "bundle.json", "stages/pose2d.data",
    "gate/pose2d.npz", "stages/lift3d.onnx", "stages/depth.onnx", "con/..", "%s%s%n", "{0}", "N",
    "float64", "complex64", "uint8", "int64", "bool", "step", "encode", "corr", "rgb", "keypoints",
    "trt", "image", "a\nb", "model", "nested" * 1000,
]  # fmt: skip


def places(tree: Any, path: Path_ = ()) -> Iterator[Path_]:
    """The path of every value in a JSON document."""
    yield path
    if isinstance(tree, (dict, list)):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield from places(tree[key], (*path, key))


def at(tree: Any, path: Path_) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def mutate_tree(tree: Any, rng: Random) -> None:
    """Change one value of a manifest."""
    every = [path for path in places(tree) if path]
    path = rng.choice(every)
    parent, key = at(tree, path[:-1]), path[-1]
    value = rng.choice(HOSTILE)
    match rng.choice(["set", "set", "delete", "add", "rename", "swap", "repeat", "number"]):
        case "set":
            parent[key] = value
        case "delete":
            del parent[key]
        case "add" if isinstance(parent, dict):
            parent[str(value)[:200]] = copy.deepcopy(parent[key])
        case "rename" if isinstance(parent, dict):
            parent[str(value)[:200]] = parent.pop(key)
        case "swap":
            parent[key] = copy.deepcopy(at(tree, rng.choice(every)))
        case "repeat" if isinstance(parent, list):
            parent.extend([parent[0]] * rng.choice([1, 10, 1000]))
        case "number" if isinstance(parent[key], int):
            parent[key] = rng.choice([2 * parent[key], parent[key] + 1, parent[key] // 2, 3, 10**6])


def damage(data: bytes, rng: Random) -> bytes:
    """Some bytes changed, cut out or put in."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        place = rng.randrange(len(out) + 1)
        match rng.choice(["set", "set", "bit", "bit", "insert", "delete", "cut", "copy"]):
            case "set" if place < len(out):
                out[place] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
            case "bit" if place < len(out):
                out[place] ^= 1 << rng.randrange(8)
            case "insert":
                out[place:place] = rng.randbytes(rng.choice([1, 4, 50]))
            case "delete":
                del out[place : place + rng.choice([1, 4, 50])]
            case "cut" if rng.random() < 0.1:
                del out[place:]
            case "copy":
                out[place:place] = out[: rng.choice([8, 100])]
        if not out:
            break
    return bytes(out)


def manifest_text(tree: Any, rng: Random) -> bytes:
    """The document as JSON, sometimes with the text itself damaged."""
    text = json.dumps(tree).encode("utf-8", "surrogatepass")
    chance = rng.random()
    if chance < 0.06:
        return damage(text, rng)
    if chance < 0.08:
        deep = rng.choice([10, 900, 5000, 100_000])
        return text.replace(b'"licence": ', b'"licence": ' + rng.choice([b"[", b'{"a":']) * deep, 1)
    if chance < 0.10:
        return rng.choice([b"\xff\xfe", b"\xef\xbb\xbf", b"\0"]) + text
    if chance < 0.13:
        number = rng.choice(
            [b"9" * 5000, b"1e999", b"NaN", b"Infinity", b"1" + b"0" * 4200, b"0x1"]
        )
        return text.replace(b'"params": 3', b'"params": ' + number, 1)
    return text


@functools.cache
def seed_tree(path: Path) -> Any:
    return json.loads((path / "bundle.json").read_text())


def put_seed(seed: Path, folder: Path) -> Any:
    """The whole bundle anew in ``folder``, and its manifest."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(seed, folder)
    return copy.deepcopy(seed_tree(seed))


def change_file(tree: Any, folder: Path, rng: Random) -> tuple[str, str]:
    """Damage a graph, its data or its gate, with the right hash: (stage, what it was)."""
    stage = rng.choice(list(tree["stages"]))
    graph = tree["stages"][stage]["graphs"]["main"]
    kind = rng.choice(["graph", "graph", "gate", "gate", "data"])
    if kind == "data" and graph["data"] is None:
        kind = "graph"
    file = {"graph": graph["forms"]["onnx"], "gate": graph["gate"], "data": graph["data"]}[kind]
    data = damage((folder / file["path"]).read_bytes(), rng)
    if kind == "graph" and rng.random() < 0.2:
        name = rng.choice([b"pose2d.data", b"lift3d.onnx", b"../x", b"/etc/passwd"])
        data = data.replace(b"pose2d.data", name)
    (folder / file["path"]).write_bytes(data)
    file["sha256"] = hashlib.sha256(data).hexdigest()
    return stage, kind


def change_kind(tree: Any, folder: Path, rng: Random) -> None:
    """Make a file something else: nothing, a folder, a link, a pipe, or one more beside it."""
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    path = folder / rng.choice(sorted(names))
    match rng.choice(["gone", "folder", "link out", "link in", "loop", "pipe", "empty", "library"]):
        case "library":
            (folder / "plugins").mkdir()
            (folder / "plugins/libmambapose_ort.so").write_bytes(b"\x7fELF")
            return
        case "empty":
            path.write_bytes(b"")
            return
        case what:
            path.unlink()
    match what:
        case "folder":
            path.mkdir()
        case "link out":
            path.symlink_to(rng.choice(["/etc/passwd", "/dev/zero", "/proc/self/mem", "/"]))
        case "link in":
            path.symlink_to(folder / "NOTICE")
        case "loop":
            path.symlink_to(path)
        case "pipe":
            os.mkfifo(path)


def use(folder: Path, rng: Random, changed: str | None) -> None:
    """What mp-check and mp-run do with a bundle that was read, cheaper ones more often."""
    bundle = read_bundle(folder)
    unlisted_files(bundle)
    ignored_code(bundle)
    if rng.random() < 0.02:
        for finding in bundle_findings(folder):
            assert str(finding).isprintable()
        return
    stage = changed or rng.choice(list(bundle.stages))
    finding = stage_finding(bundle, stage, WHERE, 1)
    assert str(finding).isprintable()
    if rng.random() < 0.1 or changed is None:
        frames = [Frame(np.full((*SIZE, 3), 60 * n, np.uint8), n, n / 30) for n in range(2)]
        with open_pipeline(bundle, SIZE, where=WHERE) as pipeline:
            assert len(list(pipeline.run(iter(frames)))) == 2


def case(number: int, folder: Path) -> bool:
    """Read and use the mutated bundle of a number; whether its manifest was accepted."""
    rng = Random(number)
    work = folder / "work"
    with preparing():
        changed = make_case(rng, folder / "seed", work, whole=number == 0)
    try:
        read_bundle(work)
    except MambaPoseError as err:
        check_error(err)
        return False
    try:
        use(work, rng, changed)
    except MambaPoseError as err:
        check_error(err)
    return True


def make_case(rng: Random, seed: Path, work: Path, *, whole: bool) -> str | None:
    """Write a mutated bundle; the stage whose files were damaged, None when it was the manifest."""
    chance = 1.0 if whole else rng.random()
    if chance < 0.6:
        if not (work / "whole").exists():  # the case before changed no file but the manifest
            put_seed(seed, work)
            (work / "whole").touch()
        tree = copy.deepcopy(seed_tree(seed))
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            mutate_tree(tree, rng)
        (work / "bundle.json").write_bytes(manifest_text(tree, rng))
        return None
    tree = put_seed(seed, work)
    if chance >= 0.9:
        if not whole:
            change_kind(tree, work, rng)
        return None
    changed, _ = change_file(tree, work, rng)
    (work / "bundle.json").write_text(json.dumps(tree))
    return changed


def check_error(err: MambaPoseError) -> None:
    """One printable line that any encoding of Unicode can hold, of a length one can read."""
    check_line(err)
    assert str(err).isprintable(), ascii(str(err))
    assert len(str(err)) < 3000, len(str(err))


def load_everything(folder: Path) -> None:
    """Import and load what the cases need, before the watch begins."""
    bundle = read_bundle(folder / "seed")
    for name in bundle.stages:
        load_engine(bundle, name, "main", WHERE).close()
        read_gate(bundle, bundle.graph(name, "main"))
        assert stage_finding(bundle, name, WHERE).ok
    frames = [Frame(np.full((*SIZE, 3), 60 * n, np.uint8), n, n / 30) for n in range(2)]
    with open_pipeline(bundle, SIZE, where=WHERE) as pipeline:
        assert len(list(pipeline.run(iter(frames)))) == 2
    warnings.simplefilter("ignore", IgnoredCodeWarning)


if __name__ == "__main__":
    load_everything(Path(sys.argv[3]))
    serve(sys.argv[1:], case)
