"""What the README shows works as written: commands parse, links lead somewhere, names exist."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import click
import pytest

from mambapose.export.models import NETWORKS
from mambapose.export.official_files import SOURCES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
MODULES = {
    "mp-export": "mambapose.export.cli",
    "mp-run": "mambapose.runtime.cli",
    "mp-bench": "mambapose.benchmarks.cli",
    "mp-check": "mambapose.runtime.check.cli",
}


def shown_commands() -> list[list[str]]:
    """Every mp-* command of the code blocks and of inline code with arguments."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
    lines = [line.split("#")[0] for line in blocks.splitlines()]
    lines += re.findall(r"`(mp-[a-z]+ [^`]+)`", README)
    return [words for words in map(shlex.split, lines) if words and words[0] in MODULES]


def test_readme_shows_every_command() -> None:
    assert {words[0] for words in shown_commands()} == set(MODULES)


@pytest.mark.parametrize("words", shown_commands(), ids=" ".join)
def test_shown_command_parses(words: list[str]) -> None:
    name, *args = words
    command: click.Command = importlib.import_module(MODULES[name]).command
    command.make_context(name, args)


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_listed_networks_exist() -> None:
    table = README[README.index("| stage | networks |") :].split("\n\n")[0]
    for entry in re.findall(r"`([^`]+)`", table):
        for name in expanded(entry):
            assert name in NETWORKS or name in SOURCES or name.startswith(("-", "detect")), name


def expanded(entry: str) -> list[str]:
    """``vitpose-{s,b}`` as its names; options and other code as nothing."""
    if entry.startswith("-") or " " in entry:
        return []
    choice = re.search(r"\{(.*)\}", entry)
    if choice is None:
        return [entry]
    return [entry.replace(choice.group(), part) for part in choice.group(1).split(",")]
