"""mambapose3d: PoseMamba-S with more inputs per joint: its score, depth and flow.

Our own definition, not a published network: the blocks are PoseMamba's and keep its keys, the
first layer takes nine channels per joint in place of two, and a cue that is absent is replaced by a
learned embedding, so one checkpoint lifts with any of them missing. The unit of the output is the
body height, root-relative, because that is what it is trained on.

Joints enter relative to the centre of their frame, in units of the person's size in the clip;
the centre's place and the person's size are channels of their own. Without that, the pose of a
small person is a tiny part of what a token holds, and training stayed on the mean pose
(docs/decisions/0007).

Keys: those of PoseMamba, with ``Spatial_patch_to_embedding.weight`` (d, 9) in the order x, y,
score, depth, flow x, flow y, centre x, centre y, size, and ``missing_embed`` (3, d) for score,
depth, flow.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mambapose.export.checkpoints import KeyTable
from mambapose.export.models.mambapose import standardised
from mambapose.export.models.posemamba import JOINTS, PoseMamba, lift_graph, person_coordinates
from mambapose.export.models.seeds import seeded
from mambapose.runtime.types import GraphSpec, TensorSpec

CUES = ("score", "depth", "flow")
CHANNELS = 9
PLACES = 0.5  # deviation of the first joint embeddings: as much as a joint's own place varies


class MambaPose3D(PoseMamba):
    """2D joints with up to three cues each (score, depth, flow) -> (B, T, J, 3)."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__(width, depth, CHANNELS)
        self.missing_embed = nn.Parameter(torch.empty(len(CUES), width))
        nn.init.trunc_normal_(self.missing_embed, std=0.02)
        nn.init.trunc_normal_(self.Spatial_pos_embed, std=PLACES)

    def forward(  # type: ignore[override]
        self, keypoints: Tensor, score: Tensor, depth: Tensor, flow: Tensor, present: Tensor
    ) -> Tensor:
        """(B, T, J, 3).

        keypoints: (B, T, J, 2) normalised as PoseMamba does; score: (B, T, J) in 0..1; depth:
        (B, T, J) inverse depth at the joint in any unit; flow: (B, T, J, 2) at the joint in the
        unit of the keypoints per frame; present: (B, 3), 1 or 0 for each cue. What a cue with
        present 0 holds does not matter, not even when it is not a number.
        """
        flags = (present > 0.5).unbind(1)
        score, depth, flow = (
            torch.where(flag[:, None, None, None], cue, 0.0)
            for flag, cue in zip(flags, (score[..., None], depth[..., None], flow), strict=True)
        )
        absent = (present <= 0.5).to(flow.dtype) @ self.missing_embed
        inside, centre, size = person_coordinates(keypoints)
        whole = torch.cat([centre, size.expand_as(centre[..., :1])], -1)
        joints = torch.cat(
            [
                inside,
                score,
                standardised(depth),
                flow / size,
                whole.expand(-1, -1, JOINTS, -1),
            ],
            -1,
        )
        return self.lift(self.Spatial_patch_to_embedding(joints) + absent[:, None, None])


def build(*, seed: int = 0, width: int = 64, depth: int = 10) -> MambaPose3D:
    """A seeded random mambapose3d; depth counts pairs of blocks."""
    return seeded(lambda: MambaPose3D(width, depth), seed)


def graphs(
    model: MambaPose3D, size: int, *, flip: bool = False
) -> dict[str, tuple[nn.Module, GraphSpec]]:
    """The one graph of the stage for clips of ``size`` frames; ``flip`` as for PoseMamba."""
    clip: tuple[int | str, ...] = ("N", size, JOINTS)
    inputs = (
        TensorSpec("keypoints", "float32", (*clip, 2)),
        TensorSpec("score", "float32", clip),
        TensorSpec("depth", "float32", clip),
        TensorSpec("flow", "float32", (*clip, 2)),
        TensorSpec("present", "float32", ("N", len(CUES))),
    )
    return {"main": lift_graph(model, inputs, size, flip)}


def key_tables(model: MambaPose3D) -> list[KeyTable]:
    """An empty list: no second naming scheme exists."""
    return []
