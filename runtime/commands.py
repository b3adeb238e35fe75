"""What every command line has in common: headings in the help, one-line errors, exit codes."""

from __future__ import annotations

import sys

import click

from mambapose.runtime.errors import MambaPoseError

Headings = tuple[tuple[str, tuple[str, ...]], ...]


class GroupedCommand(click.Command):
    """A command whose help lists the options under headings: (title, parameter names)."""

    headings: Headings = ()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each heading in the order given there."""
        params: dict[str | None, click.Parameter] = {param.name: param for param in self.params}
        if (asked := self.get_help_option(ctx)) is not None:
            params["help"] = asked  # its own name depends on the version of click
        for title, names in self.headings:
            records = [params[name].get_help_record(ctx) for name in names]
            with formatter.section(title):
                formatter.write_dl([record for record in records if record is not None])


def run_command(
    command: click.Command, args: list[str] | None, name: str, *, interrupted: str = "interrupted"
) -> None:
    """Run a command: our errors are one line and exit 1, usage errors exit 2, Ctrl-C exits 130."""
    try:
        code = command.main(args, prog_name=name, standalone_mode=False)
    except MambaPoseError as err:
        click.echo(f"error: {err}", err=True)
        sys.exit(1)
    except click.ClickException as err:
        err.show()
        sys.exit(err.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo(interrupted, err=True)
        sys.exit(130)
    if isinstance(code, int) and code:
        sys.exit(code)
