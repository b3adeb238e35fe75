"""What every command line has in common: headings in the help, one-line errors, exit codes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

import click

from mambapose.runtime.edges import reason
from mambapose.runtime.errors import MambaPoseError, OutputError
from mambapose.runtime.interrupt import Stopped, exit_code, signals_raise
from mambapose.runtime.text import printable
from mambapose.runtime.version import tool_version

Headings = tuple[tuple[str, tuple[str, ...]], ...]


class GroupedCommand(click.Command):
    """A command whose help lists the options under headings: (title, parameter names).

    The last heading also gets --version and --help.
    """

    headings: Headings = ()

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each heading in the order given there."""
        params: dict[str | None, click.Parameter] = {param.name: param for param in self.params}
        if (asked := self.get_help_option(ctx)) is not None:
            params["help"] = asked  # its own name depends on the version of click
        standard = tuple(name for name in ("version", "help") if name in params)
        for title, names in self.headings:
            if title == self.headings[-1][0]:
                names = (*names, *standard)
            records = [params[name].get_help_record(ctx) for name in names]
            with formatter.section(title):
                formatter.write_dl([record for record in records if record is not None])


def _add_standard_options(command: click.Command) -> None:
    """-h as --help, and --version."""
    command.context_settings.setdefault("help_option_names", ["-h", "--help"])
    if any(param.name == "version" for param in command.params):
        return
    command.params.append(
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_say_version,
            help="Show the version.",
        )
    )


def _say_version(context: click.Context, param: click.Parameter, asked: bool) -> None:
    if asked:
        click.echo(f"{context.find_root().info_name} {tool_version()}")
        context.exit()


def run_command(
    command: click.Command, args: list[str] | None, name: str, *, interrupted: str = "interrupted"
) -> None:
    """Run a command and exit when it has failed.

    Our errors are one line and exit 1, usage errors exit 2. Ctrl-C exits 130, SIGTERM 143 and
    SIGHUP 129, after what was open has been cleaned up. Output that nobody takes (a full disk, a
    pipe whose reader left) exits 1.
    """
    _add_standard_options(command)
    code = 0
    with signals_raise(), _checked_output():
        try:
            ended = command.main(args, prog_name=name, standalone_mode=False)
            sys.stdout.flush()
            code = ended if isinstance(ended, int) else 0
        except MambaPoseError as err:
            tell(f"error: {err}")
            code = 1
        except click.ClickException as err:
            code = _usage_error(err)
        except (KeyboardInterrupt, click.Abort) as err:
            tell(interrupted)
            stopped = err if isinstance(err, Stopped) else err.__cause__ or err.__context__
            number = stopped.number if isinstance(stopped, Stopped) else signal.SIGINT
            code = exit_code(number)  # click makes Abort of KeyboardInterrupt
    if code:
        sys.exit(code)


class _CheckedOutput:
    """Standard output whose failure is an error of ours."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failed = False

    def write(self, text: str) -> int:
        with self._checked():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._checked():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # click ends the command without a word
            raise
        except OSError as err:
            self.failed = True
            raise OutputError(
                f"standard output cannot be written ({reason(err)}); send it elsewhere"
            ) from err


@contextmanager
def _checked_output() -> Iterator[None]:
    before = sys.stdout
    output = _CheckedOutput(before)
    sys.stdout = cast(TextIO, output)
    try:
        yield
    finally:
        sys.stdout = before
        if output.failed:
            # What is in its buffer would fail once more, and without a line, at the very end.
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), before.fileno())


def tell(text: str) -> None:
    """Print one line to stderr; text of others in it cannot steer the terminal."""
    with suppress(OSError):  # nobody reads it; the exit code still tells
        click.echo(printable(text), err=True)


def _usage_error(err: click.ClickException) -> int:
    """Print a usage error as click does, with what the user typed made printable."""
    err.message = printable(err.message)
    with suppress(OSError):
        err.show()
    return err.exit_code
