"""The chain on ONNX Runtime with tiny graphs: a bundle on disk in, results out, memory flat."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import onnx
import pytest

from mambapose.runtime.backends.onnxruntime import engine_from_file
from mambapose.runtime.bundle.bundle import write_bundle
from mambapose.runtime.bundle.entries import Bundle, FileEntry, GraphEntry, StageEntry, WeightsEntry
from mambapose.runtime.cli import main
from mambapose.runtime.interrupt import Interruptible
from mambapose.runtime.loading import lift_unit, needed_graphs, open_pipeline
from mambapose.runtime.results.destination import destination_of
from mambapose.runtime.run_options import RunOptions
from mambapose.runtime.running import Run, record
from mambapose.runtime.targets import Schedule
from mambapose.runtime.types import Frame, Size, Where

from . import small_graphs as graphs
from .drawn_clip import DrawnClip, write_clip

FLOW, DEPTH, CROP, HEAT, WINDOW = (128, 160), (28, 42), (64, 48), (16, 12), 9


def turned(size):
    return size[1], size[0]


def all_graphs():
    """Stage -> graph name -> model; image stages in both orientations."""
    found = {"flow": {}, "depth": {}}
    for size in (FLOW, turned(FLOW)):
        name = f"@{size[0]}x{size[1]}"
        for base in ("encode", "corr", "step", "upsample"):
            found["flow"][base + name] = getattr(graphs, base)(size)
    for size in (DEPTH, turned(DEPTH)):
        found["depth"][f"main@{size[0]}x{size[1]}"] = graphs.depth(size)
    found["pose2d"] = {"main": graphs.pose(CROP, HEAT)}
    found["lift3d"] = {"main": graphs.lift(WINDOW)}
    return found


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    networks = {"flow": "raft-small", "depth": "d", "pose2d": "p", "lift3d": "posemamba-s"}
    options = {"lift3d": {"unit": "image"}}

    def fill(folder):
        (folder / "stages").mkdir()
        stages = {}
        for stage, models in all_graphs().items():
            entries = {}
            for name, model in models.items():
                file = f"stages/{stage}-{name}.onnx"
                onnx.save(model, folder / file)
                spec = engine_from_file(folder / file, Where(threads=1)).spec
                spec = type(spec)(name, spec.inputs, spec.outputs)
                digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
                entries[name] = GraphEntry(spec, {"onnx": FileEntry(file, digest)})
            weights = WeightsEntry("w", "0" * 64, True)
            stages[stage] = StageEntry(
                networks[stage], "fp32", 1, weights, entries, options=options.get(stage, {})
            )
        schedule = Schedule(FLOW, DEPTH, CROP, 3, 4, 10, WINDOW, 3)
        return Bundle(folder, "0", "2026-01-01T00:00:00Z", "cpu", schedule, stages)

    return write_bundle(tmp_path_factory.mktemp("real") / "bundle", fill)


def test_the_graphs_of_the_clips_orientation_are_taken(bundle):
    landscape = {
        key: graph for key, _, graph in needed_graphs(bundle, Size(360, 640), RunOptions())
    }
    assert landscape["flow.encode"] == "encode@128x160"
    assert landscape["depth"] == "main@28x42"
    portrait = {key: graph for key, _, graph in needed_graphs(bundle, Size(640, 360), RunOptions())}
    assert portrait["flow.step"] == "step@160x128"
    assert portrait["depth"] == "main@42x28"
    assert portrait["pose2d"] == "main"
    names = [
        key for key, _, _ in needed_graphs(bundle, Size(9, 9), RunOptions(flow=False, depth=False))
    ]
    assert names == ["pose2d", "lift3d"]
    assert lift_unit(bundle) == "image"


@pytest.mark.parametrize("size", [(160, 96), (97, 161)])
def test_mp_run_from_a_bundle_to_files(tmp_path, bundle, size):
    clip, out = tmp_path / "clip.mp4", tmp_path / "out"
    write_clip(clip, DrawnClip(frames=12, size=size))
    with pytest.raises(SystemExit) as ended:
        main(["--engine", str(bundle.path), str(clip), "-o", str(out), "--threads", "1",
              "--overlay", "--quiet"])  # fmt: skip
    assert ended.value.code == 0
    frames = json.loads((out / "poses.json").read_text())["frames"]
    assert len(frames) == 12
    assert all(np.isfinite(frame["people"][0]["xyz"]).all() for frame in frames)
    report = json.loads((out / "run.json").read_text())
    assert report["times"]["flow"]["runs"] == 12
    assert report["times"]["depth"]["runs"] == 12


def resident_kib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4


class Looped:
    """A source of 1000 frames that notes the process's size at every hundredth."""

    size = stored_size = Size(96, 160)
    fps, frame_count, problem, notes, corrupt_frames = 30.0, 1000, None, [], 0

    def __init__(self):
        clip = DrawnClip(frames=30, size=(160, 96))
        self.pictures = [clip.image(t) for t in range(30)]
        self.seen = []

    def __iter__(self):
        for k in range(self.frame_count):
            if k % 100 == 99:
                self.seen.append(resident_kib())
            yield Frame(self.pictures[abs(29 - k % 58)].copy(), k, k / 30)


@pytest.mark.slow
def test_memory_is_flat_over_1000_frames(tmp_path, bundle):
    """Networks on ONNX Runtime, journal and overlay: what passed through is not kept."""
    source = Looped()
    run = Run("looped", bundle.path, tmp_path / "out", overlay=True, quiet=True)
    destination = destination_of(run.out, run.formats, overlay=True)
    with (
        open_pipeline(bundle, source.size, run.options, Where(threads=1)) as pipeline,
        Interruptible() as stop,
    ):
        outcome = record(run, destination, bundle, source, pipeline, [], stop)
    assert outcome.frames == 1000
    assert destination.write_results().frames == 1000
    growth = (source.seen[-1] - source.seen[1]) / (len(source.seen) - 2)
    # KiB per 100 frames, once the first 200 have filled every buffer; the bar is 1024.
    assert growth < 256
