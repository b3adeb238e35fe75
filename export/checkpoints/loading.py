"""Checkpoint files loaded into our networks, strictly.

A file is matched against the network's own (official) key names and then against each table of
other names. It fits completely or is refused with the first key that does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mambapose.export.checkpoints.content import shown
from mambapose.export.checkpoints.reading import contents_of, tensors_of
from mambapose.export.checkpoints.wrappers import (
    AVERAGED,
    PLAIN,
    both_kinds,
    is_extra,
    parts_under_prefixes,
    route_to_weights,
    without_prefixes,
)
from mambapose.runtime.errors import ExportError

if TYPE_CHECKING:
    import torch

Tell = Callable[[str], None]
_COUNTER = "num_batches_tracked"  # of a batch norm; not used here and may be absent


@dataclass(frozen=True)
class Rows:
    """Part ``index`` of ``count`` equal parts, along the first axis, of our tensor ``key``."""

    key: str
    index: int
    count: int


# Their key -> ours, or the part of ours it is (separate query, key and value of one qkv).
KeyTable = Mapping[str, "str | Rows"]


@dataclass(frozen=True)
class _Fit:
    """A state dict under our names, and the keys of it that do not fit.

    taken_off: the prefixes that its keys have lost; left_out: entries of the file not needed.
    """

    tensors: dict[str, torch.Tensor]
    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]
    taken_off: str
    left_out: list[str]

    @property
    def problems(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshaped)

    def __str__(self) -> str:
        parts = (
            f"{len(keys)} {what} (first: {keys[0]})"
            for what, keys in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("misshaped", self.misshaped),
            )
            if keys
        )
        return ", ".join(parts)


@dataclass(frozen=True)
class _State:
    """A state dict as it is in a file.

    route: the keys that lead to it; others: keys under which the file holds more weights.
    """

    tensors: dict[str, torch.Tensor]
    route: tuple[str, ...]
    others: tuple[str, ...]

    def note(self, taken_off: str, left_out: Sequence[str]) -> str:
        """What a person might not assume of the weights taken; nothing for a plain file."""
        said = []
        if self.route:
            said.append(f"weights under {'.'.join(self.route)}")
        if self.others:
            said[-1] += f", not {', '.join(self.others)} (--weights-key chooses)"
        if taken_off:
            said.append(f"keys without {taken_off}")
        if left_out:
            more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
            said.append(f"without the entry {shown(left_out[0], 60)}{more}")
        return "; ".join(said)


def read_state_dict(path: Path, weights_key: str | None = None) -> dict[str, torch.Tensor]:
    """Key -> CPU tensor of a checkpoint file, whatever its name; nothing in it is executed.

    Unwrapped along the rows of ``wrappers.WRAPPERS`` (weights_key: the entry to take), and without
    the ``wrappers.PREFIXES`` that all keys share. ExportError when the file is absent, broken, not
    a checkpoint, would run code, or holds other things than tensors there.
    """
    return without_prefixes(_state_in(Path(path), weights_key).tensors)[-1][1]


def _state_in(path: Path, weights_key: str | None) -> _State:
    contents = contents_of(path)
    prefer = PLAIN if both_kinds(contents.root) and _is_official(path) else AVERAGED
    route, others = route_to_weights(path, contents.root, weights_key, prefer=prefer)
    return _State(tensors_of(contents, route), route, others)


def _is_official(path: Path) -> bool:
    """Whether it is a published file that we know; their authors' code loads the plain weights."""
    from mambapose.export.official_files import SOURCES
    from mambapose.runtime.bundle.bundle import file_sha256

    return file_sha256(path) in {source.sha256 for source in SOURCES.values()}


def key_table(
    keys: Iterable[str], replacements: Sequence[tuple[str, str]]
) -> dict[str, str | Rows]:
    """The file's key -> our key, made by applying (pattern, replacement) pairs to each of our keys.

    Braces in a result list parts: ``a.{q,k,v}`` for our ``b`` gives ``a.q`` -> rows 0 of 3 of
    ``b`` and so on.
    """
    table: dict[str, str | Rows] = {}
    for key in keys:
        theirs = key
        for pattern, replacement in replacements:
            theirs = re.sub(pattern, replacement, theirs)
        head, brace, rest = theirs.partition("{")
        if not brace:
            table[theirs] = key
            continue
        names, _, tail = rest.partition("}")
        parts = names.split(",")
        table.update({head + p + tail: Rows(key, i, len(parts)) for i, p in enumerate(parts)})
    return table


def load_weights(
    model: torch.nn.Module,
    path: Path,
    tables: Sequence[KeyTable] = (),
    *,
    network: str | None = None,
    weights_key: str | None = None,
    tell: Tell | None = None,
) -> None:
    """Copies every tensor of the file into the model, or raises and leaves the model as it was.

    The file's keys are tried as our own first, then through each table, without the prefixes they
    share and with them. A tensor that the model holds under two names may be in the file under one
    of them only; ``num_batches_tracked`` is not used here and may be absent. weights_key: the entry
    of the file to take; tell: receives a line when what was taken is not plain to see. ExportError
    names the network wanted and, for the naming that fits best, the first missing, unexpected and
    misshaped key with their counts, or the first tensor whose numbers cannot be weights.
    """
    found = _state_in(Path(path), weights_key)
    wanted = model.state_dict()
    name = network or type(model).__name__
    best = _best_fit(found.tensors, wanted, tables)
    if best.problems:
        raise ExportError(
            f"{path} was wanted to hold the weights of {name} ({len(wanted)} keys), "
            f"found {len(found.tensors)} keys that do not fit: {best}; pass a checkpoint of {name}"
        )
    for key, tensor in best.tensors.items():
        if problem := _problem_of_numbers(tensor, wanted[key]):
            raise ExportError(
                f"{path}: weights of {name} were wanted under {key}, found {problem}; pass a "
                "checkpoint that works where it was trained"
            )
    if tell is not None and (note := found.note(best.taken_off, best.left_out)):
        tell(f"{Path(path).name}: {note}")
    model.load_state_dict(best.tensors, strict=False)


def _best_fit(
    state: dict[str, torch.Tensor],
    wanted: Mapping[str, torch.Tensor],
    tables: Sequence[KeyTable],
) -> _Fit:
    """The naming with the fewest problems; the keys under one prefix alone only when all fits."""
    levels = without_prefixes(state)
    fits: list[_Fit] = []
    for off, tensors in levels[::-1]:
        for fit in _fits(tensors, wanted, tables, off, ()):
            if not fit.problems:
                return fit
            fits.append(fit)
    for prefix, part in parts_under_prefixes(levels[-1][1]):
        kept = {prefix + key for key in part}
        left_out = [key for key in levels[-1][1] if key not in kept and not is_extra(key)]
        for off, tensors in without_prefixes(part)[::-1]:
            taken_off = levels[-1][0] + prefix + off
            for fit in _fits(tensors, wanted, tables, taken_off, left_out):
                if not fit.problems:
                    return fit
    return min(fits, key=lambda fit: fit.problems)


def _fits(
    state: Mapping[str, torch.Tensor],
    wanted: Mapping[str, torch.Tensor],
    tables: Sequence[KeyTable],
    taken_off: str,
    left_out: Sequence[str],
) -> Iterator[_Fit]:
    for table in (None, *tables):
        yield _fit(state, wanted, table, taken_off, left_out)


def _fit(
    state: Mapping[str, torch.Tensor],
    wanted: Mapping[str, torch.Tensor],
    table: KeyTable | None,
    taken_off: str = "",
    left_out: Sequence[str] = (),
) -> _Fit:
    tensors, unexpected = _renamed(state, wanted, table)
    extras = [key for key in unexpected if is_extra(key)]
    held = {_place(tensor) for key, tensor in wanted.items() if key in tensors}
    missing = [
        key
        for key, tensor in wanted.items()
        if key not in tensors and _place(tensor) not in held and not key.endswith(f".{_COUNTER}")
    ]
    misshaped = [
        f"{key} is {tuple(tensors[key].shape)}, {tuple(tensor.shape)} was wanted"
        for key, tensor in wanted.items()
        if key in tensors and tensors[key].shape != tensor.shape
    ]
    return _Fit(
        tensors, missing, [shown(key, 80) for key in unexpected if not is_extra(key)], misshaped,
        taken_off, [*left_out, *(key for key in extras if not key.endswith(_COUNTER))],
    )  # fmt: skip


def _problem_of_numbers(tensor: torch.Tensor, wanted: torch.Tensor) -> str:
    """Why values of this kind cannot be those of the weight, or nothing."""
    import torch

    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_complex() and not wanted.is_complex():
        return f"complex numbers ({kind})"
    if wanted.is_floating_point() and not tensor.is_floating_point():
        return f"whole numbers ({kind}), as of a quantised network"
    taken = tensor.to(wanted.dtype)
    if not wanted.is_floating_point():
        same = not tensor.is_floating_point() or torch.equal(taken.to(tensor.dtype), tensor)
        return "" if same else f"fractions ({kind}) for whole numbers"
    if bool(torch.isfinite(taken).all()) or not bool(torch.isfinite(wanted).all()):
        return ""  # a mask may hold infinity, and then the network was built with it
    return "NaN or infinity"


def _renamed(
    state: Mapping[str, torch.Tensor],
    wanted: Mapping[str, torch.Tensor],
    table: KeyTable | None,
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The state dict under our names, parts joined, and the keys that have no place."""
    import torch

    tensors: dict[str, torch.Tensor] = {}
    parts: dict[str, dict[int, torch.Tensor]] = {}
    unexpected: list[str] = []
    for key, tensor in state.items():
        place = key if table is None else table.get(key)
        if isinstance(place, Rows) and place.key in wanted:
            parts.setdefault(place.key, {})[place.index] = tensor
            if len(parts[place.key]) == place.count:
                rows = parts[place.key]
                alike = {(part.shape[1:], part.ndim > 0, part.dtype) for part in rows.values()}
                if len(alike) == 1 and rows[0].ndim > 0:
                    tensors[place.key] = torch.cat([rows[i] for i in range(place.count)])
        elif isinstance(place, str) and place in wanted:
            tensors[place] = tensor
        else:
            unexpected.append(key)
    return tensors, unexpected


def _place(tensor: torch.Tensor) -> tuple[int, tuple[int, ...]]:
    """Memory address and shape, which are equal for two names of one tensor.

    The shape is there because all empty tensors have the address 0.
    """
    return tensor.data_ptr(), tuple(tensor.shape)
