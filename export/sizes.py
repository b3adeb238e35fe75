"""Which input sizes can be exported."""

from __future__ import annotations

from mambapose.runtime.errors import ExportError
from mambapose.runtime.stages.table import MAX_SIDE, STAGES
from mambapose.runtime.types import Size

MAX_CLIP = 243  # rows of PoseMamba's temporal embedding


def check_size(stage: str, size: Size | tuple[int, int]) -> None:
    """Raise ExportError unless networks of the image stage take the size (H, W)."""
    rule, size = STAGES[stage].size_rule, Size(*size)
    if rule is not None and not rule.fits(size):
        raise ExportError(
            f"size of {stage} must be multiples of {rule.step} from {rule.least} to {MAX_SIDE} px, "
            f"found {size}; the nearest is {rule.nearest(size)}"
        )


def check_clip(frames: int) -> None:
    """Raise ExportError unless lifters take clips of that many frames."""
    if not 1 <= frames <= MAX_CLIP:
        raise ExportError(
            f"a clip of 1 to {MAX_CLIP} frames was wanted, found {frames}; change --clip-frames"
        )
