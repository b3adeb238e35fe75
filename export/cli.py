"""``mp-export``: official checkpoints to a bundle that ``mp-run`` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mambapose.runtime.commands import GroupedCommand, run_command
from mambapose.runtime.stages.table import MODEL

EPILOG = (
    "Example: mp-export --target cpu --weights flow=raft-small.pth "
    "--download depth-anything-v2-small --download yolox-nano --untrained --out bundle"
)


class ExportCommand(GroupedCommand):
    """mp-export's help."""

    headings = (
        ("What", ("target", "only", "pose2d", "lift3d", "flow", "depth", "detect", "precision")),
        ("A network of your own", ("model", "inputs", "outputs", "stage", "no_rewrite")),
        ("Weights", ("weights", "weights_keys", "download", "untrained", "seed")),
        ("Sizes", ("size", "flow_iters", "clip_frames", "flip")),
        ("Output", ("out", "overwrite", "dry_run", "verbose", "help")),
    )


def _pairs(
    context: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """The dict of STAGE=VALUE strings."""
    pairs: dict[str, str] = {}
    for value in values:
        stage, equals, text = value.partition("=")
        if not (stage and equals and text):
            raise click.BadParameter(f"{value!r} is not of the form {param.metavar}")
        if stage in pairs:
            raise click.BadParameter(f"{stage} is given twice")
        pairs[stage] = text
    return pairs


def _weights(
    context: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """STAGE=VALUE strings as a dict; a VALUE alone, for --model, under MODEL."""
    if len(values) == 1 and "=" not in values[0]:
        return {MODEL: values[0]}
    return _pairs(context, param, values)


def _sizes(
    context: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> dict[str, tuple[int, int]]:
    """STAGE=HxW strings as (height, width)."""
    sizes: dict[str, tuple[int, int]] = {}
    for stage, text in _pairs(context, param, values).items():
        sides = text.lower().split("x")
        if len(sides) != 2 or not all(side.isascii() and side.isdigit() for side in sides):
            raise click.BadParameter(f"{text!r} is not HxW, such as 192x256")
        sizes[stage] = (int(sides[0]), int(sides[1]))
    return sizes


@click.command(cls=ExportCommand, epilog=EPILOG)
@click.option("--target", default="cpu", show_default=True, help="Device preset.")
@click.option("--only", multiple=True, metavar="STAGE", help="Export this stage alone; repeatable.")
@click.option("--pose2d", metavar="NAME", help="2D pose network.")
@click.option("--lift3d", metavar="NAME|none", help="2D-to-3D lifter.")
@click.option("--flow", metavar="NAME|none", help="Optical flow network.")
@click.option("--depth", metavar="NAME|none", help="Depth network.")
@click.option("--detect", metavar="FILE", type=Path, help="Person detector, an ONNX file (YOLOX).")
@click.option("--precision", type=click.Choice(["fp32"]), help="Number format of the graphs.")
@click.option(
    "--model",
    metavar="MODULE:NAME",
    help="Function or class of yours that makes a network, found from this folder or PYTHONPATH.",
)
@click.option(
    "--inputs",
    multiple=True,
    metavar="NAME:TYPE:SIDES",
    help="Input of --model, such as x:float32:N,243,17,2; a name is a free side; repeatable.",
)
@click.option("--outputs", metavar="NAMES", help="Names of its outputs, with commas between.")
@click.option(
    "--stage",
    metavar="NAME",
    help="Its place in the pipeline: flow, depth, pose2d or lift3d  [default: none]",
)
@click.option("--no-rewrite", is_flag=True, help="Keep its flips and copies of tokens as written.")
@click.option(
    "--weights",
    multiple=True,
    metavar="STAGE=FILE",
    callback=_weights,
    help="Checkpoint of a stage, in place of the one that ships; repeatable. FILE for --model.",
)
@click.option(
    "--weights-key",
    "weights_keys",
    multiple=True,
    metavar="STAGE=KEY",
    callback=_weights,
    help="Entry of that file to take, such as model_ema; KEY alone where there is one file.",
)
@click.option(
    "--download",
    multiple=True,
    metavar="NETWORK",
    help="Fetch this network's official weights and use them; repeatable.",
)
@click.option("--untrained", is_flag=True, help="Random weights for stages that have none.")
@click.option("--seed", default=0, show_default=True, help="Of random weights and test inputs.")
@click.option(
    "--size",
    multiple=True,
    metavar="STAGE=HxW",
    callback=_sizes,
    help="Input size of flow, depth or pose2d; repeatable.",
)
@click.option("--flow-iters", type=int, metavar="N", help="Updates of the flow per frame.")
@click.option("--clip-frames", type=int, metavar="T", help="Window of the lifter.")
@click.option("--flip", is_flag=True, help="Lift each clip and its mirror image, and average.")
@click.option("--out", type=Path, metavar="DIR", help="Bundle folder  [default: bundle-TARGET]")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is there.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("-v", "--verbose", is_flag=True, help="Print the plan before the work.")
def command(out: Path | None, overwrite: bool, dry_run: bool, verbose: bool, **asked: Any) -> None:
    """Turn checkpoints into a bundle: ONNX graphs, checked against torch, with their weights."""
    from mambapose.export.plan import make_plan
    from mambapose.runtime.targets import target_from_name

    names = ("model", "inputs", "outputs", "stage", "no_rewrite")
    own = {name: asked.pop(name) for name in names}
    if own["model"] is not None:
        _export_own(own, asked, out, overwrite)
        return
    if given := [name for name, value in own.items() if value]:
        raise click.UsageError(f"--{given[0].replace('_', '-')} belongs to --model MODULE:NAME")
    if MODEL in asked["weights"]:
        raise click.UsageError(f"--weights STAGE=FILE was wanted, found {asked['weights'][MODEL]}")
    if _fetched_alone(asked["download"], dry_run):
        return
    target = target_from_name(asked.pop("target"))
    plan = make_plan(target, _options(asked))
    for note in plan.notes:
        click.echo(note)
    if dry_run or verbose:
        click.echo("\n".join(plan.lines()))
    if dry_run:
        _check_files(plan)
    else:
        _export(plan, out or Path(f"bundle-{target.name}"), overwrite)


def _export_own(
    own: dict[str, Any], asked: dict[str, Any], out: Path | None, overwrite: bool
) -> None:
    """Export a network of the user's own, alone or in its stage among the networks that ship."""
    from mambapose.runtime.bundle.entries import MANIFEST
    from mambapose.runtime.bundle.staging import check_destination
    from mambapose.runtime.targets import target_from_name

    weights, keys = asked.pop("weights"), asked.pop("weights_keys")
    allowed = ("target", "seed", "precision", "verbose")
    others = [name for name, value in asked.items() if value and name not in allowed]
    others += [f"weights {stage}=..." for stage in weights if stage != MODEL]
    others += [f"weights-key {stage}=..." for stage in keys if stage != MODEL or not weights]
    if others:
        raise click.UsageError(f"--{others[0].replace('_', '-')} has no meaning beside --model")
    out = out or Path(f"bundle-{own['stage'] or MODEL}")
    check_destination(out, overwrite=overwrite, marker=MANIFEST)
    _check_installed()
    from mambapose.export.own_model.build import OwnModel, build_own_model
    from mambapose.export.own_model.network import inputs_from_texts

    names = (own["outputs"] or "").split(",")
    own_model = OwnModel(
        own["model"], inputs_from_texts(own["inputs"]), tuple(filter(None, map(str.strip, names))),
        own["stage"] or MODEL, Path(weights[MODEL]) if weights else None, seed=asked["seed"],
        rewrite=not own["no_rewrite"], weights_key=keys.get(MODEL),
    )  # fmt: skip
    target = target_from_name(asked["target"])
    build_own_model(own_model, target, out, folder=Path.cwd(), overwrite=overwrite, tell=click.echo)
    click.echo(f"wrote {out}")
    alone = own_model.stage == MODEL
    click.echo(
        f"next: mp-check {out}" if alone else f"next: mp-run --engine {out} VIDEO -o results"
    )


def _fetched_alone(asked: tuple[str, ...], dry_run: bool) -> bool:
    """Whether --download names weights of no stage; then they are fetched and no bundle is made."""
    from mambapose.export.official_files import wanted_sources

    sources = wanted_sources(asked)
    if not sources or sources[0].stage is not None:
        return False
    (source,) = sources
    click.echo(f"{source.name}: no stage of a bundle, a training starts from it; nothing exported")
    if dry_run:
        click.echo(f"{source.name}: download {source}")
        return True
    _check_installed()
    from mambapose.export.download import download

    download(source, click.echo)
    return True


def _options(asked: dict[str, Any]) -> Any:
    """The ExportOptions of the command line."""
    from mambapose.export.plan import ExportOptions, default_networks

    networks = {stage: asked.pop(stage) for stage in default_networks()}
    weights = {stage: Path(file) for stage, file in asked.pop("weights").items()}
    keys = asked.pop("weights_keys")
    if MODEL in keys:
        if len(weights) != 1:
            raise click.UsageError(f"--weights-key STAGE=KEY was wanted, found {keys[MODEL]}")
        keys = {stage: keys[MODEL] for stage in weights}
    return ExportOptions(
        networks={stage: name for stage, name in networks.items() if name is not None},
        weights=weights,
        weights_keys=keys,
        sizes=asked.pop("size"),
        **asked,
    )


def _check_files(plan: Any) -> None:
    """Refuse the checkpoints that an export would refuse."""
    given = [stage for stage in plan.stages if stage.weights is not None and not stage.shipped]
    if not given:
        return
    _check_installed()
    from mambapose.export.build import load_network

    for stage in given:
        load_network(stage, plan.seed, click.echo)


def _export(plan: Any, out: Path, overwrite: bool) -> None:
    """Build the bundle and say what was written."""
    import time

    start = time.perf_counter()
    from mambapose.export.build import build_bundle, compiled_operator
    from mambapose.runtime.backends.native import slow_notice
    from mambapose.runtime.bundle.entries import MANIFEST
    from mambapose.runtime.bundle.staging import check_destination

    check_destination(out, overwrite=overwrite, marker=MANIFEST)  # before minutes of work
    _check_installed()
    bundle = build_bundle(plan, out, overwrite=overwrite, tell=click.echo)
    if compiled_operator() is None and any(s.scan_spec for s in bundle.stages.values()):
        click.echo(slow_notice(), err=True)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if random := bundle.untrained_stages:
        click.echo(f"untrained: {', '.join(random)} (random weights, results are meaningless)")
    click.echo(
        f"wrote {out}: {', '.join(bundle.stages)}, {size / 2**20:.1f} MiB, "
        f"{time.perf_counter() - start:.0f} s"
    )
    click.echo(f"next: mp-run --engine {out} VIDEO -o results")


def _check_installed() -> None:
    """Refuse in one line, instead of a traceback, when the export extra is missing."""
    from importlib.util import find_spec

    from mambapose.runtime.errors import ExportError

    missing = [
        name
        for name in ("torch", "onnx", "onnxscript", "onnxruntime", "filelock")
        if not find_spec(name)
    ]
    if missing:
        raise ExportError(
            f"exporting needs {', '.join(missing)}, which is not installed; "
            "run: pip install 'mambapose[export]'"
        )


def main(args: list[str] | None = None) -> None:
    """Entry point of mp-export."""
    run_command(command, args, "mp-export", interrupted="interrupted: nothing was written")


if __name__ == "__main__":
    main()
