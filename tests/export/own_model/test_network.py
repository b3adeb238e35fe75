"""A user's own code: importing it, building its network, asking what it answers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mambapose.export.own_model.network import (
    built,
    contract,
    flattened,
    inputs_from_texts,
    user_code,
)
from mambapose.export.own_model.refusals import place
from mambapose.runtime.errors import ExportError
from mambapose.runtime.types import TensorSpec

CODE = """
import torch
from torch import nn
from mamba_ssm import Mamba
from pose_parts.heads import Head

VALUE = 3

class Net(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.mixer, self.head = Mamba(width), Head(width)

    def forward(self, x):
        return self.head(self.mixer(x))

def small():
    return Net(16)

def broken():
    raise ValueError("no such size")

def number():
    return 3
"""
HEADS = """
from torch import nn

class Head(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.out = nn.Linear(width, 3)

    def forward(self, x):
        return {"xyz": self.out(x), "sure": x.mean(-1), "nothing": None}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pose_parts").mkdir()
    (tmp_path / "pose_parts" / "__init__.py").write_text("")
    (tmp_path / "pose_parts" / "heads.py").write_text(HEADS)
    (tmp_path / "pose_net.py").write_text(CODE)
    (tmp_path / "pose_bad.py").write_text("import torch\n\nx = 1 / 0\n")
    (tmp_path / "pose_needs.py").write_text("\nimport a_package_nobody_has\n")
    return tmp_path


def test_a_network_is_built_and_its_contract_found(folder: Path) -> None:
    with user_code(folder) as noted:
        for name in ("small", "Net"):
            model = built(f"pose_net:{name}")
            assert not model.training
            spec = contract("main", model, inputs_from_texts(["x:float32:N,9,16"]))
        assert noted.used == ["mamba_ssm.Mamba"]
    assert [str(output) for output in spec.outputs] == [
        "xyz: float32 (N, 9, 3)", "sure: float32 (N, 9)",
    ]  # fmt: skip
    assert spec.inputs == (TensorSpec("x", "float32", ("N", 9, 16)),)


def test_names_of_outputs(folder: Path) -> None:
    with user_code(folder):
        model = built("pose_net:Net")
        fixed = inputs_from_texts(["x:float32:1,5,16"])
        spec = contract("main", model, fixed, ["joints", "score"])
    assert [str(output) for output in spec.outputs] == [
        "joints: float32 (1, 5, 3)", "score: float32 (1, 5)",
    ]  # fmt: skip
    with pytest.raises(ExportError, match="names for 2 outputs were wanted, found 1: joints"):
        contract("main", model, fixed, ["joints"])


def test_nothing_stays_behind(folder: Path) -> None:
    with user_code(folder):
        built("pose_net:small")
        assert "pose_parts.heads" in sys.modules
    assert not {"pose_net", "pose_parts", "pose_parts.heads", "mamba_ssm"} & set(sys.modules)
    assert str(folder) not in sys.path


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("pose_net", r"--model package.module:name was wanted, found 'pose_net'"),
        ("absent_net:small", r"module absent_net was wanted, none is found from .*PYTHONPATH"),
        ("pose_parts.absent:x", r"module pose_parts.absent was wanted, none is found"),
        ("pose_needs:x", r"imports a_package_nobody_has, .*\(pose_needs.py:2\); install it"),
        ("pose_bad:x", r"importing it failed: ZeroDivisionError: .*\(pose_bad.py:3\)"),
        ("pose_net:smal", r"smal was wanted in pose_net, .* it has: .*small"),
        ("pose_net:VALUE", r"a function, a class or a network was wanted, found a int"),
        ("pose_net:broken", r"failed: ValueError: no such size \(pose_net.py:21\)"),
        ("pose_net:number", r"a torch.nn.Module was wanted of it, found a int"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(
    folder: Path, reference: str, message: str
) -> None:
    with user_code(folder), pytest.raises(ExportError, match=message) as found:
        built(reference)
    assert "\n" not in str(found.value)


def test_inputs_are_read_strictly() -> None:
    assert inputs_from_texts(["a:uint8:1,H,3", "b:int64:N"]) == (
        TensorSpec("a", "uint8", (1, "H", 3)),
        TensorSpec("b", "int64", ("N",)),
    )
    for texts, message in (
        (["x"], "NAME:DTYPE:SIDES was wanted"),
        (["x:float32"], "NAME:DTYPE:SIDES was wanted"),
        (["x:double:1"], "NAME:DTYPE:SIDES was wanted"),
        (["2x:float32:1"], "NAME:DTYPE:SIDES was wanted"),
        (["x:float32:0,3"], "a number from 1 on or a name, found '0'"),
        (["x:float32:1,-2"], "a number from 1 on or a name, found '-2'"),
        (["x:float32:1", "x:float32:2"], "each with its own name, were wanted, found x, x"),
        ([], "found none"),
    ):
        with pytest.raises(ExportError, match=message):
            inputs_from_texts(texts)


def test_two_free_sides_are_told_apart() -> None:
    inputs = inputs_from_texts(["x:float32:N,T,4"])
    spec = contract("main", Answers(lambda x: (x.sum(0), x.sum(1))), inputs)
    assert [output.shape for output in spec.outputs] == [("T", 4), ("N", 4)]


class Answers(nn.Module):
    """Returns what it was made with, or the result of calling it."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: torch.Tensor) -> object:
        return self.answer(x) if callable(self.answer) else self.answer


def test_outputs_are_tensors_under_names() -> None:
    x = torch.zeros(2)
    assert list(flattened(x)) == ["y"]
    assert list(flattened((x, None, x))) == ["y0", "y2"]
    for bad in (3, (x, [x]), (), {"a": None}):
        with pytest.raises(ExportError, match="tensors were wanted as the network's outputs"):
            flattened(bad)


def test_a_call_that_fails_or_grows_is_said() -> None:
    inputs = inputs_from_texts(["x:float32:N,4"])
    with pytest.raises(ExportError, match=r"with x: float32 \(N, 4\) and failed: RuntimeError"):
        contract("main", Answers(lambda x: x @ torch.zeros(5, 2)), inputs)
    with pytest.raises(ExportError, match="one becomes 4 and 6 for N 2 and 3"):
        contract("main", Answers(lambda x: x.repeat(2, 1)), inputs)


def test_the_place_is_in_the_users_file(folder: Path) -> None:
    (folder / "deep.py").write_text(
        "import torch\n\ndef f():\n    return torch.zeros(2) @ torch.zeros(3)\n"
    )
    with user_code(folder):
        import deep

        with pytest.raises(RuntimeError) as found:
            deep.f()
    assert place(found.value) == "deep.py:4"
