"""Which rows ``mp-bench --engine A --vs B`` has: of a pipeline, and of a network of one's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mambapose.benchmarks import comparison
from mambapose.benchmarks.jobs import Job
from mambapose.benchmarks.sides import Side
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.errors import BundleError
from mambapose.runtime.types import TensorSpec

IMAGE = (TensorSpec("rgb", "uint8", ("N", 64, 48, 3)),)
CLIP = (TensorSpec("keypoints", "float32", ("N", 9, 17, 2)),)


@pytest.fixture
def bundles(make_bundle, monkeypatch: pytest.MonkeyPatch) -> dict[str, Bundle]:
    """A pipeline, a lone network and another; names are described in place of being exported."""
    pose = make_bundle("pose2d", {"main": IMAGE}, name="pose")
    lifter = make_bundle("lift3d", {"main": CLIP}, name="lifter")
    found = {
        "pipeline": replace(pose, stages={**pose.stages, **lifter.stages}),
        "mine": make_bundle("model", {"main": CLIP}, name="mine"),
        "other": make_bundle("model", {"main": CLIP}, name="other"),
    }
    by_path = {str(found[name].path): found[name] for name in ("mine", "other")}
    monkeypatch.setattr(comparison, "read_bundle", lambda path, verify: by_path[str(path)])
    described = {"vitpose-s": pose, "vitpose-b": pose, "posemamba-s": lifter}
    monkeypatch.setattr(comparison, "exported", lambda name: described.get(name, pose))
    monkeypatch.setattr(comparison.sweeps, "sides", lambda candidates: [Side("swept", "x", ())])
    return found


def rows(bundle: Bundle, vs: tuple[str, ...], monkeypatch: Any, sweep: bool = True) -> list[Any]:
    monkeypatch.setattr(comparison, "measure_all", lambda sides, job, tell: list(sides))
    found: list[Any] = comparison.compare(bundle, vs, Job("stages"), sweep=sweep, tell=print)
    return [(side.label, side.group) for side in found]


def test_a_pipeline_beside_vitpose(bundles, monkeypatch) -> None:
    found = rows(bundles["pipeline"], ("vitpose-b",), monkeypatch)
    tiers = [(name, "tier") for pair in comparison.TIERS for name in pair]
    assert found == [
        ("pose2d", "stage"), ("lift3d", "stage"), ("pipeline", "pipeline"),
        ("vitpose-b", "baseline"), ("vitpose-b + lifter", "baseline"),
        ("vitpose-s", "baseline"), ("vitpose-s + lifter", "baseline"), *tiers, ("swept", "x"),
    ]  # fmt: skip
    assert rows(bundles["pipeline"], ("vitpose-b",), monkeypatch, sweep=False) == found[:-1]
    assert rows(bundles["pipeline"], (), monkeypatch, sweep=False) == found[:3]


def test_a_lifter_is_a_baseline_without_a_lifter_behind(bundles, monkeypatch) -> None:
    found = rows(bundles["pipeline"], ("posemamba-s",), monkeypatch, sweep=False)
    assert [label for label, group in found if group == "baseline"] == ["posemamba-s"]


def test_a_lone_network_beside_names_and_another(bundles, monkeypatch) -> None:
    vs = ("posemamba-s", str(bundles["other"].path))
    assert rows(bundles["mine"], vs, monkeypatch) == [
        ("model", "stage"), ("posemamba-s", "baseline"), ("other model", "baseline")
    ]  # fmt: skip


def test_a_baseline_that_is_nothing_shows_before_anything_is_measured(bundles, monkeypatch) -> None:
    monkeypatch.setattr(comparison, "measure_all", lambda *rest: pytest.fail("measured"))
    with pytest.raises(BundleError, match="found no/such"):
        comparison.compare(bundles["mine"], ("no/such",), Job("stages"), sweep=False, tell=print)


@pytest.mark.slow
def test_two_brought_networks_stand_beside_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exported by ``mp-export --model`` and measured by ``mp-bench --engine A --vs B``."""
    from mambapose.benchmarks.cli import main as bench
    from mambapose.export.cli import main as export

    (tmp_path / "two_nets.py").write_text(
        "import torch\n"
        "def small(): return torch.nn.Linear(2, 3)\n"
        "def large(): return torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.Linear(64, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("small", "large"):
        export(["--model", f"two_nets:{name}", "--inputs", "x:float32:N,9,17,2", "--out", name])
    capsys.readouterr()
    bench(["--engine", "small", "--vs", "large", "--iterations", "2", "--threads", "1"])
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("model / large model")]
    assert "peak memory" in line
    assert "latency" in line
    assert any(line.split()[:4] == ["model", "two_nets:small", "9x17x2", "0.00"]
               for line in said.splitlines())  # fmt: skip
