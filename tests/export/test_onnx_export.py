"""From torch to ONNX files: names, free sizes, shared weights, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from mambapose.export.onnx_export import ALIGNMENT, EXTERNAL_MIN_BYTES, export_graph, save_graphs
from mambapose.runtime.errors import ExportError
from mambapose.runtime.types import GraphSpec, TensorSpec


class Mixed(nn.Module):
    """image (N, 8, 6, 3) uint8 and weight (N, 2) -> sums (N, 40) and doubled weight (N, 2)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.dense = nn.Linear(144, 40)

    def forward(self, image: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        rows = image.float().reshape(image.shape[0], -1) / 255
        return self.dense(rows) * weight[:, :1], weight * 2


def contract(batch: int | str = "N", name: str = "main") -> GraphSpec:
    return GraphSpec(
        name,
        (
            TensorSpec("image", "uint8", (batch, 8, 6, 3)),
            TensorSpec("weight", "float32", (batch, 2)),
        ),
        (TensorSpec("sums", "float32", (batch, 40)), TensorSpec("twice", "float32", (batch, 2))),
    )


def run(path: Path, **inputs: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def example(batch: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(batch)
    return {
        "image": generator.integers(0, 256, (batch, 8, 6, 3), dtype=np.uint8),
        "weight": generator.standard_normal((batch, 2)).astype(np.float32),
    }


def stored(path: Path) -> dict[str, dict[str, str]]:
    """Initializer -> where its bytes are, for those outside the file."""
    model = onnx.load(path, load_external_data=False)
    return {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }


def test_a_free_dimension_takes_any_size_and_keeps_its_name(tmp_path):
    module = Mixed()
    model = export_graph(module, contract())
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "N"
    path = save_graphs({"main": model}, tmp_path, "stage")["main"]
    assert path == tmp_path / "stage.onnx"
    for batch in (1, 2, 5):
        inputs = example(batch)
        with torch.no_grad():
            wanted = module(*(torch.from_numpy(value) for value in inputs.values()))
        for found, want in zip(run(path, **inputs), wanted, strict=True):
            np.testing.assert_allclose(found, want.numpy(), rtol=1e-5, atol=1e-5)
    assert not any(node.op_type == "Shape" for node in model.graph.node)


@pytest.mark.parametrize("opset", [18, 19])
def test_opset_and_contract_are_in_the_file(opset):
    model = export_graph(Mixed(), contract(2), opset=opset, metadata={"mambapose.stage": "demo"})
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == opset
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "mambapose.graph": "main",
        "mambapose.inputs": '["image: uint8 (2, 8, 6, 3)", "weight: float32 (2, 2)"]',
        "mambapose.outputs": '["sums: float32 (2, 40)", "twice: float32 (2, 2)"]',
        "mambapose.stage": "demo",
    }


@pytest.mark.parametrize("opset", [17, 20])
def test_other_opsets_are_refused(opset):
    with pytest.raises(ExportError, match=f"opset 18 or 19 was wanted, found {opset}"):
        export_graph(Mixed(), contract(), opset=opset)


def test_equal_modules_give_equal_bytes_without_traces_of_this_machine():
    first, second = (export_graph(Mixed(), contract()).SerializeToString() for _ in range(2))
    assert first == second
    for trace in (b"stack_trace", str(Path(__file__).parent).encode(), b"/site-packages/"):
        assert trace not in first


@pytest.mark.parametrize(
    ("outputs", "found"),
    [
        ((TensorSpec("sums", "float32", (2, 41)), TensorSpec("twice", "float32", (2, 2))), "41"),
        ((TensorSpec("sums", "float16", (2, 40)), TensorSpec("twice", "float32", (2, 2))), "16"),
    ],
    ids=["shape", "type"],
)
def test_a_module_that_breaks_its_contract_is_refused(outputs, found):
    with pytest.raises(ExportError, match="make the module return what its spec declares") as err:
        export_graph(Mixed(), GraphSpec("main", contract(2).inputs, outputs))
    assert found in str(err.value)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no such thing\nmore of it")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Branching(), r"graph main: a branch or a size .* \(test_onnx_export.py:\d+\)"),
        (
            Failing(),
            r"graph main: .* failed: RuntimeError: no such thing \(test_onnx_export.py:\d+\)",
        ),
    ],
)
def test_a_module_that_cannot_be_traced_is_refused_in_one_line(module: nn.Module, message: str):
    x = TensorSpec("x", "float32", (2,))
    with pytest.raises(ExportError, match=message) as err:
        export_graph(module, GraphSpec("main", (x,), (TensorSpec("y", "float32", (2,)),)))
    assert "\n" not in str(err.value)


def test_graphs_share_one_file_of_distinct_page_aligned_weights(tmp_path):
    same, other = Mixed(seed=1), Mixed(seed=2)
    models = {
        "a@8x6": export_graph(same, contract(1, "a@8x6")),
        "b@8x6": export_graph(same, contract(2, "b@8x6")),
        "c": export_graph(other, contract(1, "c")),
    }
    before = {name: model.SerializeToString() for name, model in models.items()}
    paths = save_graphs(models, tmp_path, "stage")
    assert {name: path.name for name, path in paths.items()} == {
        "a@8x6": "stage-a@8x6.onnx",
        "b@8x6": "stage-b@8x6.onnx",
        "c": "stage-c.onnx",
    }
    assert {path.name for path in tmp_path.iterdir()} == {
        "stage.data",
        *(path.name for path in paths.values()),
    }
    assert {name: model.SerializeToString() for name, model in models.items()} == before
    places = {name: list(stored(path).values()) for name, path in paths.items()}
    assert places["a@8x6"] == places["b@8x6"]
    assert places["a@8x6"] != places["c"]
    for place in (*places["a@8x6"], *places["c"]):
        assert place["location"] == "stage.data"
        assert int(place["offset"]) % ALIGNMENT == 0
        assert int(place["length"]) == 144 * 40 * 4
    assert (tmp_path / "stage.data").stat().st_size < 3 * 144 * 40 * 4
    inputs = example(1)
    with torch.no_grad():
        tensors = [torch.from_numpy(value) for value in inputs.values()]
        wanted = {"a@8x6": same(*tensors)[0], "c": other(*tensors)[0]}
    for name, want in wanted.items():
        np.testing.assert_allclose(run(paths[name], **inputs)[0], want, rtol=1e-5, atol=1e-5)
        onnx.checker.check_model(str(paths[name]))


@pytest.mark.parametrize("size", [EXTERNAL_MIN_BYTES // 4 - 1, EXTERNAL_MIN_BYTES // 4])
def test_only_weights_of_a_kibibyte_and_more_leave_the_file(tmp_path, size):
    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.rand(size))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.shift

    spec = GraphSpec(
        "main", (TensorSpec("x", "float32", (1, size)),), (TensorSpec("y", "float32", (1, size)),)
    )
    module = Shift()
    path = save_graphs({"main": export_graph(module, spec)}, tmp_path, "stage")["main"]
    big = size * 4 >= EXTERNAL_MIN_BYTES
    assert len(stored(path)) == big
    assert (tmp_path / "stage.data").exists() == big
    found = run(path, x=np.zeros((1, size), np.float32))[0]
    assert np.array_equal(found[0], module.shift.detach().numpy())


def test_a_scan_is_one_node_with_a_function_and_a_tensorrt_form(tmp_path):
    from mambapose.plugins.torch_op import selective_scan

    class Scan(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.dense = nn.Linear(16, 16)
            self.register_buffer("A", -torch.rand(16, 4) - 0.1)

        def forward(self, u: Tensor, rows: Tensor) -> Tensor:
            return selective_scan(self.dense(u), u, self.A, rows, rows)[0]

    u, rows = TensorSpec("u", "float32", (1, 5, 16)), TensorSpec("rows", "float32", (1, 5, 4))
    module = Scan()
    model = export_graph(
        module, GraphSpec("main", (u, rows), (TensorSpec("y", "float32", (1, 5, 16)),))
    )
    assert [n.op_type for n in model.graph.node if n.domain == "mambapose"] == ["SelectiveScan"]
    assert [f.name for f in model.functions if f.domain == "mambapose"] == ["SelectiveScan"]
    path = save_graphs({"main": model}, tmp_path, "stage")["main"]
    generator = np.random.default_rng(0)
    inputs = {
        "u": generator.standard_normal((1, 5, 16)).astype(np.float32),
        "rows": generator.standard_normal((1, 5, 4)).astype(np.float32),
    }
    with torch.no_grad():
        wanted = module(*(torch.from_numpy(value) for value in inputs.values()))
    np.testing.assert_allclose(run(path, **inputs)[0], wanted, rtol=1e-5, atol=1e-5)

    stripped = onnx.load(path.with_suffix(".trt.onnx"), load_external_data=False)
    assert not stripped.functions
    assert stored(path.with_suffix(".trt.onnx")) == stored(path)
    scans = [node for node in stripped.graph.node if node.op_type == "SelectiveScan"]
    assert len(scans) == 1
    assert all(scans[0].input)
