"""What ``mp-bench`` does: measure, print, write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mambapose.benchmarks import comparison, report, sweeps
from mambapose.benchmarks.jobs import Job, Row
from mambapose.benchmarks.report import say
from mambapose.benchmarks.sides import measure_all
from mambapose.runtime.bundle.bundle import read_bundle
from mambapose.runtime.loading import shipped_bundle


def bench(
    engine: Path,
    vs: Sequence[str],
    job: Job,
    sweep: bool,
    budget: str | None,
    json_file: Path | None,
    plot_file: Path | None,
) -> bool:
    """Whether the budget is kept; prints the table and writes what was asked for."""
    limits = report.limits_from_text(budget) if budget else report.Limits()
    bundle = read_bundle(engine)
    rows = comparison.compare(bundle, vs, job, sweep=sweep and bool(vs), tell=say)
    names = [comparison.shown_name(name) for name in vs]
    sentences = [*report.ratios(rows, comparison.TIERS, names), *sweeps.ratios(rows)]
    show(rows, sentences, job, {"bundle": bundle.hash}, json_file)
    if plot_file is not None:
        report.plot(rows, plot_file)
        say(f"wrote {plot_file}")
    verdicts = report.verdicts(rows, limits)
    for sentence, kept in verdicts:
        say(f"{sentence} {'ok' if kept else 'FAIL'}")
    return all(kept for _, kept in verdicts)


def bench_networks(
    names: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    clips: Sequence[int],
    job: Job,
    json_file: Path | None,
) -> None:
    """Print the table of the networks over their sizes; write what was asked for.

    Without names: the networks of the bundle that ships and those that are compared by default.
    """
    candidates = sweeps.candidate_list(names)
    if not names:
        candidates = sweeps.default_candidates(read_bundle(shipped_bundle()))
    # Listed first: an export that fails shows before minutes of measuring.
    sides = list(sweeps.sides(candidates, sizes, clips))
    rows = measure_all(sides, job, say)
    show(rows, sweeps.ratios(rows), job, {}, json_file)


def show(
    rows: Sequence[Row],
    sentences: Iterable[str],
    job: Job,
    about: Mapping[str, object],
    json_file: Path | None,
) -> None:
    """Print the machine, the table and the sentences; append the rows to the file."""
    about = {**report.machine(), "backend": job.where.backend, **about}
    say(
        f"{about['cpu']}, {job.where.backend}, {job.where.thread_count} threads, "
        f"commit {about['commit']}"
    )
    for line in (*report.table(rows), *sentences):
        say(line)
    if json_file is not None:
        report.write_json_lines(rows, json_file, about)
        say(f"wrote {len(rows)} rows to {json_file}")


def bench_scan(json_file: Path | None) -> bool:
    """Whether every bar of the operator is kept; prints them."""
    from mambapose.benchmarks import scan

    rows = scan.run()
    for line in scan.table(rows):
        say(line)
    if json_file is not None:
        scan.write_json_lines(rows, json_file, report.machine())
        say(f"wrote {len(rows)} rows to {json_file}")
    return all(row["ok"] for row in rows)
