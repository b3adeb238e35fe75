"""What a lifter is trained on: windows of people of varied proportions and poses.

A batch depends only on the seed and its number, so a run needs no further state to resume.
"""

from __future__ import annotations

import numpy as np

from mambapose.benchmarks.truth import body
from mambapose.benchmarks.truth.windows import Batch, Motions, seen_batch
from mambapose.runtime.types import FloatArray

# A recipe, whose numbers are held by what lifters came out of it (their cards, docs/accuracy.md)
# and by nothing else. Another value is another recipe.
CUES = ("score", "depth", "flow")
# Shares of windows by what is known: the default pipeline has neither flow nor depth.
PRESENT = ((0, 0), (1, 1), (1, 0), (0, 1))
PRESENT_SHARES = (0.4, 0.3, 0.15, 0.15)
NO_SCORE_SHARE = 0.1
# Windows whose limbs are mixed and turned; the others move as people were captured, so that the
# network knows what is usual where the picture leaves the choice.
VARIED_SHARE = 0.5


def training_batch(
    motions: Motions, seed: int, number: int, count: int, frames: int, *, cues: bool = True
) -> Batch:
    """Batch ``number`` of the run with this seed; without ``cues`` depth and flow are absent."""
    rng = np.random.default_rng([seed, number])
    bones = body.bones_from_joints(motions.drawn(rng, count, frames + 1))
    bones = body.resized(bones, body.lengths_drawn(rng, count))
    mixed = (rng.random(count) < VARIED_SHARE)[:, None, None, None]
    bones = body.turned_bodies(rng, np.where(mixed, body.varied(rng, bones), bones))
    xyz = body.joints_from_bones(bones)
    flip = rng.random(count) < 0.5
    xyz[flip] = body.mirrored(xyz[flip])
    present = np.ones((count, len(CUES)), np.float32)
    present[:, 1:] = np.array(PRESENT)[rng.choice(len(PRESENT), size=count, p=PRESENT_SHARES)]
    present[:, 0] = rng.random(count) >= NO_SCORE_SHARE
    present[:, 1:] *= cues
    return seen_batch(rng, xyz, present, noisy=True)


def mean_pose(motions: Motions) -> FloatArray:
    """(17, 3) the mean of all poses turned to the camera, in body heights: a constant baseline."""
    pose: FloatArray = motions.facing().mean(axis=0).astype(np.float32)
    return pose
