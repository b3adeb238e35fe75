"""One person among several, who stays the same one while he is there."""

from __future__ import annotations

import numpy as np
import pytest

from mambapose.runtime.errors import EngineError
from mambapose.runtime.people.choosing import Chooser

SIZE = (100, 200)
SMALL_IN_THE_CENTRE, LARGE_AT_THE_EDGE = [95, 40, 105, 60], [0, 0, 60, 100]


def chosen(chooser, ids, boxes, reported=None):
    reported = np.ones(len(ids), bool) if reported is None else np.array(reported)
    mask = chooser.choose(tuple(ids), np.array(boxes, np.float64).reshape(-1, 4), reported, SIZE)
    assert mask.shape == (len(ids),)
    return [ids[k] for k in np.flatnonzero(mask)]


@pytest.mark.parametrize(
    ("rule", "expected"), [("largest", [2]), ("centre", [1]), ("2", [2]), ("7", [])]
)
def test_who_is_chosen(rule, expected):
    boxes = [SMALL_IN_THE_CENTRE, LARGE_AT_THE_EDGE]
    assert chosen(Chooser(rule), [1, 2], boxes) == expected
    assert chosen(Chooser(rule), [], []) == []


def test_the_chosen_one_stays_until_he_is_gone():
    chooser = Chooser("largest")
    assert chosen(chooser, [1, 2], [LARGE_AT_THE_EDGE, SMALL_IN_THE_CENTRE]) == [1]
    swapped = [SMALL_IN_THE_CENTRE, LARGE_AT_THE_EDGE]
    assert chosen(chooser, [1, 2], swapped) == [1]
    assert chosen(chooser, [1, 2], swapped, [False, True]) == [2]
    assert chosen(chooser, [1, 2], swapped) == [2]
    assert chosen(chooser, [1, 2], swapped, [False, False]) == []
    assert chosen(chooser, [1, 2], swapped) == [2]


def test_a_number_never_means_anybody_else():
    chooser = Chooser("1")
    assert chosen(chooser, [2], [LARGE_AT_THE_EDGE]) == []
    assert chooser.others == {2}


@pytest.mark.parametrize("rule", ["", "smallest", "-1", "0", "1.5", "²", "9" * 5000])
def test_other_rules_are_refused(rule):
    with pytest.raises(EngineError, match="largest, centre or the number"):
        Chooser(rule)
