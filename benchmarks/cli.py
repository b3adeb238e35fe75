"""``mp-bench``: memory, latency and accuracy of bundles, and the bars of the selective scan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from mambapose.runtime.commands import run_command
from mambapose.runtime.options import FilePath, FiniteRange
from mambapose.runtime.types import Where

PARTS = ("sample", "pose2d", "video", "lift3d")
EPILOG = "Example: mp-bench --vs vitpose-b --plot bench.png"
AT_LEAST_1 = click.IntRange(1)
Measured = Callable[..., None]


def measured(function: Measured) -> Measured:
    """The options of every command that measures networks in processes of their own."""
    options = (
        click.option("--backend", default="onnxruntime", show_default=True, help="Of every row."),
        click.option("--device", default="cpu", show_default=True, help="Of every row."),
        click.option("--operator", metavar="FILE", type=Path, help="Compiled selective scan."),
        click.option(
            "--threads", type=AT_LEAST_1, default=2, show_default=True, help="In one graph."
        ),
        click.option(
            "--iterations", type=AT_LEAST_1, default=20, show_default=True, help="Calls, at least."
        ),
        click.option(
            "--json", "json_file", metavar="FILE", type=FilePath(), help="Add JSON lines."
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


@click.group(invoke_without_command=True, epilog=EPILOG)
@click.option("--engine", metavar="BUNDLE", type=Path, help="Bundle  [default: the one that ships]")
@click.option(
    "--vs",
    multiple=True,
    metavar="BUNDLE|NAME",
    help="Baseline: a bundle, or a network name; repeatable.",
)
@click.option("--sweep/--no-sweep", default=True, show_default=True, help="Sweep sizes and T.")
@click.option("--budget", metavar="33ms,4GiB", help="Limits of the pipeline: pass or fail.")
@measured
@click.option("--plot", "plot_file", metavar="FILE", type=FilePath(), help="Write one PNG here.")
@click.pass_context
def command(
    context: click.Context,
    engine: Path | None,
    vs: tuple[str, ...],
    backend: str,
    device: str,
    operator: Path | None,
    threads: int,
    iterations: int,
    sweep: bool,
    budget: str | None,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Measure a bundle, each row in a fresh process, beside a baseline.

    Memory is the peak above an empty backend process. `mp-bench networks` measures networks over
    window and input size, `mp-bench scan` the operator, `mp-bench accuracy` how right the answers
    are.
    """
    if context.invoked_subcommand is not None:
        return
    from mambapose.benchmarks.bench import bench
    from mambapose.benchmarks.jobs import Job
    from mambapose.runtime.loading import shipped_bundle

    engine = engine or shipped_bundle()
    job = Job("stages", where=Where(backend, device, threads, operator), iterations=iterations)
    if not bench(engine, vs, job, sweep, budget, json_file, plot_file):
        raise SystemExit(1)


@command.command(epilog="Example: mp-bench networks posemamba-s posemamba-b --clip-frames 81,243")
@click.argument("names", nargs=-1, metavar="[NETWORK|BUNDLE]...")
@click.option(
    "--clip-frames", default="27,81,243", show_default=True, metavar="T,T", help="Of lifters."
)
@click.option(
    "--sizes",
    default="256x192,384x288,512x384",
    show_default=True,
    metavar="HxW,HxW",
    help="Of 2D networks.",
)
@measured
def networks(
    names: tuple[str, ...], clip_frames: str, sizes: str, backend: str, device: str,
    operator: Path | None, threads: int, iterations: int, json_file: Path | None,
) -> None:  # fmt: skip
    """Measure lifters over the window T and 2D networks over the input size, each in a fresh
    process: parameters, time of a call and of a frame, peak memory.

    A lifter stands beside a transformer of about its parameters (transformer:PAIRS), a 2D network
    beside ViTPose-S and -B. A network of your own is measured at the size in its BUNDLE. Without
    names: the networks that ship, posemamba-s and mambapose-tiny.
    """
    from mambapose.benchmarks.bench import bench_networks
    from mambapose.benchmarks.jobs import Job
    from mambapose.benchmarks.sweeps import clips_from_text, sizes_from_text

    job = Job("stages", where=Where(backend, device, threads, operator), iterations=iterations)
    asked = sizes_from_text(sizes), clips_from_text(clip_frames)
    bench_networks(names, *asked, job, json_file)


@command.command()
@click.option(
    "--json", "json_file", metavar="FILE", type=FilePath(), help="Append JSON lines here."
)
def scan(json_file: Path | None) -> None:
    """The selective scan against its yardsticks, one thread, ratios of one run."""
    from mambapose.benchmarks.bench import bench_scan

    if not bench_scan(json_file):
        raise SystemExit(1)


@command.command(epilog="Example: mp-bench accuracy --assets assets --json scores.jsonl")
@click.option("--engine", metavar="BUNDLE", type=Path, help="Bundle  [default: the one that ships]")
@click.option(
    "--assets",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with pose2sim-single and cmu-17j; without it only the sample clip.",
)
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="May be repeated.")
@click.option("--quick", is_flag=True, help="Few windows of each held-out activity.")
@click.option("--backend", default="onnxruntime", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--operator", metavar="FILE", type=Path, help="Compiled selective scan.")
@click.option("--threads", type=AT_LEAST_1, help="Threads inside one graph; all cores.")
@click.option(
    "--json", "json_file", metavar="FILE", type=FilePath(), help="Append JSON lines here."
)
@click.option(
    "--baseline",
    metavar="FILE",
    type=click.Path(exists=True, path_type=Path),
    help="Stored JSON lines: exit 1 when anything is worse.",
)
@click.option(
    "--tolerance",
    type=FiniteRange(0, 1),
    default=0.02,
    show_default=True,
    help="PCK may be lower by this; errors higher by this share.",
)
def accuracy(
    engine: Path | None, assets: Path | None,
    only: tuple[str, ...], quick: bool, backend: str, device: str,
    operator: Path | None, threads: int | None,
    json_file: Path | None, baseline: Path | None, tolerance: float,
) -> None:  # fmt: skip
    """Measure how right a bundle's answers are: its graphs, this backend, no torch.

    Parts: sample (the packaged clip, exact truth), pose2d and video (real video, boxes given or
    found), lift3d (known joints). Rendered people are measured from a checkout:
    python -m mambapose.train.pose2d.accuracy.
    """
    from mambapose.benchmarks.accuracy import Material, Report, measure
    from mambapose.runtime.loading import shipped_bundle

    where = Where(backend, device, threads, operator)
    wanted = Report(json_file, baseline, tolerance)
    material = Material(assets, quick)
    if not measure(engine or shipped_bundle(), where, material, only or PARTS, wanted):
        raise SystemExit(1)


def main(args: list[str] | None = None) -> None:
    """Entry point of mp-bench."""
    run_command(command, args, "mp-bench")


if __name__ == "__main__":
    main()
