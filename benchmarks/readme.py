"""README's pictures, from the folder that ``make run`` wrote, and its accuracy table.

    python -m mambapose.benchmarks.readme out --scores FILE [--frame 45]

FILE is what ``mp-bench accuracy --json`` wrote.

docs/overlay.png is a frame of the overlay video; docs/pose3d.png plots the 3D joints of some
frames over the true ones of the sample clip.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from mambapose.benchmarks.accuracy_page import headline
from mambapose.benchmarks.scores import read_scores
from mambapose.runtime.commands import run_command
from mambapose.runtime.errors import OutputError
from mambapose.runtime.skeleton import H36M17
from mambapose.runtime.types import FloatArray
from mambapose.runtime.video.sample import SAMPLE, read_truth
from mambapose.runtime.video.sources import open_source

START, END = "<!-- accuracy of the weights that ship -->", "<!-- end -->"
LEFT, RIGHT, MIDDLE, TRUE = "#d62728", "#2ca02c", "#c9a000", "#bbbbbb"


def overlay_picture(run: Path, frame: int, out: Path) -> None:
    """Write a frame of the overlay video of the run."""
    from PIL import Image

    with open_source(str(overlay_of(run))) as source:
        for shown in source:
            if shown.index == frame:
                Image.fromarray(shown.image).save(out, optimize=True)
                return
    raise OutputError(f"{run}: frame {frame} was wanted, the overlay has fewer; give a lower one")


def overlay_of(run: Path) -> Path:
    """The overlay video of a run; OutputError without one."""
    found = sorted(run.glob("*.mp4"))
    if not found:
        raise OutputError(f"{run}: an overlay video was wanted, found none; run with --overlay")
    return found[0]


def pose_plot(run: Path, frames: list[int], out: Path, *, truth: FloatArray | None) -> None:
    """Plot the first person's 3D joints in some frames; truth: (T, 17, 3), drawn in grey."""
    from matplotlib.figure import Figure

    with np.load(run / "poses.npz", allow_pickle=False) as file:
        joints = dict(zip(file["frame_index"].tolist(), file["xyz"], strict=True))
    drawn = [frame for frame in frames if frame in joints and np.isfinite(joints[frame]).all()]
    if not drawn:
        raise OutputError(f"{run}: 3D joints of frames {frames} were wanted, found none")
    figure = Figure(figsize=(2.2 * len(drawn), 2.8))
    for column, frame in enumerate(drawn):
        axes = figure.add_subplot(1, len(drawn), column + 1, projection="3d")
        if truth is not None:
            _draw(axes, truth[frame], dict.fromkeys(H36M17.edges, TRUE))
        _draw(axes, joints[frame], {edge: _colour(edge) for edge in H36M17.edges})
        _frame(axes, f"frame {frame}")
    figure.savefig(out, dpi=110, bbox_inches="tight")


def _draw(axes: Any, xyz: FloatArray, colours: dict[tuple[int, int], str]) -> None:
    for (a, b), colour in colours.items():
        x, y, z = xyz[[a, b]].T  # y is down: the plot's up is -y, its depth z
        axes.plot(x, z, -y, color=colour, linewidth=2.5, solid_capstyle="round")


def _colour(edge: tuple[int, int]) -> str:
    names = [H36M17.joints[joint] for joint in edge]
    if any(name.startswith("left") for name in names):
        return LEFT
    return RIGHT if any(name.startswith("right") for name in names) else MIDDLE


def _frame(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set(xlim=(-0.45, 0.45), ylim=(-0.45, 0.45), zlim=(-0.55, 0.55))
    axes.set_box_aspect((0.9, 0.9, 1.1), zoom=1.25)
    axes.view_init(elev=12, azim=-65)
    axes.tick_params(labelsize=0, length=0)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_ticklabels([])


def with_table(readme: str, table: str) -> str:
    """The text with the table between its marks; OutputError when it has none."""
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise OutputError(f"README.md: the marks {START} and {END} were wanted, found none")
    return f"{before}{START}\n{table}\n{END}{after}"


@click.command(epilog="Example: python -m mambapose.benchmarks.readme out")
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--scores", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              required=True, help="File of mp-bench accuracy --json.")  # fmt: skip
@click.option("--tree", type=click.Path(exists=True, file_okay=False, path_type=Path),
              default=Path("."), help="The checkout to write into  [default: here]")  # fmt: skip
@click.option("--frame", type=click.IntRange(0), default=45, show_default=True)
@click.option("--frames", default="10,30,45,60,80", show_default=True, help="Of the 3D plot.")
def command(run: Path, scores: Path, tree: Path, frame: int, frames: str) -> None:
    """Renew README's pictures and table from the results of a RUN of the sample clip."""
    docs, readme = tree / "docs", tree / "README.md"
    overlay_picture(run, frame, docs / "overlay.png")
    chosen = [int(part) for part in frames.split(",")]
    pose_plot(run, chosen, docs / "pose3d.png", truth=read_truth(SAMPLE).h36m_xyz)
    table = "\n".join(headline(list(read_scores(scores).values())))
    text = with_table(readme.read_text(encoding="utf-8"), table)
    readme.write_text(text, encoding="utf-8")
    click.echo(f"wrote {docs / 'overlay.png'}, {docs / 'pose3d.png'} and the table of {readme}")


def main(args: list[str] | None = None) -> None:
    """Entry point."""
    run_command(command, args, "readme")


if __name__ == "__main__":
    main()
