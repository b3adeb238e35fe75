"""From a bundle to a pipeline: which graphs a clip needs, and the engines that run them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from mambapose.runtime.backends.engine import Engine
from mambapose.runtime.backends.loader import load_engine, load_file
from mambapose.runtime.bundle.bundle import ignored_code
from mambapose.runtime.bundle.entries import MANIFEST, Bundle
from mambapose.runtime.errors import BundleError
from mambapose.runtime.pipeline import Pipeline, engine_name
from mambapose.runtime.run_options import RunOptions
from mambapose.runtime.stages.contracts import check_contract
from mambapose.runtime.stages.flow import FlowStage
from mambapose.runtime.stages.joints import BODY_HEIGHTS, IMAGE_UNITS
from mambapose.runtime.stages.table import DETECT, MODEL, STAGES, whole_frame_inputs
from mambapose.runtime.text import printable
from mambapose.runtime.types import GraphName, GraphSpec, Size, Where

SHIPPED = Path(__file__).parent / "data" / "cpu"


def shipped_bundle() -> Path:
    """The folder of the bundle that comes with the package; BundleError when it is not there."""
    if not (SHIPPED / MANIFEST).is_file():
        raise BundleError(
            f"the bundle that ships with mambapose was wanted at {SHIPPED}, found none; install "
            "mambapose again (in a source tree: make weights), or give --engine BUNDLE"
        )
    return SHIPPED


class IgnoredCodeWarning(UserWarning):
    """A library or program was not loaded: it lies in a bundle, or nothing has a use for it."""


def check_contracts(bundle: Bundle, graphs: Iterable[tuple[str, str]]) -> None:
    """MismatchError unless the graphs (stage, name) of a bundle fit their stages."""
    stages: dict[str, dict[str, GraphSpec]] = {}
    for stage, graph in graphs:
        base = GraphName.parse(graph).base
        stages.setdefault(stage, {})[base] = bundle.graph(stage, graph).spec
    for stage, specs in stages.items():
        check_contract(stage, specs)


def open_pipeline(
    bundle: Bundle,
    size: Size,
    options: RunOptions | None = None,
    where: Where | None = None,
    *,
    detector: Path | None = None,
) -> Pipeline:
    """The pipeline of a bundle for frames of ``size``.

    detector: an ONNX file to use instead of the bundle's detector, if it has one. ``trained`` and
    ``lift_unit`` of the options are replaced by what the bundle says about its weights. Libraries
    in the bundle's folder are not loaded; an IgnoredCodeWarning says so. MismatchError when the
    graphs do not take and give what their stages need.
    """
    options = options or RunOptions()
    if (ignored := ignored_code(bundle)) is not None:
        warnings.warn(ignored, IgnoredCodeWarning, stacklevel=2)
    needed = [
        (key, stage, graph)
        for key, stage, graph in needed_graphs(bundle, size, options)
        if not (stage == DETECT and detector is not None)
    ]
    check_contracts(bundle, [(stage, graph) for _, stage, graph in needed])
    operator = where.operator if where is not None else None
    if operator is not None and not any(bundle.stages[s].scan_spec for _, s, _ in needed):
        warnings.warn(
            f"no network here has a selective scan: {printable(str(operator))} is not loaded",
            IgnoredCodeWarning,
            stacklevel=2,
        )
    engines: dict[str, Engine] = {}
    try:
        for key, stage, graph in needed:
            engines[key] = load_engine(bundle, stage, graph, where)
        if detector is not None:
            engines[DETECT] = load_file(detector, where)
        known = replace(
            options,
            trained=bundle.stage("pose2d").weights.trained,
            lift_unit=lift_unit(bundle),
        )
        return Pipeline(engines, bundle.schedule, known, size)
    except BaseException:
        for engine in engines.values():
            engine.close()
        raise


@contextmanager
def opened_flow(
    bundle: Bundle, *, portrait: bool, where: Where | None = None
) -> Iterator[FlowStage]:
    """The flow stage of a bundle for pictures of one orientation; BundleError when it has none."""
    if "flow" not in bundle.stages:
        raise BundleError(
            f"a bundle with a flow stage was wanted, {bundle.path} holds: "
            f"{', '.join(bundle.stages)}; export with --weights flow=FILE"
        )
    with ExitStack() as stack:
        parts: dict[str, Engine] = {}
        graphs = clip_graphs(bundle, "flow", portrait=portrait)
        check_contracts(bundle, [("flow", graph) for graph in graphs.values()])
        for base, graph in graphs.items():
            parts[base] = load_engine(bundle, "flow", graph, where)
            stack.enter_context(parts[base])
        yield FlowStage(parts, bundle.schedule.flow_iters)


def needed_graphs(bundle: Bundle, size: Size, options: RunOptions) -> list[tuple[str, str, str]]:
    """(engine name, stage, graph) of every graph that is needed for a clip of that size.

    Flow and depth are left out when no other network has them as an input, or when ``options``
    turns them off.
    """
    bundle.graph("pose2d", "main")  # the one stage that must be there
    present = [STAGES[name] for name in STAGES if name in bundle.stages]
    wanted = whole_frame_inputs(
        *(
            graph.spec
            for stage in present
            if stage.inputs and not stage.whole_frame
            for graph in bundle.stages[stage.name].graphs.values()
        )
    )
    return [
        (engine_name(stage.name, base), stage.name, graph)
        for stage in present
        if stage.name != MODEL
        if stage.name != DETECT or options.detect
        if not stage.whole_frame or (stage.name in wanted and getattr(options, stage.name))
        for base, graph in clip_graphs(bundle, stage.name, portrait=size.portrait).items()
    ]


def clip_graphs(bundle: Bundle, stage: str, *, portrait: bool) -> dict[str, str]:
    """Base name of each graph of the stage -> the graph's name in the bundle for this orientation.

    A bundle may hold a graph once for landscape and once for portrait (``encode@192x256``).
    BundleError tells which graphs there are when one is missing.
    """
    entry = bundle.stage(stage)
    sizes = [
        name
        for name in map(GraphName.parse, entry.graphs)
        if name.size is None or STAGES[stage].both_orientations
    ]
    chosen: dict[str, str] = {}
    for base in STAGES[stage].form({name.base for name in sizes}):
        found = [name for name in sizes if name.base == base]
        if not found:
            raise BundleError(
                f"graph {base} of stage {stage} was wanted, the bundle holds: "
                f"{', '.join(entry.graphs)}; export the bundle again with mp-export"
            )
        suits = [n for n in found if n.size is None or _suits(n.size, portrait=portrait)]
        chosen[base] = str((suits or found)[0])
    return chosen


def _suits(size: Size, *, portrait: bool) -> bool:
    return size.height == size.width or size.portrait == portrait


def lift_unit(bundle: Bundle) -> str:
    """The unit of the lifter's 3D joints: BODY_HEIGHTS or IMAGE_UNITS.

    BODY_HEIGHTS when the bundle has no lifter. BundleError when the bundle does not say.
    """
    if "lift3d" not in bundle.stages:
        return BODY_HEIGHTS
    found = bundle.stages["lift3d"].options.get("unit")
    if found not in (BODY_HEIGHTS, IMAGE_UNITS):
        raise BundleError(
            f"unit {BODY_HEIGHTS} or {IMAGE_UNITS} was wanted among the options of stage lift3d, "
            f"{bundle.path} has {found!r}; export the bundle again with mp-export"
        )
    return str(found)
