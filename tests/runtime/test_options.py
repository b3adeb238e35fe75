from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mambapose.runtime.errors import OutputError
from mambapose.runtime.options import FilePath, FiniteRange, check_writable

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("runtime", "plugins", "export", "benchmarks", "train")


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command line of the project, found by the files that make one."""
    for part in PARTS:
        for path in sorted((ROOT / part).rglob("*.py")):
            text = path.read_text()
            if "@click." not in text:
                continue
            name = ".".join(("mambapose", *path.relative_to(ROOT).with_suffix("").parts))
            pytest.importorskip("torch" if part in ("export", "train") else "numpy")
            module = importlib.import_module(name)
            for value in vars(module).values():
                if isinstance(value, click.Command):
                    yield name, value
                    for inner in getattr(value, "commands", {}).values():
                        yield name, inner


@pytest.mark.slow
def test_every_option_that_is_a_number_has_a_range_and_is_finite() -> None:
    seen = 0
    for module, command in commands():
        for param in command.params:
            kinds = param.type.types if isinstance(param.type, click.Tuple) else [param.type]
            for kind in kinds:
                where = f"{module} {param.name}"
                if isinstance(kind, click.types.FloatParamType):
                    assert isinstance(kind, FiniteRange), where
                    seen += 1
                elif isinstance(kind, click.types.IntParamType):
                    assert isinstance(kind, click.IntRange), where
                    seen += 1
    assert seen > 50


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "2", "-1", "x", ""])
def test_only_finite_numbers_of_the_range_are_taken(text: str) -> None:
    @click.command()
    @click.option("--share", type=FiniteRange(0, 1))
    def command(share: float) -> None:
        click.echo(share)

    done = CliRunner().invoke(command, ["--share", text])
    assert done.exit_code == 2
    assert CliRunner().invoke(command, ["--share", "0.25"]).output == "0.25\n"


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    new, old = tmp_path / "a" / "new.jsonl", tmp_path / "old.jsonl"
    old.write_text("kept")
    check_writable(new)
    check_writable(old)
    assert not new.exists()
    assert old.read_text() == "kept"
    check_writable(Path("/dev/null"))
    os.mkfifo(tmp_path / "pipe")
    check_writable(tmp_path / "pipe")  # and it does not wait for a reader


@pytest.mark.parametrize("name", ["", "a" * 300, "file/inside", "nul\0", "loop"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OutputError, match="a file that can be written was wanted") as caught:
        check_writable(tmp_path / name)
    assert str(caught.value).isprintable()


def test_a_command_refuses_the_place_before_its_work(tmp_path: Path) -> None:
    @click.command()
    @click.option("--json", type=FilePath())
    def command(json: Path) -> None:
        raise AssertionError("it began")

    done = CliRunner().invoke(command, ["--json", str(tmp_path)])
    assert isinstance(done.exception, OutputError)
