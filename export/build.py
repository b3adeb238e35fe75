"""From a Plan to a bundle: each network built, loaded, exported, verified, described."""

from __future__ import annotations

import dataclasses
import importlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambapose.export.checkpoints.content import is_file
from mambapose.export.download import download
from mambapose.export.notices import write_notices
from mambapose.export.official_files import SOURCES
from mambapose.export.plan import Plan, StagePlan
from mambapose.export.weights import (
    DETECTOR,
    Card,
    Facts,
    facts_from_file,
    read_card,
    shipped_detector,
)
from mambapose.runtime.backends.native import SPEC, find_library, library_info
from mambapose.runtime.bundle.bundle import file_entry, file_sha256, write_bundle
from mambapose.runtime.bundle.entries import Bundle, FileEntry, GraphEntry, StageEntry, WeightsEntry
from mambapose.runtime.bundle.gate_file import write_gate
from mambapose.runtime.errors import ExportError
from mambapose.runtime.stages.table import STAGES
from mambapose.runtime.types import Array, GraphSpec
from mambapose.runtime.version import tool_version

if TYPE_CHECKING:
    import torch

    from mambapose.export.onnx_export import Rewrite
    from mambapose.export.verify import Exported

Tell = Callable[[str], None]
OPSET = 18


def build_bundle(plan: Plan, out: Path, *, overwrite: bool, tell: Tell, trt: bool = True) -> Bundle:
    """The bundle of the plan; the folder ``out`` is written completely or not at all.

    ``tell`` receives one line per thing done. trt: also write the graphs' form for TensorRT.
    Raises the ExportErrors and BundleErrors of its steps.
    """
    return write_bundle(out, partial(_fill, plan, tell, trt), overwrite=overwrite)


def _fill(plan: Plan, tell: Tell, trt: bool, folder: Path) -> Bundle:
    stages: dict[str, StageEntry] = {}
    detector, source = plan.detect, plan.detect_source
    if source is not None:
        detector = download(source, tell)
    if detector is not None:
        name, licence = detector.stem, source.licence if source is not None else None
        if detector == shipped_detector():
            name, licence = DETECTOR, SOURCES[DETECTOR].licence
        stages["detect"] = entry = add_detector(detector, folder, plan.seed, name, licence)
        tell(f"detect  {name}: layout {entry.options['layout']}")
    # All checkpoints first: a wrong one shows before the minutes of export.
    networks = [load_network(stage, plan.seed, tell) for stage in plan.stages]
    for stage, network in zip(plan.stages, networks, strict=True):
        start = time.perf_counter()
        stages[stage.stage] = entry = export_stage(plan, stage, network, folder, trt=trt)
        tell(
            f"{stage.stage:7} {entry.network}: {len(entry.graphs)} graphs, "
            f"{entry.params / 1e6:.2f} M parameters, {errors_text(entry.gate)}, "
            f"{time.perf_counter() - start:.1f} s"
        )
    return Bundle(
        path=folder,
        tool_version=tool_version(),
        created=created_now(),
        target=plan.target.name,
        schedule=plan.schedule,
        stages={name: stages[name] for name in STAGES if name in stages},
        notices=write_notices(folder),
    )


def created_now() -> str:
    """The time in UTC; SOURCE_DATE_EPOCH, the convention of reproducible builds, overrides it."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is not None and not (given.isascii() and given.isdigit()):
        raise ExportError(f"seconds since 1970 were wanted in SOURCE_DATE_EPOCH, found {given!r}")
    moment = datetime.now(timezone.utc)
    try:
        if given is not None:
            moment = datetime.fromtimestamp(int(given), timezone.utc)
    except (ValueError, OverflowError, OSError) as err:  # beyond the year 9999, or of any system
        raise ExportError(
            f"seconds since 1970 were wanted in SOURCE_DATE_EPOCH, found {(given or '')[:20]}"
        ) from err
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def errors_text(gate: Mapping[str, float]) -> str:
    """The measured errors as text, such as ``flow_px 0.0002, relative 3e-06``."""
    return ", ".join(f"{unit} {error:.2g}" for unit, error in gate.items())


@dataclass(frozen=True)
class Loaded:
    """A network with its weights.

    unit: the unit of a lifter's 3D joints, else None. half: the weights were stored in FP16.
    """

    model: torch.nn.Module
    weights: WeightsEntry
    unit: str | None = None
    half: bool = False


def export_stage(
    plan: Plan, stage: StagePlan, network: Loaded, folder: Path, *, trt: bool = True
) -> StageEntry:
    """The bundle's entry of a stage; graphs, weights and gate arrays are written to ``folder``."""
    return written_stage(
        stage.stage, stage.network.name, network, stage_graphs(network.model, stage, plan), folder,
        precision=plan.precision, options=stage_options(stage, network.unit),
        flow_iters=plan.schedule.flow_iters, seed=plan.seed, trt=trt,
    )  # fmt: skip


def written_stage(
    stage: str,
    name: str,
    network: Loaded,
    torch_graphs: Mapping[str, tuple[torch.nn.Module, GraphSpec]],
    folder: Path,
    *,
    precision: str,
    options: Mapping[str, str | int | bool],
    flow_iters: int,
    seed: int,
    trt: bool = True,
    rewrite: Rewrite | None = None,
    tell: Tell = lambda _: None,
) -> StageEntry:
    """The bundle's entry of a stage, after its graphs were exported, verified and written.

    name: the name of the network; rewrite: as for `export_graph`; tell: receives a line at the
    beginning of each step, which may take minutes.
    """
    from mambapose.export.half import rounded
    from mambapose.export.onnx_export import export_graph, has_scan, save_graphs, unrolled
    from mambapose.export.verify import Exported, verify_stage

    if network.half:
        torch_graphs = {
            graph: (rounded(module), spec) for graph, (module, spec) in torch_graphs.items()
        }
    metadata = {"mambapose.stage": stage, "mambapose.network": name}
    models = {}
    for graph, (module, spec) in torch_graphs.items():
        tell(f"{name}: making the graph {graph} with torch")
        models[graph] = export_graph(module, spec, opset=OPSET, metadata=metadata, rewrite=rewrite)
        if (note := unrolled(models[graph])) is not None:
            tell(f"{name}: {note}")
    tell(f"{name}: writing it, then comparing ONNX Runtime with torch")
    files = save_graphs(models, folder / "stages", stage, half=network.half, trt=trt)
    exported = {
        graph: Exported(module, spec, files[graph], has_scan(models[graph]))
        for graph, (module, spec) in torch_graphs.items()
    }
    verified = verify_stage(
        stage, exported, flow_iters=flow_iters, library=compiled_operator(), seed=seed
    )
    return StageEntry(
        network=name,
        precision=precision,
        params=sum(parameter.numel() for parameter in network.model.parameters()),
        weights=network.weights,
        graphs=describe_graphs(folder, stage, exported, verified.gate),
        gate=verified.errors,
        opset=OPSET,
        scan_spec=SPEC if any(graph.has_scan for graph in exported.values()) else None,
        options=options,
    )


def stage_options(stage: StagePlan, unit: str | None) -> dict[str, str | int | bool]:
    """What the runtime must know about the stage beyond its tensors."""
    options: dict[str, str | int | bool] = {}
    if unit is not None:
        options["unit"] = unit
    if stage.flip:
        options["flip"] = True
    return options


def compiled_operator() -> Path | None:
    """The compiled scan that ONNX Runtime can load, or None where it is not built."""
    library = find_library()
    return library if library is not None and library_info(library).onnxruntime else None


def load_network(stage: StagePlan, seed: int, tell: Tell) -> Loaded:
    """The network with its weights, in eval mode, and where the weights came from."""
    from mambapose.export.checkpoints import load_weights

    module = network_module(stage)
    model: torch.nn.Module = module.build(**stage.network.config, seed=seed)
    usual = stage.network.unit
    file = stage.weights
    if file is None and stage.source is not None:
        file = download(stage.source, tell)
    if file is None:
        return Loaded(model, WeightsEntry(None, None, trained=False), usual)
    facts, given = facts_of_weights(file)

    def noted(note: str) -> None:
        tell(f"{stage.stage:7} {note}")

    if hasattr(module, "load_encoder") and module.load_encoder(
        model, file, stage.weights_key, noted
    ):
        return _with_random_rest(stage, model, file, given, tell)
    card = read_card(file) if stage.shipped else Card(facts.label)
    load_weights(
        model, file, module.key_tables(model), network=stage.network.name,
        weights_key=stage.weights_key, tell=noted,
    )  # fmt: skip
    if facts.joints is not None:
        if not hasattr(module, "apply_facts"):
            raise ExportError(
                f"{file}: joints of the picture were wanted for {stage.network.name}, the weights "
                f"are for those of the {facts.joints}; name the network they were trained for with "
                f"--{stage.stage}"
            )
        module.apply_facts(model, facts)
    licence = facts.licence or stage.network.weights_licence
    weights = dataclasses.replace(
        given,
        licence=stage.source.licence if stage.source else licence,
        label=card.label,
        measured=card.headline,
    )
    if stage.shipped:
        tell(f"{stage.stage:7} {shipped_text(file.name, weights)}")
    unit = facts.unit if usual is not None and facts.unit is not None else usual
    return Loaded(model, weights, unit, facts.half)


def _with_random_rest(
    stage: StagePlan, model: torch.nn.Module, file: Path, given: WeightsEntry, tell: Tell
) -> Loaded:
    """A network whose encoder has the weights of the file and whose other weights are random.

    ExportError unless the plan allows that.
    """
    if not stage.random_rest:
        raise ExportError(
            f"weights of {stage.network.name} were wanted in {file}, found those of its encoder "
            "alone; pass a checkpoint of the whole network, or --untrained for a random rest "
            "(poses will be meaningless)"
        )
    tell(f"{stage.stage:7} {file.name}: weights of the encoder, all others are random")
    return Loaded(model, dataclasses.replace(given, trained=False), stage.network.unit)


def facts_of_weights(file: Path) -> tuple[Facts, WeightsEntry]:
    """The facts that a checkpoint states, and its entry in the bundle; ExportError without file."""
    if not is_file(file):
        raise ExportError(f"a checkpoint file was wanted, found none at {file}; check the path")
    facts = facts_from_file(file)
    entry = WeightsEntry(
        file.name, file_sha256(file), trained=True, licence=facts.licence, label=facts.label
    )
    return facts, entry


def shipped_text(name: str, weights: WeightsEntry) -> str:
    """A line on weights that ship: ``x.safetensors, which ships: demonstration, PCK@0.2 0.71``."""
    numbers = [f"{what} {number:g}" for what, number in weights.measured.items()]
    return f"{name}, which ships: {', '.join([*filter(None, [weights.label]), *numbers])}"


def network_module(stage: StagePlan) -> Any:
    """The module of mambapose.export.models that builds the network."""
    return importlib.import_module(f"mambapose.export.models.{stage.network.module}")


def stage_graphs(
    model: torch.nn.Module, stage: StagePlan, plan: Plan
) -> dict[str, tuple[torch.nn.Module, GraphSpec]]:
    """Graph name -> torch module and contract; graphs of flow and depth have a size in the name."""
    graphs = network_module(stage).graphs
    if not stage.sizes:
        return dict(graphs(model, plan.schedule.clip_frames, flip=stage.flip))
    return {name: graph for size in stage.sizes for name, graph in graphs(model, size).items()}


def describe_graphs(
    folder: Path,
    stage: str,
    exported: Mapping[str, Exported],
    gate: Mapping[str, tuple[Mapping[str, Array], Mapping[str, Array]]],
) -> dict[str, GraphEntry]:
    """Write the gate arrays and list every file of the stage with its hash."""
    data = folder / "stages" / f"{stage}.data"

    @cache
    def listed(path: Path) -> FileEntry:
        return file_entry(folder, path.relative_to(folder).as_posix())

    entries = {}
    for name, graph in exported.items():
        arrays = folder / "gate" / f"{graph.file.stem}.npz"
        write_gate(arrays, *gate[name])
        files = {"onnx": graph.file, "trt": graph.file.with_suffix(".trt.onnx")}
        forms = {form: listed(file) for form, file in files.items() if file.is_file()}
        shared = listed(data) if data.is_file() else None
        entries[name] = GraphEntry(graph.spec, forms, shared, listed(arrays))
    return entries


def add_detector(path: Path, folder: Path, seed: int, name: str, licence: str | None) -> StageEntry:
    """The entry of a detector, after it was copied into the bundle with gate arrays of its own."""
    from mambapose.export.detector import copy_detector, read_detector
    from mambapose.export.samples import sample_inputs
    from mambapose.export.verify import open_graph

    spec, layout, params, opset = read_detector(path)
    file = copy_detector(path, folder / "stages")
    inputs = sample_inputs("detect", spec, seed)
    outputs = open_graph(file).run(inputs)
    arrays = folder / "gate" / "detect.npz"
    write_gate(arrays, inputs, outputs)
    listed = file_entry(folder, file.relative_to(folder).as_posix())
    gate = file_entry(folder, arrays.relative_to(folder).as_posix())
    graph = GraphEntry(spec, {"onnx": listed}, gate=gate)
    return StageEntry(
        network=name,
        precision="fp32",
        params=params,
        weights=WeightsEntry(f"{name}.onnx", listed.sha256, trained=True, licence=licence),
        graphs={"main": graph},
        opset=opset,
        options={"layout": layout},
    )
