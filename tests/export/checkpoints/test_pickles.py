"""Pickles made to attack: nothing runs, nothing hangs, each is refused in one line by name."""

from __future__ import annotations

import builtins
import importlib
import io
import os
import pickle
import runpy
import shutil
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mambapose.export.checkpoints import read_state_dict
from mambapose.export.checkpoints.dangers import FUNCTIONS, HARMLESS, MODULES, would_run
from mambapose.export.checkpoints.pickles import Bytes, Global, Inert, Machine
from mambapose.export.checkpoints.tensors import CALLS
from mambapose.runtime.errors import ExportError

SECONDS = 5.0


class Call:
    """Pickled as the call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


def refusal(path: Path) -> str:
    start = time.monotonic()
    with pytest.raises(ExportError) as caught:
        read_state_dict(path)
    assert time.monotonic() - start < SECONDS
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(f"{path}: ")
    assert len(message) < 600
    return message


def refused_bytes(tmp_path: Path, instructions: bytes, protocol: int = 4) -> str:
    path = tmp_path / "net.pth"
    path.write_bytes(b"\x80" + bytes([protocol]) + instructions)
    return refusal(path)


def read(instructions: bytes) -> Any:
    data = b"\x80\x04" + instructions
    return Machine(CALLS, lambda reference: reference).load(Bytes(io.BytesIO(data), len(data)))


def name(module: str, function: str) -> bytes:
    return b"".join(b"\x8c" + bytes([len(t)]) + t.encode() for t in (module, function)) + b"\x93"


ATTACKS = {
    "system": (os.system, "true"), "eval": (eval, "1"), "exec": (exec, "1"),
    "open": (open, "made", "w"), "print": (print, "x"), "import": (builtins.__import__, "os"),
    "import_module": (importlib.import_module, "os"), "popen": (subprocess.Popen, ["true"]),
    "output": (subprocess.check_output, ["true"]), "rmtree": (shutil.rmtree, "made"),
    "connect": (socket.create_connection, ("localhost", 1)), "run": (runpy.run_path, "made"),
    "loads": (pickle.loads, b"N."), "torch.load": (torch.load, "made"),
    "hub": (torch.hub.load, "x", "y"), "tensor": (torch.storage._load_from_bytes, b""),
    "np.load": (np.load, "made"), "fromfile": (np.fromfile, "made"),
    "memmap": (np.memmap, "made", "uint8", "w+"), "method": (Path.write_text, Path("made"), "x"),
    "unlink": (Path.unlink, Path("made")), "getattr": (getattr, Path("made"), "unlink"),
    "dunder": (getattr, Path, "__subclasses__"),
    "setattr": (setattr, Path, "x", 1), "chdir": (os.chdir, "/"),
}  # fmt: skip


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 2", "pickle 4"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_call_of_something_dangerous_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: str, form: str
):
    monkeypatch.chdir(tmp_path)
    function, *args = ATTACKS[attack]
    content = {"state_dict": {"a": torch.zeros(2)}, "x": Call(function, *args)}
    path = tmp_path / "net.pth"
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps({"x": content["x"]}, protocol=int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    message = refusal(path)
    assert "would run code (it calls " in message
    named = message.partition("it calls ")[2].partition(")")[0]
    assert named.rpartition(".")[2] == function.__name__ or attack in ("tensor", "open")
    assert [file.name for file in tmp_path.iterdir()] == ["net.pth"]


@pytest.mark.parametrize(
    "instructions",
    [
        b"(S'true'\nios\nsystem\n.",
        b"(cos\nsystem\nS'true'\no.",
        b"cos\nsystem\nS'true'\n\x85R.",
        b"cos\nsystem\nS'true'\n\x85\x81.",
        b"cos\nsystem\n)}\x92.",
        name("os", "system") + b"S'true'\n\x85R.",
        name("builtins", "getattr") + name("os", "path") + b"\x8c\x04join\x86R)R.",
        name("copyreg", "__newobj__") + name("os", "system") + b"\x85R.",
        name("copyreg", "add_extension") + b"K\x01K\x02K\x03\x87R.",
        name("training", "Config") + b")R)R.",
        name("functools", "partial") + name("os", "system") + b"\x85R)R.",
        name("functools", "reduce") + b")R.",
        name("builtins", "map") + b")R.",
        name("operator", "attrgetter") + b")R.",
        name("os", "environ") + b"}b.",
        name("os", "environ") + b"K\x01K\x02s.",
        name("sys", "path") + b"K\x01a.",
        b"\x82\x01.",
    ],
)
def test_every_instruction_that_calls_or_changes_is_watched(tmp_path: Path, instructions: bytes):
    assert "would run code" in refused_bytes(tmp_path, instructions)


def test_python_2_names_are_known_by_their_new_ones(tmp_path: Path):
    message = refused_bytes(tmp_path, b"c__builtin__\neval\n)R.", protocol=2)
    assert "calls builtins.eval" in message
    assert "calls subprocess." in refused_bytes(tmp_path, b"ccommands\ngetoutput\n)R.", protocol=2)


BOMBS = {
    "laughs as a key": b"}" + b"K\x01" + b"2\x86" * 60 + b"K\x01s.",
    "laughs in a set": b"\x8f(" + b"K\x01" + b"2\x86" * 60 + b"\x90.",
    "laughs frozen": b"(" + b"K\x01" + b"2\x86" * 60 + b"\x91.",
    "deep key": b"}K\x01" + b"\x85" * 300_000 + b"K\x01s.",
    "deep list": b"]" * 300_000 + b"a" * 299_999 + b".",
    "far memo": b"K\x01r\xff\xff\xff\x7f.",
    "long number": b"\x8b" + struct.pack("<i", 10_000_000) + b"\x7f" * 10_000_000 + b".",
    "number of digits": b"L" + b"9" * 60_000 + b"L\n.",
    "long line": b"I" + b"9" * 1_000_000 + b"\n.",
    "claimed bytes": b"\x8e" + struct.pack("<Q", 1 << 62) + b"abc",
    "claimed text": b"\x8d" + struct.pack("<Q", 1 << 40) + b"abc",
    "claimed frame": b"\x95" + struct.pack("<Q", 1 << 62) + b"}.",
    "claimed array": name("builtins", "bytearray") + b"\x8a\x06" + b"\xff" * 5 + b"\x00\x85R.",
    "long name": b"\x8d" + struct.pack("<Q", 100_000) + b"a" * 100_000 + b"\x94h\x00\x93.",
    "one list for all": name("collections", "OrderedDict") + b"\x94]\x94("
    + b"K\x01K\x02\x86" * 9999 + b"e\x85\x94" + b"h\x00h\x02R0" * 9999 + b"}.",
    "itself": b"}\x94\x8c\x0astate_dicth\x00s.",
    "itself in itself": b"}\x94\x8c\x05modelh\x00\x8c\x03netsh\x00\x8c\x05modelh\x00s.",
    "many of one": b"}\x94(" + b"".join(b"\x8c\x05%05dh\x00" % i for i in range(20_000)) + b"u.",
    "size of a million digits": name("torch._utils", "_rebuild_tensor_v2") + b"(K\x01K\x00\x8b"
    + struct.pack("<i", 1_000_000) + b"\x7f" * 1_000_000 + b"\x85K\x01\x85\x89}tR.",
    "subclass in subclass": (name("torch._tensor", "_rebuild_from_type_v2") + b"\x94N") * 3 + b".",
    "no end": b"N" * 10_000, "nothing": b".", "a mark": b"(.", "no function": b"R.",
    "names of numbers": b"K\x01K\x02\x93.", "buffer": b"\x97.", "unknown": b"\xff.",
    "escape": name("o\x1b]0;x", "B\u202e".encode().decode("latin-1")) + b")R.",
    "newline": name("o\nerror: all checks passed", "B") + b")R.",
    "reference": b"K\x01Q.", "written reference": b"Pabc\n.",
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_in_bounded_time_and_memory(tmp_path: Path, bomb: str):
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused_bytes(tmp_path, BOMBS[bomb])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 << 10  # KiB


def test_the_limits_are_what_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert "too long for a name" in refused_bytes(tmp_path, BOMBS["long name"])
    monkeypatch.setattr("mambapose.export.checkpoints.pickles.MAX_INSTRUCTIONS", 1000)
    assert "no end within 1000 instructions" in refused_bytes(tmp_path, b"N" * 1000 + b".")
    assert "found nothing" in refused_bytes(tmp_path, b"N" * 998 + b".")
    pairs = name("collections", "OrderedDict") + b"\x94(" + b"K\x01K\x02\x86" * 200 + b"l\x85\x94"
    said = refused_bytes(tmp_path, pairs + b"h\x00h\x01R0" * 20 + b"}.")
    assert "gives its calls more than 1000 entries" in said


def test_an_unknown_class_becomes_a_placeholder_with_its_entries():
    found = read(name("training", "Config") + b")\x81\x8c\x02lrK\x01s}\x8c\x01aK\x02sb.")
    assert isinstance(found, Inert)
    assert (found.made, found.items, found.state) == ("training.Config", {"lr": 1}, {"a": 2})


def test_nothing_is_imported_even_where_it_could_be(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "this", raising=False)
    assert str(read(name("this", "Zen") + b".")) == "this.Zen"
    assert isinstance(read(name("this", "Zen") + b")R."), Inert)
    assert "this" not in sys.modules


def test_naming_is_not_calling():
    found = read(name("os", "system") + b".")
    assert isinstance(found, Global)
    assert str(found) == "os.system"


def test_folders_of_ones_own_may_be_called_like_modules_of_python():
    for module in ("code.config", "profile.model", "platform.train", "types.pose", "test.net"):
        assert not would_run(module, "Config"), module
    assert all(would_run(module, "anything") for module in MODULES)
    assert not would_run("builtins", "ValueError")
    assert would_run("builtins", "ValueError.with_traceback")


def test_the_table_is_of_names_that_exist_and_harmless_ones_are_of_it():
    for whole in HARMLESS:
        assert whole.rpartition(".")[0] in MODULES
    for whole in FUNCTIONS:
        root = whole.partition(".")[0]
        assert root in {"_codecs", "numpy", "pandas", "torch", "types", "uuid"}, whole
