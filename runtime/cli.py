"""``mp-run``: poses of a video, with an exported bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from mambapose.runtime.commands import GroupedCommand, run_command
from mambapose.runtime.options import FiniteRange
from mambapose.runtime.people.choosing import CENTRE, LARGEST, is_number
from mambapose.runtime.results.files import DEFAULT_FORMATS, WRITERS, names_a_file
from mambapose.runtime.run_options import HEIGHTS_M
from mambapose.runtime.video.pictures import MAX_PIXELS

EPILOG = "Example: mp-run walk.mp4 -o walk --overlay"


class RunCommand(GroupedCommand):
    """mp-run's help."""

    headings = (
        (
            "What",
            ("engine", "frame_range", "detect", "person", "max_people", "height", "max_pixels"),
        ),
        (
            "Speed",
            ("lookahead", "no_flow", "no_depth", "flow_iters", "depth_every", "detect_every"),
        ),
        ("Machine", ("backend", "device", "operator", "threads")),
        ("Output", ("out", "overlay", "formats", "overwrite", "recover", "quiet")),
    )


def _formats(context: click.Context, param: click.Parameter, text: str) -> tuple[str, ...]:
    """json,npz,csv as a tuple."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in WRITERS]
    if unknown or not names:
        raise click.BadParameter(f"{text!r}: choose from {', '.join(WRITERS)}")
    return names


def _person(context: click.Context, param: click.Parameter, text: str | None) -> str | None:
    """largest, centre or the number of a person."""
    if text is None or text in (LARGEST, CENTRE) or is_number(text):
        return text
    raise click.BadParameter(f"{text!r}: choose {LARGEST}, {CENTRE} or the number of a person")


def _check_one_file(out: Path) -> None:
    """UsageError when --out names the one result file and --format asks for others."""
    given = click.get_current_context().get_parameter_source("formats")
    kind = out.suffix.lower().removeprefix(".")
    if given is ParameterSource.COMMANDLINE and names_a_file(out) and kind in WRITERS:
        raise click.UsageError(f"--out {out} names one file; leave out --format, or name a folder")


AT_LEAST_1 = click.IntRange(min=1)


@click.command(cls=RunCommand, epilog=EPILOG)
@click.argument("source", metavar="INPUT", required=False)
@click.option(
    "--engine",
    metavar="BUNDLE",
    type=Path,
    help="Folder that mp-export wrote  [default: the bundle that ships]",
)
@click.option("--range", "frame_range", metavar="A:B", help="Frames A to B-1, or 2s:5s.")
@click.option("--detect", metavar="FILE|none", help="Another detector (YOLOX); none: one person.")
@click.option("--person", metavar="WHO", callback=_person, help="Only largest, centre or number N.")
@click.option(
    "--max-pixels",
    default=MAX_PIXELS,
    metavar="N",
    type=AT_LEAST_1,
    help="Largest picture  [default: 100 million]",
)
@click.option("--max-people", metavar="N", type=AT_LEAST_1, help="At most N people  [default: 10]")
@click.option(
    "--height",
    metavar="METRES",
    type=FiniteRange(*HEIGHTS_M),
    help="Body height: 3D in metres.",
)
@click.option(
    "--lookahead",
    metavar="N",
    type=click.IntRange(min=0),
    help="3D waits for at most N frames; 0 is live.",
)
@click.option("--no-flow", is_flag=True, help="Skip optical flow.")
@click.option("--no-depth", is_flag=True, help="Skip depth.")
@click.option("--flow-iters", metavar="N", type=AT_LEAST_1, help="Flow updates per frame.")
@click.option("--depth-every", metavar="N", type=AT_LEAST_1, help="Frames between depth runs.")
@click.option("--detect-every", metavar="N", type=AT_LEAST_1, help="Frames between detections.")
@click.option(
    "--backend",
    type=click.Choice(["auto", "onnxruntime"]),
    default="auto",
    help="What runs the networks.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", help="Where.")
@click.option("--operator", metavar="FILE", type=Path, help="Compiled selective scan to load.")
@click.option("--threads", metavar="N", type=AT_LEAST_1, help="CPU threads  [default: all cores]")
@click.option(
    "-o", "--out", metavar="DIR|FILE", type=Path, default=Path("out"), help="Default: folder out."
)
@click.option("--overlay", is_flag=True, help="Also a video with the poses drawn in.")
@click.option(
    "--format",
    "formats",
    metavar="LIST",
    default=",".join(DEFAULT_FORMATS),
    callback=_formats,
    help=f"Result files  [{','.join(WRITERS)}]",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier run in the same folder.")
@click.option("--recover", is_flag=True, help="Results of an interrupted run.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
def command(
    source: str | None,
    engine: Path | None,
    recover: bool,
    no_flow: bool,
    no_depth: bool,
    backend: str,
    device: str,
    operator: Path | None,
    threads: int | None,
    **asked: Any,
) -> None:
    """Find the people in INPUT and write their 2D and 3D joints.

    INPUT is a video, a folder of images, a camera (/dev/video0), an rtsp:// address or - (stdin:
    mkv, mpegts, nut, fragmented mp4 or y4m, no raw frames).
    With --detect none one person is assumed, and found by the pose network itself.
    """
    _check_one_file(asked["out"])
    if recover:
        if source is not None and not asked["overlay"]:
            raise click.UsageError("--recover takes INPUT for --overlay only: it reads --out")
        from mambapose.runtime.running import recover_results

        names = ("out", "formats", "overlay", "quiet")
        recover_results(**{name: asked[name] for name in names}, source=source)
        return
    if source is None:
        raise click.UsageError("Missing argument 'INPUT'.")
    from mambapose.runtime.loading import shipped_bundle
    from mambapose.runtime.running import Run, run_video
    from mambapose.runtime.types import Where

    run = Run(
        source=source,
        bundle=engine or shipped_bundle(),
        where=Where(backend, device, threads, operator),
        flow=not no_flow,
        depth=not no_depth,
        **asked,
    )
    raise SystemExit(run_video(run))


def main(args: list[str] | None = None) -> None:
    """Entry point of mp-run."""
    run_command(command, args, "mp-run")


if __name__ == "__main__":
    main()
