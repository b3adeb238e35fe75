"""From a bundle to a pipeline: which graphs a clip needs, and the engines that run them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from mambapose.runtime.backends.engine import Engine
from mambapose.runtime.backends.loader import load_engine, load_file
from mambapose.runtime.bundle.bundle import MANIFEST, Bundle, StageEntry
from mambapose.runtime.errors import BundleError
from mambapose.runtime.pipeline import Options, Pipeline, dense_inputs
from mambapose.runtime.stages.causal_lifting import STEP
from mambapose.runtime.stages.flow import GRAPHS, PAIR, FlowStage
from mambapose.runtime.stages.lifting import BODY_HEIGHTS, IMAGE_UNITS
from mambapose.runtime.types import Size, Where

OURS = ("mambapose3d", "posemagic")  # lifters of our own definition
SHIPPED = Path(__file__).parent / "data" / "cpu"


def shipped_bundle() -> Path:
    """The folder of the bundle that comes with the package; BundleError when it is not there."""
    if not (SHIPPED / MANIFEST).is_file():
        raise BundleError(
            f"the bundle that ships with mambapose was wanted at {SHIPPED}, found none; install "
            "mambapose again (in a source tree: make weights), or give --engine BUNDLE"
        )
    return SHIPPED


def open_pipeline(
    bundle: Bundle,
    size: Size,
    options: Options | None = None,
    where: Where | None = None,
    *,
    detector: Path | None = None,
) -> Pipeline:
    """The pipeline of a bundle for frames of that size.

    detector: an ONNX file that replaces the bundle's own, if any. What the bundle knows of the
    weights (trained, unit of the lifter) replaces what ``options`` says of them.
    """
    options = options or Options()
    engines: dict[str, Engine] = {}
    try:
        for key, stage, graph in needed_graphs(bundle, size, options):
            if key == "detect" and detector is not None:
                continue
            engines[key] = load_engine(bundle, stage, graph, where)
        if detector is not None:
            engines["detect"] = load_file(detector, where)
        known = replace(
            options,
            trained=bundle.stage("pose2d").weights.trained,
            lift_unit=lift_unit(bundle),
        )
        return Pipeline(engines, bundle.schedule, known)
    except BaseException:
        for engine in engines.values():
            engine.close()
        raise


@contextmanager
def opened_flow(
    bundle: Bundle, *, portrait: bool, where: Where | None = None
) -> Iterator[FlowStage]:
    """The flow stage of a bundle for pictures of that orientation; BundleError without one."""
    if "flow" not in bundle.stages:
        raise BundleError(
            f"a bundle with a flow stage was wanted, {bundle.path} holds: "
            f"{', '.join(bundle.stages)}; export with --weights flow=FILE"
        )
    with ExitStack() as stack:
        parts: dict[str, Engine] = {}
        for base, graph in flow_graphs(bundle, portrait=portrait).items():
            parts[base] = load_engine(bundle, "flow", graph, where)
            stack.enter_context(parts[base])
        yield FlowStage(parts, bundle.schedule.flow_iters)


def needed_graphs(bundle: Bundle, size: Size, options: Options) -> list[tuple[str, str, str]]:
    """(engine name, stage, graph) of every graph to load, in the order of the frame's journey."""
    portrait = size.portrait
    takers = [name for name in ("pose2d", "lift3d") if name in bundle.stages]
    wanted = dense_inputs(
        graph.spec for name in takers for graph in bundle.stages[name].graphs.values()
    )
    needed = []
    if "detect" in bundle.stages:
        needed.append(("detect", "detect", "main"))
    if options.flow and "flow" in bundle.stages and "flow" in wanted:
        graphs = flow_graphs(bundle, portrait=portrait)
        needed += [(f"flow.{base}", "flow", graph) for base, graph in graphs.items()]
    if options.depth and "depth" in bundle.stages and "depth" in wanted:
        graph = oriented_graph(bundle.stages["depth"], "depth", "main", portrait=portrait)
        needed.append(("depth", "depth", graph))
    bundle.graph("pose2d", "main")  # the one stage that must be there
    if "encode" in bundle.stages["pose2d"].graphs:
        needed.append(("pose2d.encode", "pose2d", "encode"))
    needed.append(("pose2d", "pose2d", "main"))
    if "lift3d" in bundle.stages:
        causal = STEP in bundle.stages["lift3d"].graphs
        needed.append(("lift3d", "lift3d", STEP if causal else "main"))
    return needed


def flow_graphs(bundle: Bundle, *, portrait: bool) -> dict[str, str]:
    """Part of the flow stage -> graph that suits the clip: RAFT's four, or that of both images."""
    stage = bundle.stages["flow"]
    alone = any(graph.partition("@")[0] == PAIR for graph in stage.graphs)
    return {
        base: oriented_graph(stage, "flow", base, portrait=portrait)
        for base in ((PAIR,) if alone else GRAPHS)
    }


def oriented_graph(stage: StageEntry, name: str, base: str, *, portrait: bool) -> str:
    """The graph ``base`` or ``base@HxW`` of a stage whose shape suits the clip."""
    sizes: Mapping[str, tuple[int, int]] = {
        graph: _size(graph) for graph in stage.graphs if graph.partition("@")[0] == base
    }
    if not sizes:
        raise BundleError(
            f"graph {base} of stage {name} was wanted, the bundle holds: "
            f"{', '.join(stage.graphs)}; export the bundle again with mp-export"
        )
    suits = [g for g, (h, w) in sizes.items() if h == w or (h > w) == portrait]
    return (suits or list(sizes))[0]


def _size(graph: str) -> tuple[int, int]:
    """(H, W) of ``base@HxW``; equal sides for a graph without a size."""
    height, _, width = graph.partition("@")[2].partition("x")
    return (int(height), int(width)) if height.isdigit() and width.isdigit() else (1, 1)


def lift_unit(bundle: Bundle) -> str:
    """The unit of the lifter's answer: what the bundle says, else that of the network's weights.

    PoseMamba's published weights answer in the unit of their 2D input, ours in body heights.
    """
    if "lift3d" not in bundle.stages:
        return BODY_HEIGHTS
    stage = bundle.stages["lift3d"]
    usual = BODY_HEIGHTS if stage.network.startswith(OURS) else IMAGE_UNITS
    return str(stage.options.get("unit", usual))
