"""Sizes and graph names: written one way, read back, refused when they are none."""

from __future__ import annotations

import pytest

from mambapose.runtime.errors import EngineError
from mambapose.runtime.types import GraphName, Size, Where


@pytest.mark.parametrize(
    ("text", "name"),
    [("main", GraphName("main")), ("encode@192x256", GraphName("encode", Size(192, 256)))],
)
def test_graph_names_are_written_and_read(text: str, name: GraphName) -> None:
    assert str(name) == text
    assert GraphName.parse(text) == name


@pytest.mark.parametrize(
    "text", ["", "@1x2", "a@", "a@1x", "a@0x5", "a@2x²", "a b", "a@1x2x3", "é"]
)
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(EngineError, match="a graph name such as main"):
        GraphName.parse(text)


def test_a_size_is_height_then_width() -> None:
    size = Size(640, 360)
    assert (str(size), size.portrait, size.turned) == ("640x360", True, Size(360, 640))
    assert not Size(5, 5).portrait


@pytest.mark.parametrize("threads", [0, -1, 1025, 10**11, 1.5])
def test_threads_are_at_least_one_and_of_a_number_that_machines_have(threads: int) -> None:
    with pytest.raises(EngineError, match="1 to 1024 threads were wanted"):
        Where(threads=threads)
    assert Where(threads=1024).thread_count == 1024
