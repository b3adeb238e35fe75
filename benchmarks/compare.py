"""What ``mp-bench`` does: measure, print, write."""

from __future__ import annotations

from pathlib import Path

import click

from mambapose.benchmarks import comparison, report
from mambapose.benchmarks.jobs import Job
from mambapose.runtime.bundle import read_bundle


def bench(
    engine: Path,
    vs: str | None,
    job: Job,
    sweep: bool,
    budget: str | None,
    json_file: Path | None,
    plot_file: Path | None,
) -> bool:
    """Print the table; write what was asked for. False when the budget is not kept."""
    limits = report.limits_from_text(budget) if budget else report.Limits()
    bundle = read_bundle(engine)
    rows = comparison.compare(bundle, vs, job, sweep=sweep and vs is not None, tell=click.echo)
    about = {**report.machine(), "backend": job.backend, "bundle": bundle.hash}
    click.echo(f"{about['cpu']}, {job.backend}, {job.threads} threads, commit {about['commit']}")
    for line in report.table(rows):
        click.echo(line)
    for line in report.ratios(rows, comparison.TIERS, vs):
        click.echo(line)
    verdicts = report.verdicts(rows, limits)
    for sentence, kept in verdicts:
        click.echo(f"{sentence} {'ok' if kept else 'FAIL'}")
    if json_file is not None:
        report.write_json_lines(rows, json_file, about)
        click.echo(f"wrote {len(rows)} rows to {json_file}")
    if plot_file is not None:
        report.plot(rows, plot_file)
        click.echo(f"wrote {plot_file}")
    return all(kept for _, kept in verdicts)


def bench_scan(json_file: Path | None) -> bool:
    """Print the operator's bars; False when one is missed."""
    from mambapose.benchmarks import scan

    rows = scan.run()
    for line in scan.table(rows):
        click.echo(line)
    if json_file is not None:
        scan.write_json_lines(rows, json_file, report.machine())
        click.echo(f"wrote {len(rows)} rows to {json_file}")
    return all(row["ok"] for row in rows)
