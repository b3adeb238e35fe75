"""Which networks a sweep measures at which sizes, and what each is held against."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mambapose.benchmarks import bench, sweeps, yardsticks
from mambapose.benchmarks.exported import export_words, stage_of
from mambapose.benchmarks.jobs import Job, Row, row_from_dict
from mambapose.benchmarks.sides import frames_of, text_of_size
from mambapose.benchmarks.sweeps import Candidate, candidate_list, default_candidates, ratios
from mambapose.export.models import mambapose_nano
from mambapose.export.sizes import check_clip, check_size
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.errors import BundleError, ExportError, MambaPoseError
from mambapose.runtime.targets import TARGETS
from mambapose.runtime.types import TensorSpec

from ..export_cache import cached_folder

CAUSAL = "posemamba-l"  # stands for a network that goes frame by frame
PARAMS = {"posemamba-s": 1_470_211, "mambapose3d-nano": 308_611, CAUSAL: 1_400_000}


def keypoints(frames: int) -> tuple[TensorSpec, ...]:
    return (TensorSpec("keypoints", "float32", ("N", frames, 17, 2)),)


def image(height: int, width: int) -> tuple[TensorSpec, ...]:
    return (TensorSpec("rgb", "uint8", ("N", height, width, 3)),)


@pytest.fixture
def described(make_bundle, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``exported`` describes networks in place of exporting them."""

    def exported(name: str, size: Any = None) -> Bundle:
        named = {"name": f"{name}-{size}".replace(":", "-")}
        if isinstance(size, tuple):
            return make_bundle("pose2d", {"main": image(*size)}, **named)
        count = PARAMS.get(name, 1_359_107)
        assert not (name == CAUSAL and size is not None)  # which the export refuses
        graphs = {"step": keypoints(1)} if name == CAUSAL else {"main": keypoints(size or 81)}
        return make_bundle("lift3d", graphs, params=count, **named)

    monkeypatch.setattr(sweeps, "exported", exported)
    return make_bundle


def measured(sides: Any) -> list[tuple[str, str, int | None]]:
    return [(side.label, text_of_size(side), frames_of(side)) for side in sides]


def test_lifters_over_windows_beside_transformers_of_their_sizes(described) -> None:
    found = candidate_list(["posemamba-s", "mambapose3d-nano"])
    sides = list(sweeps.sides(found, clips=(27, 81)))
    assert {side.group for side in sides} == {"T sweep"}
    assert measured(sides) == [
        (label, f"T={frames}", 27)  # the hop of the described bundles
        for frames in (27, 81)
        for label in ("posemamba-s", "mambapose3d-nano", "transformer:5", "transformer:1")
    ]


def test_a_lifter_that_goes_frame_by_frame_has_one_row(described) -> None:
    sides = list(sweeps.sides(candidate_list([CAUSAL]), clips=(27, 81)))
    assert measured(sides)[:2] == [(CAUSAL, "step", 1), ("transformer:5", "T=27", 27)]
    assert [side.label for side in sides] == [CAUSAL, "transformer:5", "transformer:5"]


def test_2d_networks_stand_beside_vitpose(described) -> None:
    sides = list(sweeps.sides(candidate_list(["mambapose-small"]), sizes=((64, 48), (96, 64))))
    assert measured(sides) == [
        (label, size, 1)
        for size in ("64x48", "96x64")
        for label in ("mambapose-small", "vitpose-s", "vitpose-b")
    ]
    again = list(sweeps.sides(candidate_list(["vitpose-b"]), sizes=((64, 48),)))
    assert [side.label for side in again] == ["vitpose-b", "vitpose-s"]


def test_a_network_of_one_size_is_measured_there(described) -> None:
    assert {"mambapose-nano": mambapose_nano.IMAGE} == sweeps.ONLY_SIZES
    alone = list(sweeps.sides(candidate_list(["mambapose-nano"]), sizes=((64, 48),)))
    assert measured(alone)[0] == ("mambapose-nano", "256x192", 1)
    assert {size for _, size, _ in measured(alone)} == {"256x192"}
    both = sweeps.sides(candidate_list(["mambapose-nano", "mambapose-tiny"]), sizes=((64, 48),))
    assert [(label, size) for label, size, _ in measured(both)] == [
        ("mambapose-tiny", "64x48"), ("vitpose-s", "64x48"), ("vitpose-b", "64x48"),
        ("mambapose-nano", "256x192"), ("mambapose-tiny", "256x192"), ("vitpose-s", "256x192"),
        ("vitpose-b", "256x192"),
    ]  # fmt: skip


LONE = {
    "lifter": (("N", 9, 17, 2), ("lift3d", 9)),
    "scored": ((1, 27, 17, 3), ("lift3d", 27)),
    "channels_first": (("N", 3, 64, 48), ("pose2d", (64, 48))),
    "channels_last": ((1, 64, 48, 3), ("pose2d", (64, 48))),
}


@pytest.mark.parametrize("name", LONE)
def test_a_network_of_ones_own_is_measured_at_its_size(name, described, monkeypatch) -> None:
    shape, (stage, size) = LONE[name]
    spec = (TensorSpec("x", "float32", shape),)
    bundle = described("model", {"main": spec}, name=name, params=1_500_000)
    monkeypatch.setattr(sweeps, "read_bundle", lambda path, verify: bundle)
    (found,) = candidate_list([str(bundle.path)])
    assert found == Candidate(name, stage, bundle, "model", size)
    sides = list(sweeps.sides([found]))
    text = f"T={size}" if stage == "lift3d" else "64x48"
    assert measured(sides)[0] == (name, text, size // 3 if isinstance(size, int) else 1)
    assert sides[0].parts == ((bundle, "model"),)
    others = {"lift3d": ["transformer:6"], "pose2d": ["vitpose-s", "vitpose-b"]}[stage]
    assert [(side.label, text_of_size(side)) for side in sides[1:]] == [(o, text) for o in others]


@pytest.mark.parametrize("shape", [("N", 4), ("N", "T", 17, 2), (1, 5, 64, 48)])
def test_a_network_that_is_neither_is_refused(shape, described, monkeypatch) -> None:
    bundle = described("model", {"main": (TensorSpec("x", "float32", shape),)})
    monkeypatch.setattr(sweeps, "read_bundle", lambda path, verify: bundle)
    with pytest.raises(BundleError, match=r"2D pose network or a lifter was wanted, .*--engine"):
        candidate_list([str(bundle.path)])


def test_names_that_cannot_be_swept_say_so() -> None:
    with pytest.raises(BundleError, match="raft-small is none"):
        candidate_list(["raft-small"])
    with pytest.raises(BundleError, match="found nonsense; the networks are raft-small"):
        candidate_list(["nonsense"])
    with pytest.raises(BundleError, match="transformer:PAIRS or a network was wanted"):
        stage_of("transformer:0")


def test_a_bundle_stands_for_its_networks(described, monkeypatch) -> None:
    registered = described("lift3d", {"main": keypoints(81)}, name="posemamba-b")
    brought = described("lift3d", {"main": keypoints(9)}, name="my.code:net")
    assert sweeps.bundle_candidates(registered) == [Candidate("posemamba-b", "lift3d")]
    assert sweeps.bundle_candidates(brought) == [
        Candidate(brought.path.name, "lift3d", brought, "lift3d", 9)
    ]
    found = default_candidates(registered)
    assert [c.label for c in found] == ["posemamba-b", *sweeps.LIFTERS, *sweeps.POSE_NETWORKS]
    again = described("lift3d", {"main": keypoints(81)}, name=sweeps.LIFTERS[0])
    assert len(default_candidates(again)) == len(found) - 1


ROW = Row("net", "T sweep", "net", "T=27", 1_000_000, 4.0, 10.0, 18.0, 19.0, 20.0, 20, 2, frames=9)


def test_a_row_is_held_against_the_nearest_yardstick_of_its_size() -> None:
    small = replace(ROW, label="transformer:1", params=300_000, peak_mib=5.0, p50_ms=36.0)
    like = replace(small, label="transformer:5", params=1_359_107, p50_ms=9.0)
    longer = replace(like, size="T=81", p50_ms=27.0, frames=27)
    image_net = replace(like, label="vitpose-s", group="size sweep")
    step = replace(ROW, label="causal", size="step", p50_ms=1.0, frames=1)
    rows = [ROW, step, small, like, longer, image_net]
    assert sweeps.held_against(ROW, rows) == [like]
    assert sweeps.held_against(step, rows) == [like, longer]
    assert sweeps.held_against(like, rows) == []
    assert sweeps.held_against(replace(ROW, size="T=243"), rows) == []
    assert ratios([*rows, replace(ROW, group="stage")]) == [
        "net / transformer:5 at T=27: peak memory 2.00x, time per frame 2.00x",
        "causal / transformer:5 at T=27: peak memory 2.00x, time per frame 1.00x",
        "causal / transformer:5 at T=81: peak memory 2.00x, time per frame 1.00x",
    ]


def test_default_sizes_are_what_networks_take() -> None:
    for size in sweeps.SIZES:
        check_size("pose2d", size)
    for frames in sweeps.CLIPS:
        check_clip(frames)
    assert sweeps.sizes_from_text("256x192, 384X288") == sweeps.SIZES[:2]
    assert sweeps.clips_from_text("27,81,243") == sweeps.CLIPS


@pytest.mark.parametrize("text", ["256", "256x192,", "ax2", "", "256x192x3", "-16x16"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(MambaPoseError, match="256x192,384x288"):
        sweeps.sizes_from_text(text)


@pytest.mark.parametrize("text", ["", "27;81", "T", "27,-1"])
def test_windows_that_are_none(text: str) -> None:
    with pytest.raises(MambaPoseError, match="27,81,243"):
        sweeps.clips_from_text(text)


def test_sizes_no_network_takes() -> None:
    with pytest.raises(ExportError, match="multiples of 16"):
        sweeps.sizes_from_text("250x192")
    with pytest.raises(ExportError, match="1 to 243"):
        sweeps.clips_from_text("27,244")


def test_the_words_of_the_export() -> None:
    lifter = export_words("posemamba-s", "lift3d", "27")
    assert lifter[0] == "mambapose.export.cli"
    assert lifter[-5:] == ["--only", "lift3d", "--lift3d", "posemamba-s", "--clip-frames=27"]
    assert export_words("vitpose-s", "pose2d", "64x48")[-1] == "--size=pose2d=64x48"
    assert export_words("vitpose-s", "pose2d", "")[-1] == "vitpose-s"
    assert export_words("transformer:5", "lift3d", "27") == [
        yardsticks.__name__, "transformer:5", "--clip-frames=27",
    ]  # fmt: skip


def test_the_targets_own_size_is_not_exported_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mambapose.benchmarks import exported

    commands: list[list[str]] = []

    def run(words: list[str], **how: bool) -> SimpleNamespace:
        commands.append(words)
        (tmp_path / words[-1]).mkdir(parents=True)
        (tmp_path / words[-1] / "bundle.json").write_text("{}")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(exported, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(exported.subprocess, "run", run)
    monkeypatch.setattr(exported, "read_bundle", lambda path, verify: path.name)
    schedule = TARGETS["cpu"].schedule
    found = [
        exported.exported("vitpose-s"),
        exported.exported("vitpose-s", schedule.pose_size),
        exported.exported("vitpose-s", (64, 48)),
        exported.exported("transformer:5", schedule.clip_frames),
        exported.exported("transformer:5", 27),
    ]
    assert found == ["vitpose-s", "vitpose-s", "vitpose-s_64x48", "transformer-5",
                     "transformer-5_27"]  # fmt: skip
    assert [words[-3] for words in commands] == [
        "vitpose-s", "--size=pose2d=64x48", "transformer:5", "--clip-frames=27",
    ]  # fmt: skip


def test_an_export_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mambapose.benchmarks import exported

    done = SimpleNamespace(returncode=1, stderr="noise\nerror: no such crop\n")
    monkeypatch.setattr(exported, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(exported.subprocess, "run", lambda words, **how: done)
    with pytest.raises(BundleError, match=r"exporting vitpose-s .* failed: no such crop"):
        exported.exported("vitpose-s", (64, 48))


@pytest.mark.slow
def test_the_smallest_lifter_is_measured_beside_its_transformer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exported, run in processes of their own, printed and written: nothing here is a fake."""
    from mambapose.benchmarks.exported import exported

    def fill(home: Path) -> None:
        monkeypatch.setenv("HOME", str(home))
        for name in ("mambapose3d-nano", "transformer:1"):
            exported(name, 9)

    monkeypatch.setenv("HOME", str(cached_folder("bench", fill)))
    file = tmp_path / "rows.jsonl"
    job = Job("stages", iterations=2, seconds=0.0)
    bench.bench_networks(["mambapose3d-nano"], (), (9,), job, file)
    said = capsys.readouterr().out
    assert "mambapose3d-nano / transformer:1 at T=9: peak memory" in said
    lines = file.read_text().splitlines()
    assert len(lines) == 2
    for line, params in zip(lines, (308_611, 299_651), strict=True):
        row = row_from_dict(json.loads(line))
        assert (row.params, row.size, row.frames, row.calls) == (params, "T=9", 3, 2)
        assert row.peak_mib > 0
        assert row.p50_ms > 0
