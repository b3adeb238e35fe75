"""How many mutated inputs a fuzz test tries: a case is a function of its number."""

from __future__ import annotations

import os


def numbers(default: int) -> range:
    """The numbers of the cases: ``MAMBAPOSE_FUZZ`` of them, from ``MAMBAPOSE_FUZZ_FROM`` on."""
    first = int(os.environ.get("MAMBAPOSE_FUZZ_FROM", "0"))
    return range(first, first + int(os.environ.get("MAMBAPOSE_FUZZ", str(default))))
