"""The selective scan in NumPy float64, written to be obviously right: the oracle of all others.

Specification: docs/operator.md, ``mambapose::SelectiveScan`` version 1. Letters: B batch, L scan
length, D channels per direction, N states per channel, K directions, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

SOFTPLUS_THRESHOLD = 20.0
MAX_STATES = 256


class Shaped(Protocol):
    """Anything with a shape and a dtype: NumPy arrays, torch tensors, fake tensors."""

    @property
    def shape(self) -> Any: ...

    @property
    def dtype(self) -> Any: ...


def _want(argument: str, array: Shaped, *allowed: tuple[int, ...]) -> None:
    shape = tuple(array.shape)
    if shape not in allowed:
        wanted = " or ".join(map(str, dict.fromkeys(allowed)))
        raise ValueError(f"{argument}: shape {wanted} was wanted, found {shape}")


def _check_attributes(
    K: int, G: int, D: int, reverse: Sequence[int], segment: int, merge: str, gate: str
) -> None:
    if G < 1 or D % G:
        raise ValueError(f"groups: a divisor of the {D} channels was wanted, found {G}")
    if len(reverse) != K or any(flag not in (0, 1) for flag in reverse):
        raise ValueError(f"reverse: {K} flags of 0 or 1 were wanted, found {tuple(reverse)}")
    if segment < 0:
        raise ValueError(f"segment: 0 or a number of steps was wanted, found {segment}")
    if merge not in ("none", "sum"):
        raise ValueError(f"merge: 'none' or 'sum' was wanted, found {merge!r}")
    if gate not in ("silu", "none"):
        raise ValueError(f"gate: 'silu' or 'none' was wanted, found {gate!r}")


def check_arguments(
    u: Shaped,
    dt: Shaped,
    A: Shaped,
    B: Shaped,
    C: Shaped,
    D: Shaped | None = None,
    z: Shaped | None = None,
    dt_bias: Shaped | None = None,
    order: Shaped | None = None,
    initial_state: Shaped | None = None,
    *,
    directions: int = 1,
    groups: int = 1,
    reverse: Sequence[int] = (0,),
    delta_softplus: bool = True,
    segment: int = 0,
    merge: str = "none",
    gate: str = "silu",
) -> None:
    """Raise ValueError, naming the argument, unless shapes, types and attributes fit together.

    Only shapes and dtypes are read, so it also takes torch tensors while a graph is traced;
    `check_order` and `check_decay` check the values.
    """
    if directions < 1:
        raise ValueError(f"directions: at least 1 was wanted, found {directions}")
    if len(dt.shape) != 3 or dt.shape[2] % directions or not dt.shape[2]:
        raise ValueError(f"dt: shape (B, L, {directions}*D) was wanted, found {tuple(dt.shape)}")
    batch, length, wide = dt.shape  # may be symbolic while a graph is traced: no int()
    width = wide // directions
    _check_attributes(directions, groups, width, reverse, segment, merge, gate)
    _want("u", u, (batch, length, width), (batch, length, wide))
    if len(A.shape) != 2 or A.shape[0] != wide or not 1 <= A.shape[1] <= MAX_STATES:
        raise ValueError(
            f"A: shape ({wide}, N) with N from 1 to {MAX_STATES} was wanted, found {tuple(A.shape)}"
        )
    states = int(A.shape[1])
    rows = (batch, length, directions * groups * states)
    _want("B", B, rows, (wide, states))
    _want("C", C, rows, (wide, states))
    if D is not None:
        _want("D", D, (wide,))
    if z is not None:
        if gate == "none":
            raise ValueError("z: no gate input was wanted with gate='none', found one")
        _want("z", z, (batch, length, width))
    if dt_bias is not None:
        _want("dt_bias", dt_bias, (wide,))
    if order is not None:
        if not str(order.dtype).endswith("int32") or "uint" in str(order.dtype):
            raise ValueError(f"order: int32 was wanted, found {order.dtype}")
        _want("order", order, (length,), (directions, length))
    if initial_state is not None:
        if segment > 0:
            raise ValueError(f"initial_state: segment=0 was wanted with it, found {segment}")
        _want("initial_state", initial_state, (batch, wide, states))


def check_order(order: ArrayLike) -> None:
    """Raise ValueError unless every row of order (K, L) or (L) is a permutation of 0..L-1."""
    rows = np.atleast_2d(np.asarray(order))
    if not np.array_equal(
        np.sort(rows, axis=1), np.broadcast_to(np.arange(rows.shape[1]), rows.shape)
    ):
        raise ValueError("order: each row must name every token once")


def check_decay(A: ArrayLike) -> None:
    """Raise ValueError unless A is finite and negative, as it must be in an exported graph."""
    values = np.asarray(A)
    wrong = values[~((values < 0) & np.isfinite(values))]
    if wrong.size:
        raise ValueError(f"A: finite values below 0 were wanted, found {wrong[0]:g}")


def softplus(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(1 + exp(x)), and x itself above the threshold of the specification."""
    return np.where(x > SOFTPLUS_THRESHOLD, x, np.log1p(np.exp(np.minimum(x, SOFTPLUS_THRESHOLD))))


def silu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """x * sigmoid(x)."""
    return x * np.exp(-np.logaddexp(0.0, -x))


def _tokens(order: NDArray[np.int32] | None, k: int, length: int, backwards: int) -> list[int]:
    """The token visited at each step of direction k."""
    if order is None:
        row = list(range(length))
    else:
        row = [int(token) for token in (order if order.ndim == 1 else order[k])]
    return row[::-1] if backwards else row


def _matrix(
    rows: NDArray[np.float64], b: int, token: int, k: int, width: int, groups: int, states: int
) -> NDArray[np.float64]:
    """B or C of one step as (D, N): constant, or the rows of each channel's group."""
    if rows.ndim == 2:
        return rows[k * width : (k + 1) * width]
    per_group = rows[b, token].reshape(-1, groups, states)[k]
    return np.repeat(per_group, width // groups, axis=0)


def selective_scan_reference(
    u: ArrayLike,
    dt: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    D: ArrayLike | None = None,
    z: ArrayLike | None = None,
    dt_bias: ArrayLike | None = None,
    order: NDArray[np.int32] | None = None,
    initial_state: ArrayLike | None = None,
    *,
    directions: int = 1,
    groups: int = 1,
    reverse: Sequence[int] = (0,),
    delta_softplus: bool = True,
    segment: int = 0,
    merge: str = "none",
    gate: str = "silu",
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The scan's y and final state, in float64, by loops over batch, direction and step.

    u: (B, L, D) or (B, L, K*D); dt: (B, L, K*D) before softplus; A: (K*D, N);
    B, C: (B, L, K*G*N), or (K*D, N) constant; D, dt_bias: (K*D); z: (B, L, D);
    order: int32 (L) or (K, L); initial_state: (B, K*D, N).
    Returns y in token order, (B, L, D) when merge is "sum" else (B, L, K*D), and the state after
    the last step, (B, K*D, N). Raises ValueError naming the argument that does not fit.
    """
    given = {"u": u, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias}
    given["initial_state"] = initial_state
    x: dict[str, Any] = {
        name: None if value is None else np.asarray(value, np.float64)
        for name, value in given.items()
    }
    check_arguments(
        **x,
        order=order,
        directions=directions,
        groups=groups,
        reverse=reverse,
        delta_softplus=delta_softplus,
        segment=segment,
        merge=merge,
        gate=gate,
    )
    if order is not None:
        check_order(order)
    with np.errstate(all="ignore"):
        y, state = _scan(x, order, directions, groups, reverse, delta_softplus, segment)
        batch, length, wide = x["dt"].shape
        y = y.reshape(batch, length, directions, wide // directions)
        if merge == "sum":
            y = y.sum(axis=2, keepdims=True)
        if x["z"] is not None:
            y = y * silu(x["z"])[:, :, None, :]
    return y.reshape(batch, length, y.shape[2] * y.shape[3]), state


def _scan(
    x: dict[str, Any],
    order: NDArray[np.int32] | None,
    directions: int,
    groups: int,
    reverse: Sequence[int],
    delta_softplus: bool,
    segment: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """y before merging and gating (B, L, K*D) and the last state (B, K*D, N)."""
    batch, length, total = x["dt"].shape
    width, states = total // directions, x["A"].shape[1]
    y = np.zeros((batch, length, total))
    last = np.zeros((batch, total, states))
    for b in range(batch):
        for k in range(directions):
            mine = slice(k * width, (k + 1) * width)
            own_u = slice(0, width) if x["u"].shape[2] == width else mine
            h = np.zeros((width, states))
            if x["initial_state"] is not None:
                h = x["initial_state"][b, mine]
            for t, token in enumerate(_tokens(order, k, length, reverse[k])):
                if segment and t % segment == 0:
                    h = np.zeros((width, states))
                s, u_t = x["dt"][b, token, mine], x["u"][b, token, own_u]
                if x["dt_bias"] is not None:
                    s = s + x["dt_bias"][mine]
                if delta_softplus:
                    s = softplus(s)
                B_t = _matrix(x["B"], b, token, k, width, groups, states)
                C_t = _matrix(x["C"], b, token, k, width, groups, states)
                h = np.exp(s[:, None] * x["A"][mine]) * h + (s * u_t)[:, None] * B_t
                y[b, token, mine] = (h * C_t).sum(axis=1)
                if x["D"] is not None:
                    y[b, token, mine] += x["D"][mine] * u_t
            last[b, mine] = h
    return y, last
