"""Which input sizes each stage takes."""

from __future__ import annotations

from dataclasses import dataclass

from mambapose.runtime.errors import ExportError

MAX_SIDE = 4096
MAX_CLIP = 243  # rows of PoseMamba's temporal embedding


@dataclass(frozen=True)
class SizeRule:
    """Both sides are multiples of ``step`` from ``least`` px up."""

    least: int
    step: int


# flow: below 128 px the coarsest level of RAFT's pyramid is one cell wide and its normalisation
# divides by zero. depth: patches of 14 px. pose2d: patches of 16 px.
RULES = {"flow": SizeRule(128, 8), "depth": SizeRule(14, 14), "pose2d": SizeRule(32, 16)}


def check_size(stage: str, size: tuple[int, int]) -> None:
    """Raise ExportError unless networks of the image stage take the size (H, W)."""
    rule = RULES[stage]
    if any(side < rule.least or side > MAX_SIDE or side % rule.step for side in size):
        height, width = (_nearest(side, rule) for side in size)
        raise ExportError(
            f"size of {stage} must be multiples of {rule.step} from {rule.least} to {MAX_SIDE} px, "
            f"found {size[0]}x{size[1]}; the nearest is {height}x{width}"
        )


def check_clip(frames: int) -> None:
    """Raise ExportError unless lifters take clips of that many frames."""
    if not 1 <= frames <= MAX_CLIP:
        raise ExportError(
            f"a clip of 1 to {MAX_CLIP} frames was wanted, found {frames}; change --clip-frames"
        )


def _nearest(side: int, rule: SizeRule) -> int:
    first = -(-rule.least // rule.step) * rule.step
    return min(max(round(side / rule.step) * rule.step, first), MAX_SIDE // rule.step * rule.step)
