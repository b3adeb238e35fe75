"""Official checkpoint files loaded into our networks, strictly.

A file is read without executing anything in it, unwrapped to its state dict, and matched against
the network's own (official) key names and then against each table of other names. It fits
completely or is refused with the first key that does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambapose.runtime.errors import ExportError

if TYPE_CHECKING:
    import torch

WRAPPERS = ("state_dict", "model_pos", "model", "base_model")
PREFIXES = ("module.", "model_pos.", "model.")


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
    """A state dict under our names, and the keys of it that do not fit."""

    tensors: dict[str, torch.Tensor]
    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]

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


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Key -> CPU tensor of a .pth, .pt, .bin or .safetensors file; nothing in it is executed.

    Unwraps ``state_dict``, ``model``, ``model_pos`` and ``base_model``, and strips the prefixes
    ``module.``, ``model.`` and ``model_pos.`` that all keys share. ExportError when the file is
    absent, broken, not a checkpoint, or holds objects other than tensors and plain values.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise ExportError(f"a checkpoint file was wanted, found none at {path}; check the path")
    content: Any = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    while wrapped := [content[w] for w in WRAPPERS if _holds_mapping(content, w)]:
        content = wrapped[0]
    if not isinstance(content, Mapping) or not content:
        raise ExportError(
            f"{path}: a state dict of tensors was wanted, found {_what(content)}; "
            "pass a checkpoint, not a whole saved module"
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise ExportError(
                f"{path}: only tensors were wanted, found {_what(value)} under {key!r}; "
                "pass the file of the network's weights"
            )
    state = dict(content)
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state)), ""):
        state = {key[len(prefix) :]: value for key, value in state.items()}
    return state


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
) -> None:
    """Copies every tensor of the file into the model, or raises and leaves the model as it was.

    The file's keys are tried as our own first, then through each table. A tensor that the model
    holds under two names may be in the file under one of them only; ``num_batches_tracked`` is not
    used here and may be absent. ExportError names the network wanted and, for the naming that fits
    best, the first missing, unexpected and misshaped key with their counts.
    """
    state = read_state_dict(path)
    wanted = model.state_dict()
    fits = [_fit(state, wanted, None), *(_fit(state, wanted, table) for table in tables)]
    best = min(fits, key=lambda fit: fit.problems)
    if best.problems:
        name = network or type(model).__name__
        raise ExportError(
            f"{path} was wanted to hold the weights of {name} ({len(wanted)} keys), "
            f"found {len(state)} keys that do not fit: {best}; pass a checkpoint of {name}"
        )
    model.load_state_dict(best.tensors, strict=False)


def _read_safetensors(path: Path) -> Mapping[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as err:
        raise ExportError(
            f"{path}: a safetensors file was wanted, found a broken one ({_first_line(err)}); "
            "download it again"
        ) from err


def _read_pickle(path: Path) -> Any:
    import pickle
    import warnings

    import torch

    try:
        with torch.serialization.safe_globals(_harmless_classes()), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as err:
        raise ExportError(
            f"{path}: a checkpoint of tensors and plain values was wanted, found one that is "
            f"damaged or wants to run code, refused unread ({_reason(err)}); "
            "pass the weights as .safetensors or as a plain state dict"
        ) from err
    except Exception as err:  # damaged bytes make the reader raise anything, e.g. IndexError
        raise ExportError(
            f"{path}: a torch checkpoint was wanted, found a broken file or another format "
            f"({type(err).__name__}: {_first_line(err)}); download it again"
        ) from err


def _harmless_classes() -> list[Any]:
    """What training scripts leave in checkpoints beside tensors: options and NumPy numbers."""
    import argparse

    import numpy as np

    multiarray = getattr(np, "_core", None) or np.core
    scalar = multiarray.multiarray.scalar
    return [
        argparse.Namespace,
        np.dtype,
        *{type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)},
        # Both module paths: the file remembers the NumPy that wrote it.
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
    ]


def _fit(
    state: Mapping[str, torch.Tensor],
    wanted: Mapping[str, torch.Tensor],
    table: KeyTable | None,
) -> _Fit:
    tensors, unexpected = _renamed(state, wanted, table)
    held = {_place(tensor) for key, tensor in wanted.items() if key in tensors}
    missing = [
        key
        for key, tensor in wanted.items()
        if key not in tensors
        and _place(tensor) not in held
        and not key.endswith(".num_batches_tracked")
    ]
    misshaped = [
        f"{key} is {tuple(tensors[key].shape)}, {tuple(tensor.shape)} was wanted"
        for key, tensor in wanted.items()
        if key in tensors and tensors[key].shape != tensor.shape
    ]
    return _Fit(tensors, missing, unexpected, misshaped)


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
                shapes = {part.shape[1:] for part in rows.values()}
                if len(shapes) == 1:
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


def _holds_mapping(content: object, key: str) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get(key), Mapping)


def _what(value: object) -> str:
    if isinstance(value, Mapping) and not value:
        return "an empty one"
    return f"a {type(value).__name__}"


def _first_line(err: BaseException) -> str:
    text = str(err).strip()
    return text.splitlines()[0][:200] if text else "no reason given"


def _reason(err: BaseException) -> str:
    """The line of torch's long message that names the class it refused."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    named = next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), None)
    return (named or (lines[0] if lines else "no reason given"))[:200]
