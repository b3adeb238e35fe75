"""One person among several: the largest, the one nearest the centre, or the one with an id."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.errors import EngineError
from mambapose.runtime.types import Boxes

LARGEST, CENTRE = "largest", "centre"


def is_number(text: str) -> bool:
    """Whether this may be the number of a person: they count from 1."""
    return text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0


class Chooser:
    """Chooses one person and stays with this person until he is no longer reported.

    rule: ``largest`` (by the area of the box), ``centre`` (of the picture), or an id in digits.
    EngineError for any other rule. others: who else was reported.
    """

    def __init__(self, rule: str) -> None:
        if rule not in (LARGEST, CENTRE) and not is_number(rule):
            raise EngineError(
                f"a person of {LARGEST}, {CENTRE} or the number of one was wanted, found {rule!r}"
            )
        self._rule = rule
        self._chosen: int | None = int(rule) if rule.isdigit() else None
        self.others: set[int] = set()

    def choose(
        self,
        ids: tuple[int, ...],
        boxes: Boxes,
        reported: NDArray[np.bool_],
        size: tuple[int, int],
    ) -> NDArray[np.bool_]:
        """(N,) whether a person is the chosen one, among those who are reported.

        boxes: (N, 4) xyxy px; size: (H, W) of the picture.
        """
        present = {ids[k]: k for k in np.flatnonzero(reported)}
        if not self._rule.isdigit() and self._chosen not in present and present:
            self._chosen = max(present, key=lambda id_: self._worth(boxes[present[id_]], size))
        self.others.update(present.keys() - {self._chosen})
        only = np.zeros(len(ids), bool)
        if self._chosen in present:
            only[present[self._chosen]] = True
        return only

    def _worth(self, box: NDArray[np.float64], size: tuple[int, int]) -> float:
        if self._rule == LARGEST:
            return float(np.prod(box[2:] - box[:2]))
        centre = np.array([size[1], size[0]]) / 2
        return -float(np.linalg.norm((box[:2] + box[2:]) / 2 - centre))
