"""How long each stage took, in constant memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

# Newest samples of a stage that the percentiles are taken from: hundreds would do, so it is free.
KEPT = 2048


class StageTimes:
    """Durations by stage name."""

    def __init__(self) -> None:
        self._samples: dict[str, np.ndarray] = {}
        self._counts: dict[str, int] = {}
        self._totals_s: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """A context that adds the time its block takes to the stage."""
        start = time.perf_counter()
        yield
        self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Add one duration."""
        if stage not in self._samples:
            self._samples[stage] = np.zeros(KEPT)
            self._counts[stage] = 0
            self._totals_s[stage] = 0.0
        self._samples[stage][self._counts[stage] % KEPT] = seconds
        self._counts[stage] += 1
        self._totals_s[stage] += seconds

    def summary(self) -> dict[str, dict[str, float]]:
        """Per stage: runs, total_s, p50_ms and p90_ms (of the newest 2048 runs)."""
        out = {}
        for stage, samples in self._samples.items():
            count = self._counts[stage]
            p50, p90 = np.percentile(samples[: min(count, KEPT)], [50, 90]) * 1e3
            out[stage] = {
                "runs": count,
                "total_s": round(self._totals_s[stage], 3),
                "p50_ms": round(float(p50), 3),
                "p90_ms": round(float(p90), 3),
            }
        return out
