"""The calls that are compared with the oracle: every axis of the operator, then random mixtures.

Letters: B batch, L length, D channels, N states, K directions, G groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambapose.plugins.scan_node import INPUTS

LENGTHS = (1, 2, 3, 15, 16, 17, 31, 32, 33, 127, 128, 129, 196, 197, 392, 784, 1024, 2047, 2048,
           2049, 4131)  # fmt: skip
CHANNELS = (1, 3, 8, 15, 16, 17, 96, 128, 192, 384, 768)
STATES = (1, 2, 3, 8, 16, 17, 64, 128, 256)
ROWS = ("u", "dt", "B", "C", "z")
STEP_SIZES = (-100.0, -20.0, -9.0, 0.0, 19.99, 20.0, 20.01, 88.0, 1e4)
RATES = (-1e-6, -1.0, -16.0, -1e4)


@dataclass(frozen=True)
class Case:
    """One call of the operator.

    optional: letters D, z, b (dt_bias), s (initial state); constant: B, C or both. order: "",
    "shared", "rows" or "transpose"; layout: "dense", "slices" of one wider tensor, or "offset" by
    one element; values: "normal" or one that `_special_values` knows.
    """

    B: int = 1
    L: int = 33
    D: int = 16
    N: int = 16
    K: int = 1
    G: int = 1
    reverse: tuple[int, ...] = ()
    segment: int = 0
    merge: str = "none"
    softplus: bool = True
    optional: str = "Dzb"
    wide_u: bool = False
    constant: str = ""
    order: str = ""
    layout: str = "dense"
    values: str = "normal"

    def __str__(self) -> str:
        plain = Case()
        changed = {n: v for n, v in vars(self).items() if v != getattr(plain, n)}
        return " ".join(f"{n}={v}" for n, v in changed.items()) or "plain"

    @property
    def options(self) -> dict[str, Any]:
        """The attributes of the operator."""
        return {
            "directions": self.K, "groups": self.G, "reverse": list(self.reverse or [0] * self.K),
            "delta_softplus": self.softplus, "segment": self.segment, "merge": self.merge,
            "gate": "silu",
        }  # fmt: skip


PAIR = Case(K=2, reverse=(0, 1), merge="sum", wide_u=True)
FOUR = Case(K=4, reverse=(0, 0, 1, 1), merge="sum", optional="Db", order="rows")


def all_cases(rng: np.random.Generator, random_count: int = 60) -> Iterator[Case]:
    """Every case: sizes, flags, layouts, orders, segments, values, and random mixtures."""
    yield from _sizes()
    yield from small_cases()
    yield from (random_case(rng) for _ in range(random_count))


def _sizes() -> Iterator[Case]:
    for length in LENGTHS:
        yield replace(PAIR, L=length)
    yield replace(FOUR, L=4131, D=128)
    yield Case(K=6, reverse=(0, 1) * 3, merge="sum", order="rows", L=15360, D=16, optional="D")
    for channels in CHANNELS:
        yield Case(D=channels)
        yield replace(FOUR, D=channels)
    for states in STATES:
        yield Case(N=states, L=65)
        yield replace(PAIR, N=states, L=260, D=24)
    yield replace(PAIR, L=1024, D=768)


def small_cases() -> Iterator[Case]:
    """Every case but those about sizes, on tensors small enough for any machine."""
    for batch in (1, 2, 5):
        yield replace(PAIR, B=batch)
    for groups in (1, 2, 16):
        yield Case(B=2, G=groups, K=2, merge="sum")
    for directions in (1, 2, 4, 6):
        for merge in ("none", "sum"):
            flags = tuple(k % 2 for k in range(directions))
            yield Case(K=directions, reverse=flags, merge=merge, order="rows", L=70)
    for bits in range(32):
        letters = "".join(name for bit, name in enumerate("Dzbs") if bits >> bit & 1)
        yield Case(B=2, optional=letters, softplus=bits < 16, L=20, D=8)
    for constant in ("B", "C", "BC"):
        yield Case(constant=constant, L=40)
        yield replace(PAIR, constant=constant, N=3)
    for layout in ("slices", "offset"):
        yield replace(PAIR, layout=layout, B=2, D=24)
        yield Case(layout=layout, N=5, D=17)
    for order in ("shared", "rows", "transpose"):
        yield replace(PAIR, order=order, L=48)
        yield Case(order=order, L=48, optional="s")
    for segment in (1, 4, 16, 33, 100):
        yield Case(segment=segment, L=64, order="shared")
        yield replace(PAIR, segment=segment, L=66)
    for values in ("steps", "rates", "outliers", "zeros", "largest", "denormal"):
        yield Case(values=values, L=50, optional="D")
        yield replace(PAIR, values=values, L=50, optional="z")
    for states in (1, 4, 17, 64, 256):
        yield Case(N=states, L=19, D=5, optional="Dzbs")


def random_case(rng: np.random.Generator) -> Case:
    """A random mixture of sizes and flags that the specification allows."""

    def pick(*values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    directions, groups = pick(1, 1, 2, 3, 4, 6), pick(1, 1, 2, 4)
    segment = pick(0, 0, 0, int(rng.integers(1, 90)))
    optional = "".join(name for name in "Dzb" if rng.random() < 0.5)
    return Case(
        B=pick(1, 1, 2, 3),
        L=int(rng.integers(1, 700)),
        D=groups * int(rng.integers(1, 40)),
        N=pick(1, 2, 5, 8, 16, 16, 16, 24, 33, 64, 130),
        K=directions,
        G=groups,
        reverse=tuple(int(flag) for flag in rng.integers(0, 2, directions)),
        segment=segment,
        merge=pick("none", "sum"),
        softplus=bool(rng.random() < 0.8),
        optional=optional + ("s" if segment == 0 and rng.random() < 0.3 else ""),
        wide_u=bool(rng.random() < 0.5),
        constant=pick("", "", "", "B", "C", "BC"),
        order=pick("", "", "shared", "rows"),
        layout=pick("dense", "dense", "slices", "offset"),
    )


def arguments(case: Case, rng: np.random.Generator, dtype: torch.dtype) -> dict[str, Tensor | None]:
    """The tensors of the call by name, on the CPU; absent ones are None."""
    wide = case.K * case.D

    def normal(*shape: int) -> NDArray[np.float64]:
        return rng.standard_normal(shape)

    dt = normal(case.B, case.L, wide)
    columns = case.K * case.G * case.N
    found = {
        "u": normal(case.B, case.L, wide if case.wide_u else case.D),
        "dt": 2 * dt - 3 if case.softplus else np.abs(dt) / 2,
        "A": -np.exp(normal(wide, case.N)),
        "B": normal(*((wide, case.N) if "B" in case.constant else (case.B, case.L, columns))),
        "C": normal(*((wide, case.N) if "C" in case.constant else (case.B, case.L, columns))),
        "D": normal(wide) if "D" in case.optional else None,
        "z": normal(case.B, case.L, case.D) if "z" in case.optional else None,
        "dt_bias": normal(wide) / 10 if "b" in case.optional else None,
        "initial_state": normal(case.B, wide, case.N) if "s" in case.optional else None,
    }
    _special_values(found, case.values, rng)
    tensors: dict[str, Tensor | None] = {
        name: _tensor(array, dtype if name in ROWS and array.ndim == 3 else torch.float32)
        for name, array in found.items()
        if array is not None
    }
    tensors["order"] = _order(case, rng)
    return {name: tensors.get(name) for name in INPUTS}


def _tensor(array: NDArray[np.float64], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(array).to(dtype)


def _special_values(x: dict[str, Any], values: str, rng: np.random.Generator) -> None:
    """Change normal arguments in place to values at an end of the number range."""
    if values == "steps":
        x["dt"] = rng.choice(STEP_SIZES, x["dt"].shape)
        x["u"] = x["u"] / 10
    elif values == "rates":
        x["A"] = rng.choice(RATES, x["A"].shape)
    elif values == "outliers":
        x["u"][..., 0] *= 1e4
    elif values == "zeros":
        x["u"], x["B"] = np.zeros_like(x["u"]), np.zeros_like(x["B"])
    elif values == "largest":  # the largest float16; the output stays in its range
        x["u"] = np.sign(x["u"]) * 65504.0
        x["C"], x["D"] = x["C"] * 1e-3, None
    elif values == "denormal":
        x["u"] = x["u"] * 1e-7
    elif values != "normal":
        raise ValueError(f"values: a known kind was wanted, found {values!r}")


def _order(case: Case, rng: np.random.Generator) -> Tensor | None:
    if not case.order:
        return None
    if case.order == "transpose":
        height = max(n for n in range(1, int(case.L**0.5) + 1) if case.L % n == 0)
        tokens = np.arange(case.L).reshape(height, -1).T.reshape(-1)
    elif case.order == "shared":
        tokens = rng.permutation(case.L)
    else:
        tokens = np.stack([rng.permutation(case.L) for _ in range(case.K)])
    return torch.from_numpy(tokens.astype(np.int32))


def placed(tensors: dict[str, Tensor | None], layout: str, device: str) -> dict[str, Tensor | None]:
    """The tensors on the device: dense, as slices of one wide tensor, or off by one element."""
    on_device = {n: None if t is None else t.to(device) for n, t in tensors.items()}
    rows = {n: t for n, t in on_device.items() if n in ROWS and t is not None and t.ndim == 3}
    if layout == "slices":
        wide = torch.cat(list(rows.values()), dim=-1)
        parts = torch.split(wide, [t.shape[-1] for t in rows.values()], dim=-1)
        return {**on_device, **dict(zip(rows, parts, strict=True))}
    if layout == "offset":
        return {**on_device, **{name: _off_by_one(tensor) for name, tensor in rows.items()}}
    return on_device


def _off_by_one(tensor: Tensor) -> Tensor:
    memory = tensor.new_empty(tensor.numel() + 1)
    memory[1:] = tensor.reshape(-1)
    return memory[1:].view(tensor.shape)
