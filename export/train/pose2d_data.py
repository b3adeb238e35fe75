"""What pose2d is trained on: rendered people, some without flow or depth, as estimators give them.

A batch is a function of the plan, the stores and its number alone, so that a run resumes exactly.
Pictures have half the size of a crop, as mambapose-nano halves its crop first; joints and flow are
in pixels of the whole crop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mambapose.export.train.pose2d_measure import estimated
from mambapose.export.train.world.assets import FILM_FOLDER, read_films
from mambapose.export.train.world.cache import Stores
from mambapose.export.train.world.sample import CROP, Mixture, Sample, SampleSource

SCALE = 2  # pixels of the whole crop per pixel of a sample
HALF = (CROP[0] // SCALE, CROP[1] // SCALE)
CLEAN_STEPS, LEAST = 300, 0.3
# Shares of what is there: colour alone is what runs where no other network was given.
PRESENT = {(0, 0): 0.5, (1, 0): 0.2, (0, 1): 0.1, (1, 1): 0.2}


@dataclass(frozen=True)
class Batch:
    """rgb: (B, 3, 128, 96) uint8; flow: (B, 2, 128, 96) px of the whole crop; depth: (B, 1, 128,
    96); present: (B, 2); xy: (B, 17, 2) px of the whole crop; visibility: (B, 17).
    """

    rgb: NDArray[np.uint8]
    flow: NDArray[np.float32]
    depth: NDArray[np.float32]
    present: NDArray[np.float32]
    xy: NDArray[np.float32]
    visibility: NDArray[np.uint8]


@dataclass(frozen=True)
class Recipe:
    """What a batch depends on beside its number."""

    stores: tuple[str, ...]
    films: str | None
    seed: int
    batch: int

    def strength(self, number: int) -> float:
        """Nearly clean pictures first, then anything between ordinary and everything at once."""
        ramp = min(1.0, 0.2 + 0.8 * number / CLEAN_STEPS)
        return ramp * float(np.random.default_rng([self.seed, 3, number]).uniform(LEAST, 1.0))


class BatchSource:
    """``source.batch(n)`` is batch n."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._shots = Stores([Path(folder) for folder in recipe.stores])
        self._films = read_films(Path(recipe.films)) if recipe.films else []
        self._source = SampleSource(self._shots, self._films, seed=recipe.seed, size=HALF)

    def batch(self, number: int) -> Batch:
        size = self._recipe.batch
        self._source.mixture = mixture(self._recipe.strength(number))
        samples = (self._source.sample(number * size + k) for k in range(size))
        rng = np.random.default_rng([self._recipe.seed, 2, number])
        choices = list(PRESENT)
        drawn = rng.choice(len(choices), size, p=list(PRESENT.values()))
        return batch_of(list(samples), np.array(choices, np.float32)[drawn], rng)


def mixture(strength: float) -> Mixture:
    """Everything that is done to a shot, in proportion."""
    full = Mixture()
    return replace(
        full, strength=strength, others=full.others * strength, occluders=full.occluders * strength,
        edges=full.edges * strength,
    )  # fmt: skip


def batch_of(
    samples: Sequence[Sample], present: NDArray[np.float32], rng: np.random.Generator
) -> Batch:
    """Samples of half the size as a batch, with flow and depth as estimators give them."""
    flows, depths = [], []
    for sample, (has_flow, has_depth) in zip(samples, present, strict=True):
        flow, depth = estimated(sample, (has_flow, has_depth), rng)
        flows.append(SCALE * has_flow * flow)
        depths.append(has_depth * depth)
    return Batch(
        np.ascontiguousarray(np.stack([s.rgb for s in samples]).transpose(0, 3, 1, 2)),
        np.stack(flows).astype(np.float32),
        np.stack(depths).astype(np.float32),
        present,
        np.stack([SCALE * s.coco_xy + (SCALE - 1) / 2 for s in samples]).astype(np.float32),
        np.stack([s.visibility for s in samples]),
    )


def opened(recipe: Recipe) -> Callable[[int], Batch]:
    """The function from a number to its batch; opens the stores."""
    return BatchSource(recipe).batch


def films_in(assets: Path | None) -> str | None:
    """The folder of free films among the assets."""
    return None if assets is None else str(assets / FILM_FOLDER)
