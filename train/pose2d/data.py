"""What pose2d is trained on: rendered people, and real people in a share of each batch.

Some rendered people come without flow or depth, the others with maps like those that networks
estimate; real people have neither. Flow is that of a real flow network where samples were finished
with one (estimates.py), else an imitation of it.

A batch depends only on the plan, the stores and its number, so that a run resumes exactly. Pictures
have half the size of a crop, as mambapose-nano halves its crop first; joints and flow are in pixels
of the whole crop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mambapose.train.pose2d.estimates import Estimates, read_estimates
from mambapose.train.pose2d.measure import estimated
from mambapose.train.real.crops import RealSample, RealSource
from mambapose.train.world.assets import FILM_FOLDER, read_films
from mambapose.train.world.cache import Stores
from mambapose.train.world.effects import estimated_depth
from mambapose.train.world.sample import CROP, Mixture, Sample, SampleSource

SCALE = 2  # pixels of the whole crop per pixel of a sample
HALF = (CROP[0] // SCALE, CROP[1] // SCALE)
CLEAN_STEPS, LEAST = 300, 0.3
ESTIMATED = 0.3  # of the samples with flow: from the file of estimates, where there is one
REAL_SHARE = 0.5
# Shares of what is there: colour alone is what runs where no other network was given.
PRESENT = {(0, 0): 0.5, (1, 0): 0.2, (0, 1): 0.1, (1, 1): 0.2}


@dataclass(frozen=True)
class Batch:
    """One batch.

    rgb: (B, 3, 128, 96) uint8; flow: (B, 2, 128, 96) px of the whole crop; depth: (B, 1, 128, 96);
    present: (B, 2); xy: (B, 17, 2) px of the whole crop; visibility: (B, 17), for real people also
    UNKNOWN (world/truth.py).
    """

    rgb: NDArray[np.uint8]
    flow: NDArray[np.float32]
    depth: NDArray[np.float32]
    present: NDArray[np.float32]
    xy: NDArray[np.float32]
    visibility: NDArray[np.uint8]


class Row(NamedTuple):
    """One sample of a batch: rgb (128, 96, 3), the other fields as in Batch without B."""

    rgb: NDArray[np.uint8]
    flow: NDArray[np.float32]
    depth: NDArray[np.float32]
    xy: NDArray[np.float32]
    visibility: NDArray[np.uint8]


@dataclass(frozen=True)
class Recipe:
    """What a batch depends on besides its number.

    estimates: a file of train.pose2d.estimates; real: a folder of crops of real people, who are
    real_share of every batch; box: see Mixture.
    """

    stores: tuple[str, ...]
    films: str | None
    seed: int
    batch: int
    estimates: str | None = None
    real: str | None = None
    real_share: float = REAL_SHARE
    box: tuple[float, float] | None = None

    def strength(self, number: int) -> float:
        """How strongly a batch is changed.

        At first pictures are nearly clean, later anything between ordinary and everything at once.
        """
        ramp = min(1.0, 0.2 + 0.8 * number / CLEAN_STEPS)
        return ramp * float(np.random.default_rng([self.seed, 3, number]).uniform(LEAST, 1.0))


class BatchSource:
    """Makes batches by number: ``source.batch(n)`` is batch n."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._shots = Stores([Path(folder) for folder in recipe.stores])
        self._films = read_films(Path(recipe.films)) if recipe.films else []
        self._source = SampleSource(self._shots, self._films, seed=recipe.seed, size=HALF)
        self._estimates = read_estimates(Path(recipe.estimates)) if recipe.estimates else None
        self._real = RealSource(Path(recipe.real), HALF, recipe.seed) if recipe.real else None

    def batch(self, number: int) -> Batch:
        size = self._recipe.batch
        self._source.mixture = mixture(self._recipe.strength(number), self._recipe.box)
        rng = np.random.default_rng([self._recipe.seed, 2, number])
        choices = list(PRESENT)
        drawn = rng.choice(len(choices), size, p=list(PRESENT.values()))
        present = np.array(choices, np.float32)[drawn]
        if self._real is None:
            rows = [self._row(number * size + k, flags, rng) for k, flags in enumerate(present)]
            return batch_of_rows(rows, present)
        real = round(size * self._recipe.real_share)
        present[:real] = 0
        rows = [real_row(self._real.sample(number * size + k, self._source.mixture))
                for k in range(real)]  # fmt: skip
        rows += [self._row(number * size + k, present[k], rng) for k in range(real, size)]
        return batch_of_rows(rows, present)

    def _row(self, number: int, flags: NDArray[np.float32], rng: np.random.Generator) -> Row:
        if self._estimates is not None and flags[0] and rng.random() < ESTIMATED:
            return self._estimated_row(self._estimates, bool(flags[1]), rng)
        return row_of(self._source.sample(number), flags, rng)

    def _estimated_row(self, estimates: Estimates, depth: bool, rng: np.random.Generator) -> Row:
        index = int(rng.integers(len(estimates)))
        one = estimates.mirrored(index) if rng.random() < 0.5 else estimates[index]
        far = one.depth[0].astype(np.float32)
        return Row(
            one.rgb[0],
            one.flow[0].astype(np.float32),
            estimated_depth(far, rng)[None] if depth else np.zeros_like(far)[None],
            one.xy[0],
            one.visibility[0],
        )


def mixture(strength: float, box: tuple[float, float] | None = None) -> Mixture:
    """Everything that is done to a shot, in proportion to ``strength``; box: see Mixture."""
    full = Mixture(box=box)
    return replace(
        full, strength=strength, others=full.others * strength, occluders=full.occluders * strength,
        edges=full.edges * strength,
    )  # fmt: skip


def row_of(sample: Sample, flags: NDArray[np.float32], rng: np.random.Generator) -> Row:
    """A row from a sample of half the size, with flow and depth as networks estimate them."""
    flow, depth = estimated(sample, (flags[0], flags[1]), rng)
    return Row(
        sample.rgb, SCALE * flags[0] * flow, flags[1] * depth,
        (SCALE * sample.coco_xy + (SCALE - 1) / 2).astype(np.float32), sample.visibility,
    )  # fmt: skip


def real_row(sample: RealSample) -> Row:
    """A row from a crop of a real person of half the size, without flow and depth."""
    return Row(
        sample.rgb, np.zeros((2, *HALF), np.float32), np.zeros((1, *HALF), np.float32),
        (SCALE * sample.xy + (SCALE - 1) / 2).astype(np.float32), sample.visibility,
    )  # fmt: skip


def batch_of_rows(rows: Sequence[Row], present: NDArray[np.float32]) -> Batch:
    """A batch of the rows; present: (B, 2)."""
    return Batch(
        np.ascontiguousarray(np.stack([row.rgb for row in rows]).transpose(0, 3, 1, 2)),
        np.stack([row.flow for row in rows]).astype(np.float32),
        np.stack([row.depth for row in rows]).astype(np.float32),
        present,
        np.stack([row.xy for row in rows]),
        np.stack([row.visibility for row in rows]),
    )


def opened(recipe: Recipe) -> Callable[[int], Batch]:
    """The function from a number to its batch; opens the stores."""
    return BatchSource(recipe).batch


def films_in(assets: Path | None) -> str | None:
    """The folder of free films among the assets."""
    return None if assets is None else str(assets / FILM_FOLDER)
