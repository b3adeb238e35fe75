"""The whole chain on the sample clip, as ``mp-run`` would do it without decoding or writing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mambapose.benchmarks.jobs import Job
from mambapose.runtime import durable
from mambapose.runtime.bundle.bundle import read_bundle
from mambapose.runtime.loading import open_pipeline
from mambapose.runtime.types import Frame, Size
from mambapose.runtime.video.sample import SAMPLE
from mambapose.runtime.video.sources import open_source

FRAME_SIZE = Size(360, 640)
FPS = 30.0


def sample_frames(count: int, folder: Path) -> Path:
    """A file of ``count`` raw RGB frames (H, W, 3) of the sample clip, forward and back.

    They are decoded ahead of the measurement, so that decoding costs the measured process nothing.
    """
    path = folder / f"sample-{FRAME_SIZE}-{count}.rgb"
    if not path.exists():
        with open_source(str(SAMPLE)) as source:
            images = [frame.image for frame in source]
        last = len(images) - 1
        partial = path.with_suffix(".part")
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            for index in range(count):
                file.write(images[abs(last - (index + last) % (2 * last))].tobytes())
        durable.replace(partial, path)
    return path


def frame_gaps_ms(job: Job) -> list[float]:
    """Milliseconds the chain spends on each frame, the warm-up left out.

    Results leave in groups (the lifter answers a whole hop at once), so the clock reads when the
    chain asks for its next frame, not when it hands a result out.
    """
    bundle = read_bundle(Path(job.parts[0][0]), verify=False)
    height, width = FRAME_SIZE
    size = width * height * 3
    count = Path(job.frames).stat().st_size // size
    asked: list[float] = []

    def frames() -> Iterator[Frame]:
        for index in range(count):
            flat = np.fromfile(job.frames, np.uint8, size, offset=index * size)
            asked.append(time.perf_counter())
            yield Frame(flat.reshape(height, width, 3), index, index / FPS)
            asked.append(time.perf_counter())

    with open_pipeline(bundle, FRAME_SIZE, where=job.where) as pipeline:
        for _ in pipeline.run(frames()):
            pass
    gaps = [(after - before) * 1e3 for before, after in zip(asked[::2], asked[1::2], strict=True)]
    return gaps[job.warmup :]
