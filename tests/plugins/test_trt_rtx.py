"""NVIDIA's own registry loads the plugin library and NVIDIA's own ONNX parser gives createPlugin
every attribute of every Mamba network's nodes, on the CPU.

tensorrt-rtx shares registry and parser with TensorRT 11, but it has no plugin layers: it ends its
process after createPlugin. So each graph is parsed in a process of its own, behind a library that
writes down what createPlugin is given (csrc/tests/trt_recorder.cpp), and only a graph's first
plugin node is seen; graphs whose nodes differ would need one file for each of them. Nothing past
createPlugin is shown here: shapes, formats, building and running are not.

The headers are the stand-in's, and those of TensorRT 11 in MAMBAPOSE_TENSORRT_ROOTS.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from mambapose.export.models import NETWORKS
from mambapose.export.onnx_export import export_graph
from mambapose.plugins.onnx_function import attach_functions, strip_functions

from .cached_build import CSRC, Compiler
from .cuda_cases import build_shim

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx_bindings") is None,
        reason="tensorrt-rtx is not installed",
    ),
]

STANDIN = CSRC / "tests" / "tensorrt_standin"
INT32, CHAR = 5, 6
BUILD_PHASE = 0
MAMBA_NETWORKS = {
    name: network
    for name, network in NETWORKS.items()
    if network.module in ("mambapose", "posemamba", "mambapose3d")
}

# One process per graph, forked from one that has loaded NVIDIA's libraries.
PARSE = """
import os
import sys
import tensorrt_rtx_libs  # loads the libraries the bindings are linked against
import tensorrt_rtx_bindings as trt


def parse(library, path):
    logger = trt.Logger(trt.Logger.INFO)
    builder = trt.Builder(logger)
    registry = builder.get_plugin_registry()
    registry.load_library(library)
    for creator in registry.all_creators:
        print("creator", [creator.name, creator.plugin_version, creator.plugin_namespace])
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    sys.stdout.flush()
    parsed = parser.parse_from_file(path)
    print("parsed", parsed, [str(parser.get_error(i)) for i in range(parser.num_errors)])
    sys.stdout.flush()


for path in sys.argv[2:]:
    child = os.fork()
    if child == 0:
        output = os.open(path + ".log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ["MAMBAPOSE_RECORD"] = path + ".record"
        parse(sys.argv[1], path)
        os._exit(0)
    os.waitpid(child, 0)
"""


@dataclass
class Created:
    """What one call of createPlugin was given, and the metadata of what it made."""

    node: str
    phase: int
    fields: dict[str, tuple[int, int, list[str]]] = field(default_factory=dict)
    metadata: str = ""


def read_record(path: Path) -> list[Created]:
    """The calls in the recorder's file."""
    calls: list[Created] = []
    for line in path.read_text().splitlines():
        kind, *words = line.split("\t")
        if kind == "node":
            calls.append(Created(words[0], int(words[1])))
        elif kind == "field":
            name, number, length, values = words
            assert name not in calls[-1].fields, f"{name} was given twice"
            calls[-1].fields[name] = (int(number), int(length), values.split())
        else:
            calls[-1].metadata = words[0]
    return calls


def wanted_fields(node: onnx.NodeProto) -> dict[str, tuple[int, int, list[str]]]:
    """The node's attributes as the parser turns them to fields; strings have a terminator."""
    found = {}
    for entry in node.attribute:
        value = helper.get_attribute_value(entry)
        if entry.name in ("plugin_version", "plugin_namespace"):
            continue  # for the parser itself
        if isinstance(value, bytes):
            text = [f"{byte:02x}" for byte in value + b"\0"]
            found[entry.name] = (CHAR, len(text), text)
        else:
            numbers = [str(number) for number in (value if isinstance(value, list) else [value])]
            found[entry.name] = (INT32, len(numbers), numbers)
    return found


def wanted_metadata(node: onnx.NodeProto) -> str:
    """What the plugin says of itself when it has understood the node."""
    values = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    values["reverse"] = "".join(str(flag) for flag in values["reverse"])
    names = ("directions", "groups", "reverse", "delta_softplus", "segment", "merge", "gate")
    texts = (values[name] for name in (*names, "presence"))
    words = (text.decode() if isinstance(text, bytes) else text for text in texts)
    return " ".join(f"{n}={w}" for n, w in zip((*names, "presence"), words, strict=True))


def scan_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "SelectiveScan"]


def check_graph(path: Path, model: onnx.ModelProto) -> None:
    """The parser found the plugin for the graph's first scan and handed over all it says."""
    log = Path(f"{path}.log").read_text(errors="replace")
    assert "creator ['SelectiveScan', '1', '']" in log, log
    assert "Successfully created plugin: SelectiveScan" in log, log
    (call,) = read_record(Path(f"{path}.record"))
    node = scan_nodes(model)[0]
    assert (call.node, call.phase) == (node.name, BUILD_PHASE)
    assert call.fields == wanted_fields(node)
    assert call.metadata == wanted_metadata(node)


def headers() -> list[Path]:
    """The stand-in, and real headers whose layout tensorrt-rtx shares."""
    roots = [Path(root) for root in os.environ.get("MAMBAPOSE_TENSORRT_ROOTS", "").split(":")]
    real = [root / "include" for root in roots]
    return [STANDIN, *(folder for folder in real if is_tensorrt_11(folder))]


def is_tensorrt_11(folder: Path) -> bool:
    version = folder / "NvInferVersion.h"
    return version.exists() and "_MAJOR_ENTERPRISE 11\n" in version.read_text()


Parse = Callable[[Path, Sequence[Path]], None]


@pytest.fixture(scope="module")
def parse() -> Parse:
    """A function that parses files behind the recorder, the plugin built with given headers."""
    if not hasattr(os, "fork"):
        pytest.skip("a system with fork is needed")
    kernels = build_shim()

    def libraries(include: Path) -> tuple[Path, Path]:
        """The plugin and the recorder."""
        flags = ("-std=c++17", "-fPIC", "-fvisibility=hidden")
        compiler = Compiler(flags, system=(include, STANDIN))
        link = ["-shared", str(kernels), f"-Wl,-rpath,{kernels.parent}", "-ldl"]
        plugin = compiler.build("libplugin.so", sorted(CSRC.glob("trt/*.cpp")), *link)
        recorder = [CSRC / "tests" / "trt_recorder.cpp"]
        return plugin, compiler.build("librecorder.so", recorder, "-shared", "-ldl")

    def run(include: Path, paths: Sequence[Path]) -> None:
        plugin, recorder = libraries(include)
        command = [sys.executable, "-W", "ignore", "-c", PARSE, str(recorder), *map(str, paths)]
        environment = {**os.environ, "MAMBAPOSE_RECORDED": str(plugin)}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr

    return run


@pytest.fixture(scope="module")
def exported() -> Callable[[str], onnx.ModelProto]:
    """A function that gives a network's TensorRT form; one layer, which says all of its nodes."""
    made: dict[object, onnx.ModelProto] = {}

    def export(name: str) -> onnx.ModelProto:
        network = MAMBA_NETWORKS[name]
        config = {**network.config, "depth": 1}
        key = (network.module, *sorted(config.items()))
        if key not in made:
            module: Any = importlib.import_module(f"mambapose.export.models.{network.module}")
            size = (256, 192) if network.stage == "pose2d" else 9
            (graph,) = module.graphs(module.build(**config), size).values()
            made[key] = strip_functions(export_graph(*graph))
        return made[key]

    return export


def test_every_kind_of_node_reaches_the_plugin(parse, scans, tmp_path):
    models = {}
    for name, settings in scans.signatures.items():
        model = scans.model(scans.case(**settings))
        attach_functions(model)
        models[tmp_path / f"{name}.onnx"] = strip_functions(model)
    for path, model in models.items():
        onnx.save(model, path)
    for include in headers():
        for record in tmp_path.glob("*.record"):
            record.unlink()
        parse(include, list(models))
        for path, model in models.items():
            check_graph(path, model)


@pytest.mark.parametrize("name", MAMBA_NETWORKS)
def test_every_mamba_network_reaches_the_plugin(name, parse, exported, tmp_path):
    model = exported(name)
    nodes = scan_nodes(model)
    fields = [wanted_fields(node) for node in nodes]
    assert fields, "no scan"
    assert all(other == fields[0] for other in fields), "only the first node of a graph is seen"
    path = tmp_path / f"{name}.trt.onnx"
    onnx.save(model, path)
    parse(STANDIN, [path])
    check_graph(path, model)


def test_a_wrong_attribute_is_refused_through_nvidias_parser(parse, scans, tmp_path):
    model = scans.model(scans.case(K=2, merge="sum"))
    attach_functions(model)
    stripped = strip_functions(model)
    (node,) = scan_nodes(stripped)
    next(entry for entry in node.attribute if entry.name == "merge").s = b"mean"
    path = tmp_path / "wrong.onnx"
    onnx.save(stripped, path)
    parse(STANDIN, [path])
    log = Path(f"{path}.log").read_text(errors="replace")
    assert "field 'merge': 'none' or 'sum' was wanted, found 'mean'" in log
    assert "Successfully created plugin" not in log
    assert "parsed False" in log
