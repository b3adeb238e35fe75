"""``mp-bench``: memory and latency of bundles, and the bars of the selective scan."""

from __future__ import annotations

from pathlib import Path

import click

from mambapose.runtime.commands import run_command

EPILOG = "Example: mp-bench --engine build/bundles/cpu --vs vitpose-b --plot bench.png"


@click.group(invoke_without_command=True, epilog=EPILOG)
@click.option("--engine", metavar="BUNDLE", type=Path, help="Bundle folder to measure.")
@click.option("--vs", metavar="BUNDLE|NAME", help="Baseline: a bundle, or a network name.")
@click.option("--backend", default="onnxruntime", show_default=True, help="Backend of both sides.")
@click.option("--device", default="cpu", show_default=True, help="Device of both sides.")
@click.option("--threads", default=2, show_default=True, help="Threads inside one graph.")
@click.option("--iterations", default=20, show_default=True, help="Calls measured, at least.")
@click.option("--sweep/--no-sweep", default=True, show_default=True, help="Sweep sizes and T.")
@click.option("--budget", metavar="33ms,4GiB", help="Limits of the pipeline: pass or fail.")
@click.option("--json", "json_file", metavar="FILE", type=Path, help="Append JSON lines here.")
@click.option("--plot", "plot_file", metavar="FILE", type=Path, help="Write one PNG here.")
@click.pass_context
def command(
    context: click.Context,
    engine: Path | None,
    vs: str | None,
    backend: str,
    device: str,
    threads: int,
    iterations: int,
    sweep: bool,
    budget: str | None,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Measure a bundle, each row in a fresh process, beside a baseline.

    Memory is the peak above an empty backend process. `mp-bench scan` measures the operator.
    """
    if context.invoked_subcommand is not None:
        return
    if engine is None:
        raise click.UsageError("give --engine BUNDLE, or the subcommand `scan`")
    from mambapose.benchmarks.compare import bench
    from mambapose.benchmarks.jobs import Job

    job = Job("stages", backend=backend, device=device, threads=threads, iterations=iterations)
    if not bench(engine, vs, job, sweep, budget, json_file, plot_file):
        raise SystemExit(1)


@command.command()
@click.option("--json", "json_file", metavar="FILE", type=Path, help="Append JSON lines here.")
def scan(json_file: Path | None) -> None:
    """The selective scan against its yardsticks, one thread, ratios of one run."""
    from mambapose.benchmarks.compare import bench_scan

    if not bench_scan(json_file):
        raise SystemExit(1)


def main(args: list[str] | None = None) -> None:
    """Entry point of mp-bench."""
    run_command(command, args, "mp-bench")


if __name__ == "__main__":
    main()
