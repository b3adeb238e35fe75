"""Journals with damage of every kind: read as far as they are whole, or refused in one line."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np

from mambapose.runtime.errors import OutputError
from mambapose.runtime.results.files import conventions, write_results
from mambapose.runtime.results.journal import JOURNAL, Journal
from mambapose.runtime.types import Pose

from ..runtime.results.made_up import pose
from .cases import numbers

VALUES = [None, 1, -1, "x", [], {}, [[1, 2]], 1e400, float("nan"), True, 2**70, "\ud800"]
ENDS = [b'{"end":', b'{"end":1}', b'{"end":{}', b'{"end": [1]}', b'{"end":null}',
        b'{"end":{"frames":1},"x":2}', b'{"end":{"frames":3}}']  # fmt: skip
HANG_S = 5.0
FRAMES = 12


def sound_journal(folder: Path) -> bytes:
    """A journal of FRAMES frames with two people, whose 3D joints come three frames later."""

    def poses(frame: int, *, solid: bool) -> list[Pose]:
        return [pose(frame, track, solid) for track in (1, 2)]

    with Journal(folder, {**conventions(), "trained": True}) as journal:
        for frame in range(FRAMES):
            journal.append(frame, frame / 30, poses(frame, solid=False), waits=True)
            if frame >= 3:
                journal.lift(frame - 3, poses(frame - 3, solid=True))
        for frame in range(FRAMES - 3, FRAMES):
            journal.lift(frame, poses(frame, solid=True))
        journal.finish(frames=FRAMES, problem=None)
    return journal.path.read_bytes()


def changed_value(line: bytes, rng: random.Random) -> bytes:
    """A line with one of its values removed or replaced by one of VALUES."""
    record = json.loads(line)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = node if isinstance(node, dict) else range(len(node))
        for key in keys:
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                walk(node[key])

    walk(record)
    node, key = rng.choice(places)
    if rng.random() < 0.3:
        del node[key]
    else:
        node[key] = rng.choice(VALUES)
    return json.dumps(record).encode("utf-8", "surrogatepass")


def mutated(sound: bytes, rng: random.Random) -> bytes:
    """A journal in which one thing went wrong."""
    lines = sound.split(b"\n")
    k, other = rng.randrange(len(lines) - 1), rng.randrange(len(lines) - 1)
    kind = rng.choice(["value", "bytes", "cut", "twice", "swap", "lost", "end", "long"])
    if kind == "value":
        lines[k] = changed_value(lines[k], rng)
    elif kind == "twice":
        lines.insert(k, lines[k])
    elif kind == "swap":
        lines[k], lines[other] = lines[other], lines[k]
    elif kind == "lost":
        del lines[k]
    elif kind == "end":
        lines.insert(rng.choice([-1, k]), rng.choice(ENDS))
    elif kind == "long":
        lines[k] = rng.choice([b"[", b'{"a":', b"9"]) * rng.choice([100, 5000, 200_000])
    data = bytearray(b"\n".join(lines))
    if kind == "bytes":
        for _ in range(rng.randint(1, 5)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    if kind == "cut":
        del data[rng.randrange(len(data)) :]
    return bytes(data)


def test_a_damaged_journal_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    sound = sound_journal(tmp_path / "sound")
    out = tmp_path / "out"
    out.mkdir()
    cases = numbers(300)
    accepted = frames = 0
    for number in cases:
        (out / JOURNAL).write_bytes(mutated(sound, random.Random(number)))
        start = time.monotonic()
        try:
            found = write_results(out)
        except OutputError as err:
            refusal = str(err)
            assert "\n" not in refusal, number
        else:
            accepted += 1
            frames += found.frames
            document = json.loads((out / "poses.json").read_text())
            assert len(document["frames"]) == found.frames, number
            with np.load(out / "poses.npz") as arrays:
                assert len(arrays["frames"]) == found.frames, number
        assert time.monotonic() - start < HANG_S, number
        assert {path.suffix for path in out.iterdir()} <= {".ndjson", ".json", ".npz", ".csv"}
    kept = frames / max(1, accepted)
    print(f"journals: {len(cases)} tried, {accepted} read, {kept:.2f} of {FRAMES} frames each")
    assert accepted >= len(cases) / 5
    # One thing that goes wrong costs a frame or two; only what is cut off costs many.
    assert frames >= 0.8 * FRAMES * accepted
