"""Who made the pictures that were trained on: python -m mambapose.train.real.credits --help.

Licences ask that the makers are named where weights trained on the pictures are given away. This
writes the text for NOTICE.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from mambapose.runtime.errors import ExportError, MambaPoseError
from mambapose.train.real.people import FOLDER, FREE, read_people

COLUMNS = ("index", "source", "licence", "attribution", "repository")


@dataclass(frozen=True)
class Credit:
    """A source under one licence.

    people: number of crops trained on; repositories and names in order.
    """

    source: str
    licence: str
    people: int
    repositories: tuple[str, ...]
    names: tuple[str, ...]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of the table of licences; ExportError without the columns that are needed."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise ExportError(
            f"licences of pictures were wanted in {path}, it cannot be read ({err}); get the "
            "folder again"
        ) from err
    missing = [name for name in COLUMNS if not rows or name not in rows[0]]
    if missing:
        raise ExportError(f"{path}: the columns {', '.join(missing)} were wanted, found none")
    return rows


def credits_of(rows: Iterable[Mapping[str, str]], chosen: Iterable[int]) -> list[Credit]:
    """The credits of the chosen crops, one for each source and licence."""
    wanted = {str(number) for number in chosen}
    groups: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for row in rows:
        if row["index"] in wanted:
            groups.setdefault((row["source"], row["licence"]), []).append(row)
    return [
        Credit(
            source, licence, len(group),
            tuple(sorted({row["repository"] for row in group})),
            tuple(sorted({row["attribution"] for row in group})),
        )
        for (source, licence), group in sorted(groups.items())
    ]  # fmt: skip


def text_of(credit: Credit) -> str:
    """The credit as a paragraph of NOTICE."""
    found = f"as found in {', '.join(credit.repositories)}"
    return (
        f"{credit.source}: {credit.people} people, {credit.licence}, {found}:\n"
        f"{'; '.join(credit.names)}."
    )


@click.command()
@click.option("--assets", type=click.Path(exists=True, file_okay=False, path_type=Path),
              required=True, help="Folder with real-people.")  # fmt: skip
def main(assets: Path) -> None:
    """Print who made the pictures that weights which ship were trained on.

    Example: python -m mambapose.train.real.credits --assets DIR > pictures.txt
    """
    try:
        chosen = [int(number) for number in read_people(assets / FOLDER).trained_on()]
        rows = read_rows(assets / FOLDER / f"{FREE}.csv")
        click.echo("\n\n".join(text_of(credit) for credit in credits_of(rows, chosen)))
    except MambaPoseError as err:
        click.echo(f"error: {err}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
