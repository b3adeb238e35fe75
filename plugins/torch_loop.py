"""The selective scan as a plain torch loop over steps: differentiable, any float type, any device.

The torch operator uses it for float64 and on machines without the compiled library. Semantics:
docs/operator.md. Letters: B batch, L length, K directions, D channels, N states, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def visited_tokens(order: Tensor | None, length: int, reverse: Sequence[int]) -> Tensor:
    """(K, L) int64: the token visited at each step, after the order map and the reverse flags."""
    base = torch.arange(length) if order is None else order.long()
    rows = base.expand(len(reverse), length)
    flipped = [row.flip(0) if flag else row for row, flag in zip(rows, reverse, strict=True)]
    return torch.stack(flipped)


def _state_rows(rows: Tensor, channels: int, directions: int, groups: int) -> Tensor:
    """B or C as (B, L, K, D, N) in token order, or (K, D, N) when it is constant (rank 2)."""
    if rows.ndim == 2:
        return rows.reshape(directions, channels, rows.shape[1])
    batch, length, width = rows.shape
    states = width // (directions * groups)
    grouped = rows.reshape(batch, length, directions, groups, states)
    return grouped.repeat_interleave(channels // groups, dim=3)


def scan_loop(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    order: Tensor | None,
    initial_state: Tensor | None,
    directions: int,
    groups: int,
    reverse: Sequence[int],
    delta_softplus: bool,
    segment: int,
    merge: str,
    gate: str,
) -> tuple[Tensor, Tensor]:
    """(y, final_state) of the scan; arithmetic in float64 for float64 input, else in float32.

    u: (B, L, D) or (B, L, K*D); dt: (B, L, K*D); A: (K*D, N); B, C: (B, L, K*G*N) or (K*D, N);
    D, dt_bias: (K*D); z: (B, L, D); order: (L) or (K, L); initial_state: (B, K*D, N).
    """
    real = torch.float64 if u.dtype == torch.float64 else torch.float32
    batch, length, width = dt.shape
    channels, states = width // directions, A.shape[1]
    shape = (batch, length, directions, channels)
    steps = visited_tokens(order, length, reverse).to(u.device)
    lanes = torch.arange(directions, device=u.device)

    def walk(rows: Tensor, tokens: Tensor) -> Tensor:
        return rows[:, tokens.T, lanes]

    def direction_rows(rows: Tensor) -> Tensor:
        wide = rows if rows.shape[2] == width else rows.repeat(1, 1, directions)
        return wide.to(real).reshape(shape)

    delta = direction_rows(dt)
    if dt_bias is not None:
        delta = delta + dt_bias.to(real).reshape(directions, channels)
    if delta_softplus:
        delta = torch.nn.functional.softplus(delta, threshold=20.0)
    tokens_u = direction_rows(u)
    walked_delta, walked_drive = walk(delta, steps), walk(delta * tokens_u, steps)
    b_rows, c_rows = (_state_rows(rows.to(real), channels, directions, groups) for rows in (B, C))
    b_rows, c_rows = (rows if rows.ndim == 3 else walk(rows, steps) for rows in (b_rows, c_rows))
    decay_rate = A.to(real).reshape(directions, channels, states)
    start = delta.new_zeros(batch, directions, channels, states)
    if initial_state is not None:
        start = start + initial_state.to(real).reshape(start.shape)

    state, outputs = start, []
    for t in range(length):
        if segment > 0 and t % segment == 0:
            state = start
        b_t, c_t = (rows if rows.ndim == 3 else rows[:, t] for rows in (b_rows, c_rows))
        decay = torch.exp(walked_delta[:, t, ..., None] * decay_rate)
        state = decay * state + walked_drive[:, t, ..., None] * b_t
        outputs.append((state * c_t).sum(-1))

    y = walk(torch.stack(outputs, 1), steps.argsort(1)) if outputs else delta.new_zeros(shape)
    if D is not None:
        y = y + D.to(real).reshape(directions, channels) * tokens_u
    if merge == "sum":
        y = y.sum(2, keepdim=True)
    if z is not None and gate == "silu":
        y = y * torch.nn.functional.silu(z.to(real))[:, :, None]
    return y.flatten(2).to(u.dtype), state.reshape(batch, width, states).clone()
