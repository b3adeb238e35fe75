"""What training frameworks write around the weights, and that what was taken is said."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import pathlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mambapose.export.checkpoints import load_weights, read_state_dict
from mambapose.export.checkpoints.wrappers import AVERAGED, PLAIN, PREFIXES, WRAPPERS
from mambapose.export.official_files import SOURCES
from mambapose.runtime.bundle.bundle import file_sha256
from mambapose.runtime.errors import ExportError

State = dict[str, torch.Tensor]


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.fixture
def state() -> State:
    return {key: value.clone() for key, value in net().state_dict().items()}


def other(state: State) -> State:
    """Weights that are not those wanted."""
    return {key: torch.full_like(value, 7) for key, value in state.items()}


def loaded(path: Path, key: str | None = None) -> tuple[State, list[str]]:
    """What arrives in a network, and what was said."""
    said: list[str] = []
    model = net()
    with torch.no_grad():
        for value in model.state_dict().values():
            value.zero_()
    load_weights(model, path, weights_key=key, tell=said.append)
    return dict(model.state_dict()), said


def assert_same(found: State, wanted: State) -> None:
    assert list(found) == list(wanted)
    for key, value in found.items():
        assert torch.equal(value, wanted[key]), key


@pytest.mark.parametrize("row", WRAPPERS, ids=lambda row: row.key)
def test_every_row_of_the_table_is_unwrapped_and_named(tmp_path: Path, state: State, row: Any):
    path = tmp_path / "net.pth"
    torch.save({"epoch": 3, "optimizer": {"state": {}}, row.key: state}, path)
    found, said = loaded(path)
    assert_same(found, state)
    assert said == [f"net.pth: weights under {row.key}"]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_prefix_comes_off_and_is_named(tmp_path: Path, state: State, prefix: str):
    path = tmp_path / "net.pth"
    torch.save({prefix + key: value for key, value in state.items()}, path)
    found, said = loaded(path)
    assert_same(found, state)
    assert said == [f"net.pth: keys without {prefix}"]


def test_a_plain_file_needs_no_word(tmp_path: Path, state: State):
    torch.save(state, tmp_path / "net.pth")
    found, said = loaded(tmp_path / "net.pth")
    assert_same(found, state)
    assert said == []


@pytest.mark.parametrize(
    ("plain", "averaged"),
    [("model", "model_ema"), ("state_dict", "state_dict_ema"), ("params", "params_ema"),
     ("student", "teacher"), ("state_dict", "ema_state_dict"), ("model", "ema")],
)  # fmt: skip
def test_averaged_weights_go_first_and_the_key_chooses(
    tmp_path: Path, state: State, plain: str, averaged: str
):
    path = tmp_path / "net.pth"
    torch.save({plain: other(state), averaged: {"module": state}, "epoch": 1}, path)
    found, said = loaded(path)
    assert_same(found, state)
    assert said == [
        f"net.pth: weights under {averaged}.module, not {plain} (--weights-key chooses)"
    ]
    found, said = loaded(path, plain)
    assert_same(found, other(state))
    assert said == [f"net.pth: weights under {plain}, not {averaged} (--weights-key chooses)"]


def test_of_a_published_file_the_plain_weights_are_taken(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "net.pth"
    torch.save({"model": state, "model_ema": other(state)}, path)
    (name, source), *_ = SOURCES.items()
    from dataclasses import replace

    monkeypatch.setitem(SOURCES, name, replace(source, sha256=file_sha256(path)))
    found, said = loaded(path)
    assert_same(found, state)
    assert "under model, not model_ema" in said[0]


def test_a_key_that_is_not_there_lists_those_that_are(tmp_path: Path, state: State):
    path = tmp_path / "net.pth"
    torch.save({"model": state, "model_ema": state}, path)
    with pytest.raises(ExportError, match=r"under 'ema' were wanted.*under model_ema, model; name"):
        loaded(path, "ema")
    torch.save(state, path)
    with pytest.raises(ExportError, match="under 'ema' were wanted, found no such entry"):
        loaded(path, "ema")


def test_an_entry_of_no_row_is_taken_when_it_is_named(tmp_path: Path, state: State):
    path = tmp_path / "net.pth"
    torch.save({"mine": state, "yours": other(state)}, path)
    with pytest.raises(ExportError, match=r"several entries .*\(mine, yours\); name one with"):
        loaded(path)
    assert_same(loaded(path, "mine")[0], state)


def test_what_is_no_weight_may_lie_among_the_weights(tmp_path: Path, state: State):
    path = tmp_path / "net.pth"
    averaged = {"module." + key: value for key, value in state.items()}
    torch.save({**averaged, "n_averaged": torch.tensor(5)}, path)
    assert_same(loaded(path)[0], state)
    counted = {"0.total_ops": torch.zeros(1), "total_params": torch.zeros(1)}
    torch.save({**state, **counted}, path)
    found, said = loaded(path)
    assert_same(found, state)
    assert said == ["net.pth: without the entry 0.total_ops and 1 more"]


def test_a_loss_of_lightning_is_left_out_and_named_but_nothing_is_missing(
    tmp_path: Path, state: State
):
    path = tmp_path / "net.ckpt"
    theirs = {"model." + key: value for key, value in state.items()}
    torch.save({"state_dict": {**theirs, "loss.weight": torch.ones(17)}}, path)
    found, said = loaded(path)
    assert_same(found, state)
    assert said == [
        "net.ckpt: weights under state_dict; keys without model.; without the entry loss.weight"
    ]
    del theirs["model.0.bias"]
    torch.save({"state_dict": {**theirs, "loss.weight": torch.ones(17)}}, path)
    with pytest.raises(ExportError, match="do not fit"):
        loaded(path)


def test_a_prefix_that_is_the_networks_own_stays(tmp_path: Path, state: State):
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

    torch.save({f"module.net.{key}": value for key, value in state.items()}, tmp_path / "net.pth")
    model, said = Mine(), list[str]()
    load_weights(model, tmp_path / "net.pth", tell=said.append)
    assert_same({k.removeprefix("net."): v for k, v in model.state_dict().items()}, state)
    assert said == ["net.pth: keys without module."]


class Mode(enum.Enum):
    TRAIN = "train"


def installed_only_there(name: str, monkeypatch: pytest.MonkeyPatch, base: type) -> Any:
    """An object of a class whose module is gone when it is read."""
    module = types.ModuleType(name.rpartition(".")[0])
    made = type(name.rpartition(".")[2], (base,), {"__module__": module.__name__})
    setattr(module, made.__name__, made)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    found = made()
    if base is dict:
        found["lr"] = 0.1
    else:
        found.history = np.zeros(3)
    return found


BESIDE: dict[str, Callable[[pytest.MonkeyPatch], Any]] = {
    "mmengine": lambda m: installed_only_there("mmengine_of_theirs.HistoryBuffer", m, object),
    "yacs": lambda m: installed_only_there("yacs_of_theirs.CfgNode", m, dict),
    "omegaconf": lambda m: installed_only_there("omegaconf_of_theirs.DictConfig", m, dict),
    "path": lambda _: pathlib.PosixPath("/data/h36m"),
    "time": lambda _: datetime.datetime(2024, 1, 1),
    "defaultdict": lambda _: collections.defaultdict(list, {"a": [1]}),
    "counter": lambda _: collections.Counter("aa"),
    "set": lambda _: {1, 2, frozenset((1, (2, 3)))},
    "array": lambda _: np.zeros(3),
    "text array": lambda _: np.array(["a", None], object),
    "random state": lambda _: np.random.RandomState(1),
    "generator": lambda _: np.random.default_rng(1),
    "half": lambda _: np.float16(38.1),
    "byte": lambda _: np.uint8(3),
    "options": lambda _: argparse.Namespace(lr=0.1, mode=Mode.TRAIN),
    "function": lambda _: np.mean,
    "method": lambda _: [].append,
    "type": lambda _: dict,
    "device": lambda _: torch.device("cuda:0"),
    "dtype": lambda _: torch.float16,
    "error": lambda _: ValueError("x"),
    "range": lambda _: range(3),
    "complex": lambda _: 3j,
    "storage of another kind": lambda _: torch.zeros(3, dtype=torch.complex64),
    "sparse": lambda _: torch.eye(3).to_sparse(),
    "keys": lambda _: {(1, 2): 3, None: 4},
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("what", BESIDE)
def test_whatever_lies_beside_the_weights_is_let_lie(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch, what: str, zipped: bool,
    protocol: int,
):  # fmt: skip
    path = tmp_path / "net.pth"
    with monkeypatch.context() as there:
        if what == "method":  # a method of a list cannot be pickled by protocol 2
            protocol = 4
        beside = BESIDE[what](there)
        torch.save(
            {"meta": {"it": beside}, "state_dict": state}, path, pickle_protocol=protocol,
            _use_new_zipfile_serialization=zipped,
        )  # fmt: skip
    before = set(sys.modules)
    if what == "method":  # getattr of an object that was made: might be anything
        with pytest.raises(ExportError, match="would run code"):
            read_state_dict(path)
        return
    found, _ = loaded(path)
    assert_same(found, state)
    assert not [name for name in set(sys.modules) - before if "theirs" in name]


KINDS: dict[str, Callable[[torch.Tensor], Any]] = {
    "half": lambda t: t.half() if t.is_floating_point() else t,
    "bfloat16": lambda t: t.bfloat16() if t.is_floating_point() else t,
    "double": lambda t: t.double() if t.is_floating_point() else t,
    "parameter": lambda t: nn.Parameter(t, requires_grad=t.is_floating_point()),
    "array": lambda t: t.numpy(),
    "turned": lambda t: t.t().contiguous().t() if t.ndim == 2 else t,
    "part of a storage": lambda t: torch.stack([t, t + 1])[0],
    "expanded": lambda t: t[:1].expand(t.shape) if t.ndim == 1 else t,
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_our_reader_and_torchs_make_the_same_tensors(
    tmp_path: Path, state: State, kind: str, zipped: bool
):
    """A file with an object beside the weights is read by ours, the weights alone by torch."""
    path, ours = tmp_path / "net.pth", tmp_path / "ours.pth"
    made = {key: KINDS[kind](value) for key, value in state.items()}
    torch.save(made, path, _use_new_zipfile_serialization=zipped)
    beside = {"state_dict": made, "when": datetime.datetime(2024, 1, 1)}
    torch.save(beside, ours, _use_new_zipfile_serialization=zipped)
    found, again = read_state_dict(path), read_state_dict(ours)
    for key, value in made.items():
        wanted = torch.as_tensor(value).detach()
        for one in (found[key], again[key]):
            assert one.dtype == wanted.dtype
            assert torch.equal(one.detach(), wanted)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("code", ["<f4", ">f4", "<f2", "|u1", "<i8", "|b1"])
def test_arrays_are_read_in_any_order_of_bytes_and_sides(tmp_path: Path, code: str, order: str):
    values = np.arange(6).reshape(2, 3).astype(code, order=order)  # type: ignore[call-overload]
    for protocol in (2, 4, 5):
        torch.save({"a": values}, tmp_path / "net.pth", pickle_protocol=protocol)
        found = read_state_dict(tmp_path / "net.pth")["a"].numpy()
        assert found.dtype == values.dtype.newbyteorder("=")
        assert np.array_equal(found, values)


def test_the_table_has_both_kinds_and_no_key_twice():
    keys = [row.key for row in WRAPPERS]
    assert len(set(keys)) == len(keys)
    assert {row.weights for row in WRAPPERS} == {PLAIN, AVERAGED}
    assert all(row.by for row in WRAPPERS)
