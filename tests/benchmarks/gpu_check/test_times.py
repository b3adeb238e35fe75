"""Floor, table, bars and yardsticks of the GPU check, with recorded times instead of a GPU."""

from __future__ import annotations

import json
import tarfile
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from mambapose.benchmarks.gpu_check import bars, measure, shapes, timing, yardstick  # noqa: E402
from mambapose.benchmarks.gpu_check.floor import (  # noqa: E402
    Device,
    bytes_moved,
    exponentials,
    floor_us,
)
from mambapose.benchmarks.gpu_check.shapes import Shape  # noqa: E402
from mambapose.plugins.torch_loop import scan_loop  # noqa: E402
from mambapose.runtime.errors import EngineError  # noqa: E402

GPU = Device("NVIDIA Test 1", 90, 100, 1e9, 1.5e12, 1e12)
PAIR = Shape("pair", 2, 12, 3, 10)
CROSS = Shape("cross", 4, 8, 2, 12, grid=(3, 4))
SIX = Shape("six", 6, 8, 2, 12, grid=(3, 4))


def test_floor_by_hand():
    """K 2, D 12, N 3, L 10: every number counted on paper."""
    assert exponentials(PAIR) == 2 * 12 * 10 * 3 + 2 * (2 * 12 * 10) + 2 * (12 * 10)
    rows = 24 + 24 + 6 + 6 + 12 + 12  # u, dt, B, C, z, y
    assert bytes_moved(PAIR, torch.float16) == 10 * rows * 2 + 4 * (24 * 3 + 24 + 24)
    assert exponentials(CROSS) == 4 * 8 * 12 * (2 + 2)
    rows = 8 + 32 + 8 + 8 + 8  # u, dt, B, C, y
    constants = 4 * (32 * 2 + 32 + 32) + 4 * (4 * 12)
    assert bytes_moved(CROSS, torch.float32) == 12 * rows * 4 + constants
    slow = Device("slow memory", 90, 100, 1e9, 1.5e12, 1e6)
    few = Device("few exponentials", 90, 1, 1e6, 1.6e7, 1e12)
    assert floor_us(PAIR, torch.float16, few) == pytest.approx(1440 / 16)
    assert floor_us(PAIR, torch.float16, GPU) == pytest.approx(2160 / 1e6)
    assert floor_us(CROSS, torch.float32, slow) == pytest.approx(3776.0)


def test_the_timed_shapes_are_those_of_the_bars():
    found = {shape.name: (shape.K, shape.D, shape.N, shape.L) for shape in shapes.SHAPES}
    assert found["pair-384"] == (2, 384, 16, 197)
    assert found["cross-128"] == (4, 128, 16, 4131)
    assert found["pair-768"] == (2, 768, 16, 1024)
    assert all(shape.grid is None or shape.grid[0] * shape.grid[1] == shape.L
               for shape in shapes.SHAPES)  # fmt: skip


def _row(name="pair-384", candidate="auto", us=10.0, dtype="fp16", floor=4.0, **changes):
    row = bars.Row(name, "K 2", dtype, candidate, us, us + 9, 0.02, floor)
    return bars.Row(**{**vars(row), **changes})


def _rows(ours=10.0, theirs=25.0, floor=4.0):
    times = {"auto": ours, bars.MAMBA: theirs}
    return [
        _row(name, candidate, us, floor=floor)
        for name in bars.MODEL_BARS
        for candidate, us in times.items()
    ]


def test_bars_are_kept():
    judged = bars.judged(_rows(), {"fp16": 4e-4})
    assert [bar.measured for bar in judged] == [2.5] * 3 + [2.5] * 2 + [4e-4]
    assert all(bar.ok for bar in judged)
    assert bars.unmeasured(judged) == []


@pytest.mark.parametrize(
    ("rows", "errors", "missed"),
    [
        (_rows(theirs=19.9), {"fp16": 4e-4}, ["faster than mamba-ssm with its copies"] * 3),
        (_rows(floor=3.3), {"fp16": 4e-4}, ["times the floor"] * 2),
        (_rows(), {"fp16": 1.6e-3}, ["largest error"]),
        (_rows(), {"fp16": float("inf")}, ["largest error"]),
    ],
)
def test_bars_are_missed(rows, errors, missed):
    assert [bar.what for bar in bars.judged(rows, errors) if not bar.ok] == missed


def test_what_was_not_measured_is_said():
    alone = [row for row in _rows() if row.candidate == "auto"]
    assert bars.unmeasured(bars.judged(alone, {})) == [
        "faster than mamba-ssm with its copies",
        "largest error",
    ]
    single = [_row(dtype="fp32"), _row(dtype="fp32", candidate=bars.MAMBA, us=1.0)]
    assert [(bar.limit, bar.ok) for bar in bars.judged(single, {})] == [(None, True)]


def test_table_of_recorded_times():
    loop = _row(candidate="torch loop", us=100.0, graph_us=None, plain_us=1000.0)
    lines = bars.table([_row(form="chunked 4x4, 8 chunks"), loop])
    assert lines[1].split() == ["K", "2", "fp16", "auto", "(chunked", "4x4,", "8", "chunks)",
                                "10.0", "19.0", "1.00", "2.50"]  # fmt: skip
    assert lines[2].split() == ["K", "2", "fp16", "torch", "loop", "1000.0", "100.00", "250.00"]


def test_lines_of_the_last_run_are_found(tmp_path):
    path = bars.results_file(tmp_path, "NVIDIA H200 (MIG 1g)")
    assert path.name == "gpu_nvidia-h200-mig-1g.jsonl"
    judged = bars.judged(_rows(), {"fp16": 4e-4})
    for date in ("2026-01-01", "2026-01-02"):
        bars.write_json_lines(path, _rows(), judged, [{"check": "x"}], {"date": date})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    last = bars.last_run(lines)
    assert len(lines) == 2 * len(last)
    assert {line["machine"]["date"] for line in last} == {"2026-01-02"}
    assert [line["ok"] for line in last if line["bench"] == "gpu-bar"] == [True] * 6


def _their_scan(u, delta, A, B, C, D, z, bias, softplus):
    """mamba-ssm's forward call in its own layout, by the plain loop."""
    groups = B.shape[1]
    rows = [t.transpose(1, 2) for t in (u, delta)]
    matrices = [t.permute(0, 3, 1, 2).flatten(2) for t in (B, C)]
    gate = None if z is None else z.transpose(1, 2)
    options = (1, groups, (0,), softplus, 0, "none", "silu")
    out, _ = scan_loop(*rows, A, *matrices, D, None, bias, None, None, *options)
    gated, _ = scan_loop(*rows, A, *matrices, D, gate, bias, None, None, *options)
    results = [out.transpose(1, 2), torch.zeros(1)]
    return results if z is None else [*results, gated.transpose(1, 2)]


@pytest.fixture
def theirs():
    """A module with mamba-ssm's call that computes the scan slowly."""
    return yardstick.MambaSsm(SimpleNamespace(fwd=_their_scan, bwd=lambda *_a: None), "0")


@pytest.mark.parametrize("shape", [PAIR, CROSS, SIX], ids=str)
def test_flips_and_copies_around_the_yardstick_give_our_scan(shape, theirs, monkeypatch):
    monkeypatch.setattr(shapes, "DEVICE", "cpu")
    x = shapes.inputs(shape, torch.float32)
    wanted, _ = scan_loop(*x.values(), *shapes.options(shape).values())
    found = yardstick.model_call(theirs, shape, torch.float32)()
    torch.testing.assert_close(found.transpose(1, 2), wanted, rtol=0, atol=1e-5)
    bare = yardstick.bare_call(theirs, shape, torch.float32)()
    assert bare.shape == (1, shape.K * shape.D, shape.L)
    forward = bare.view(1, shape.K, shape.D, shape.L)[:, 0]
    first = dict(shapes.options(shape), directions=1, reverse=[0], merge="none")
    alone = {n: t if t is None or n == "z" else t[..., : shape.D] for n, t in x.items()}
    alone |= {n: x[n][: shape.D] for n in ("A", "D", "dt_bias")}
    alone |= {n: x[n][..., : shape.N] for n in ("B", "C")} | {"order": None}
    one, _ = scan_loop(*alone.values(), *first.values())
    torch.testing.assert_close(forward.transpose(1, 2), one, rtol=0, atol=1e-5)


def test_every_candidate_is_run_and_reported(theirs, shim, monkeypatch):
    """The whole measurement on small shapes; only the clock is a recorded one."""
    runs = []

    def recorded(calls, *, capture=True, repeats=30):
        runs.append(len([call() for call in calls]))
        return timing.Timed(12.0 if capture else None, 20.0, 0.01)

    monkeypatch.setattr(timing, "time_calls", recorded)
    monkeypatch.setattr(measure, "SHAPES", (PAIR, CROSS))
    monkeypatch.setattr(measure, "TRAINING", Shape("training", 2, 4, 2, 5, B=2))
    rows = measure.all_rows(GPU, theirs, quick=True)
    candidates = [row.candidate for row in rows if (row.name, row.dtype) == ("pair", "fp16")]
    assert candidates == ["auto", "sequential", "lane_split", "chunked", bars.MAMBA,
                          "mamba-ssm, scan alone", "torch loop"]  # fmt: skip
    training = [row.candidate for row in rows if row.name == "training"]
    assert training == ["auto", "torch loop", "mamba-ssm, scans alone"]
    assert len(runs) == len(rows)
    assert all(row.form for row in rows if row.candidate == "chunked")


def test_a_yardstick_that_computes_something_else_is_refused(theirs, shim, monkeypatch):
    monkeypatch.setattr(timing, "time_calls", lambda calls, **_options: timing.Timed(1.0, 1.0, 0.0))
    wrong = yardstick.MambaSsm(SimpleNamespace(fwd=lambda u, *_rest: [u, u, u]), "0")
    with pytest.raises(EngineError, match="to compute the same scan on K 2 D 12 N 3 L 10 in fp16"):
        measure.shape_rows(PAIR, "fp16", GPU, wrong, 1)


def test_source_distributions_without_the_kernels_are_refused(tmp_path):
    (tmp_path / "PKG-INFO").write_text("Name: mamba-ssm")
    archive = tmp_path / "mamba_ssm-2.2.4.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "PKG-INFO", "mamba_ssm-2.2.4/PKG-INFO")
    with pytest.raises(EngineError, match=r"csrc/selective_scan was wanted, .* has none"):
        yardstick.unpack(archive, tmp_path / "out")
    with pytest.raises(EngineError, match="cannot be read"):
        yardstick.unpack(tmp_path / "absent.tar.gz", tmp_path / "out")


def test_source_distribution_is_unpacked_and_its_types_named(tmp_path):
    source = tmp_path / "selective_scan.cpp"
    source.write_text("// binding")
    archive = tmp_path / "mamba_ssm-2.9.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(source, "mamba_ssm-2.9/csrc/selective_scan/selective_scan.cpp")
    folder, version = yardstick.unpack(archive, tmp_path / "out")
    assert version == "2.9"
    assert (folder / "selective_scan.cpp").read_text() == "// binding"
    text = "".join(path.read_text() for path in yardstick.instantiations(folder))
    for way in ("fwd", "bwd"):  # each of the six combinations of types once
        assert text.count(f"template void selective_scan_{way}_cuda<") == 6
    assert text.count("cuda<at::Half, float>(SSMParamsBase&") == 1
