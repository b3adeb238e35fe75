"""Where training frameworks put the weights in a checkpoint: a closed list.

A file is unwrapped along the rows of ``WRAPPERS`` until a state dict is reached. Where it holds
the weights under several of them, as timm's ``model`` and ``model_ema``, the averaged ones (EMA)
are taken, which the frameworks' own evaluation reports; a published file whose authors load the
plain ones is the exception. What was taken is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambapose.export.checkpoints.content import shown
from mambapose.export.checkpoints.pickles import Inert
from mambapose.export.checkpoints.reading import entries
from mambapose.export.checkpoints.tensors import Array, Described, what_is
from mambapose.runtime.errors import ExportError

if TYPE_CHECKING:
    import torch

PLAIN, AVERAGED = "plain", "averaged"
MAX_DEPTH = 8


@dataclass(frozen=True)
class Wrapper:
    """A key under which weights lie. by: who writes it; weights: PLAIN or AVERAGED."""

    key: str
    by: str
    weights: str = PLAIN


# In the order of preference among those of one kind.
WRAPPERS = (
    Wrapper("state_dict_ema", "timm", AVERAGED),
    Wrapper("ema_state_dict", "mmengine, EMA hook", AVERAGED),
    Wrapper("model_ema", "DeiT, Vim, VMamba", AVERAGED),
    Wrapper("params_ema", "BasicSR", AVERAGED),
    Wrapper("ema_model", "Accelerate scripts, lucidrains' ema-pytorch", AVERAGED),
    Wrapper("ema", "YOLO, diffusion training", AVERAGED),
    Wrapper("teacher", "DINO: the average of the student", AVERAGED),
    Wrapper("state_dict", "Lightning, mmengine, timm"),
    Wrapper("model_state_dict", "PyTorch's tutorial, Accelerate scripts"),
    Wrapper("model", "Detectron2, yacs and omegaconf configurations, VMamba"),
    Wrapper("model_pos", "VideoPose3D and its descendants"),
    Wrapper("base_model", "point cloud networks"),
    Wrapper("params", "BasicSR"),
    Wrapper("student", "DINO"),
    Wrapper("generator", "adversarial training"),
    Wrapper("net", "many scripts"),
    Wrapper("network", "many scripts"),
    Wrapper("weights", "many scripts"),
    Wrapper("module", "DeepSpeed; torch.optim.swa_utils inside an EMA's entry"),
)

# What the keys of a whole state dict may begin with.
PREFIXES = {
    "module.": "DataParallel, DistributedDataParallel, SWA's AveragedModel",
    "_orig_mod.": "torch.compile",
    "model.": "Lightning",
    "model_pos.": "VideoPose3D",
    "net.": "Lightning",
    "network.": "Lightning",
}

# Entries of a state dict that are no weights: last part of the key -> who leaves it there.
EXTRAS = {
    "n_averaged": "SWA's AveragedModel",
    "total_ops": "thop",
    "total_params": "thop",
    "num_batches_tracked": "batch normalisation",
}


def is_extra(key: str) -> bool:
    """Whether an entry is one that tools leave beside the weights."""
    return key.rpartition(".")[2] in EXTRAS


def is_tensor(value: object) -> bool:
    """Whether it is a tensor, or the description of one."""
    import torch

    return isinstance(value, (Described, Array, torch.Tensor))


def route_to_weights(
    path: Path, root: Any, wanted: str | None = None, *, prefer: str = AVERAGED
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys that lead from the root to the state dict, and those of others that it also holds.

    wanted: the key to take instead; prefer: AVERAGED or PLAIN, where there are both. ExportError
    when there is no state dict, or none under that key.
    """
    route: list[str] = []
    others: list[str] = []
    while True:
        if len(route) == MAX_DEPTH:
            raise ExportError(
                f"{path}: a state dict of tensors was wanted, found only dictionaries under "
                f"{'.'.join(route[:3])}..., {MAX_DEPTH} deep or one that holds itself; pass a "
                "checkpoint of weights"
            )
        offered = {
            str(key): value
            for key, value in entries(root).items()
            if isinstance(key, str) and entries(value)
        }
        found = _ranked(offered, prefer)
        if wanted is not None and wanted in offered:
            found, wanted = [wanted, *(key for key in found if key != wanted)], None
        if not found:
            break
        route.append(found[0])
        others += found[1:]
        root = offered[found[0]]
    if wanted is not None:
        raise _no_such_key(path, wanted, route, others, root)
    _check_state(path, root, route)
    return tuple(route), tuple(others)


def both_kinds(root: Any) -> bool:
    """Whether the file holds averaged weights and plain ones."""
    found = {row.weights for row in WRAPPERS if entries(entries(root).get(row.key))}
    return len(found) == 2


def _ranked(offered: Mapping[str, Any], prefer: str) -> list[str]:
    rows = sorted(WRAPPERS, key=lambda row: row.weights != prefer)
    return [row.key for row in rows if row.key in offered]


def _no_such_key(
    path: Path, wanted: str, route: list[str], others: list[str], root: Any
) -> ExportError:
    offered = [*route[:1], *others] or [
        key for key, value in entries(root).items() if entries(value)
    ]
    listed = ", ".join(shown(key, 40) for key in offered[:8])
    return ExportError(
        f"{path}: weights under {wanted!r} were wanted, "
        + (f"found them under {listed}" if listed else "found no such entry")
        + "; name one of these with --weights-key, or leave it out"
    )


def _check_state(path: Path, state: Any, route: list[str]) -> None:
    """ExportError unless it is a dictionary of tensors with names."""
    where = f" under {'.'.join(route)}" if route else ""
    found = entries(state)
    if isinstance(state, Inert) and not found and not state.made.startswith(("a ", "builtins.")):
        raise ExportError(
            f"{path}: a state dict of tensors was wanted{where}, found a whole saved object of "
            f"{shown(state.made, 80)}, whose code is refused; where it was trained, save "
            "model.state_dict()"
        )
    if not found:
        raise ExportError(
            f"{path}: a state dict of tensors was wanted{where}, found "
            f"{shown(what_is(state), 80)}; pass a checkpoint"
        )
    for key, value in found.items():
        if isinstance(key, str) and is_tensor(value):
            continue
        if inner := [shown(name, 40) for name, entry in found.items() if _holds_tensors(entry)]:
            listed = ", ".join(inner[:8])
            raise ExportError(
                f"{path}: weights were wanted{where}, found several entries that hold tensors "
                f"({listed}); name one with --weights-key"
            )
        name = shown(key if isinstance(key, str) else what_is(key), 60)
        held = shown(what_is(value), 80)
        raise ExportError(
            f"{path}: only tensors were wanted{where}, found {held} under {name!r}; "
            "pass the file of the network's weights"
        )


def _holds_tensors(value: Any) -> bool:
    """Whether it is a dictionary that begins with a tensor."""
    return any(map(is_tensor, islice(entries(value).values(), 4)))


def without_prefixes(state: dict[str, torch.Tensor]) -> list[tuple[str, dict[str, torch.Tensor]]]:
    """The state dict with 0, 1, 2 ... of the prefixes off that all its keys share.

    Each with what was taken off. Entries that are no weights need not have the prefix.
    """
    levels = [("", state)]
    while True:
        off, state = levels[-1]
        weights = [key for key in state if not is_extra(key)] or list(state)
        prefix = next((p for p in PREFIXES if all(key.startswith(p) for key in weights)), "")
        if not prefix or len(levels) > MAX_DEPTH:
            return levels
        levels.append((off + prefix, {key.removeprefix(prefix): t for key, t in state.items()}))


def parts_under_prefixes(
    state: dict[str, torch.Tensor],
) -> list[tuple[str, dict[str, torch.Tensor]]]:
    """The keys under one prefix alone, for each that some but not all keys have.

    Lightning keeps losses and metrics with weights of their own beside the network.
    """
    parts = []
    for prefix in PREFIXES:
        part = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
        if part and len(part) < len(state):
            parts.append((prefix, part))
    return parts
