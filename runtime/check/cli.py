"""``mp-check``: what this machine can do, and whether a bundle is right on it."""

from __future__ import annotations

from pathlib import Path

import click

from mambapose.runtime.bundle.gate_file import MAX_ARRAY_MIB
from mambapose.runtime.commands import run_command
from mambapose.runtime.options import FilePath
from mambapose.runtime.text import printable

EPILOG = "Example: mp-check bundle --report check.txt"


@click.command(epilog=EPILOG)
@click.argument("bundle", required=False, type=Path)
@click.option(
    "--report", metavar="FILE", type=FilePath(), help="Also write everything to one file."
)
@click.option("--operator", metavar="FILE", type=Path, help="Compiled selective scan to load.")
@click.option(
    "--gate-mib",
    metavar="N",
    type=click.IntRange(1),
    default=MAX_ARRAY_MIB,
    show_default=True,
    help="Largest array of stored outputs that is read.",
)
@click.option("--plugin", is_flag=True, help="Compile the TensorRT plugin even without a GPU.")
def command(
    bundle: Path | None,
    report: Path | None,
    operator: Path | None,
    gate_mib: int,
    plugin: bool,
) -> None:
    """Say what is installed and run one kernel on each backend present.

    Where an NVIDIA GPU and nvcc are, the TensorRT plugin is compiled, which takes minutes the
    first time, and driven on the GPU. With BUNDLE, also verify its files and run every graph
    against the outputs stored in it. Exits with 1 when anything fails.
    """
    from mambapose.runtime.check.machine import bundle_findings, machine_findings

    findings = []
    for source in (
        machine_findings(operator, compile_plugin=plugin),
        bundle_findings(bundle, operator, gate_mib=gate_mib) if bundle else (),
    ):
        for finding in source:
            findings.append(finding)
            click.echo(str(finding))
    failed = [finding.subject for finding in findings if finding.ok is False]
    verdict = f"failed: {', '.join(dict.fromkeys(failed))}" if failed else "all checks passed"
    click.echo(verdict)
    if report is not None:
        from mambapose.runtime.check.machine import write_report

        write_report(report, findings, verdict)
        click.echo(f"wrote {printable(str(report))}")
    if failed:
        raise SystemExit(1)


def main(args: list[str] | None = None) -> None:
    """Entry point of mp-check."""
    run_command(command, args, "mp-check")


if __name__ == "__main__":
    main()
