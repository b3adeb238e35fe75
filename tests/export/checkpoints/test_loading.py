"""Checkpoint files: what is accepted, what is refused, and that nothing in them runs."""

from __future__ import annotations

import argparse
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mambapose.export.checkpoints import Rows, key_table, load_weights, read_state_dict
from mambapose.runtime.errors import ExportError


class Tiny(nn.Module):
    """A strided shortcut's norm under two names, as in RAFT, and a fused qkv, as in a ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.norm3 = nn.BatchNorm2d(3)
        self.downsample = nn.Sequential(nn.Conv2d(2, 3, 1), self.norm3)
        self.qkv = nn.Linear(4, 12)


TABLE = {
    "convolution.weight": "conv.weight",
    "convolution.bias": "conv.bias",
    **{f"short.{i}.{n}": f"downsample.{i}.{n}" for i in (0, 1) for n in ("weight", "bias")},
    "short.1.running_mean": "downsample.1.running_mean",
    "short.1.running_var": "downsample.1.running_var",
    **{
        f"{part}.{kind}": Rows(f"qkv.{kind}", index, 3)
        for index, part in enumerate(("query", "key", "value"))
        for kind in ("weight", "bias")
    },
}


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    values = {key: torch.rand_like(t.float()).to(t.dtype) for key, t in Tiny().state_dict().items()}
    for key in list(values):
        if key.startswith("norm3."):
            values[key] = values["downsample.1." + key.removeprefix("norm3.")]
    return values


def foreign(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict under the names of TABLE, query, key and value apart."""
    return {
        theirs: state[place]
        if isinstance(place, str)
        else state[place.key].chunk(place.count)[place.index].clone()
        for theirs, place in TABLE.items()
    }


def assert_loads(path: Path, state: dict[str, torch.Tensor], tables=()) -> None:
    model = Tiny()
    load_weights(model, path, tables)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


def refusal(path: Path, model: nn.Module | None = None, tables=()) -> str:
    """The one line an unusable file is refused with; the model stays as it was."""
    model = model or Tiny()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ExportError) as caught:
        load_weights(model, path, tables, network="tiny-net")
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_pos", "base_model", None])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "model_pos.", "module.model."])
def test_wrappers_and_prefixes_come_off(tmp_path, state, wrapper, prefix):
    content = OrderedDict((prefix + key, value) for key, value in state.items())
    path = tmp_path / "net.pth"
    torch.save({wrapper: content, "epoch": 3} if wrapper else content, path)
    assert_loads(path, state)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors"])
def test_every_file_type_loads(tmp_path, state, suffix):
    from safetensors.torch import save_file

    path = tmp_path / f"net{suffix}"
    if suffix == ".safetensors":
        apart = {key: value.clone() for key, value in state.items()}
        save_file(apart, path)
    else:
        torch.save(state, path)
    assert_loads(path, state)


def test_what_training_leaves_beside_the_weights_is_harmless(tmp_path, state):
    path = tmp_path / "net.pth"
    options = argparse.Namespace(lr=0.1, sizes=[1, 2])
    best = np.float64(0.5)
    torch.save({"model": state, "args": options, "best": best, "step": np.int64(4)}, path)
    assert_loads(path, state)


def test_the_old_file_format_loads(tmp_path, state):
    path = tmp_path / "old.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert_loads(path, state)


def test_half_precision_is_widened(tmp_path, state):
    halves = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    torch.save(halves, tmp_path / "half.pth")
    model = Tiny()
    load_weights(model, tmp_path / "half.pth")
    assert model.qkv.weight.dtype == torch.float32
    assert torch.equal(model.qkv.weight, halves["qkv.weight"].float())


@pytest.mark.parametrize("absent", ["norm3.", "downsample.1."])
def test_one_name_of_a_shared_tensor_is_enough(tmp_path, state, absent):
    torch.save({k: v for k, v in state.items() if not k.startswith(absent)}, tmp_path / "n.pth")
    assert_loads(tmp_path / "n.pth", state)


def test_other_names_load_and_parts_are_joined(tmp_path, state):
    state["downsample.1.num_batches_tracked"] = state["norm3.num_batches_tracked"] = torch.tensor(0)
    torch.save(foreign(state), tmp_path / "net.pth")
    assert_loads(tmp_path / "net.pth", state, (TABLE,))
    assert "unexpected (first: convolution.weight)" in refusal(tmp_path / "net.pth")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda s: s.pop("key.weight"), "1 missing (first: qkv.weight)"),
        (
            lambda s: s.update({"key.weight": torch.zeros(4, 5)}),
            "1 missing (first: qkv.weight)",
        ),
        (
            lambda s: s.update({"key.weight": torch.zeros(5, 4)}),
            "1 misshaped (first: qkv.weight is (13, 4), (12, 4) was wanted)",
        ),
    ],
    ids=["absent", "other width", "more rows"],
)
def test_parts_that_do_not_join_are_refused(tmp_path, state, change, found):
    theirs = foreign(state)
    change(theirs)
    torch.save(theirs, tmp_path / "net.pth")
    assert found in refusal(tmp_path / "net.pth", tables=(TABLE,))


def test_key_table_expands_braces():
    assert key_table(["a.qkv.bias", "b"], [(r"\.qkv\.", ".{q,k,v}.")]) == {
        "a.q.bias": Rows("a.qkv.bias", 0, 3),
        "a.k.bias": Rows("a.qkv.bias", 1, 3),
        "a.v.bias": Rows("a.qkv.bias", 2, 3),
        "b": "b",
    }


def test_the_wrong_network_is_named_with_its_first_keys(tmp_path, state):
    del state["conv.bias"]
    state["extra.one"] = torch.zeros(1)
    state["extra.two"] = torch.zeros(1)
    state["qkv.weight"] = torch.zeros(9, 4)
    torch.save(state, tmp_path / "net.pth")
    message = refusal(tmp_path / "net.pth")
    for part in (
        "weights of tiny-net",
        "1 missing (first: conv.bias)",
        "2 unexpected (first: extra.one)",
        "1 misshaped (first: qkv.weight is (9, 4), (12, 4) was wanted)",
    ):
        assert part in message


class Trap:
    """Unpickling this the ordinary way writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.write_text, (self.marker, "executed")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_nothing_runs(tmp_path, state, zipped):
    marker, path = tmp_path / "executed", tmp_path / "evil.pth"
    torch.save(
        {"state_dict": state, "x": Trap(marker)}, path, _use_new_zipfile_serialization=zipped
    )
    message = refusal(path)
    assert "would run code (it calls pathlib.Path.write_text), refused unread" in message
    assert not marker.exists()
    with path.open("rb") as file:  # the trap is live: the ordinary reader springs it
        torch.load(file, weights_only=False)
    assert marker.read_text() == "executed"


def test_a_bare_malicious_pickle_is_refused(tmp_path):
    marker, path = tmp_path / "executed", tmp_path / "evil.bin"
    path.write_bytes(pickle.dumps(Trap(marker)))
    refusal(path)
    assert not marker.exists()


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "found none at" in refusal(tmp_path / "absent.pth")
    assert "found none at" in refusal(tmp_path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"just text\n", b"\x80", b"PK\x03\x04", b"\xff" * 64])
def test_what_is_no_checkpoint_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"net{suffix}"
    path.write_bytes(content)
    refusal(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, state, suffix, part):
    from safetensors.torch import save_file

    path = tmp_path / f"net{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file({key: value.clone() for key, value in state.items()}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    refusal(path)


@pytest.mark.parametrize(
    "content", [{}, [1, 2], {"state_dict": {}}, {"a": 3}, {3: torch.zeros(1)}, torch.zeros(2)]
)
def test_files_without_a_state_dict_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "net.pth")
    refusal(tmp_path / "net.pth")


def test_a_whole_saved_module_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "net.pth")
    message = refusal(tmp_path / "net.pth")
    assert "whole saved object of torch.nn.modules.linear.Linear" in message
    assert "save model.state_dict()" in message


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_bytes_load_or_are_refused_but_nothing_else(tmp_path, state, zipped):
    path = tmp_path / "net.pth"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    generator = np.random.default_rng(7)
    refusals = []
    for _ in range(150):
        damaged = bytearray(whole)
        for place in generator.integers(0, len(whole), 3):
            damaged[place] = generator.integers(0, 256)
        path.write_bytes(damaged)
        try:
            assert read_state_dict(path)
        except ExportError as err:
            refusals.append(str(err))
    assert len(refusals) > 10
    assert not any("\n" in message for message in refusals)
