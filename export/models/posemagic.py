"""Pose Magic, a hybrid Mamba-GCN lifter after Zhang et al., AAAI 2025, arXiv 2408.02922.

Our own re-implementation: the paper has no public code, and what it leaves open is decided here, so
its figures are not ours. Known are two streams per layer, Mamba and graph convolution, each first
over the joints of a frame and then over the frames of a joint; a softmax that weighs the streams
for every token; 26 layers of width 128, a tanh layer of width 512; x, y and score as input. Not
known, and chosen: no further MLP, norms of single tokens (never of a batch), two neighbours in time
per joint, no embedding of time.

The window form sees past and future. The causal form scans one way in time, its graph convolution
looks at the two frames before, and joints are scaled by their own frame: what it keeps of the past
has a constant size (``Carried``), so a new frame is one step whatever came before, and a sequence
is the same as its frames one by one.

Joints enter relative to the centre of their frame in units of the person's size, as mambapose3d's
do: of the clip in the window form, of the frame in the causal one, where the size is a channel from
which the layers can tell a person who bends from one who leaves. The unit of the output is the body
height, root-relative.

Keys: ``joint_proj``, ``joint_embed``, ``layers.i.{joints,frames}.{norm,mixer}`` with the mixers'
keys of Vim (causal: ``frames`` without the ``_b`` half), ``layers.i.{bones,times}.{norm,own,others,
scale}``, ``layers.i.fuse``, ``norm``, ``lift``, ``head``.
Letters: B batch, T frames, J = 17 joints, d model width, D = 2d inner width, R rank of the step
size, N states.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mambapose.export.checkpoints import KeyTable
from mambapose.export.models.folding import Foldable, bias_of, freeze
from mambapose.export.models.mambapose3d import PLACES
from mambapose.export.models.posemamba import EPS, JOINTS, LiftGraph, person_coordinates
from mambapose.export.models.seeds import seeded
from mambapose.export.models.selective import (
    STATES,
    ScanConstants,
    decay_from_log,
    initial_decay_log,
    initial_dt_bias,
    scan_one_way,
)
from mambapose.export.models.vim import TAPS, Mixer
from mambapose.export.sizes import check_clip
from mambapose.runtime.errors import ExportError
from mambapose.runtime.skeleton import H36M17
from mambapose.runtime.stages.causal_lifting import STEP, next_name
from mambapose.runtime.types import GraphSpec, TensorSpec

CHANNELS = 6  # x, y, score, centre x, centre y, size
BEFORE = 2  # frames the causal graph convolution looks back
STATE = ("scan_state", "conv_state", "graph_state")  # of all layers, in the order of Carried


class Carried(NamedTuple):
    """What a layer remembers of the frames before; all zeros at the start.

    scan: (B*J, D, N) state of the scan; conv: (B*J, 3, D) last inputs of the convolution in front
    of it; graph: (B, 2, J, d) last inputs of the graph convolution.
    """

    scan: Tensor
    conv: Tensor
    graph: Tensor


class OneWayConstants(NamedTuple):
    """in_proj in two parts, depthwise convolution, x_proj, scan, out_proj."""

    value: Tensor  # (d, D)
    gate: Tensor  # (d, D)
    taps: Tensor  # (4, D)
    taps_bias: Tensor  # (D)
    parts: Tensor  # (D, R + 2N): rank, b, c
    dt: Tensor  # (R, D)
    dt_bias: Tensor  # (D)
    decay: Tensor  # (D, N)
    skip: Tensor  # (D)
    out: Tensor  # (D, d)


class OneWayMixer(Foldable):
    """The one-way Mamba mixer: (B, L, d) -> (B, L, d), and the state that the next steps need."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        inner, self.rank = 2 * width, math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, TAPS, groups=inner)
        self.x_proj = nn.Linear(inner, self.rank + 2 * STATES, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(initial_decay_log(inner))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(self.rank**-0.5), self.rank**-0.5)
            self.dt_proj.bias.copy_(initial_dt_bias(inner))
            self.out_proj.weight.div_(math.sqrt(depth))

    def fold(self) -> OneWayConstants:
        value, gate = self.in_proj.weight.chunk(2)
        return OneWayConstants(
            value=value.T,
            gate=gate.T,
            taps=self.conv1d.weight[:, 0].T,
            taps_bias=bias_of(self.conv1d),
            parts=self.x_proj.weight.T,
            dt=self.dt_proj.weight.T,
            dt_bias=self.dt_proj.bias,
            decay=decay_from_log(self.A_log),
            skip=self.D,
            out=self.out_proj.weight.T,
        )

    def forward(
        self, x: Tensor, conv: Tensor | None = None, scan: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, d), and conv (B, 3, D) and scan (B, D, N) for the next call; None starts anew."""
        c: OneWayConstants = self.constants()
        value = x @ c.value
        if conv is None:
            conv = value.new_zeros(value.shape[0], TAPS - 1, value.shape[2])
        row = torch.cat([conv.to(value.dtype), value], 1)
        if x.shape[1] == 1:  # the step: two nodes of a graph in place of a dozen
            mixed = (row * c.taps).sum(1, keepdim=True)
        else:
            taps = (row[:, k : k + x.shape[1]] * c.taps[k] for k in range(TAPS))
            mixed = cast(Tensor, sum(taps))  # 0 only when there are no taps
        u = functional.silu(mixed + c.taps_bias)
        rank, b, state_out = (u @ c.parts).split([self.rank, STATES, STATES], -1)
        constants = ScanConstants(c.dt, c.dt_bias, c.decay, c.skip)
        y, scan = scan_one_way(u, rank, b, state_out, constants, z=x @ c.gate, initial_state=scan)
        return y @ c.out, row[:, 1 - TAPS :], scan


class BothWays(nn.Module):
    """x + the bidirectional mixer of norm(x), over the second axis of (B, L, d)."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.mixer = Mixer(width, depth)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.mixer(self.norm(x))
        return y


class OneWay(nn.Module):
    """x + the one-way mixer of norm(x), and the state that it carries on."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.mixer = OneWayMixer(width, depth)

    def forward(
        self, x: Tensor, conv: Tensor | None, scan: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, conv, scan = self.mixer(self.norm(x), conv, scan)
        return x + y, conv, scan


class GraphConvolution(nn.Module):
    """x + scale * relu(a map of each token + a map of the mean of its neighbours)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.own = nn.Linear(width, width)
        self.others = nn.Linear(width, width, bias=False)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, inputs: Tensor, neighbours: Tensor) -> Tensor:
        """x plus the convolution, of x's shape; inputs: norm(x), of which neighbours are made."""
        mixed = functional.relu(self.own(inputs) + self.others(neighbours))
        return x + self.scale * mixed


class Layer(nn.Module):
    """Both streams over joints, then over frames, and their weighted mean."""

    joined: Tensor

    def __init__(self, width: int, depth: int, causal: bool) -> None:
        super().__init__()
        self.joints = BothWays(width, 2 * depth)
        self.frames = (OneWay if causal else BothWays)(width, 2 * depth)
        self.bones, self.times = GraphConvolution(width), GraphConvolution(width)
        self.fuse = nn.Linear(2 * width, 2)
        nn.init.zeros_(self.fuse.weight)
        nn.init.zeros_(self.fuse.bias)
        self.register_buffer("joined", skeleton(), persistent=False)

    def forward(self, x: Tensor, carried: Carried | None) -> tuple[Tensor, Carried | None]:
        """(B, T, J, d), and the state that the next frames need; None in the window form."""
        batch, frames = x.shape[:2]
        scanned = self.joints(x.flatten(0, 1)).unflatten(0, (batch, frames))
        rows = scanned.transpose(1, 2).flatten(0, 1)  # (B*J, T, d)
        bones = self.bones.norm(x)
        linked = self.bones(x, bones, self.joined @ bones)
        times = self.times.norm(linked)
        if isinstance(self.frames, OneWay):
            rows, conv, scan = self.frames(
                rows, *((None, None) if carried is None else (carried.conv, carried.scan))
            )
            before = times.new_zeros(batch, BEFORE, JOINTS, x.shape[-1])
            if carried is not None:
                before = carried.graph
            row = torch.cat([before, times], 1)
            neighbours = 0.5 * (row[:, :frames] + row[:, 1 : frames + 1])
            carried = Carried(scan, conv, row[:, -BEFORE:])
        else:
            rows = self.frames(rows)
            row = functional.pad(times, (0, 0, 0, 0, 1, 1))
            neighbours = 0.5 * (row[:, :-2] + row[:, 2:])
        scanned = rows.unflatten(0, (batch, JOINTS)).transpose(1, 2)
        linked = self.times(linked, times, neighbours)
        first, second = self.fuse(torch.cat([scanned, linked], -1)).softmax(-1).split(1, -1)
        return first * scanned + second * linked, carried


def skeleton() -> Tensor:
    """(J, J) the adjacency of the bones, with every joint joined to itself.

    Each row and column is divided by the root of its sum (Kipf and Welling, 2017).
    """
    joined = torch.eye(JOINTS)
    for one, other in H36M17.edges:
        joined[one, other] = joined[other, one] = 1
    root = joined.sum(0).rsqrt()
    return root[:, None] * joined * root


class PoseMagic(nn.Module):
    """Joints (B, T, J, 2) and scores (B, T, J) -> (B, T, J, 3); joint 0 not yet at the origin."""

    takes = ("keypoints", "score")

    def __init__(self, width: int, depth: int, out_width: int, causal: bool) -> None:
        super().__init__()
        self.width, self.causal = width, causal
        self.joint_proj = nn.Linear(CHANNELS, width)
        self.joint_embed = nn.Parameter(torch.empty(JOINTS, width))
        nn.init.trunc_normal_(self.joint_embed, std=PLACES)
        self.layers = nn.ModuleList(Layer(width, depth, causal) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.lift = nn.Linear(width, out_width)
        self.head = nn.Linear(out_width, 3)

    def forward(self, keypoints: Tensor, score: Tensor) -> Tensor:
        """(B, T, J, 3) 3D joints of a whole sequence."""
        return self.follow(keypoints, score, [None] * len(self.layers))[0]

    def follow(
        self, keypoints: Tensor, score: Tensor, carried: list[Carried | None]
    ) -> tuple[Tensor, list[Carried | None]]:
        """(B, T, J, 3) 3D joints of the next frames, and the state of each layer after them.

        carried: the state of each layer before them, None at the start; the window form has none.
        """
        inside, centre, size = person_coordinates(keypoints, per_frame=self.causal)
        whole = torch.cat([centre, size.expand_as(centre[..., :1])], -1)
        joints = torch.cat([inside, score[..., None], whole.expand(-1, -1, JOINTS, -1)], -1)
        x = self.joint_proj(joints) + self.joint_embed
        after: list[Carried | None] = []
        for layer, kept in zip(self.layers, carried, strict=True):
            x, kept = layer(x, kept)
            after.append(kept)
        return self.head(torch.tanh(self.lift(self.norm(x)))), after


class StepGraph(nn.Module):
    """One frame: joints, scores and the state before it -> xyz and the state after it."""

    at_origin: Tensor

    def __init__(self, model: PoseMagic) -> None:
        super().__init__()
        self.model = model
        root = torch.arange(JOINTS)[:, None] == 0
        self.register_buffer("at_origin", root, persistent=False)

    def forward(
        self,
        keypoints: Tensor,
        score: Tensor,
        scan_state: Tensor,
        conv_state: Tensor,
        graph_state: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        carried: list[Carried | None] = [
            Carried(scan_state[:, k].flatten(0, 1), conv_state[:, k].flatten(0, 1),
                    graph_state[:, k])
            for k in range(len(self.model.layers))
        ]  # fmt: skip
        xyz, after = self.model.follow(keypoints[:, None], score[:, None], carried)
        scans, convs, graphs = zip(*(kept for kept in after if kept is not None), strict=True)
        rows = (-1, JOINTS)
        return (
            torch.where(self.at_origin, 0.0, xyz[:, 0]),
            torch.stack([state.unflatten(0, rows) for state in scans], 1),
            torch.stack([state.unflatten(0, rows) for state in convs], 1),
            torch.stack(graphs, 1),
        )

    def whole(self, keypoints: Tensor, score: Tensor) -> Tensor:
        """(N, T, J, 3) from a sequence (N, T, J, 2) at once: what the single steps must equal."""
        xyz: Tensor = self.model(keypoints, score)
        return torch.where(self.at_origin, 0.0, xyz)


def build(
    *, seed: int = 0, width: int = 128, depth: int = 26, out_width: int = 512, causal: bool = False
) -> PoseMagic:
    """A seeded random Pose Magic; depth counts layers."""
    return seeded(lambda: PoseMagic(width, depth, out_width, causal), seed)


def graphs(
    model: PoseMagic, size: int, *, flip: bool = False
) -> dict[str, tuple[nn.Module, GraphSpec]]:
    """The one graph of the stage: ``main`` over clips of ``size`` frames, or ``step``.

    main: keypoints (N, T, 17, 2) as PoseMamba normalises them, score (N, T, 17) -> xyz
    (N, T, 17, 3), root-relative; ``flip`` as for PoseMamba. step, of the causal form: the same
    without T, and the state of each person, zeros at first. ExportError for a step with ``flip``.
    """
    frozen = freeze(model)
    if model.causal:
        if flip:
            raise ExportError(
                "a flip test was wanted of a causal lifter, whose mirror image would need a state "
                "of its own; leave --flip out"
            )
        return {STEP: (StepGraph(frozen), step_spec(model.width, len(model.layers)))}
    check_clip(size)
    clip: tuple[int | str, ...] = ("N", size, JOINTS)
    inputs = (TensorSpec("keypoints", "float32", (*clip, 2)), TensorSpec("score", "float32", clip))
    outputs = (TensorSpec("xyz", "float32", (*clip, 3)),)
    return {"main": (LiftGraph(frozen, flip), GraphSpec("main", inputs, outputs))}


def step_spec(width: int, depth: int) -> GraphSpec:
    """The inputs and outputs of the step; the state of all layers is three tensors."""
    shapes = (
        (depth, JOINTS, 2 * width, STATES),
        (depth, JOINTS, TAPS - 1, 2 * width),
        (depth, BEFORE, JOINTS, width),
    )
    states = [("N", *shape) for shape in shapes]
    inputs = (
        TensorSpec("keypoints", "float32", ("N", JOINTS, 2)),
        TensorSpec("score", "float32", ("N", JOINTS)),
        *(TensorSpec(name, "float32", shape) for name, shape in zip(STATE, states, strict=True)),
    )
    outputs = (
        TensorSpec("xyz", "float32", ("N", JOINTS, 3)),
        *(
            TensorSpec(next_name(name), "float32", shape)
            for name, shape in zip(STATE, states, strict=True)
        ),
    )
    return GraphSpec(STEP, inputs, outputs)


def key_tables(model: PoseMagic) -> list[KeyTable]:
    """An empty list: no second naming scheme exists."""
    return []
