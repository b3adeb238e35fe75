"""``mp-check``: what this machine can do, and whether a bundle is right on it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from mambapose.runtime.errors import MambaPoseError

EPILOG = "Example: mp-check bundle --report check.txt"


@click.command(epilog=EPILOG)
@click.argument("bundle", required=False, type=Path)
@click.option("--report", metavar="FILE", type=Path, help="Also write everything to one file.")
def command(bundle: Path | None, report: Path | None) -> None:
    """Say what is installed and run one kernel on each backend present.

    With BUNDLE, also verify its files and run every graph against the outputs stored in it.
    Exits with 1 when anything fails.
    """
    from mambapose.runtime.check import bundle_findings, machine_findings

    findings = []
    for source in (machine_findings(), bundle_findings(bundle) if bundle else ()):
        for finding in source:
            findings.append(finding)
            click.echo(str(finding))
    failed = [finding.subject for finding in findings if finding.ok is False]
    verdict = f"failed: {', '.join(dict.fromkeys(failed))}" if failed else "all checks passed"
    click.echo(verdict)
    if report is not None:
        from mambapose.runtime.check import write_report

        write_report(report, findings, verdict)
        click.echo(f"wrote {report}")
    if failed:
        raise SystemExit(1)


def main(args: list[str] | None = None) -> None:
    """Entry point: our errors are one line and exit 1, Ctrl-C exits 130."""
    try:
        command(args, prog_name="mp-check", standalone_mode=False)
    except MambaPoseError as err:
        click.echo(f"error: {err}", err=True)
        sys.exit(1)
    except click.ClickException as err:
        err.show()
        sys.exit(err.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
