"""``python -m mambapose.export.default_bundle``: the bundle that ships, from the weights that ship.

It is what ``mp-export --target cpu --flip`` makes, without the graphs' form for TensorRT, which no
board would take from here. The mirror image is lifted too: on pose2sim docs/accuracy.md, with it,
has a lower error than the lifter's card, without. The same weights and versions give the same
graphs and weight files byte for byte; the stored outputs, and with them bundle.json, may differ in
the last digits from processor to processor. SOURCE_DATE_EPOCH sets the date.
"""

from __future__ import annotations

from pathlib import Path

import click

from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.commands import run_command
from mambapose.runtime.loading import SHIPPED

EPILOG = "Example: python -m mambapose.export.default_bundle"


def build_default(out: Path) -> Bundle:
    """Write the bundle to ``out``, replacing one that is there."""
    from mambapose.export.build import build_bundle
    from mambapose.export.plan import ExportOptions, make_plan
    from mambapose.runtime.targets import TARGETS

    plan = make_plan(TARGETS["cpu"], ExportOptions(flip=True))
    for note in plan.notes:
        click.echo(note)
    return build_bundle(plan, out, overwrite=True, tell=click.echo, trt=False)


@click.command(epilog=EPILOG)
@click.option("--out", type=Path, default=SHIPPED, help="Folder, that of the package otherwise.")
def command(out: Path) -> None:
    """Make the bundle that ships with the package from the weights that ship."""
    bundle = build_default(out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    click.echo(f"wrote {out}: {', '.join(bundle.stages)}, {size / 2**20:.1f} MiB")


def main(args: list[str] | None = None) -> None:
    """Entry point."""
    run_command(command, args, "default_bundle", interrupted="interrupted: nothing was written")


if __name__ == "__main__":
    main()
