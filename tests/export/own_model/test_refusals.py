"""What is read when a network cannot be exported: a sentence with the line of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mambapose.export.cli import main

# What forward does, and the error; the first line of forward is line 9.
FORWARDS = {
    "branch": ("if x.sum() > 0:\n            x = x + 1\n        return x",
               r"depends on the values of a tensor was found \(bad_net.py:9\); .*torch.where"),
    "loop": ("while x.max() > 1:\n            x = x / 2\n        return x",
             r"depends on the values of a tensor was found \(bad_net.py:9\)"),
    "assertion": ("assert (x < 100).all()\n        return x + 1",
                  r"depends on the values of a tensor was found \(bad_net.py:9\)"),
    "slice": ("return x[:, : int(x.argmax()) + 1]",
              r"output y: float32 \(1, 1\) was found first, .*from the inputs' sizes"),
    "mask": ("return x[x > 0]", r"output y: float32 \(0\) was found first, \(\d,\) for other"),
    "inner slice": ("return x + x[:, : int(x.argmax()) + 1].sum()",
                    r"a size that depends on the values of a tensor was found \(bad_net.py:9\)"),
    "operator": ("return torch.linalg.svd(x)[1]",
                 r"operator aten._?linalg_svd was found \(bad_net.py:9\), which has no form"),
    "numpy": ("return torch.from_numpy(x.numpy() * 2)",
              r"an array of NumPy was found \(bad_net.py:9\), .*write it with torch"),
    "text": ("print(f'{x.max().item():.3f}')\n        return x + 1",
             r"making a graph of it failed: TypeError: .* \(bad_net.py:9\); values of tensors"),
    "buffer in place": ("return self.state.mul_(0.5).add_(x) * 2",
                        r"^error: state changes in place .* take the state as an input"),
    "buffer replaced": ("self.state = self.state + 1\n        return x * self.state",
                        r"^error: state is kept from one call to the next and changes the answer"),
    "attribute": ("self.last = x if self.last is None else x + self.last\n"
                  "        return self.last * 2",
                  r"^error: last is kept from one call to the next .* take the state as an input"),
    "noise": ("return x + torch.randn(4)", r"the same inputs, .* draws no random numbers"),
    "values": ("if x.any(): raise ValueError('zeros only')\n        return x",
               r"with random values and failed: ValueError: zeros only \(bad_net.py:9\); every"),
    "cuda": ("return x + torch.zeros(4, device='cuda')",
             r"CUDA.* \(bad_net.py:9\); .*make tensors on the device of the inputs"),
    "package": ("import a_package_nobody_has\n        return x",
                r"imports a_package_nobody_has, which is not installed \(bad_net.py:9\);"),
    "complex": ("u = x[:, :, None].expand(1, 4, 5)\n"
                "        return selective_scan_fn(u, u, torch.ones(4, 2) * 1j, B, B)",
                r"A: real values were wanted, .* a real A, .* \(bad_net.py:10\)$"),
    "kernel": ("kernel[(1,)](x)\n        return x",
               r"triton kernel kernel: .*take the code's torch version of it \(bad_net.py:9\)$"),
}  # fmt: skip
CODE = """import torch, triton
from torch import nn
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
@triton.jit
def kernel(x): pass
B = torch.ones(1, 2, 5)
class Net(nn.Module):
    def forward(self, x):
        {forward}
    def __init__(self):
        super().__init__()
        self.last = None
        self.register_buffer("state", torch.zeros(1, 4))
"""
FACTORIES = {
    "from mamba_ssm import Mamba2\nmake = lambda: Mamba2(64)\n":
        r"Mamba2 was found, Mamba-1 was wanted; .*SSD.* \(bad_net.py:2\)$",
    "from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined as scan\n"
    "make = lambda: scan(1, 2)\n":
        r"mamba_chunk_scan_combined was found, Mamba-1 was wanted; .* \(bad_net.py:2\)$",
    "from mamba_ssm.models.mixer_seq_simple import MixerModel\n":
        r"imports mamba_ssm.models, for which there is no stand-in \(bad_net.py:1\); install",
    "import torch\nfrom mamba_ssm import MixerModel\n":
        r"imports mamba_ssm.MixerModel, for which there is no stand-in \(bad_net.py:2\); install",
    "def make():\n    import a_package_nobody_has\n":
        r"imports a_package_nobody_has, which is not installed \(bad_net.py:2\); install it$",
}  # fmt: skip


def refused(folder: Path, code: str, name: str, sides: str, capsys: pytest.CaptureFixture) -> str:
    """What the command prints instead of a bundle."""
    (folder / "bad_net.py").write_text(code)
    words = ["--model", f"bad_net:{name}", "--inputs", f"x:float32:{sides}", "--out", "none"]
    with pytest.raises(SystemExit) as found:
        main(words)
    assert found.value.code == 1
    assert not (folder / "none").exists()
    said: str = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1, said
    return said


@pytest.mark.parametrize("what", FORWARDS)
def test_a_network_that_cannot_be_exported(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    forward, message = FORWARDS[what]
    said = refused(tmp_path, CODE.replace("{forward}", forward), "Net", "1,4", capsys)
    assert re.search(message, said), said


def test_a_free_side_that_the_code_fixes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    forward = "return x + 1 if x.shape[0] > 2 else x"
    said = refused(tmp_path, CODE.replace("{forward}", forward), "Net", "N,4", capsys)
    assert "the side N was to be free, " in said
    assert "give --inputs a whole number in the place of N" in said


@pytest.mark.parametrize("code", FACTORIES)
def test_a_factory_that_cannot_be_called(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(tmp_path, code, "make", "1,4", capsys)
    assert re.search(FACTORIES[code], said), said


@pytest.mark.filterwarnings("ignore:The tensor attribute")
def test_what_keeps_a_tensor_but_answers_the_same_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code that stores its attention for pictures, or a table on the first call."""
    monkeypatch.chdir(tmp_path)
    forward = "self.last = x * 2\n        return self.last + 1"
    (tmp_path / "bad_net.py").write_text(CODE.replace("{forward}", forward))
    main(["--model", "bad_net:Net", "--inputs", "x:float32:1,4", "--out", "kept"])
    assert (tmp_path / "kept").is_dir()
