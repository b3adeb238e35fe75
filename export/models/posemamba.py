"""PoseMamba, the 2D-to-3D lifter: Huang et al., AAAI 2025, github.com/nankingjing/PoseMamba.

Official state-dict keys. Every block scans all T*17 tokens along four routes: frame by frame over
tokens to which the limb walk has been added, joint by joint over the plain tokens, and both
backwards. The routes are two scan nodes of two directions each, one per distinct input; which
token comes when is the node's order map, so no token is ever moved.
Letters: B batch, T frames, J = 17 joints, L = T*J tokens, d model width, D = 2d inner width,
R rank of the step size, N states.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mambapose.export.checkpoints import KeyTable
from mambapose.export.models.folding import Foldable, bias_of, freeze
from mambapose.export.models.gelu import gelu
from mambapose.export.models.seeds import seeded
from mambapose.export.models.selective import (
    STATES,
    ScanConstants,
    initial_decay_log,
    initial_dt_bias,
    route_constants,
    scan_both_ways,
)
from mambapose.export.sizes import MAX_CLIP, check_clip
from mambapose.runtime.types import GraphSpec, TensorSpec

if TYPE_CHECKING:
    from mambapose.export.weights import Facts

JOINTS = 17
ROUTES = 4
EPS = 1e-6
SMALLEST = 1e-3  # size of a person, in half widths of the picture; its square fits FP16

# Token j also receives token WALK[j] of its frame: an added gather, not a permutation.
WALK = (0, 0, 1, 2, 3, 0, 4, 5, 6, 8, 11, 12, 13, 8, 14, 15, 16)

# The mirror image: left hip, knee, foot, shoulder, elbow, wrist change places with the right ones.
MIRROR = (0, 4, 5, 6, 1, 2, 3, 7, 8, 9, 10, 14, 15, 16, 11, 12, 13)


class LimbScanConstants(NamedTuple):
    """Parameters of the operator.

    Names that end in 0 are for the tokens with the limb walk added, in 1 for the plain tokens.
    """

    value: Tensor  # (D, d, 1, 1)
    gate: Tensor  # (d, D)
    taps: Tensor  # (D, 1, 3, 3)
    taps_bias: Tensor  # (D)
    rank0: Tensor  # (D, 2R)
    b0: Tensor  # (D, 2N)
    c0: Tensor  # (D, 2N)
    dt0: Tensor
    dt_bias0: Tensor
    decay0: Tensor
    skip0: Tensor
    rank1: Tensor
    b1: Tensor
    c1: Tensor
    dt1: Tensor
    dt_bias1: Tensor
    decay1: Tensor
    skip1: Tensor
    norm: Tensor  # (D)
    norm_bias: Tensor  # (D)
    out: Tensor  # (D, d)


class LimbScan(Foldable):
    """The operator of a block, (B, T, J, d) -> (B, T, J, d): conv, four routes, gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner, rank = 2 * width, math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        bound = inner**-0.5
        parts = torch.empty(ROUTES, rank + 2 * STATES, inner).uniform_(-bound, bound)
        self.x_proj_weight = nn.Parameter(parts)
        lift = torch.empty(ROUTES, inner, rank).uniform_(-(rank**-0.5), rank**-0.5)
        self.dt_projs_weight = nn.Parameter(lift)
        self.dt_projs_bias = nn.Parameter(initial_dt_bias(ROUTES, inner))
        self.A_logs = nn.Parameter(initial_decay_log(ROUTES * inner))
        self.Ds = nn.Parameter(torch.ones(ROUTES * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def fold(self) -> LimbScanConstants:
        value, gate = self.in_proj.weight.chunk(2)
        folded: dict[str, Tensor] = {}
        for number in (0, 1):
            pair = route_constants(
                self.x_proj_weight, self.dt_projs_weight, self.dt_projs_bias, self.A_logs, self.Ds,
                (number, number + 2),
            )  # fmt: skip
            for name, tensor in pair.items():
                folded[f"{name}{number}"] = tensor
        return LimbScanConstants(
            value=value[:, :, None, None],
            gate=gate.T,
            taps=self.conv2d.weight,
            taps_bias=bias_of(self.conv2d),
            norm=self.out_norm.weight,
            norm_bias=self.out_norm.bias,
            out=self.out_proj.weight.T,
            **folded,
        )

    def forward(self, x: Tensor) -> Tensor:
        c: LimbScanConstants = self.constants()
        # 1x1 convolution, not a matrix product: the value stays in the layout of the next one.
        grid = functional.conv2d(x.permute(0, 3, 1, 2), c.value)
        grid = functional.conv2d(grid, c.taps, c.taps_bias, padding=1, groups=grid.shape[1])
        plain = functional.silu(grid).permute(0, 2, 3, 1)
        walked = plain + plain.index_select(2, torch.tensor(WALK))
        frames = x.shape[1]
        u, v = walked.flatten(1, 2), plain.flatten(1, 2)
        first = ScanConstants(c.dt0, c.dt_bias0, c.decay0, c.skip0)
        second = ScanConstants(c.dt1, c.dt_bias1, c.decay1, c.skip1)
        by_frame, by_joint = frame_by_frame(frames), joint_by_joint(frames)
        y = scan_both_ways(u, u @ c.rank0, u @ c.b0, u @ c.c0, first, order=by_frame)
        other = scan_both_ways(v, v @ c.rank1, v @ c.b1, v @ c.c1, second, order=by_joint)
        # Four axes from here: a sum of three is fused with the norm by ONNX Runtime into a node
        # that takes ten times as long as the two.
        y, other = (part.reshape(*x.shape[:3], -1) for part in (y, other))
        y = functional.layer_norm(y + other, (y.shape[-1],), c.norm, c.norm_bias)
        return (y * functional.silu(x @ c.gate)) @ c.out


def frame_by_frame(frames: int) -> Tensor:
    """(T*J) int32 order in which step k visits token k.

    A scan without an order does the same but has another signature, and ONNX Runtime before 1.27
    and NVIDIA's parser know only one function body for all scan nodes of a model.
    """
    return torch.arange(frames * JOINTS, dtype=torch.int32)


def joint_by_joint(frames: int) -> Tensor:
    """(T*J) int32: the token (frame-major index t*J + j) visited at step j*T + t."""
    return frame_by_frame(frames).reshape(frames, JOINTS).T.flatten()


class Mlp(nn.Module):
    """fc1, exact GELU, fc2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.fc2(gelu(self.fc1(x)))
        return answer


class Block(nn.Module):
    """x + op(norm(x)), then x + mlp(norm2(x)); spatial and temporal blocks are the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.op = LimbScan(width)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.op(self.norm(x))
        answer: Tensor = x + self.mlp(self.norm2(x))
        return answer


def person_coordinates(
    keypoints: Tensor, *, per_frame: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Joints in the person's own coordinates, the centres (B, T, 1, 2) and the sizes (B, 1, 1, 1).

    keypoints: (B, T, J, 2) in a picture; the result is relative to the centre of each frame's
    joints, in units of the person's size in the clip. per_frame: in units of the size in the same
    frame instead, with sizes (B, T, 1, 1), so that no frame depends on another.
    """
    centre = keypoints.mean(2, keepdim=True)
    inside = keypoints - centre
    spread = inside.square().mean((2, 3) if per_frame else (1, 2, 3), keepdim=True)
    size = torch.sqrt(torch.clamp(spread, min=SMALLEST**2))
    return inside / size, centre, size


class PoseMamba(nn.Module):
    """(B, T, J, channels) -> (B, T, J, 3), T at most 243; joint 0 is not yet at the origin.

    centred: the weights were trained on ``person_coordinates``, so the network converts its input
    to them first. The published weights were trained on joints of the picture.
    """

    def __init__(self, width: int, depth: int, channels: int = 2, *, centred: bool = False) -> None:
        super().__init__()
        self.centred = centred
        self.Spatial_patch_to_embedding = nn.Linear(channels, width)
        self.Spatial_pos_embed = nn.Parameter(torch.empty(1, JOINTS, width))
        self.Temporal_pos_embed = nn.Parameter(torch.empty(1, MAX_CLIP, width))
        self.STEblocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.TTEblocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.Spatial_norm = nn.LayerNorm(width, eps=EPS)
        self.Temporal_norm = nn.LayerNorm(width, eps=EPS)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3))
        for tensor in (self.Spatial_pos_embed, self.Temporal_pos_embed):
            nn.init.trunc_normal_(tensor, std=0.02)

    def forward(self, keypoints: Tensor) -> Tensor:
        if self.centred:
            keypoints = person_coordinates(keypoints)[0]
        return self.lift(self.Spatial_patch_to_embedding(keypoints))

    def lift(self, x: Tensor) -> Tensor:
        """(B, T, J, 3) from embedded joints (B, T, J, d)."""
        frames = self.Temporal_pos_embed[:, : x.shape[1], None]
        x = x + self.Spatial_pos_embed
        for number, (spatial, temporal) in enumerate(
            zip(self.STEblocks, self.TTEblocks, strict=True)
        ):
            x = self.Spatial_norm(spatial(x))
            if number == 0:
                x = x + frames
            x = self.Temporal_norm(temporal(x))
        xyz: Tensor = self.head(x)
        return xyz


class LiftGraph(nn.Module):
    """What is exported: the network, the flip test when wanted, joint 0 at the origin."""

    at_origin: Tensor
    sign: Tensor

    def __init__(self, model: nn.Module, flip: bool) -> None:
        super().__init__()
        self.model = model
        self.flip = flip
        root = torch.arange(JOINTS)[:, None] == 0
        self.register_buffer("at_origin", root, persistent=False)
        self.register_buffer("sign", torch.tensor([-1.0, 1.0, 1.0]), persistent=False)

    def forward(
        self,
        keypoints: Tensor,
        score: Tensor | None = None,
        depth: Tensor | None = None,
        flow: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        inputs = [x for x in (keypoints, score, depth, flow, present) if x is not None]
        if self.flip:
            # Scores and depths change places only, flags not even that; the rest changes sign too.
            mirrors = [self._mirror(keypoints)]
            mirrors += [_swapped(cue) for cue in (score, depth) if cue is not None]
            mirrors += [] if flow is None else [self._mirror(flow)]
            mirrors += [] if present is None else [present]
            inputs = [torch.cat(pair) for pair in zip(inputs, mirrors, strict=True)]
        xyz: Tensor = self.model(*inputs)
        if self.flip:
            straight, mirror = xyz.reshape(2, *keypoints.shape[:3], 3)
            xyz = 0.5 * (straight + self._mirror(mirror))
        return torch.where(self.at_origin, 0.0, xyz)

    def _mirror(self, x: Tensor) -> Tensor:
        return _swapped(x) * self.sign[: x.shape[-1]]


def _swapped(x: Tensor) -> Tensor:
    """x with left and right joints exchanged; x: (N, T, J, ...)."""
    return x.index_select(2, torch.tensor(MIRROR))


def build(*, seed: int = 0, width: int = 64, depth: int = 10, centred: bool = False) -> PoseMamba:
    """A seeded random PoseMamba with the official keys; depth counts pairs of blocks."""
    return seeded(lambda: PoseMamba(width, depth, centred=centred), seed)


def graphs(
    model: PoseMamba, size: int, *, flip: bool = False
) -> dict[str, tuple[nn.Module, GraphSpec]]:
    """The one graph of the stage for clips of ``size`` frames.

    keypoints (N, T, 17, 2) as PoseMamba normalises them (x / w * 2 - 1, y / w * 2 - h / w) ->
    xyz (N, T, 17, 3), root-relative. ``flip`` also lifts the mirror image and averages.
    """
    inputs = (TensorSpec("keypoints", "float32", ("N", size, JOINTS, 2)),)
    return {"main": lift_graph(model, inputs, size, flip)}


def lift_graph(
    model: PoseMamba, inputs: tuple[TensorSpec, ...], frames: int, flip: bool
) -> tuple[nn.Module, GraphSpec]:
    """A frozen lifter with its contract; ExportError when the clip is longer than the embedding."""
    check_clip(frames)
    frozen = freeze(model)
    embedding = frozen.Temporal_pos_embed
    frozen.Temporal_pos_embed = nn.Parameter(embedding[:, :frames].clone(), requires_grad=False)
    xyz = TensorSpec("xyz", "float32", ("N", frames, JOINTS, 3))
    return LiftGraph(frozen, flip), GraphSpec("main", inputs, (xyz,))


def apply_facts(model: PoseMamba, facts: Facts) -> None:
    """Set up the network for the kind of joints that its weights were trained on."""
    model.centred = facts.joints is not None


def key_tables(model: PoseMamba) -> list[KeyTable]:
    """An empty list: no second naming scheme exists."""
    return []
