"""How time and memory grow: for lifters with their window, for 2D networks with the crop.

Each lifter is compared with a transformer of about as many parameters, 2D networks with ViTPose-S
and -B. A network of the registry is exported at every size with random weights; one of a user's own
comes in a bundle and is measured at the size it has there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mambapose.benchmarks import yardsticks
from mambapose.benchmarks.exported import Size, exported, stage_of
from mambapose.benchmarks.jobs import Row
from mambapose.benchmarks.sides import Side, is_step, size_of, window_of
from mambapose.export.models import NETWORKS
from mambapose.export.sizes import check_clip, check_size
from mambapose.runtime.bundle.bundle import read_bundle
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.errors import BundleError, MambaPoseError
from mambapose.runtime.stages.causal_lifting import STEP
from mambapose.runtime.stages.table import MODEL, STAGES

SIZES: tuple[tuple[int, int], ...] = ((256, 192), (384, 288), (512, 384))
CLIPS = (27, 81, 243)
POSE_NETWORKS = ("mambapose-tiny",)
POSE_YARDSTICKS = ("vitpose-s", "vitpose-b")
LIFTERS = ("posemamba-s",)
ONLY_SIZES = {"mambapose-nano": (256, 192)}  # networks that take one crop; checked by a test
GROUPS = {"lift3d": "T sweep", "pose2d": "size sweep"}


@dataclass(frozen=True)
class Candidate:
    """A network to sweep.

    size: T or (H, W) when the network has only this one, else None. bundle, part: for a network of
    the user's own, its bundle and its stage there; other networks come from the registry.
    """

    label: str
    stage: str
    bundle: Bundle | None = None
    part: str = ""
    size: Size | None = None


def default_candidates(bundle: Bundle) -> list[Candidate]:
    """The networks of the bundle, and those that are compared with them when none is named."""
    found = [*bundle_candidates(bundle), *map(_named, (*LIFTERS, *POSE_NETWORKS))]
    return list({(c.label, c.stage): c for c in found}.values())


def candidate_list(texts: Sequence[str]) -> list[Candidate]:
    """Candidates of names and bundle folders; BundleError for one that cannot be swept."""
    found: list[Candidate] = []
    for text in texts:
        if Path(text).is_dir():
            found += _checked(bundle_candidates(read_bundle(Path(text), verify=False)), text)
        else:
            found += _checked([_named(text)], text)
    return found


def bundle_candidates(bundle: Bundle) -> list[Candidate]:
    """The 2D network and the lifter of a bundle.

    From a bundle of the stage ``model``, the user's network when it is one of the two.
    """
    found = []
    for stage, entry in bundle.stages.items():
        if stage in GROUPS and entry.network in NETWORKS:
            found.append(_named(entry.network))
        elif stage in GROUPS or stage == MODEL:
            found += _own_network(bundle, stage)
    return found


def _named(name: str) -> Candidate:
    return Candidate(name, stage_of(name), size=ONLY_SIZES.get(name))


def _checked(found: list[Candidate], text: str) -> list[Candidate]:
    """The candidates; BundleError when there is none or one of another stage."""
    if not found or any(candidate.stage not in GROUPS for candidate in found):
        raise BundleError(
            f"a 2D pose network or a lifter was wanted, {text} is none; measure it with "
            f"mp-bench --engine or --vs {text}"
        )
    return found


def _own_network(bundle: Bundle, stage: str) -> list[Candidate]:
    """A user's own network at the size it was exported with, if its tensors show the size.

    In the stage ``model`` an input (N, T, 17, 2 or 3) is a lifter's, and an image has three
    channels, first or last.
    """
    spec = next(iter(bundle.stages[stage].graphs.values())).spec.inputs[0]
    label = bundle.path.name
    if STAGES[stage].clip:
        return [Candidate(label, stage, bundle, stage, window_of(bundle, stage))]
    if stage == "pose2d":
        height, width = map(int, size_of(bundle, stage).split("x"))
        return [Candidate(label, stage, bundle, stage, (height, width))]
    if len(spec.shape) != 4 or any(isinstance(side, str) for side in spec.shape[1:]):
        return []
    first, second, third = (int(side) for side in spec.shape[1:])
    if second == 17 and third in (2, 3):
        return [Candidate(label, "lift3d", bundle, stage, first)]
    if 3 not in (first, third):
        return []
    size = (second, third) if first == 3 else (first, second)
    return [Candidate(label, "pose2d", bundle, stage, size)]


def sides(
    candidates: Sequence[Candidate],
    sizes: Sequence[tuple[int, int]] = SIZES,
    clips: Sequence[int] = CLIPS,
) -> Iterator[Side]:
    """Every candidate at every size, and after them the yardsticks.

    The only size of a candidate is measured for the others as well. When every candidate has only
    one size, ``sizes`` and ``clips`` are not used.
    """
    wanted: dict[str, Sequence[Size]] = {"lift3d": clips, "pose2d": sizes}
    for stage, given in wanted.items():
        chosen = [candidate for candidate in candidates if candidate.stage == stage]
        only = [candidate.size for candidate in chosen if candidate.size is not None]
        every = list(dict.fromkeys((*(given if len(only) < len(chosen) else ()), *only)))
        known = {candidate.label for candidate in chosen}
        names = yardsticks_of(stage, chosen)
        chosen += [_named(name) for name in names if name not in known]
        for size in every:
            for candidate in chosen:
                yield from _sides_at(candidate, size, first=size == every[0])


def yardsticks_of(stage: str, chosen: Sequence[Candidate]) -> list[str]:
    """The networks that the candidates of a stage are compared with; none without candidates."""
    if stage == "pose2d":
        return list(POSE_YARDSTICKS) if chosen else []
    others = [candidate for candidate in chosen if not yardsticks.is_transformer(candidate.label)]
    return list(dict.fromkeys(yardsticks.transformer_like(_params(other)) for other in others))


def _params(candidate: Candidate) -> int:
    bundle, part = candidate.bundle, candidate.part
    if bundle is None:
        bundle, part = exported(candidate.label), candidate.stage
    return bundle.stages[part].params


def _sides_at(candidate: Candidate, size: Size, *, first: bool) -> Iterator[Side]:
    """The candidate at one size; nothing when it has another size.

    A lifter that works frame by frame has no size and is measured once, with the first.
    """
    group = GROUPS[candidate.stage]
    if candidate.size not in (None, size):
        return
    if candidate.bundle is not None:
        part = (candidate.bundle, candidate.part)
        text, frames = f"{size[0]}x{size[1]}" if isinstance(size, tuple) else f"T={size}", 1
        if isinstance(size, int):
            frames = max(1, size // 3)  # the hop that a lifter of this window has in a pipeline
        yield Side(candidate.label, group, (part,), size=text, frames=frames)
    elif not _goes_frame_by_frame(candidate):
        yield Side(candidate.label, group, ((exported(candidate.label, size), candidate.stage),))
    elif first:
        yield Side(candidate.label, group, ((exported(candidate.label), candidate.stage),))


def _goes_frame_by_frame(candidate: Candidate) -> bool:
    """Whether it is a lifter whose graph, exported without a window, is a step."""
    if not STAGES[candidate.stage].clip or yardsticks.is_transformer(candidate.label):
        return False
    return is_step(exported(candidate.label), candidate.stage)


def is_yardstick(row: Row) -> bool:
    """Whether the row is of a network that others are compared with in a sweep."""
    return row.label in POSE_YARDSTICKS or yardsticks.is_transformer(row.label)


def held_against(row: Row, rows: Sequence[Row]) -> list[Row]:
    """The yardstick with the nearest number of parameters, of the same group and size.

    For a lifter that works frame by frame there is one of every size; for a yardstick there is
    none.
    """
    if is_yardstick(row):
        return []
    known = [r for r in rows if is_yardstick(r) and r.group == row.group]
    nearest: dict[str, Row] = {}
    for other in known:
        if row.size not in (other.size, STEP):
            continue
        best = nearest.setdefault(other.size, other)
        if _unlike(row, other) < _unlike(row, best):
            nearest[other.size] = other
    return list(nearest.values())


def _unlike(row: Row, other: Row) -> float:
    """The larger number of parameters over the smaller, so at least 1."""
    return max(row.params, other.params) / min(row.params, other.params)


def shares(row: Row, other: Row) -> tuple[float, float]:
    """Time and peak memory of a row over those of another.

    The time is per frame; for a row that states no frames it is that of a call.
    """
    row_ms, other_ms = (r.p50_ms if r.frame_ms is None else r.frame_ms for r in (row, other))
    return row_ms / other_ms, row.peak_mib / other.peak_mib


def ratios(rows: Sequence[Row]) -> list[str]:
    """A sentence for every row of a sweep and its yardstick."""
    swept = [row for row in rows if row.group in GROUPS.values()]
    lines = []
    for row in swept:
        for other in held_against(row, swept):
            time, memory = shares(row, other)
            lines.append(
                f"{row.label} / {other.label} at {other.size}: peak memory {memory:.2f}x, "
                f"time per frame {time:.2f}x"
            )
    return lines


def sizes_from_text(text: str) -> tuple[tuple[int, int], ...]:
    """``256x192,384x288`` as (H, W) pairs; MambaPoseError for any other text."""
    pairs = [part.strip().lower().split("x") for part in text.split(",")]
    if not all(len(pair) == 2 and _numbers(pair) for pair in pairs):
        raise MambaPoseError(f"sizes such as 256x192,384x288 were wanted, found {text!r}")
    sizes = tuple((int(height), int(width)) for height, width in pairs)
    for size in sizes:
        check_size("pose2d", size)
    return sizes


def clips_from_text(text: str) -> tuple[int, ...]:
    """``27,81,243`` as numbers of frames; MambaPoseError for any other text."""
    parts = [part.strip() for part in text.split(",")]
    if not _numbers(parts):
        raise MambaPoseError(f"windows such as 27,81,243 were wanted, found {text!r}")
    clips = tuple(map(int, parts))
    for frames in clips:
        check_clip(frames)
    return clips


def _numbers(parts: Sequence[str]) -> bool:
    return all(part.isascii() and part.isdigit() for part in parts)
