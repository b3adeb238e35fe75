"""``--download NETWORK``: the list of sources, the stage each takes, and what is refused."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from mambapose.export import cli, download
from mambapose.export.models import NETWORKS
from mambapose.export.official_files import SOURCES, OfficialFile, wanted_sources
from mambapose.export.plan import ExportOptions, make_plan
from mambapose.runtime.errors import ExportError
from mambapose.runtime.targets import TARGETS

CPU = TARGETS["cpu"]
OWN = {name for name in NETWORKS if name.startswith(("mambapose", "glsmamba", "posemagic"))}


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of mp-export."""
    status = 0
    try:
        cli.main(list(args))
    except SystemExit as err:
        status = int(err.code or 0)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_every_official_network_has_a_source_for_its_stage() -> None:
    others = {"yolox-nano": "detect", "yolox-tiny": "detect", "vim-tiny": None, "vim-small": None}
    stages = {name: net.stage for name, net in NETWORKS.items() if name not in OWN}
    assert {name: source.stage for name, source in SOURCES.items()} == stages | others


@pytest.mark.parametrize("source", SOURCES.values(), ids=list(SOURCES))
def test_a_source_is_complete(source: OfficialFile) -> None:
    assert SOURCES[source.name] is source
    assert source.licence
    assert bool(source.url) != bool(source.by_hand)
    assert (source.member is None) == (source.archive_sha256 is None)
    assert all(link.startswith("https://") for link in (source.url, source.page) if link)
    for digest in (source.sha256, source.archive_sha256):
        assert digest is None or re.fullmatch("[0-9a-f]{64}", digest)
    assert source.url is None or "." in source.file


def test_hashes_are_those_of_the_files_in_hand(assets: Path) -> None:
    for name, file in (
        ("raft-small", "raft-small/raft-small.pth"),
        ("yolox-nano", "detector-yolox-nano/yolox_nano.onnx"),
    ):
        path = assets / file
        assert SOURCES[name].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert SOURCES[name].file == path.name


def test_downloads_choose_their_stages() -> None:
    asked = ("raft-large", "depth-anything-v2-small", "vitpose-b", "posemamba-b", "yolox-tiny")
    plan = make_plan(CPU, ExportOptions(download=asked))
    assert [stage.network.name for stage in plan.stages] == list(asked[:4])
    assert [stage.source for stage in plan.stages] == [SOURCES[name] for name in asked[:4]]
    assert plan.detect_source == SOURCES["yolox-tiny"]
    assert not any(stage.untrained for stage in plan.stages)


def test_a_dry_run_names_address_size_and_licence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(*args: object) -> Path:
        raise AssertionError("fetched")

    monkeypatch.setattr(download, "receive", fetched)
    asked = ("depth-anything-v2-base", "posemamba-s", "yolox-nano")
    options = [word for name in asked for word in ("--download", name)]
    status, out, _ = run(capsys, "--dry-run", "--untrained", *options)
    assert status == 0
    assert "depth_anything_v2_vitb.pth (390 MB; CC-BY-NC-4.0: NOT FOR COMMERCIAL USE)" in out
    assert "PoseMamba_S.bin (size not published; no SHA-256 published; Apache-2.0, trained" in out
    assert "detect  yolox-nano " in out
    assert "0.1.1rc0/yolox_nano.onnx (4 MB; Apache-2.0)" in out


def test_a_start_of_training_is_fetched_and_nothing_exported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(download, "download", lambda source, tell: tell(f"{source.name}: here"))
    monkeypatch.chdir(tmp_path)
    status, out, _ = run(capsys, "--download", "vim-tiny")
    assert status == 0
    assert out.splitlines() == [
        "vim-tiny: no stage of a bundle, a training starts from it; nothing exported",
        "vim-tiny: here",
    ]
    status, out, _ = run(capsys, "--download", "vim-small", "--dry-run")
    assert "vim_s_midclstok_80p5acc.pth (413 MB; Apache-2.0)" in out
    assert list(tmp_path.iterdir()) == []


def test_a_vouched_hash_is_taken_where_none_is_listed() -> None:
    digest = "ab" * 32
    (source,) = wanted_sources([f"posemamba-s={digest.upper()}"])
    assert source.sha256 == digest
    listed = SOURCES["yolox-nano"].sha256
    assert wanted_sources([f"yolox-nano={listed}"]) == (SOURCES["yolox-nano"],)


BAD = {
    "unknown": (["raft"], "--download raft is not known; use one of: raft-small, raft-large, "),
    "by hand": (["vitpose-h"], "no direct link: open https://.*ViTPose-H .* --weights pose2d=FILE"),
    "our own": (["mambapose3d"], "nothing to download: it is this project's own network"),
    "twice": (["yolox-nano", "yolox-nano"], "are both for detect; keep one"),
    "one stage": (["raft-small", "raft-large"], "raft-large are both for flow; keep one"),
    "training": (["vim-tiny", "raft-small"], "vim-tiny makes no stage of a bundle, .*by itself"),
    "no hash": (["posemamba-s=abc"], "wants 64 hexadecimal digits, found 'abc'"),
    "other hash": (
        ["yolox-nano=" + "0" * 64],
        "contradicts the listed SHA-256 c789.*--detect FILE",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_downloaded_is_told_in_one_line(case: str) -> None:
    asked, sentence = BAD[case]
    with pytest.raises(ExportError, match=sentence) as caught:
        wanted_sources(asked)
    assert "\n" not in str(caught.value)


def test_contradictions_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"x")
    raft = ("raft-small",)
    for options, sentence in (
        (
            ExportOptions(download=raft, networks={"flow": "raft-large"}),
            "--flow raft-large contradicts",
        ),
        (ExportOptions(download=raft, networks={"flow": "none"}), "--flow none contradicts"),
        (
            ExportOptions(download=raft, only=("depth",)),
            "--flow raft-small contradicts --only depth",
        ),
        (ExportOptions(download=raft, weights={"flow": file}), "--weights flow=FILE both give the"),
        (
            ExportOptions(download=("yolox-nano",), detect=file),
            "--detect FILE both give the weights",
        ),
        (ExportOptions(download=("vim-tiny",)), "vim-tiny makes no stage"),
    ):
        with pytest.raises(ExportError, match=sentence):
            make_plan(CPU, options)
