"""One mutated checkpoint per number, loaded into a network."""

from __future__ import annotations

import argparse
import datetime
import io
import pickle
import struct
import sys
import zipfile
from pathlib import Path
from random import Random

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from mambapose.export.checkpoints import key_table, load_weights
from mambapose.export.checkpoints.reading import contents_of
from mambapose.runtime.errors import ExportError

from .worker import check_line, serve

MOST_GROWTH = 1 << 20  # KiB of memory over all cases
NUMBERS = (-1, 0, 1, 3, 255, 1 << 31, (1 << 31) - 1, 1 << 62, (1 << 63) - 1, -(1 << 63))
KINDS = (
    "zip",
    "legacy",
    "safetensors",
    "pickle in zip",
    "header",
    "program",
    "rich",
    "description",
)
GLOBALS = (
    "os system", "builtins eval", "builtins getattr", "builtins bytearray", "pathlib Path",
    "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage",
    "torch._utils _rebuild_parameter", "numpy.core.multiarray _reconstruct", "numpy ndarray",
    "numpy dtype", "_codecs encode", "training Config", "torch._tensor _rebuild_from_type_v2",
    "collections Counter", "copyreg _reconstructor", "torch._utils _rebuild_tensor_v3",
)  # fmt: skip


class Net(nn.Module):
    """A fused qkv, a norm and a plain layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.fc = nn.Linear(24, 4)
        self.bn = nn.BatchNorm1d(4)


def _seed_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(Net().state_dict())


STATE = _seed_state()
TABLE = key_table(STATE, [(r"^qkv\.(weight|bias)$", r"att.{q,k,v}.\1")])
WRAPPED = {
    "epoch": 3,
    "model": STATE,
    "model_ema": {"module." + key: value for key, value in STATE.items()},
    "args": argparse.Namespace(lr=0.1, betas=(0.9, 0.99), when=datetime.datetime(2024, 1, 1)),
    "history": [np.zeros(3), np.float64(3), {"a": {1, 2}}, torch.zeros(3)],
    "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]},
}
APART = {
    **{key: value for key, value in STATE.items() if not key.startswith("qkv")},
    **{f"att.{n}.weight": STATE["qkv.weight"].chunk(3)[i] for i, n in enumerate("qkv")},
    **{f"att.{n}.bias": STATE["qkv.bias"].chunk(3)[i] for i, n in enumerate("qkv")},
}


def saved(content: object, zipped: bool = True, protocol: int = 2) -> bytes:
    """The bytes of torch's file."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return file.getvalue()


def damaged(data: bytes, rng: Random) -> bytes:
    """A few bytes changed, taken away or put in."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 1, 2, 4, 16))):
        at, kind = rng.randrange(len(out)), rng.random()
        if kind < 0.5:
            out[at] = rng.randrange(256)
        elif kind < 0.7:
            out[at] ^= 1 << rng.randrange(8)
        elif kind < 0.85:
            del out[at : at + rng.randint(1, 9)]
        else:
            out[at:at] = rng.randbytes(rng.randint(1, 5))
        out = out or bytearray(b"x")
    return bytes(out)


def rezipped(data: bytes, text: bytes) -> bytes:
    """torch's archive with another pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(file, "w") as made:
        for name in source.namelist():
            made.writestr(name, text if name.endswith("data.pkl") else source.read(name))
    return file.getvalue()


def pickle_of(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))


def program(rng: Random) -> bytes:
    """A pickle of instructions drawn at random, most of them with something to work on."""
    out = [b"\x80" + bytes([rng.choice((2, 2, 4, 5))])]
    values = (
        lambda: b"K" + bytes([rng.randrange(256)]), lambda: b"N", lambda: b")", lambda: b"]",
        lambda: b"}", lambda: b"(", lambda: b"X\x01\0\0\0" + bytes([97 + rng.randrange(5)]),
        lambda: b"\x8a\x08" + rng.randbytes(8), lambda: b"h" + bytes([rng.randrange(4)]),
        lambda: b"C\x04" + rng.randbytes(4), lambda: b"\x8f", lambda: b"G" + rng.randbytes(8),
        lambda: b"c" + rng.choice(GLOBALS).replace(" ", "\n").encode() + b"\n",
    )  # fmt: skip
    actions = (
        b"\x85", b"\x86", b"\x87", b"t", b"l", b"d", b"a", b"e", b"s", b"u", b"R", b"b", b"\x81",
        b"\x92", b"o", b"Q", b"2", b"0", b"1", b"\x90", b"\x91", b"\x94", b"q\x00",
        b"r\xff\xff\xff\x7f",
    )  # fmt: skip
    for _ in range(rng.choice((2, 4, 8, 60))):
        out.append(rng.choice(values)() if rng.random() < 0.6 else rng.choice(actions))
    return b"".join([*out, b"}X\x01\0\0\0aK\x01s."])


def description(rng: Random) -> bytes:
    """Tensors whose storage, offset, sizes and strides are any numbers, in place of true ones."""
    text = pickle_of(saved(rng.choice((STATE, APART, WRAPPED))))
    out = bytearray(text)
    places = [at for at, byte in enumerate(out[:-1]) if byte in b"KMJ"]
    for _ in range(rng.randint(1, 3)):
        at = rng.choice(places)
        width = {75: 2, 77: 3, 74: 5}[out[at]] if out[at] in (75, 77, 74) else 1
        number = rng.choice((*NUMBERS, rng.randrange(300)))
        raw = number.to_bytes(9, "little", signed=True)
        out[at : at + width] = b"\x8a\x09" + raw
        places = [place for place in places if place < at] or [at]
    return bytes(out)


def mutated(number: int, rng: Random) -> bytes:
    """The bytes of a case."""
    kind = KINDS[number % len(KINDS)]
    content = rng.choice((STATE, WRAPPED, APART))
    if kind == "zip":
        return damaged(saved(content), rng)
    if kind == "legacy":
        return damaged(saved(content, zipped=False), rng)
    if kind == "safetensors":
        return damaged(save(STATE), rng)
    if kind == "pickle in zip":
        whole = saved(content, protocol=rng.choice((2, 4)))
        return rezipped(whole, damaged(pickle_of(whole), rng))
    if kind == "header":
        whole = save(STATE)
        (length,) = struct.unpack("<Q", whole[:8])
        head = damaged(whole[8 : 8 + length], rng)
        return struct.pack("<Q", len(head)) + head + whole[8 + length :]
    if kind == "program":
        text = program(rng)
        return rezipped(saved(STATE), text) if rng.random() < 0.5 else text
    if kind == "rich":
        arrays = {key: value.numpy() for key, value in STATE.items()}
        return damaged(pickle.dumps({**arrays, "x": [1]}, protocol=rng.choice((2, 4, 5))), rng)
    return rezipped(saved(STATE), description(rng))


def peak_kib() -> int:
    """The most memory of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def case(number: int, folder: Path) -> bool:
    """Load the mutated checkpoint of a number; whether it could be parsed."""
    rng = Random(number)
    path, model = folder / rng.choice(("net.pth", "net.safetensors")), Net()
    path.write_bytes(mutated(number, rng))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    peak = peak_kib()
    try:
        contents_of(path)
        accepted = True
    except ExportError as err:
        check_line(err)
        accepted = False
    try:
        load_weights(model, path, (TABLE,), tell=lambda note: check_line(ExportError(note)))
        assert accepted
    except ExportError as err:
        check_line(err)
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key]), key
    for key, value in model.state_dict().items():
        assert value.shape == before[key].shape
        assert bool(torch.isfinite(value).all())
    assert peak_kib() - peak < MOST_GROWTH
    return accepted


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(sys.argv[1:], case)
