"""New pairs of blocks for a network, set so that its output stays what it was.

A new block whose last maps are zero is the identity, but in PoseMamba a norm that all blocks share
follows every block, and a norm after a norm is not the identity. What enters a new pair is
x = g n(v) + c, with n(v) of zero mean and unit variance, g and c those of the temporal norm. The
spatial norm makes s of it; the second block may then add to s anything linear in its own norm of
s, because its MLP can be exactly linear: GELU(a) - GELU(-a) = a, and fc1 has two rows per channel.
Least squares over tokens of training windows choose what is added, so that the sum is n(v) and
the temporal norm gives x again. It is not exact only because the spatial norm forgets how long x
was.

From two pairs to ten, mambapose3d-nano without cues: loss 0.250 before, 0.256 after; with the
blocks as the identity alone 0.544 (once, by hand, 64 windows of 27 frames).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mambapose.benchmarks.truth.windows import Batch
from mambapose.export.models.posemamba import Block, PoseMamba
from mambapose.train.lift.networks import lifted

SMALL = 1e-2  # of the mean variance of a channel


def added_pairs(model: PoseMamba) -> list[int]:
    """The numbers of the last pairs of blocks, as far as they are the identity."""
    first = len(model.STEblocks)
    while first > 1 and all(
        _is_identity(blocks[first - 1]) for blocks in (model.STEblocks, model.TTEblocks)
    ):
        first -= 1
    return list(range(first, len(model.STEblocks)))


def _is_identity(block: nn.Module) -> bool:
    assert isinstance(block, Block)
    last = (block.op.out_proj.weight, block.mlp.fc2.weight, block.mlp.fc2.bias)
    return not any(bool(tensor.any()) for tensor in last)


def settle(model: PoseMamba, batch: Batch, cues: bool) -> int:
    """How many pairs the model gained; sets them in place so that its output stays the same.

    batch: windows whose tokens are the sample; a hundred tokens per channel are plenty.
    """
    pairs = added_pairs(model)
    if not pairs:
        return 0
    with torch.no_grad():
        tokens = _tokens_before(model, pairs[0], batch, cues)
        for pair in pairs:
            block = model.TTEblocks[pair]
            assert isinstance(block, Block)
            seen = model.Spatial_norm(tokens)
            norm = model.Temporal_norm
            wanted = (tokens - norm.bias) / norm.weight
            _make_linear(block, *_least_squares(block.norm2(seen), wanted - seen))
            # The next pair sees what this one really gives.
            tokens = norm(block.mlp(block.norm2(seen)) + seen)
    return len(pairs)


def _tokens_before(model: PoseMamba, pair: int, batch: Batch, cues: bool) -> Tensor:
    """(tokens, d) the tokens that enter a pair, which the temporal norm just before it gives."""
    answers: list[Tensor] = []
    handle = model.Temporal_norm.register_forward_hook(
        lambda module, inputs, answer: answers.append(answer)
    )
    device = next(model.parameters()).device
    try:
        lifted(model, {k: torch.from_numpy(v).to(device) for k, v in batch.inputs.items()}, cues)
    finally:
        handle.remove()
    return answers[pair - 1].flatten(0, -2)


def _least_squares(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(matrix (d, d), bias (d)) with x @ matrix + bias nearest to y; x and y: (tokens, d).

    Small entries are preferred a little: a norm's channels sum to nothing, and along that line
    rounding alone would choose the matrix, with entries of a hundred that no training survives.
    """
    wide, wanted = x.double().cpu(), y.double().cpu()
    centre, goal = wide.mean(0), wanted.mean(0)
    wide, wanted = wide - centre, wanted - goal
    square = wide.T @ wide / len(wide)
    small = SMALL * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    matrix = torch.linalg.solve(square + small, wide.T @ wanted / len(wide))
    return matrix.to(x), (goal - centre @ matrix).to(x)


def _make_linear(block: Block, matrix: Tensor, bias: Tensor) -> None:
    """Set the block's MLP so that it computes h @ matrix + bias for any h."""
    identity = torch.eye(len(matrix), device=matrix.device)
    block.mlp.fc1.weight.copy_(torch.cat([identity, -identity]))
    block.mlp.fc1.bias.zero_()
    block.mlp.fc2.weight.copy_(torch.cat([matrix, -matrix]).T)
    block.mlp.fc2.bias.copy_(bias)
