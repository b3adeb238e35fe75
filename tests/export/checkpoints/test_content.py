"""A file is judged by what it begins with, and the refusal says what it is and what to do."""

from __future__ import annotations

import datetime
import gzip
import io
import os
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from mambapose.export.checkpoints import load_weights, read_state_dict, reading
from mambapose.export.cli import main
from mambapose.export.weights import facts_from_file
from mambapose.runtime.errors import ExportError

STATE = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}


def refusal(path: Path) -> str:
    with pytest.raises(ExportError) as caught:
        read_state_dict(path)
    message = str(caught.value)
    assert message.isprintable()
    assert str(path) in message
    return message


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors", ".SAFETENSORS", ".txt", ""])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_checkpoint_is_read_by_whatever_name(tmp_path: Path, kind: str, suffix: str):
    from safetensors.torch import save_file

    path = tmp_path / f"net{suffix}"
    if kind == "safetensors":
        save_file(STATE, path, metadata={"licence": "MIT"})
        assert facts_from_file(path).licence == "MIT"
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
        assert facts_from_file(path).licence is None
    found = read_state_dict(path)
    assert all(torch.equal(found[key], value) for key, value in STATE.items())


@pytest.mark.parametrize("start", [b"\x80\x02", b"\x80\x04", b"\x00\x03"])
def test_a_safetensors_file_may_begin_like_a_pickle(tmp_path: Path, start: bytes):
    """The first bytes are the length of its header, which may be any."""
    length = int.from_bytes(start, "little")
    head = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    path = tmp_path / "net.pth"
    path.write_bytes(length.to_bytes(8, "little") + head + bytes(4))
    assert read_state_dict(path)["a"].tolist() == [0.0]


def archive(names: list[str]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name in names:
            made.writestr(name, b"x")
    return file.getvalue()


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        made.addfile(tarfile.TarInfo("net.pth"))
    return file.getvalue()


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


def script() -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)
    return file.getvalue()


def onnx() -> bytes:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    node = helper.make_node("Identity", ["x"], ["y"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    made: bytes = helper.make_model(
        helper.make_graph([node], "g", [value], [output])
    ).SerializeToString()
    return made


def bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("net/data.pkl", pickle.dumps({}, protocol=2))
        made.writestr("net/data/0", bytes(200 << 20))
    return file.getvalue()


FOREIGN: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "html": (lambda: b"<!DOCTYPE html><html>Virus scan", "an HTML page", "open the address"),
    "xml": (lambda: b"<?xml version='1.0'?><Error>AccessDenied", "an XML text", "open its address"),
    "lfs": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:a\n", "a Git LFS pointer",
        "git lfs pull",
    ),
    "script": (script, "a TorchScript archive", "torch.jit.load(FILE).state_dict()"),
    "onnx": (onnx, "an ONNX graph", "the checkpoint that it was exported from"),
    "gzip": (lambda: gzip.compress(b"x"), "a gzip archive", "unpack it"),
    "7z": (lambda: b"7z\xbc\xaf\x27\x1c" + bytes(50), "a 7z archive", "unpack it"),
    "tar": (tar, "a tar archive", "unpack it"),
    "zip": (lambda: archive(["net/weights.pth"]), "a zip archive without", "unpack it"),
    "npz": (lambda: archive(["a.npy"]), "(.npz)", "torch.save"),
    "keras": (lambda: archive(["config.json", "model.weights.h5"]), "a Keras model", "convert"),
    "npy": (array, "a single NumPy array", "a tensor for every key"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file", "convert"),
    "tflite": (lambda: b"\x1c\0\0\0TFL3" + bytes(50), "TensorFlow Lite", "convert"),
    "tensorflow": (lambda: b"\x08\x01\x12\x0aTensorFlow", "", ""),
    "json": (lambda: b'{"error": "rate limit"}', "a text", "see what it says"),
    "empty": (lambda: b"", "an empty file", "download it again"),
    "zeros": (lambda: bytes(5000), "zeros", "download it again"),
    "random": (lambda: bytes(range(130, 250)), "no known format", "pass a .pth"),
    "bomb": (bomb, "claims 0.21 GB", "do not use it"),
    "half": (lambda: (5000).to_bytes(8, "little") + b'{"a":', "cut short", "download it again"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_a_file_is_instead_is_said(tmp_path: Path, kind: str, suffix: str):
    make, what, advice = FOREIGN[kind]
    path = tmp_path / f"net{suffix}"
    path.write_bytes(make())
    message = refusal(path)
    assert what in message
    assert advice in message


ODD: dict[str, tuple[Callable[[], object], str]] = {
    "sparse": (lambda: torch.eye(2).to_sparse(), "a sparse tensor; pass it as a dense"),
    "meta": (lambda: torch.zeros(2, 2, device="meta"), "of the meta device"),
    "scalar": (lambda: torch.tensor(1.0), "misshaped (first: weight is (), (2, 2) was wanted)"),
    "wide": (lambda: torch.zeros(1).expand(1 << 40), "a tensor of 4.4e+03 GB that repeats 4 bytes"),
    "complex": (lambda: torch.zeros(2, 2, dtype=torch.complex64), "complex numbers (complex64)"),
    "whole": (lambda: torch.zeros(2, 2, dtype=torch.int8), "whole numbers (int8)"),
    "nan": (lambda: torch.full((2, 2), float("nan")), "NaN or infinity"),
    "too large": (lambda: torch.full((2, 2), 1e300, dtype=torch.float64), "NaN or infinity"),
    "list": (lambda: [1.0, 2.0], "a list under 'weight'"),
    "object": (lambda: np.array(["a"], object), "other things than numbers"),
    "text": (lambda: "x\x1b[2J", "a text under 'weight'"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_tensor_that_is_no_weight_is_refused_with_its_key(
    tmp_path: Path, kind: str, zipped: bool
):
    make, found = ODD[kind]
    path = tmp_path / "net.pth"
    torch.save({**STATE, "weight": make()}, path, _use_new_zipfile_serialization=zipped)
    model = nn.Linear(2, 2)
    before = model.weight.clone()
    with pytest.raises(ExportError) as caught:
        load_weights(model, path)
    assert found in str(caught.value)
    assert str(caught.value).isprintable()
    assert torch.equal(model.weight, before)


@pytest.mark.filterwarnings("ignore")
def test_compressed_rows_and_quantised_tensors_are_refused(tmp_path: Path):
    for made, found in (
        (torch.eye(2).to_sparse_csr(), "a sparse tensor; pass it"),
        (torch.quantize_per_tensor(torch.eye(2), 0.1, 0, torch.qint8), "a quantised tensor"),
    ):
        torch.save({**STATE, "weight": made}, tmp_path / "net.pth")
        assert found in refusal(tmp_path / "net.pth")


def described(storage: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """A torch archive whose one tensor is described by these numbers; its storage has 4 floats."""

    class Tensor:
        def __reduce__(self) -> object:
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, size, stride, False, {})

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: object) -> object:
            if not isinstance(thing, Storage):
                return None
            return ("storage", torch.FloatStorage, "0", "cpu", storage)

    text, file = io.BytesIO(), io.BytesIO()
    Pickler(text, 2).dump({"a": Tensor()})
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("net/data.pkl", text.getvalue())
        made.writestr("net/data/0", np.arange(4, dtype=np.float32).tobytes())
        made.writestr("net/version", "3\n")
    return file.getvalue()


@pytest.mark.parametrize(
    ("storage", "offset", "size", "stride"),
    [
        (4, -1, (2,), (1,)),
        (4, 3, (2,), (1,)),
        (4, 0, (2,), (-1,)),
        (4, 0, (-2,), (1,)),
        (4, 0, (2, 2), (1,)),
        (4, 0, (5,), (1,)),
        (9, 0, (5,), (1,)),
        (4, 0, (1 << 61, 1 << 61), (0, 0)),
        (4, 0, (1 << 40,), (0,)),
        (4, 0, (1,) * 100, (1,) * 100),
        (1 << 61, 0, (2,), (1,)),
        (10**30, 0, (2,), (1,)),
    ],
)
def test_a_place_outside_the_file_is_refused(
    tmp_path: Path, storage: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
):
    path = tmp_path / "net.pth"
    path.write_bytes(described(4, 0, (2, 2), (2, 1)))
    assert read_state_dict(path)["a"].tolist() == [[0, 1], [2, 3]]
    path.write_bytes(described(storage, offset, size, stride))
    assert "found a tensor" in refusal(path) or storage != 4


def test_the_archive_is_opened_a_few_times_however_many_tensors_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its directory is as long as it has tensors: opened for each, time would be quadratic."""
    opened = []

    class Counted(zipfile.ZipFile):
        def __init__(self, *args: Any, **options: Any) -> None:
            opened.append(args)
            super().__init__(*args, **options)

    path = tmp_path / "net.pth"
    many = {f"{number}": torch.full((2,), float(number)) for number in range(50)}
    torch.save({"state_dict": many, "when": datetime.datetime(2024, 1, 1)}, path)
    monkeypatch.setattr(zipfile, "ZipFile", Counted)
    found = read_state_dict(path)
    assert all(torch.equal(found[key], value) for key, value in many.items())
    assert len(opened) == 3


def test_two_members_of_one_name_are_no_way_around_the_checks(tmp_path: Path):
    path = tmp_path / "net.pth"
    path.write_bytes(described(4, 0, (2, 2), (2, 1)))
    with zipfile.ZipFile(io.BytesIO(described(4, 0, (1 << 20,), (0,)))) as other:
        hidden = other.read("net/data.pkl")
    for first in (False, True):
        with zipfile.ZipFile(io.BytesIO(described(4, 0, (2, 2), (2, 1)))) as whole:
            members = [(name, whole.read(name)) for name in whole.namelist()]
        members.insert(0 if first else len(members), ("net/data.pkl", hidden))
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as made:
            warnings.simplefilter("ignore")
            for name, data in members:
                made.writestr(name, data)
        try:
            found = read_state_dict(path)["a"]
        except ExportError:
            continue
        assert found.untyped_storage().nbytes() <= 16


@pytest.mark.parametrize(
    "found", [torch.zeros(3), torch.eye(2).to_sparse(), torch.zeros(2, 2, device="meta")]
)
def test_what_torch_reads_otherwise_than_ours_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: torch.Tensor
):
    path = tmp_path / "net.pth"
    torch.save({"a": torch.zeros(2, 2)}, path)
    monkeypatch.setattr(reading, "_by_torch", lambda *_: {"a": found})
    assert "can be read in two ways" in refusal(path)


def test_a_name_in_the_file_does_not_reach_the_terminal_as_it_is(tmp_path: Path):
    whole, path = described(4, 0, (2, 2), (2, 1)), tmp_path / "net.pth"
    with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(path, "w") as made:
        for name in source.namelist():
            data = source.read(name).replace(b"FloatStorage", b"Float\x1b[2Jage")
            made.writestr(name, data)
    assert r"Float\x1b[2Jage" in refusal(path)


def test_the_command_refuses_in_one_line_also_when_it_only_plans(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    page, depth = tmp_path / "page.pth", tmp_path / "depth.pth"
    page.write_text("<!doctype html>")
    torch.save({"pretrained.cls_token": torch.zeros(1, 1, 384)}, depth)
    for file, found in ((page, "an HTML page"), (depth, "weights of raft-small")):
        with pytest.raises(SystemExit) as caught:
            main(["--target", "cpu", "--weights", f"flow={file}", "--dry-run"])
        assert caught.value.code == 1
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1
        assert said[0].startswith("error: ")
        assert found in said[0]


@pytest.mark.parametrize("name", ["a" * 300, "folder", "pipe", "absent/net.pth"])
def test_what_is_no_regular_file_is_refused_in_one_line(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / name
    assert "found none at" in refusal(path)
    for options in (["--weights", f"flow={path}"],
                    ["--model", "torch.nn:Identity", "--inputs", "x:float32:1,2",
                     "--weights", str(path), "--out", str(tmp_path / "bundle")]):  # fmt: skip
        with pytest.raises(SystemExit):
            main(options)
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "bundle").exists()


def test_the_option_names_its_stage_or_the_only_file(tmp_path: Path):
    from mambapose.export.cli import command

    def run(*options: str) -> str:
        return str(CliRunner().invoke(command, [*options, "--dry-run"]).exception)

    torch.save({"model": STATE, "model_ema": STATE}, tmp_path / "net.pth")
    file = f"pose2d={tmp_path / 'net.pth'}"
    assert "under 'ema' were wanted" in run("--weights", file, "--weights-key", "ema")
    assert "under 'ema' were wanted" in run("--weights", file, "--weights-key", "pose2d=ema")
    assert "add --weights lift3d=FILE" in run("--weights-key", "lift3d=ema")
    assert "a stage that is not exported" in run("--weights-key", "nose=ema")
