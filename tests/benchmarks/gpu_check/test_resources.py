"""Registers of the kernels: what the assembler says, and what docs/cuda.md says."""

from __future__ import annotations

from pathlib import Path

import pytest

from mambapose.benchmarks.gpu_check import build, resources
from mambapose.runtime.errors import EngineError

PAGE = Path(__file__).resolve().parents[3] / "docs" / "cuda.md"
COMPARED = 87
LOG = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z6kernelILi4EEvi' for 'sm_90a'
ptxas info    : Function properties for _Z6kernelILi4EEvi
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 8 bytes cumulative stack size, 512 bytes smem
ptxas info    : Compiling entry function '_Z5other' for 'sm_90a'
ptxas info    : Function properties for _Z5other
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 31 registers, used 0 barriers
"""


def test_the_log_of_an_assembler_is_read():
    first, second = resources.parsed(LOG)
    assert first == resources.Kernel("_Z6kernelILi4EEvi", 90, 40, 8, 28, 512)
    assert second == resources.Kernel("_Z5other", 90, 31, 0, 0, 0)
    assert len(resources.faults([first, second])) == 1
    assert "28 bytes of spills" in resources.faults([first])[0]


@pytest.mark.parametrize(
    ("signature", "name"),
    [
        ("void mambapose::cuda::scan<mambapose::cuda::Kind<7, true, false> >(mambapose::Task)",
         "scan<Kind<7, true, false> >"),
        ("void (anonymous namespace)::kernel<(int)4, (bool)1>(int)", "kernel<4, 1>"),
        ("mambapose::sum(float*)", "sum"),
    ],
)  # fmt: skip
def test_names_are_short(signature, name):
    assert resources._short(signature) == name


def test_a_table_replaces_the_one_of_a_page(monkeypatch):
    names = {"a": "kernel<10>", "b": "kernel<9>"}
    monkeypatch.setattr(resources, "readable", lambda found: names)
    kernels = [resources.Kernel(n, 80 + i, 40 + i, 0, 0, 0) for i in (0, 6) for n in names]
    lines = resources.table(kernels)
    assert lines == [
        "| kernel | sm_80 | sm_86 |", "| --- | ---: | ---: |",
        "| `kernel<9>` | 40 | 46 |", "| `kernel<10>` | 40 | 46 |",
    ]  # fmt: skip
    begin, end = resources.MARKS
    page = f"# Title\n\n{begin}\n\nold\n\n{end}\n\nafter\n"
    written = resources.with_table(page, lines)
    assert "old" not in written
    assert written.endswith(f"{lines[-1]}\n\n{end}\n\nafter\n")
    assert resources.with_table(written, lines) == written
    with pytest.raises(EngineError, match="a page with the lines"):
        resources.with_table("no marks", lines)


def test_no_nvcc_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(resources, "find_compiler", lambda: None)
    assert resources.main([]) == 1
    assert capsys.readouterr().err.startswith("resources: nvcc was wanted, found none")


@pytest.fixture(scope="module")
def published() -> dict[str, list[str]]:
    """The cells of the page's table by kernel, the heads under "kernel"."""
    text = PAGE.read_text()
    begin, end = resources.marked(text)
    rows = [line for line in text[begin:end].splitlines() if line.startswith("| ")]
    cells = [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in rows]
    return {row[0]: row[1:] for row in cells}


def test_the_page_has_every_architecture(published):
    assert published["kernel"] == [f"sm_{number}" for number in resources.ARCHITECTURES]
    assert all(all(cells) for cells in published.values())


@pytest.mark.slow
def test_the_published_registers_are_those_of_a_new_build(published):
    nvcc = resources.find_compiler()
    if nvcc is None or not build.nvcc_version(nvcc).startswith("13.0."):
        pytest.skip("the published registers are those of nvcc 13.0, which is not here")
    kernels = resources.compiled(nvcc, [COMPARED])
    assert resources.faults(kernels) == []
    names = resources.readable(kernel.name for kernel in kernels)
    column = resources.ARCHITECTURES.index(COMPARED)
    found = {names[kernel.name]: str(kernel.registers) for kernel in kernels}
    wanted = {name: cells[column] for name, cells in published.items() if name != "kernel"}
    assert found == {name: value for name, value in wanted.items() if not name.startswith("---")}
