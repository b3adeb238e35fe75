"""From a Plan to a bundle: each network built, loaded, exported, verified, described."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambapose.export.download import download_weights
from mambapose.export.plan import Plan, StagePlan
from mambapose.runtime.bundle import (
    STAGES,
    Bundle,
    GraphEntry,
    StageEntry,
    WeightsEntry,
    file_sha256,
    tool_version,
    write_bundle,
    write_gate,
)
from mambapose.runtime.native import SPEC, find_library, library_info
from mambapose.runtime.types import Array, GraphSpec

if TYPE_CHECKING:
    import torch

    from mambapose.export.verify import Exported

Tell = Callable[[str], None]
OPSET = 18


def build_bundle(plan: Plan, out: Path, *, overwrite: bool, tell: Tell) -> Bundle:
    """The bundle of the plan, written to ``out`` whole or not at all.

    ``tell`` receives one line per thing done. ExportError and BundleError as the steps raise them.
    """
    return write_bundle(out, partial(_fill, plan, tell), overwrite=overwrite)


def _fill(plan: Plan, tell: Tell, folder: Path) -> Bundle:
    stages: dict[str, StageEntry] = {}
    if plan.detect is not None:
        stages["detect"] = entry = add_detector(plan.detect, folder, plan.seed)
        tell(f"detect  {plan.detect.name}: layout {entry.options['layout']}")
    # All checkpoints first: a wrong one shows before the minutes of export.
    networks = [load_network(stage, plan.seed, tell) for stage in plan.stages]
    for stage, (model, weights) in zip(plan.stages, networks, strict=True):
        start = time.perf_counter()
        stages[stage.stage] = entry = export_stage(plan, stage, model, weights, folder)
        tell(
            f"{stage.stage:7} {entry.network}: {len(entry.graphs)} graphs, "
            f"{entry.params / 1e6:.2f} M parameters, {errors_text(entry.gate)}, "
            f"{time.perf_counter() - start:.1f} s"
        )
    return Bundle(
        path=folder,
        tool_version=tool_version(),
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        target=plan.target.name,
        schedule=plan.schedule,
        stages={name: stages[name] for name in STAGES if name in stages},
    )


def errors_text(gate: Mapping[str, float]) -> str:
    """``flow_px 0.0002, relative 3e-06``."""
    return ", ".join(f"{unit} {error:.2g}" for unit, error in gate.items())


def export_stage(
    plan: Plan, stage: StagePlan, model: torch.nn.Module, weights: WeightsEntry, folder: Path
) -> StageEntry:
    """Write the graphs, weights and gate arrays of one stage into ``folder``; its description."""
    from mambapose.export.onnx_export import export_graph, has_scan, save_graphs
    from mambapose.export.verify import Exported, verify_stage

    torch_graphs = stage_graphs(model, stage, plan)
    metadata = {"mambapose.stage": stage.stage, "mambapose.network": stage.network.name}
    models = {
        name: export_graph(module, spec, opset=OPSET, metadata=metadata)
        for name, (module, spec) in torch_graphs.items()
    }
    files = save_graphs(models, folder / "stages", stage.stage)
    exported = {
        name: Exported(module, spec, files[name], has_scan(models[name]))
        for name, (module, spec) in torch_graphs.items()
    }
    verified = verify_stage(
        stage.stage,
        exported,
        flow_iters=plan.schedule.flow_iters,
        library=compiled_operator(),
        seed=plan.seed,
    )
    return StageEntry(
        network=stage.network.name,
        precision=plan.precision,
        params=sum(parameter.numel() for parameter in model.parameters()),
        weights=weights,
        graphs=describe_graphs(folder, stage.stage, exported, verified.gate),
        gate=verified.errors,
        opset=OPSET,
        scan_spec=SPEC if any(graph.has_scan for graph in exported.values()) else None,
        options=stage_options(stage),
    )


def stage_options(stage: StagePlan) -> dict[str, str | int | bool]:
    """What the runtime must know of the stage beyond its tensors."""
    options: dict[str, str | int | bool] = {}
    if stage.network.unit is not None:
        options["unit"] = stage.network.unit
    if stage.flip:
        options["flip"] = True
    return options


def compiled_operator() -> Path | None:
    """The compiled scan that ONNX Runtime can load, or None where it is not built."""
    library = find_library()
    return library if library is not None and library_info(library).onnxruntime else None


def load_network(stage: StagePlan, seed: int, tell: Tell) -> tuple[torch.nn.Module, WeightsEntry]:
    """The network with its weights, in eval mode, and where the weights came from."""
    from mambapose.export.checkpoints import load_weights

    module = network_module(stage)
    model: torch.nn.Module = module.build(**stage.network.config, seed=seed)
    file = stage.weights
    if file is None and stage.source is not None:
        file = download_weights(stage.network.name, tell=tell)
    if file is None:
        return model, WeightsEntry(None, None, trained=False)
    load_weights(model, file, module.key_tables(model), network=stage.network.name)
    licence = stage.source.licence if stage.source else stage.network.weights_licence
    return model, WeightsEntry(file.name, file_sha256(file), trained=True, licence=licence)


def network_module(stage: StagePlan) -> Any:
    """The module of mambapose.export.models that builds the network."""
    return importlib.import_module(f"mambapose.export.models.{stage.network.module}")


def stage_graphs(
    model: torch.nn.Module, stage: StagePlan, plan: Plan
) -> dict[str, tuple[torch.nn.Module, GraphSpec]]:
    """Graph name -> torch module and contract; those of flow and depth carry their size."""
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
    hashes: dict[Path, str] = {}

    def listed(path: Path | None) -> tuple[str | None, str | None]:
        if path is None or not path.is_file():
            return None, None
        if path not in hashes:
            hashes[path] = file_sha256(path)
        return path.relative_to(folder).as_posix(), hashes[path]

    entries = {}
    for name, graph in exported.items():
        arrays = folder / "gate" / f"{graph.file.stem}.npz"
        write_gate(arrays, *gate[name])
        file, sha256 = listed(graph.file)
        assert file is not None
        assert sha256 is not None
        trt = graph.file.with_suffix(".trt.onnx") if graph.has_scan else None
        entries[name] = GraphEntry(
            graph.spec, file, sha256, *listed(data), *listed(trt), *listed(arrays)
        )
    return entries


def add_detector(path: Path, folder: Path, seed: int) -> StageEntry:
    """Copy a detector into the bundle with gate arrays of its own; its description."""
    from mambapose.export.detector import copy_detector, read_detector
    from mambapose.export.samples import sample_inputs
    from mambapose.export.verify import open_graph

    spec, layout, params, opset = read_detector(path)
    file = copy_detector(path, folder / "stages")
    inputs = sample_inputs("detect", spec, seed)
    outputs = open_graph(file).run(inputs)
    arrays = folder / "gate" / "detect.npz"
    write_gate(arrays, inputs, outputs)
    digest = file_sha256(file)
    graph = GraphEntry(
        spec,
        file.relative_to(folder).as_posix(),
        digest,
        gate_file=arrays.relative_to(folder).as_posix(),
        gate_sha256=file_sha256(arrays),
    )
    return StageEntry(
        network=path.stem,
        precision="fp32",
        params=params,
        weights=WeightsEntry(path.name, digest, trained=True),
        graphs={"main": graph},
        opset=opset,
        options={"layout": layout},
    )
