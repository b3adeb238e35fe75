"""What tests keep of their exports: found again when everything is the same, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import export_cache
from .export_cache import cached_folder, described, described_module

torch = pytest.importorskip("torch", reason="torch is not installed (extra export)")


class Scaled(torch.nn.Module):
    """A weight, a buffer that is not stored, and attributes."""

    def __init__(self, seed: int = 0, shift: float = 0.0, flip: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.dense = torch.nn.Linear(3, 2)
        self.register_buffer("shift", torch.full((2,), shift), persistent=False)
        self.flip, self.order = flip, {"b", "a", "c"}


def facts(module: torch.nn.Module) -> list[str]:
    return list(described_module(module))


def test_equal_modules_read_alike_and_others_do_not() -> None:
    assert facts(Scaled()) == facts(Scaled())
    others = [Scaled(1), Scaled(shift=1.0), Scaled(flip=True), torch.nn.Sequential(Scaled())]
    assert all(facts(other) != facts(Scaled()) for other in others)
    deeper = Scaled()
    deeper.dense.weight.data[1, 2] += 1e-6
    assert facts(deeper) != facts(Scaled())
    assert export_cache.source_of(torch.nn.Linear) == ""
    assert len(export_cache.source_of(Scaled)) == 64


def test_long_arrays_are_told_apart() -> None:
    one = torch.zeros(5000)
    other = one.clone()
    other[2500] = 1
    assert described({"x": [one]}) != described({"x": [other]})
    assert described(one) == described(one.numpy()) != described(one.reshape(2, -1))


def test_a_folder_is_filled_once_for_the_same_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_cache, "STORE", tmp_path)
    made: list[Path] = []

    def fill(folder: Path) -> None:
        made.append(folder)
        (folder / "x").write_text("x")

    first = cached_folder("a", fill, facts=["1"])
    assert (first / "x").read_text() == "x"
    assert cached_folder("a", fill, facts=["1"]) == first
    assert len({first, cached_folder("a", fill, facts=["2"]), cached_folder("b", fill)}) == 3
    assert len(made) == 3

    monkeypatch.setattr(export_cache, "sources_digest", lambda: "0" * 64)
    assert cached_folder("a", fill, facts=["1"]) != first
    assert first.is_dir()  # a run of other sources may still read it


def test_what_fails_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_cache, "STORE", tmp_path)

    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError("disk full")

    for _ in range(2):
        with pytest.raises(OSError, match="disk full"):
            cached_folder("a", fail)
    assert [path for path in tmp_path.rglob("*") if path.suffix != ".lock"] == [
        path for path in tmp_path.iterdir()
    ]


def test_sources_of_an_export_are_seen() -> None:
    seen = {path for pattern in export_cache.SOURCES for path in export_cache.ROOT.glob(pattern)}
    for name in (
        "export/build.py", "export/models/raft.py", "export/rewrites/flips.py",
        "plugins/torch_op.py", "runtime/types.py", "runtime/bundle/gate.py",
    ):  # fmt: skip
        assert export_cache.ROOT / name in seen
