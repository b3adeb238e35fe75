"""Pose networks that look at a window: which frames it holds, when answers come, for whom."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mambapose.runtime.cli import main
from mambapose.runtime.errors import EngineError
from mambapose.runtime.loading import needed_graphs
from mambapose.runtime.people.tracking import Tracker
from mambapose.runtime.pipeline import Pipeline
from mambapose.runtime.run_options import RunOptions
from mambapose.runtime.stages.clip_pose import ClipPose, window_places
from mambapose.runtime.stages.crop import crops_from_boxes, crops_from_image
from mambapose.runtime.stages.decode import joints_from_heatmaps
from mambapose.runtime.stages.detect import Detections
from mambapose.runtime.targets import Schedule
from mambapose.runtime.timing import StageTimes
from mambapose.runtime.types import Frame, Size, Subjects
from mambapose.runtime.video.sources import open_source

from ..drawn_clip import DrawnClip, write_clip
from ..fakes import fake, gaussians, lift_engine, step_engine, tensor
from ..small_bundle import use_fakes, write_fake_bundle

SIZE, HEAT, T = (16, 12), (16, 12), 5
TOKENS = (6, 2)
SCHEDULE = Schedule(detect_every=4, clip_frames=9, hop=3)


def features_of(rgb):
    """(N, 6, 2): what the fake encoder sees of crops (N, H, W, 3)."""
    people = len(rgb)
    means = rgb.reshape(people, 6, -1).astype(np.float32).mean(-1)
    return np.stack([means, means**2 / 255], -1)


def heatmaps_of(window):
    """(N, 17, h, w) of features (N, T, 6, 2); every place of the window counts differently."""
    weights = np.array([1, 3, 9, 27, 81], np.float32)[: window.shape[1]]
    total = (window.sum((2, 3)) * weights).sum(1)
    x = np.linspace(2, 8, 17) + (total[:, None] % 3)
    y = np.tile(np.linspace(3, 12, 17), (len(window), 1))
    return gaussians(np.stack([x, y], -1), HEAT)


def clip_engines(frames=T):
    encode = fake(
        "encode",
        [tensor("rgb", "N", *SIZE, 3, dtype="uint8")],
        [tensor("features", "N", *TOKENS)],
        lambda inputs: {"features": features_of(inputs["rgb"])},
    )
    main = fake(
        "main",
        [tensor("features", "N", frames, *TOKENS)],
        [tensor("heatmaps", "N", 17, *HEAT)],
        lambda inputs: {"heatmaps": heatmaps_of(inputs["features"])},
    )
    return {"pose2d.encode": encode, "pose2d": main}


def clip(count, start=0, seed=0, size=(48, 64)):
    """Frames that all differ a little, so that nothing is a cut."""
    rng = np.random.default_rng(seed)
    base = rng.integers(40, 200, (*size, 3))
    for k in range(start, start + count):
        image = np.clip(base + rng.integers(-4, 5, base.shape), 0, 255).astype(np.uint8)
        yield Frame(image, k, k / 30)


class Script:
    """People given by frame: ``people[t]`` is {id: box}."""

    def __init__(self, people):
        self.people = people
        self.asked = 0
        self.updates = []
        self.scenes = 0

    def detection_due(self, frame):
        return False

    def search_due(self, frame):
        return False

    def subjects(self, size):
        here = self.people[self.asked]
        self.asked += 1
        return Subjects(tuple(here), np.array(list(here.values()), np.float64).reshape(-1, 4))

    def update(self, frame, subjects, xy, score, size):
        self.updates.append((self.asked - 1, frame, subjects.ids))
        return np.ones(len(subjects.ids), bool)

    def forget(self):
        self.scenes += 1


def followed(frames, people, **others):
    """(results, engines, script) of the pipeline with scripted people."""
    parts = {**clip_engines(), **others}
    pipeline = Pipeline(parts, SCHEDULE)
    pipeline.people = script = Script(people)
    return list(pipeline.run(frames)), parts, script


def box(person, t):
    """A box that moves with time."""
    x, y = 4 + 20 * person + t, 2 + t / 2
    return (x, y, x + 18, y + 30)


def alone(frames, boxes, key, seen):
    """Joints (17, 2) of frame ``key`` from a whole window run at once.

    seen: the frames of one scene in which the person is there; a place outside takes the nearest.
    """
    window = []
    for wanted in range(key - T // 2, key + T // 2 + 1):
        place = min(seen, key=lambda k: (abs(k - wanted), abs(k - key)))
        crops = crops_from_boxes(np.array([boxes[place]], np.float64), SIZE)
        window.append(features_of(crops_from_image(frames[place].image, crops))[0])
    heatmaps = heatmaps_of(np.stack(window)[None])
    xy, _ = joints_from_heatmaps(
        heatmaps, crops_from_boxes(np.array([boxes[key]], np.float64), SIZE)
    )
    return xy[0]


def test_streaming_is_the_window_run_on_every_frame() -> None:
    frames = list(clip(12))
    boxes = {t: box(0, t) for t in range(12)}
    found, parts, _ = followed(frames, [{1: boxes[t]} for t in range(12)])
    assert [result.frame.index for result in found] == list(range(12))
    for t, result in enumerate(found):
        assert np.array_equal(result.frame.image, frames[t].image)
        np.testing.assert_array_equal(result.poses[0].xy, alone(frames, boxes, t, range(12)))
    assert parts["pose2d.encode"].calls == parts["pose2d"].calls == 12


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_short_clips_repeat_their_ends(count) -> None:
    frames = list(clip(count))
    boxes = {t: box(0, t) for t in range(count)}
    found, parts, _ = followed(frames, [{1: boxes[t]} for t in range(count)])
    assert len(found) == count
    for t, result in enumerate(found):
        np.testing.assert_array_equal(result.poses[0].xy, alone(frames, boxes, t, range(count)))
    assert parts["pose2d.encode"].calls == count


def test_answers_come_two_frames_late_with_boxes_as_old() -> None:
    parts = clip_engines()
    pipeline = Pipeline(parts, SCHEDULE)
    assert pipeline.lookahead == 2
    pipeline.people = script = Script([{1: box(0, t)} for t in range(6)])
    read = []

    def frames():
        for frame in clip(6):
            read.append(frame.index)
            yield frame

    when = [(result.frame.index, read[-1]) for result in pipeline.run(frames())]
    assert when == [(0, 2), (1, 3), (2, 4), (3, 5), (4, 5), (5, 5)]
    assert script.updates == [(2, 0, (1,)), (3, 1, (1,)), (4, 2, (1,)), (5, 3, (1,)),
                              (5, 4, (1,)), (5, 5, (1,))]  # fmt: skip


def test_nothing_of_one_scene_reaches_the_next() -> None:
    frames = [*clip(4), *(Frame(f.image // 8, f.index, f.timestamp) for f in clip(4, 4))]
    boxes = {t: box(0, t) for t in range(8)}
    found, parts, script = followed(frames, [{1: boxes[t]} for t in range(8)])
    assert script.scenes == 1
    assert [result.frame.index for result in found] == list(range(8))
    for t, result in enumerate(found):
        scene = range(4) if t < 4 else range(4, 8)
        np.testing.assert_array_equal(result.poses[0].xy, alone(frames, boxes, t, scene))
    # The old scene's last answers came before its people were forgotten.
    assert [frame for _, frame, _ in script.updates] == list(range(8))
    assert parts["pose2d.encode"].calls == 8


def test_two_people_who_come_and_go_have_windows_of_their_own() -> None:
    frames = list(clip(10))
    there = {1: range(6), 2: range(3, 10)}
    boxes = {p: {t: box(p - 1, t) for t in there[p]} for p in there}
    people = [{p: boxes[p][t] for p in there if t in there[p]} for t in range(10)]
    found, parts, _ = followed(frames, people)
    for t, result in enumerate(found):
        assert [pose.track for pose in result.poses] == [p for p in there if t in there[p]]
        for pose in result.poses:
            wanted = alone(frames, boxes[pose.track], t, there[pose.track])
            np.testing.assert_array_equal(pose.xy, wanted)
    assert parts["pose2d.encode"].calls == 10  # both people of a frame together
    assert parts["pose2d"].calls == 6 + 7  # a window at a time


def test_somebody_who_was_lost_for_a_frame_has_the_nearest_ones() -> None:
    frames = list(clip(9))
    seen = [0, 1, 2, 3, 5, 6, 7, 8]
    boxes = {t: box(0, t) for t in seen}
    found, _, _ = followed(frames, [{1: boxes[t]} if t in seen else {} for t in range(9)])
    assert found[4].poses == []
    for t in seen:
        np.testing.assert_array_equal(found[t].poses[0].xy, alone(frames, boxes, t, seen))


def test_frames_without_anybody_come_in_order_and_run_nothing() -> None:
    found, parts, script = followed(clip(5), [{}] * 5)
    assert [(r.frame.index, r.poses) for r in found] == [(t, []) for t in range(5)]
    assert parts["pose2d.encode"].calls == parts["pose2d"].calls == 0
    assert script.updates == []


def test_the_lifter_behind_it_gets_every_frame_in_order() -> None:
    frames = list(clip(14))
    people = [{1: box(0, t)} for t in range(14)]
    plain, _, _ = followed(frames, people)
    seen = []

    def lift(inputs):
        seen.append(inputs["keypoints"].copy())
        return {"xyz": np.repeat(inputs["keypoints"].cumsum(1)[..., :1], 3, -1)}

    parts = {**clip_engines(), "lift3d": lift_engine(lift, 9, cues=False)}
    pipeline = Pipeline(parts, SCHEDULE)
    pipeline.people = Script(people)
    shown = []
    found = list(pipeline.run(frames, shown.append))
    for results in (found, shown):
        assert [result.frame.index for result in results] == list(range(14))
        for one, other in zip(results, plain, strict=True):
            np.testing.assert_array_equal(one.poses[0].xy, other.poses[0].xy)
    assert all(result.frame.image.shape == (48, 64, 3) for result in shown)
    assert all(result.frame.image.size == 0 for result in found)
    assert all(result.poses[0].xyz.shape == (17, 3) for result in found)


def test_a_causal_lifter_behind_it_goes_on_to_the_end_of_a_scene() -> None:
    """The frames that still wait at a cut are lifted from the state of their own scene."""
    moving = [*clip(4), *(Frame(f.image // 8, f.index, f.timestamp) for f in clip(4, 4))]
    people = [{1 if t < 4 else 2: box(1, t)} for t in range(8)]
    results, _, script = followed(moving, people, lift3d=step_engine())
    assert script.scenes == 1
    assert [result.frame.index for result in results] == list(range(8))
    steps = [result.poses[0].xyz[1, 2] for result in results]
    assert steps == [0, 1, 2, 3, 0, 1, 2, 3]


def test_memory_is_bounded_and_no_picture_stays() -> None:
    import gc
    import tracemalloc

    def endless():
        image = next(clip(1)).image
        for k in range(400):
            yield Frame(image.copy(), k, k / 30)

    pipeline = Pipeline(clip_engines(), SCHEDULE)
    pipeline.people = Script([{1: box(0, 0)}] * 400)
    running = pipeline.run(endless())
    for _ in range(100):
        next(running)
    tracemalloc.start()
    for _ in range(50):
        next(running)
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(200):
        next(running)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 32 << 10


def test_a_search_sees_windows_that_stand_still() -> None:
    stage = ClipPose(*clip_engines().values(), StageTimes())
    crops = crops_from_boxes(np.array([box(0, 0), box(1, 0)], np.float64), SIZE)
    rgb = crops_from_image(next(clip(1)).image, crops)
    found = stage.still({"rgb": rgb})
    np.testing.assert_array_equal(found, heatmaps_of(np.stack([features_of(rgb)] * T, 1)))
    assert stage.finish() == []


def test_one_person_is_found_and_followed_by_a_trained_network(monkeypatch) -> None:
    """The whole chain without a detector: searched once, then followed with late poses."""
    from mambapose.runtime.people import one_person

    monkeypatch.setattr(one_person, "SIZES", (1.0,))
    parts = clip_engines()
    found = list(Pipeline(parts, SCHEDULE).run(clip(12)))
    assert [result.frame.index for result in found] == list(range(12))
    assert all(len(result.poses) == 1 for result in found)
    assert {result.poses[0].track for result in found} == {1}
    searched = parts["pose2d"].calls - 12
    assert 0 < searched < 40


def test_people_of_a_detector_keep_their_ids() -> None:
    class Detector:
        calls = 0

        def run(self, image):
            self.calls += 1
            boxes = np.array([(10, 20, 40, 90), (100, 30, 130, 100)], np.float64)
            return Detections(boxes[:: (-1) ** self.calls], np.array([0.9, 0.8]))

    # Of a person who fills two thirds of the crop, so that the boxes stay as they are.
    upright = np.stack([np.linspace(3, 8, 17), np.linspace(4, 11, 17)], -1)
    parts = clip_engines()
    parts["pose2d"].function = lambda inputs: {"heatmaps": gaussians(upright[None], HEAT)}
    pipeline = Pipeline(parts, SCHEDULE)
    pipeline.people = Tracker(every=4, max_people=5)
    pipeline._detector = detector = Detector()
    found = list(pipeline.run(clip(11, size=(160, 160))))
    assert [result.frame.index for result in found] == list(range(11))
    assert [sorted(pose.track for pose in result.poses) for result in found] == [[1, 2]] * 11
    first = {pose.track: pose.xy[:, 0].mean() for pose in found[0].poses}
    for result in found:
        assert all(abs(pose.xy[:, 0].mean() - first[pose.track]) < 20 for pose in result.poses)
    assert abs(first[1] - first[2]) > 60
    assert detector.calls == 3
    assert (parts["pose2d.encode"].calls, parts["pose2d"].calls) == (11, 22)


def test_untrained_weights_look_at_the_whole_frame() -> None:
    parts = clip_engines()
    found = list(Pipeline(parts, SCHEDULE, RunOptions(trained=False)).run(clip(6)))
    assert all(result.poses[0].box.tolist() == [0, 0, 64, 48] for result in found)
    assert parts["pose2d.encode"].calls == 6


@pytest.mark.parametrize(
    ("seen", "key", "wanted"),
    [
        ([0, 1, 2, 3, 4], 2, [0, 1, 2, 3, 4]),
        ([0, 1, 2], 0, [0, 0, 0, 1, 2]),
        ([0, 1, 2, 3, 4], 4, [2, 3, 4, 4, 4]),
        ([2], 2, [2] * 5),
        ([0, 2, 4], 2, [0, 2, 2, 2, 4]),
        ([1, 2], 2, [1, 1, 2, 2, 2]),
    ],
)
def test_places_of_a_window(seen, key, wanted) -> None:
    assert window_places(seen, key, 5) == wanted


@pytest.mark.parametrize("frames", [2, 4])
def test_a_window_without_a_middle_is_refused(frames) -> None:
    with pytest.raises(EngineError, match="odd number of features"):
        ClipPose(*clip_engines(frames).values(), StageTimes())


def test_graphs_that_do_not_fit_together_are_refused() -> None:
    parts = clip_engines()
    parts["pose2d"] = fake(
        "main", [tensor("features", "N", T, 6, 3)], [tensor("heatmaps", "N", 17, *HEAT)]
    )
    with pytest.raises(EngineError, match="graph main of pose2d was wanted to take"):
        Pipeline(parts, SCHEDULE)


def test_mp_run_says_that_it_looks_ahead_and_draws_every_frame(capsys, monkeypatch, tmp_path):
    engines = {**clip_engines(), "lift3d": lift_engine(None, 9, cues=False)}
    use_fakes(monkeypatch, engines)
    names = {"pose2d": "glsmamba-s"}
    bundle = write_fake_bundle(tmp_path / "bundle", engines, SCHEDULE, networks=names)
    video, out = tmp_path / "clip.mp4", tmp_path / "out"
    write_clip(video, DrawnClip(frames=16, size=(160, 96)))
    options = ["--out", str(out), "--overlay", "--range", "2:14"]
    with pytest.raises(SystemExit) as ended:
        main(["--engine", str(bundle.path), str(video), *options])
    assert ended.value.code == 0
    assert "2D poses look ahead 2 frames" in capsys.readouterr().err
    document = json.loads((out / "poses.json").read_text())
    assert document["meta"]["pose2d_lookahead"] == 2
    assert [frame["frame"] for frame in document["frames"]] == list(range(2, 14))
    assert all(frame["people"][0]["xyz"] for frame in document["frames"])
    report = json.loads((out / "run.json").read_text())
    assert report["frames"] == report["times"]["encode"]["runs"] == 12
    assert any("boxes follow poses that are 2 frames old" in note for note in report["notes"])
    assert sum(1 for _ in open_source(str(out / "overlay.mp4"))) == 12


def test_both_graphs_of_a_bundle_are_loaded(tmp_path) -> None:
    bundle = write_fake_bundle(tmp_path / "b", clip_engines(), networks={"pose2d": "glsmamba-s"})
    assert needed_graphs(bundle, Size(48, 64), RunOptions()) == [
        ("pose2d.encode", "pose2d", "encode"),
        ("pose2d", "pose2d", "main"),
    ]
