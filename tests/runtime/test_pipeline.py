"""The whole chain over fake engines: order, buffers, modalities, memory."""

from __future__ import annotations

import gc
import resource
import tracemalloc

import numpy as np
import pytest

from mambapose.runtime.errors import EngineError
from mambapose.runtime.pipeline import Pipeline
from mambapose.runtime.results.journal import Journal
from mambapose.runtime.run_options import RunOptions
from mambapose.runtime.targets import Schedule
from mambapose.runtime.types import Frame, Size

from .fakes import (
    depth_engine,
    fake,
    flow_engines,
    gaussians,
    lift_engine,
    pose_engine,
    step_engine,
    tensor,
)

pytestmark = pytest.mark.usefixtures("no_search")

SCHEDULE = Schedule(flow_iters=2, depth_every=3, detect_every=4, clip_frames=9, hop=3)
SMALL = (16, 12)


def frames(count, start=0, size=(24, 32), level=None):
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
    for k in range(start, start + count):
        image = texture if level is None else np.full((*size, 3), level(k), np.uint8)
        yield Frame(image, k, k / 30)


def upright(inputs):
    """Heatmaps of a person who fills two thirds of the crop."""
    people = len(inputs["rgb"])
    x = np.tile(np.linspace(3, 8, 17), (people, 1))
    y = np.tile(np.linspace(4, 11, 17), (people, 1))
    return {"heatmaps": gaussians(np.stack([x, y], -1), SMALL)}


def engines(pose=upright, **others):
    found = {
        **flow_engines((128, 128)),
        "depth": depth_engine((28, 28)),
        "pose2d": pose_engine(pose, SMALL, SMALL),
        "lift3d": lift_engine(None, 9),
    }
    found.update(others)
    return {name: engine for name, engine in found.items() if engine is not None}


def test_results_come_in_order_with_3d_and_without_pictures():
    pipeline = Pipeline(engines(), SCHEDULE)
    shown = []
    found = list(pipeline.run(frames(20), on_frame=lambda result: shown.append(result)))
    assert [result.frame.index for result in found] == list(range(20))
    assert [result.frame.index for result in shown] == list(range(20))
    assert all(result.frame.image.size == 0 for result in found)
    assert all(result.frame.image.shape == (24, 32, 3) for result in shown)
    assert all(result.poses[0].xyz.shape == (17, 3) for result in found)
    assert all(result.poses[0].xyz is None for result in shown)


def test_without_a_lifter_nothing_waits():
    pipeline = Pipeline(engines(lift3d=None), SCHEDULE)
    running = pipeline.run(frames(5))
    first = next(running)
    assert first.frame.index == 0
    assert first.frame.image.size > 0
    assert first.poses[0].xyz is None


def test_each_stage_runs_as_often_as_the_schedule_says():
    parts = engines()
    pipeline = Pipeline(parts, SCHEDULE)
    list(pipeline.run(frames(9)))
    calls = {name: engine.calls for name, engine in parts.items()}
    assert calls == {
        "flow.encode": 9,
        "flow.corr": 8,
        "flow.step": 16,
        "flow.upsample": 8,
        "depth": 3,
        "pose2d": 9,
        "lift3d": 3,
    }
    times = pipeline.times.summary()
    stages = {"flow", "depth", "search", "crop", "pose2d", "decode", "lift3d"}
    assert set(times) == {"frame", *stages}
    assert times["pose2d"]["runs"] == 9
    assert times["lift3d"]["runs"] == 3
    assert times["pose2d"]["p50_ms"] <= times["pose2d"]["p90_ms"]


def test_options_override_the_schedule():
    parts = engines()
    list(Pipeline(parts, SCHEDULE, RunOptions(flow_iters=5, depth_every=1)).run(frames(4)))
    assert parts["flow.step"].calls == 15
    assert parts["depth"].calls == 4


def presents(options=None, clip=None, **others):
    shown = []

    def pose(inputs):
        shown.append(inputs["present"][0].tolist())
        if not inputs["present"][0, 0]:
            assert not inputs["flow"].any()
        if not inputs["present"][0, 1]:
            assert not inputs["depth"].any()
        return upright(inputs)

    list(Pipeline(engines(pose, **others), SCHEDULE, options).run(clip or frames(3)))
    return shown


def test_present_is_0_for_what_is_off_or_missing():
    assert presents() == [[0, 1], [1, 1], [1, 1]]
    assert presents(RunOptions(flow=False)) == [[0, 1]] * 3
    assert presents(RunOptions(depth=False)) == [[0, 0], [1, 0], [1, 0]]
    no_flow = {name: None for name in flow_engines((128, 128))}
    assert presents(depth=None, **no_flow) == [[0, 0]] * 3


def test_a_cut_or_a_dropped_frame_costs_one_frame_of_flow():
    dropped = [*frames(3), *frames(2, start=5)]
    assert [flow for flow, _ in presents(clip=dropped)] == [0, 1, 1, 0, 1]
    cut = [*frames(3), *frames(3, start=3, level=lambda k: 10)]
    assert [flow for flow, _ in presents(clip=cut)] == [0, 1, 1, 0, 1, 1]


def test_a_cut_starts_a_new_id_and_a_new_depth_map():
    parts = engines()
    clip = [*frames(2), *frames(2, start=2, level=lambda k: 10)]
    found = list(Pipeline(parts, SCHEDULE).run(clip))
    assert [result.poses[0].track for result in found] == [1, 1, 2, 2]
    assert parts["depth"].calls == 2


def test_dense_stages_nobody_takes_are_not_run():
    plain = pose_engine(upright, SMALL, SMALL, dense=False)
    parts = engines(pose2d=plain, lift3d=lift_engine(None, 9, cues=False))
    list(Pipeline(parts, SCHEDULE).run(frames(4)))
    assert parts["flow.encode"].calls == parts["depth"].calls == 0
    parts = engines(pose2d=pose_engine(upright, SMALL, SMALL, dense=False))
    list(Pipeline(parts, SCHEDULE).run(frames(4)))
    assert parts["flow.encode"].calls == 4


DETECTOR = (32, 32)
CELLS = 16 + 4 + 1


def detector(boxes_of):
    """A YOLOX detector that answers ``boxes_of(call)``: xyxy boxes of the 32x32 input."""
    count = [0]

    def answer(inputs):
        raw = np.zeros((1, CELLS, 85), np.float32)
        for k, (x0, y0, x1, y1) in enumerate(boxes_of(count[0])):
            row, column = divmod(k, 4)
            centre = [(x0 + x1) / 16 - column, (y0 + y1) / 16 - row]
            raw[0, k, :6] = [*centre, np.log((x1 - x0) / 8), np.log((y1 - y0) / 8), 1, 0.9 - k / 10]
        count[0] += 1
        return {"output": raw}

    inputs, outputs = [tensor("images", 1, 3, *DETECTOR)], [tensor("output", 1, CELLS, 85)]
    return fake("yolox", inputs, outputs, answer)


def test_several_people_share_one_forward_pass_and_keep_their_ids():
    boxes = [(2, 4, 8, 18), (20, 6, 26, 20)]
    batches = []

    def pose(inputs):
        batches.append(len(inputs["rgb"]))
        return upright(inputs)

    parts = engines(pose, detect=detector(lambda call: boxes[:: -1 if call % 2 else 1]))
    found = list(Pipeline(parts, SCHEDULE).run(frames(9, size=(160, 160))))
    assert batches == [2] * 9
    assert parts["detect"].calls == 3
    assert [[pose.track for pose in result.poses] for result in found] == [[1, 2]] * 9
    left = [result.poses[0].xy[:, 0].mean() for result in found]
    right = [result.poses[1].xy[:, 0].mean() for result in found]
    assert max(left) < min(right)


def test_an_empty_scene_runs_the_detector_alone():
    parts = engines(detect=detector(lambda call: []))
    found = list(Pipeline(parts, SCHEDULE).run(frames(9)))
    assert [result.poses for result in found] == [[]] * 9
    assert parts["detect"].calls == 3
    assert parts["pose2d"].calls == parts["flow.encode"].calls == parts["depth"].calls == 0


def test_someone_who_arrives_has_no_flow_at_first():
    shown = []

    def pose(inputs):
        shown.append(inputs["present"][0].tolist())
        return upright(inputs)

    parts = engines(pose, detect=detector(lambda call: [(2, 4, 10, 20)] if call else []))
    found = list(Pipeline(parts, SCHEDULE).run(frames(6)))
    assert [len(result.poses) for result in found] == [0] * 4 + [1] * 2
    assert shown == [[0, 1], [1, 1]]


def fingerprint(results):
    return [
        (r.frame.index, [(p.track, p.xy.tobytes(), p.xyz.tobytes()) for p in r.poses])
        for r in results
    ]


def moving(inputs):
    """Heatmaps that depend on the crop, and 3D on the window, so that a wrong one shows."""
    people = len(inputs["rgb"])
    shift = inputs["rgb"].reshape(people, -1).mean(1)[:, None] % 3
    x = np.linspace(3, 7, 17) + shift
    y = np.tile(np.linspace(4, 11, 17), (people, 1))
    return {"heatmaps": gaussians(np.stack([x, y], -1), SMALL)}


def summed(inputs):
    total = inputs["keypoints"].cumsum(axis=1).sum(-1)
    return {"xyz": np.repeat(total[..., None], 3, -1).astype(np.float32)}


def test_the_result_does_not_depend_on_how_frames_arrive():
    from mambapose.runtime.video.prefetch import Prefetch

    def clip():
        return list(frames(40, level=lambda k: 20 + 3 * (k % 7)))

    def run(source):
        pipeline = Pipeline(engines(moving, lift3d=lift_engine(summed, 9)), SCHEDULE)
        return fingerprint(pipeline.run(source))

    whole = run(clip())
    assert len({xyz for _, people in whole for _, _, xyz in people}) > 10
    assert run(iter(clip())) == whole
    for depth in (1, 7):
        with Prefetch(clip(), depth) as ahead:
            assert run(ahead) == whole


def test_closing_closes_every_engine():
    from mambapose.runtime.errors import EngineError

    parts = engines()
    with Pipeline(parts, SCHEDULE) as pipeline:
        list(pipeline.run(frames(2)))
        assert pipeline.memory() == {"flow": {}, "depth": {}, "pose2d": {}, "lift3d": {}}
    with pytest.raises(EngineError, match="closed"):
        parts["pose2d"].run({})


ALWAYS = upright({"rgb": [0]})


def constant(inputs):
    return ALWAYS


def resident_kib():
    """Of the process now; its peak may be that of another test."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * (resource.getpagesize() >> 10)


def traced_bytes():
    """Of what is in use: the interpreter keeps some of what was freed until it collects."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def test_buffers_of_every_stage_are_bounded():
    running = Pipeline(engines(constant), SCHEDULE).run(frames(900))
    for _ in range(300):
        next(running)
    tracemalloc.start()
    for _ in range(100):
        next(running)
    before = traced_bytes()
    for _ in range(200):
        next(running)
    grown = traced_bytes() - before
    tracemalloc.stop()
    assert grown < 32 << 10


@pytest.mark.slow
def test_memory_is_flat_over_18000_frames(tmp_path):
    """Ten minutes at 30 fps through pipeline and journal: the process stays as large as it is."""
    parts = {"pose2d": engines(constant)["pose2d"], "lift3d": lift_engine(None, 81)}
    pipeline = Pipeline(parts, Schedule())
    frame = next(frames(1))
    clip = (Frame(frame.image, k, k / 30) for k in range(18_000))
    with Journal(tmp_path, {}) as journal:
        sizes = []
        for result in pipeline.run(
            clip, lambda seen: journal.append(seen.frame.index, 0.0, seen.poses, waits=True)
        ):
            journal.lift(result.frame.index, result.poses)
            if result.frame.index % 2000 == 1999:
                sizes.append(resident_kib())
    assert len(sizes) == 9
    # Once the first 6000 have filled every buffer: 22 bytes a frame would show.
    assert sizes[-1] - sizes[2] < 256, sizes
    assert journal.frames == 18_000


# --- live ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["causal", "window"])
def test_live_results_have_their_3d_and_picture_at_once(kind):
    lift = step_engine() if kind == "causal" else lift_engine(None, 9)
    pipeline = Pipeline(engines(lift3d=lift), SCHEDULE, RunOptions(lookahead=0))
    assert not pipeline.lifts_later
    shown = []
    running = pipeline.run(frames(12), on_frame=shown.append)
    for k in range(12):
        result = next(running)
        assert result is shown[k]
        assert len(shown) == k + 1
        assert result.frame.index == k
        assert result.frame.image.size > 0
        assert result.poses[0].xyz.shape == (17, 3)
    assert list(running) == []
    assert lift.calls == 12


def test_a_causal_lifter_is_live_without_being_asked_and_takes_no_dense_stage():
    parts = engines(pose2d=pose_engine(upright, SMALL, SMALL, dense=False), lift3d=step_engine())
    pipeline = Pipeline(parts, SCHEDULE)
    assert not pipeline.lifts_later
    before = [result.poses[0].xyz[1, 2] for result in pipeline.run(frames(5))]
    assert before == [0, 1, 2, 3, 4]
    assert parts["flow.encode"].calls == parts["depth"].calls == 0


def test_after_a_cut_a_causal_lifter_begins_anew():
    pipeline = Pipeline(engines(lift3d=step_engine()), SCHEDULE)
    clip = [*frames(3), *frames(3, start=3, level=lambda k: 10)]
    found = list(pipeline.run(clip))
    assert [result.poses[0].xyz[1, 2] for result in found] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("lift", "options", "text"),
    [
        (None, {"lookahead": 0}, "a lifter was wanted for --lookahead 0"),
        (lift_engine(None, 9), {"lookahead": 6}, "0 to 5 frames was wanted"),
        (step_engine(), {"lookahead": 1}, "--lookahead 0 was wanted"),
        (step_engine(), {"lift_unit": "image"}, "a causal lifter that answers in body_height"),
    ],
)
def test_a_lookahead_that_cannot_be_is_refused(lift, options, text):
    with pytest.raises(EngineError, match=text):
        Pipeline(engines(lift3d=lift), SCHEDULE, RunOptions(**options))


def test_a_pipeline_runs_once():
    pipeline = Pipeline(engines(), SCHEDULE)
    list(pipeline.run(frames(2)))
    with pytest.raises(EngineError, match="runs once, this one has run"):
        pipeline.run(frames(2))


def test_frames_of_another_size_or_type_are_refused():
    with pytest.raises(EngineError, match=r"frames of \d+x\d+ were wanted, frame 1 has 64x48"):
        list(
            Pipeline(engines(), SCHEDULE).run(
                [*frames(1), Frame(np.zeros((48, 64, 3), np.uint8), 1, 0.1)]
            )
        )
    with pytest.raises(EngineError, match="frames of 10x20 were wanted, frame 0 has"):
        list(Pipeline(engines(), SCHEDULE, size=Size(20, 10)).run(frames(1)))
    for wrong in (
        np.zeros((48, 64, 3), np.float32),
        np.zeros((48, 64), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
    ):
        with pytest.raises(EngineError, match=r"uint8 \(H, W, 3\) were wanted, found"):
            list(Pipeline(engines(), SCHEDULE).run([Frame(wrong, 0, 0.0)]))
