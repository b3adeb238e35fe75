"""What a lifter has to beat: a constant pose, a linear map, temporal convolutions, a transformer.

All take the inputs of PoseMamba or mambapose3d, in the person's own coordinates, as the networks
that are trained here do, and give (B, T, 17, 3) in body heights. The last two have about as many
parameters as PoseMamba-S (1.47 M). The transformer is the kind used for lifting (factorised, as in
MixSTE): attention among the joints of a frame, then among the frames of a joint, so its cost grows
with the square of T in every second layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from mambapose.export.models.mambapose import standardised
from mambapose.export.models.posemamba import JOINTS, person_coordinates
from mambapose.export.models.seeds import seeded
from mambapose.export.sizes import MAX_CLIP

KEYPOINT_CHANNELS = 5  # x, y inside the person, x, y and size of the person
CUE_CHANNELS = 12  # and score, depth, flow x 2, present x 3


class _Baseline(nn.Module):
    """What the baselines share: how joints and cues become channels."""

    def __init__(self, cues: bool) -> None:
        super().__init__()
        self.channels = CUE_CHANNELS if cues else KEYPOINT_CHANNELS

    def joints(self, keypoints: Tensor, cues: tuple[Tensor, ...]) -> Tensor:
        """(B, T, 17, channels) joints and cues; an absent cue is zeros."""
        inside, centre, size = person_coordinates(keypoints)
        whole = torch.cat([centre, size.expand_as(centre[..., :1])], -1)
        person = torch.cat([inside, whole.expand(-1, -1, JOINTS, -1)], -1)
        if not cues:
            return person
        score, depth, flow, present = cues
        known = (present > 0.5)[:, :, None, None, None].unbind(1)
        parts = (score[..., None], standardised(depth)[..., None], flow / size)
        masked = [torch.where(k, part, 0.0) for k, part in zip(known, parts, strict=True)]
        flags = present[:, None, None].expand(*keypoints.shape[:3], -1)
        return torch.cat([person, *masked, flags], -1)


def _pose(values: Tensor) -> Tensor:
    """(B, T, 17, 3) from (B, T, 51)."""
    return values.reshape(*values.shape[:-1], JOINTS, 3)


class MeanPose(_Baseline):
    """The same pose for any input: it shows what a metric gives a network that knows nothing."""

    def __init__(self, cues: bool) -> None:
        super().__init__(cues)
        self.pose = nn.Parameter(torch.zeros(JOINTS, 3))

    def forward(self, keypoints: Tensor, *cues: Tensor) -> Tensor:
        return self.pose.expand(*keypoints.shape[:2], -1, -1)


class LinearLifter(_Baseline):
    """One matrix from the joints of a frame, and the person's place and size, to the pose."""

    def __init__(self, cues: bool) -> None:
        super().__init__(cues)
        self.map = nn.Linear(JOINTS * self.channels, JOINTS * 3)

    def forward(self, keypoints: Tensor, *cues: Tensor) -> Tensor:
        frames = self.joints(keypoints, cues).flatten(2)
        return _pose(self.map(frames))


class _ConvBlock(nn.Module):
    """A dilated convolution over time and one over channels, added to the input."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.taps = nn.Conv1d(width, width, 3, dilation=dilation)
        self.mix = nn.Conv1d(width, width, 1)
        self.reach = dilation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x).transpose(1, 2)
        y = functional.pad(y, (self.reach, self.reach), mode="replicate")
        y = self.mix(functional.gelu(self.taps(y)))
        return x + y.transpose(1, 2)


class TemporalConvolution(_Baseline):
    """Dilated convolutions over time as in VideoPose3D: each pose is made from 81 frames."""

    def __init__(self, cues: bool, width: int = 288) -> None:
        super().__init__(cues)
        self.enter = nn.Linear(JOINTS * self.channels, width)
        self.blocks = nn.ModuleList(_ConvBlock(width, 3**power) for power in (0, 1, 2, 3))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, JOINTS * 3))

    def forward(self, keypoints: Tensor, *cues: Tensor) -> Tensor:
        x = self.enter(self.joints(keypoints, cues).flatten(2))
        for block in self.blocks:
            x = block(x)
        return _pose(self.leave(x))


class _AttentionBlock(nn.Module):
    """Attention and an MLP over the second axis of (N, L, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.norm(x)).chunk(3, -1)
        )
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(y)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class TransformerLifter(_Baseline):
    """Attention over joints and over frames in turn."""

    def __init__(self, cues: bool, width: int = 128, pairs: int = 5, heads: int = 8) -> None:
        super().__init__(cues)
        self.enter = nn.Linear(self.channels, width)
        self.place = nn.Parameter(torch.empty(JOINTS, width))
        self.time = nn.Parameter(torch.empty(MAX_CLIP, 1, width))
        for tensor in (self.place, self.time):
            nn.init.trunc_normal_(tensor, std=0.02)
        self.spatial = nn.ModuleList(_AttentionBlock(width, heads) for _ in range(pairs))
        self.temporal = nn.ModuleList(_AttentionBlock(width, heads) for _ in range(pairs))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3))

    def forward(self, keypoints: Tensor, *cues: Tensor) -> Tensor:
        batch, frames = keypoints.shape[:2]
        x = self.enter(self.joints(keypoints, cues)) + self.place + self.time[:frames]
        for spatial, temporal in zip(self.spatial, self.temporal, strict=True):
            x = spatial(x.flatten(0, 1)).unflatten(0, (batch, frames))
            x = temporal(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, JOINTS))
            x = x.transpose(1, 2)
        pose: Tensor = self.leave(x)
        return pose


BASELINES = {
    "mean": MeanPose,
    "linear": LinearLifter,
    "tcn": TemporalConvolution,
    "transformer": TransformerLifter,
}


def build(name: str, *, seed: int = 0, cues: bool = False, pairs: int | None = None) -> nn.Module:
    """A seeded baseline of BASELINES; pairs: how many pairs of blocks the transformer has."""
    if name == "transformer" and pairs is not None:
        return seeded(lambda: TransformerLifter(cues, pairs=pairs), seed)
    return seeded(lambda: BASELINES[name](cues), seed)
