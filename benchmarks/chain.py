"""The whole chain on drawn frames, as ``mp-run`` would do it without decoding or writing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from mambapose.benchmarks.jobs import Job
from mambapose.runtime.bundle import read_bundle
from mambapose.runtime.pipeline import Pipeline, PipelineOptions
from mambapose.runtime.sample import SampleClip
from mambapose.runtime.types import Frame


def frame_gaps_ms(job: Job) -> list[float]:
    """Milliseconds the chain spends on each frame, the warm-up left out.

    Results leave in groups (the lifter answers a whole hop at once), so the clock reads when the
    chain asks for its next frame, not when it hands a result out.
    """
    bundle = read_bundle(Path(job.parts[0][0]), verify=False)
    clip = SampleClip(frames=job.warmup + job.iterations + 1)
    options = PipelineOptions(backend=job.backend, device=job.device, threads=job.threads)
    asked: list[float] = []

    def frames() -> Iterator[Frame]:
        for index in range(clip.frames):
            frame = clip.frame(index)  # drawing is not the chain's work
            asked.append(time.perf_counter())
            yield frame
            asked.append(time.perf_counter())

    with Pipeline.load(bundle, options) as pipeline:
        for _ in pipeline.run(frames()):
            pass
    gaps = [(after - before) * 1e3 for before, after in zip(asked[::2], asked[1::2], strict=True)]
    return gaps[job.warmup :]
