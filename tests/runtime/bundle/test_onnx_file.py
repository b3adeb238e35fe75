"""Which files a graph may name: its own listed data, found wherever a tensor can hide."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mambapose.runtime.bundle import onnx_file
from mambapose.runtime.bundle.entries import FileEntry, GraphEntry
from mambapose.runtime.bundle.onnx_file import (
    ENTRY,
    MESSAGES,
    check_graph_files,
    check_single_file,
    external_names,
)
from mambapose.runtime.errors import BundleError, LoadError
from mambapose.runtime.types import GraphSpec

onnx = pytest.importorskip("onnx")
helper, TensorProto = onnx.helper, onnx.TensorProto


def stored_outside(name: str, location: str, **more: str) -> object:
    """A tensor of two floats whose values lie in another file."""
    tensor = helper.make_tensor(name, TensorProto.FLOAT, [2], b"\0" * 8, raw=True)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph_of(*nodes: object, initializers: tuple[object, ...] = ()) -> object:
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    return helper.make_graph(list(nodes), "g", [], [value], list(initializers))


def in_initializer(tensor: object) -> object:
    node = helper.make_node("Identity", ["w"], ["y"])
    return helper.make_model(graph_of(node, initializers=(tensor,)))


def in_attribute(tensor: object) -> object:
    return helper.make_model(graph_of(helper.make_node("Constant", [], ["y"], value=tensor)))


def in_list_of_tensors(tensor: object) -> object:
    return helper.make_model(graph_of(helper.make_node("Odd", [], ["y"], values=[tensor])))


def in_subgraph(tensor: object) -> object:
    inner = graph_of(helper.make_node("Constant", [], ["y"], value=tensor))
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    return helper.make_model(graph_of(node))


def in_subgraph_of_a_subgraph(tensor: object) -> object:
    inner = graph_of(helper.make_node("Identity", ["w"], ["y"]), initializers=(tensor,))
    for _ in range(30):
        inner = graph_of(helper.make_node("Loop", [], ["y"], body=inner))
    return helper.make_model(inner)


def in_function(tensor: object) -> object:
    function = helper.make_function(
        "own",
        "F",
        [],
        ["y"],
        [helper.make_node("Constant", [], ["y"], value=tensor)],
        [helper.make_opsetid("", 18)],
    )
    graph = graph_of(helper.make_node("F", [], ["y"], domain="own"))
    return helper.make_model(graph, functions=[function])


def in_default_of_a_function(tensor: object) -> object:
    model = in_function(helper.make_tensor("a", TensorProto.FLOAT, [1], [1.0]))
    model.functions[0].attribute_proto.append(helper.make_attribute("value", tensor))
    return model


def in_sparse_tensor(tensor: object) -> object:
    model = in_initializer(helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0]))
    model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    return model


def in_training(tensor: object) -> object:
    model = in_initializer(helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0]))
    model.training_info.add().algorithm.initializer.append(tensor)
    return model


PLACES = [in_initializer, in_attribute, in_list_of_tensors, in_subgraph, in_subgraph_of_a_subgraph,
          in_function, in_default_of_a_function, in_sparse_tensor, in_training]  # fmt: skip


def entry(folder: Path, *, data: str | None = "stages/w.data") -> GraphEntry:
    (folder / "stages").mkdir(exist_ok=True)
    (folder / "stages/w.data").write_bytes(b"\0" * 8)
    (folder / "stages/other.data").write_bytes(b"\0" * 8)
    listed = None if data is None else FileEntry(data, "0" * 64)
    return GraphEntry(GraphSpec("main", (), ()), {"onnx": FileEntry("stages/g.onnx", "")}, listed)


def save(model: object, folder: Path) -> Path:
    path = folder / "stages/g.onnx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model.SerializeToString())  # type: ignore[attr-defined]
    return path


@pytest.mark.parametrize("place", PLACES)
def test_a_file_that_is_not_listed_is_found_wherever_a_tensor_names_it(
    tmp_path: Path, place: Callable[[object], object]
) -> None:
    graph = entry(tmp_path)
    save(place(stored_outside("w", "w.data")), tmp_path)
    check_graph_files(tmp_path, graph, "onnx")
    # other.data even lies in the bundle: what is not listed for the graph has no hash.
    for location in ("other.data", "../secret", "/etc/passwd", "./w.data", "w.data/../w.data", ""):
        save(place(stored_outside("w", location)), tmp_path)
        with pytest.raises(BundleError, match=r"no file but 'w\.data' was wanted") as caught:
            check_graph_files(tmp_path, graph, "onnx")
        assert repr(location) in str(caught.value)
    save(place(stored_outside("w", "w.data")), tmp_path)
    with pytest.raises(BundleError, match="no other file was wanted"):
        check_graph_files(tmp_path, entry(tmp_path, data=None), "onnx")


def test_data_in_a_folder_above_the_graph_cannot_be_named(tmp_path: Path) -> None:
    (tmp_path / "w.data").write_bytes(b"\0" * 8)
    graph = entry(tmp_path, data="w.data")
    save(in_initializer(stored_outside("w", "../w.data")), tmp_path)
    with pytest.raises(BundleError, match="no other file"):
        check_graph_files(tmp_path, graph, "onnx")


def test_a_link_that_leaves_the_bundle_is_no_data(tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    root.mkdir()
    graph = entry(root)
    save(in_initializer(stored_outside("w", "w.data")), root)
    (tmp_path / "secret").write_bytes(b"\0" * 8)
    (root / "stages/w.data").unlink()
    (root / "stages/w.data").symlink_to(tmp_path / "secret")
    with pytest.raises(BundleError, match="a link that leaves"):
        check_graph_files(root, graph, "onnx")


def test_control_characters_of_a_name_are_escaped(tmp_path: Path) -> None:
    save(in_initializer(stored_outside("w", "\x1b[2Jok\nall checks passed")), tmp_path)
    with pytest.raises(BundleError) as caught:
        check_graph_files(tmp_path, entry(tmp_path), "onnx")
    assert str(caught.value).isprintable()


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def model_with_entry(*entry: bytes) -> bytes:
    return field(7, field(5, field(13, b"".join(entry))))  # graph, initializer, external_data


def test_no_reader_can_take_a_name_that_was_not_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    key, name = field(1, b"location"), field(2, b"a")
    path.write_bytes(model_with_entry(name, field(2, b"b"), key))
    assert external_names(path) == {"a", "b"}  # protobuf takes the last
    path.write_bytes(model_with_entry(field(1, b"offset"), key, name))
    assert external_names(path) == {"a"}
    path.write_bytes(model_with_entry(key))
    assert external_names(path) == {""}
    path.write_bytes(model_with_entry(field(1, b"offset"), name))
    assert external_names(path) == set()
    # Protobuf's reader drops the bits above 32 of a tag: this is the field 7, a graph, to it.
    tag = varint(1 << 33 | 7 << 3 | 2)
    inner = field(5, field(13, key + name))
    path.write_bytes(tag + varint(len(inner)) + inner)
    with pytest.raises(LoadError, match="does not fit"):
        external_names(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html>", "a field of kind"),
        (b"\x3a\xff\xff\xff\xff\x0f", "does not fit"),
        (b"\x3a", "a number without an end"),
        (b"\xff" * 20, "a number without an end"),
        (b"\x3b\x3c", "a field of kind 3"),  # a group
        (b"\0\0", "does not fit"),
        (model_with_entry(field(1, b"location"), field(2, b"\xff\xfe")), "utf-8"),
        (model_with_entry(field(1, b"location"), field(2, b"a" * 5000)), "longer than 4096"),
        (field(7, field(1, field(4, b"EPContext"))), "a compiled part of a graph"),
    ],
)
def test_what_is_no_graph_is_refused_in_one_line(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    path = tmp_path / "g.onnx"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=sentence) as caught:
        external_names(path)
    assert str(caught.value).isprintable()


def test_the_time_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    path.write_bytes(b"\x08\x01" * 5_000_000)
    start = time.process_time()
    with pytest.raises(LoadError, match="at most 2000000 fields"):
        external_names(path)
    nested = b""
    for _ in range(5000):  # a graph in an attribute of a node of a graph, and so on
        nested = field(1, field(5, field(6, nested)))
    path.write_bytes(field(7, nested))
    assert external_names(path) == set()
    assert time.process_time() - start < 20


def test_a_single_file_may_name_only_files_of_its_own_folder(tmp_path: Path) -> None:
    path = save(in_initializer(stored_outside("w", "w.data")), tmp_path)
    with pytest.raises(LoadError, match=r"'w\.data'"):
        check_single_file(path)
    path.with_name("w.data").write_bytes(b"\0" * 8)
    check_single_file(path)
    (tmp_path / "secret").write_bytes(b"\0" * 8)
    for location in ("../secret", str(tmp_path / "secret"), "*/_ORT_MEM_ADDR_/*"):
        save(in_initializer(stored_outside("w", location)), tmp_path)
        with pytest.raises(LoadError, match="in a regular file beside it"):
            check_single_file(path)


def test_every_way_to_a_tensor_is_looked_through() -> None:
    """The table against the descriptors of the onnx package."""

    def leads_to_entry(message: object, seen: tuple[str, ...]) -> bool:
        return any(
            inner.message_type is not None
            and (
                (message.name, inner.name) == ("TensorProto", "external_data")  # type: ignore[attr-defined]
                or (
                    inner.message_type.name not in seen
                    and leads_to_entry(inner.message_type, (*seen, inner.message_type.name))
                )
            )
            for inner in message.fields  # type: ignore[attr-defined]
        )

    def ways(message: object, done: set[str]) -> Iterator[tuple[str, int, str]]:
        done.add(message.name)  # type: ignore[attr-defined]
        for inner in message.fields:  # type: ignore[attr-defined]
            kind = inner.message_type
            if kind is None:
                continue
            end = (message.name, inner.name) == ("TensorProto", "external_data")  # type: ignore[attr-defined]
            if end or leads_to_entry(kind, (kind.name,)):
                yield message.name, inner.number, kind.name  # type: ignore[attr-defined]
                if not end and kind.name not in done:
                    yield from ways(kind, done)

    wanted = set(ways(onnx.ModelProto.DESCRIPTOR, set()))
    found = {
        (message, number, inner)
        for message, numbers in MESSAGES.items()
        for number, inner in numbers.items()
        if inner != onnx_file.OPERATOR
    }
    assert found == wanted
    operator = onnx.NodeProto.DESCRIPTOR.fields_by_name["op_type"].number
    assert MESSAGES["NodeProto"][operator] == onnx_file.OPERATOR
    assert [f.name for f in onnx.StringStringEntryProto.DESCRIPTOR.fields] == ["key", "value"]
    assert MESSAGES[ENTRY] == {}
