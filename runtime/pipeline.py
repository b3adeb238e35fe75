"""Frames in, poses out: the stages in order and the buffers between them.

    scene cut? -> who to look at -> flow, depth (whole frame) -> crops -> pose2d -> decode -> lift3d

Without a detector the pose network also finds the person (``one_person.py``). A pose network that
looks at several frames gives the poses of a frame some frames late (``clip_pose.py``). Everything
after it is then late by as much, so the boxes come from poses that are that old.

Memory is constant: the last feature map, the last depth map, T + hop frames of joints or the state
of a causal lifter, the results that wait for their 3D (without their pictures), and frames that
wait for their 2D (with them).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from mambapose.runtime.backends.engine import Engine
from mambapose.runtime.errors import EngineError
from mambapose.runtime.people.choosing import Chooser
from mambapose.runtime.people.one_person import OnePerson
from mambapose.runtime.people.tracking import MAX_PEOPLE, Followed, Tracker
from mambapose.runtime.run_options import RunOptions
from mambapose.runtime.stages.causal_lifting import STEP, CausalLifter
from mambapose.runtime.stages.clip_pose import ClipPose
from mambapose.runtime.stages.crop import (
    Crops,
    crops_from_boxes,
    crops_from_image,
    crops_from_maps,
    flow_crops,
    values_at,
)
from mambapose.runtime.stages.decode import joints_from_heatmaps
from mambapose.runtime.stages.depth import DepthStage
from mambapose.runtime.stages.detect import Detector
from mambapose.runtime.stages.flow import DenseMap, FlowStage, fixed_size
from mambapose.runtime.stages.joints import BODY_HEIGHTS, h36m_from_coco, h36m_scores, normalised
from mambapose.runtime.stages.lifting import Lifter, Seen
from mambapose.runtime.stages.pose import Dense, FramePose, PoseStage, Watched
from mambapose.runtime.stages.table import whole_frame_inputs
from mambapose.runtime.targets import Schedule
from mambapose.runtime.timing import StageTimes
from mambapose.runtime.types import Array, Boxes, FloatArray, Frame, Pose, Size, Subjects
from mambapose.runtime.video.scenes import SceneCuts

# Crops of a search that run together: more would raise the peak of memory, and save no time.
SEARCH_BATCH = 4


@dataclass(frozen=True)
class FrameResult:
    """The people of one frame, in px of ``frame.image``.

    After a wait for the 3D joints the frame's image is (0, 0, 3).
    """

    frame: Frame
    poses: list[Pose]

    @property
    def stored_poses(self) -> list[Pose]:
        """The poses in px of the picture that the file holds, whose pixels may not be square."""
        stretch = self.frame.stretch
        return [
            replace(
                pose,
                box=stretch.stored(pose.box.reshape(2, 2)).reshape(4),
                xy=stretch.stored(pose.xy),
            )
            for pose in self.poses
        ]


class Pipeline:
    """Runs the engines of the stages on frames and yields the poses.

    engines: by the names that ``engine_name`` gives; ``pose2d`` must be among them. Flow and depth
    do not run when no other network has them as an input. size: of the frames to come; None takes
    that of the first. The pipeline closes the engines.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        schedule: Schedule,
        options: RunOptions | None = None,
        size: Size | None = None,
    ) -> None:
        options = options or RunOptions()
        self.engines = engines
        self.times = StageTimes()
        pose = graphs_of("pose2d", engines)
        self._pose: PoseStage = FramePose(pose["main"], self.times)
        if "encode" in pose:
            self._pose = ClipPose(pose["encode"], pose["main"], self.times)
        self._pose_inputs = {item.name for item in self._pose.spec.inputs}
        rgb = next(item for item in self._pose.spec.inputs if item.name == "rgb")
        self._crop_size = fixed_size(rgb.shape[1:3], "pose2d")
        self._flow: FlowStage | None = None
        self._depth: DepthStage | None = None
        lifters = list(graphs_of("lift3d", engines).values())
        takers = [self._pose.spec, *(lifter.spec for lifter in lifters)]
        wanted = whole_frame_inputs(*takers)
        flow = graphs_of("flow", engines)
        if options.flow and flow and "flow" in wanted:
            self._flow = FlowStage(flow, options.flow_iters or schedule.flow_iters)
        if options.depth and "depth" in engines and "depth" in wanted:
            self._depth = DepthStage(engines["depth"], options.depth_every or schedule.depth_every)
        self._detector = Detector(engines["detect"]) if "detect" in engines else None
        self.people: Followed = OnePerson(trained=options.trained)
        if self._detector is not None:
            every = options.detect_every or schedule.detect_every
            self.people = Tracker(every, options.max_people or MAX_PEOPLE, options.trained)
        self._chooser = None if options.person is None else Chooser(options.person)
        self.lifter = _lifter(lifters[0] if lifters else None, schedule, options, self.times)
        self._cuts = SceneCuts()
        self._size = size
        self._begun = False

    @property
    def lifts_later(self) -> bool:
        """Whether the 3D joints of a frame may have to wait for later frames."""
        return self.lifter is not None and self.lifter.lookahead > 0

    def run(
        self,
        frames: Iterable[Frame],
        on_frame: Callable[[FrameResult], None] | None = None,
    ) -> Iterator[FrameResult]:
        """The results in order, each as soon as it is complete.

        on_frame: called in order with the picture and poses of every frame. When 3D joints wait for
        later frames (``lifts_later``), it gets the 2D poses, before their 3D is known.

        People are followed from frame to frame, so a pipeline runs once. Raises EngineError for a
        second run, and for a frame of another size.
        """
        if self._begun:
            raise EngineError(
                "a pipeline runs once, this one has run; open another one for other frames"
            )
        self._begun = True
        return self._run(frames, on_frame)

    def _run(
        self, frames: Iterable[Frame], on_frame: Callable[[FrameResult], None] | None
    ) -> Iterator[FrameResult]:
        waiting: deque[FrameResult] = deque()
        for result, seen in self._results_2d(frames):
            if self.lifter is not None and not self.lifts_later:
                lifted = self.lifter.add(result.frame.index, seen)
                (result,) = _lifted(deque([result]), lifted)
            if on_frame is not None:
                on_frame(result)
            done = [result]
            if self.lifter is not None and self.lifts_later:
                waiting.append(_without_image(result))
                done = _lifted(waiting, self.lifter.add(result.frame.index, seen))
            yield from done
        if self.lifter is not None:
            yield from _lifted(waiting, self.lifter.finish())

    @property
    def passed_over(self) -> tuple[int, ...]:
        """The numbers of people who were not reported because another person was asked for."""
        return () if self._chooser is None else tuple(sorted(self._chooser.others))

    @property
    def lookahead(self) -> int:
        """How many later frames the 2D poses of a frame wait for."""
        return self._pose.lookahead

    def memory(self) -> dict[str, dict[str, int]]:
        """Stage -> what its backend reports about memory, in bytes.

        The graphs of a stage share their weights, so the largest value of its graphs counts.
        """
        found: dict[str, dict[str, int]] = {}
        for name, engine in self.engines.items():
            stage = found.setdefault(name.partition(".")[0], {})
            for kind, size in engine.memory().items():
                stage[kind] = max(size, stage.get(kind, 0))
        return found

    def close(self) -> None:
        """Close every engine."""
        for engine in self.engines.values():
            engine.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _results_2d(self, frames: Iterable[Frame]) -> Iterator[tuple[FrameResult, Seen]]:
        """Every frame in order with its 2D poses, and the same people as input for the lifter."""
        for frame in frames:
            self._check(frame)
            with self.times.measure("frame"):
                found = self._watch(frame)
            yield from found
        yield from self._rest()

    def _check(self, frame: Frame) -> None:
        """EngineError for a frame whose size or type is not that of the others."""
        image = frame.image
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise EngineError(
                f"frames of uint8 (H, W, 3) were wanted, found {image.dtype} {image.shape}"
            )
        size = Size(*image.shape[:2])
        self._size = self._size or size
        if size != self._size:
            raise EngineError(
                f"frames of {self._size.width}x{self._size.height} were wanted, frame "
                f"{frame.index} has {size.width}x{size.height}; open a pipeline for each size"
            )

    def _watch(self, frame: Frame) -> list[tuple[FrameResult, Seen]]:
        """The results that are complete once this frame has been seen.

        That is the frame's own result, unless the pose network looks ahead.
        """
        done = self._follow_scene(frame)
        self._detect(frame)
        size = Size(*frame.image.shape[:2])
        searching = self.people.search_due(frame.index)
        subjects, dense = self.people.subjects(size), Dense()
        if subjects.ids or searching:
            dense = self._dense(frame)
        else:
            self._forget_dense()
        if searching:
            with self.times.measure("search"):
                poses_in = partial(self._poses_in, frame, dense)
                self.people.search(frame.index, size, poses_in)
            subjects = self.people.subjects(size)
        crops = crops_from_boxes(subjects.boxes, self._crop_size)
        inputs: dict[str, Array] = {}
        if subjects.ids:
            with self.times.measure("crop"):
                inputs = self._pose_arrays(frame, dense, crops)
        watched = Watched(frame, subjects, crops, dense)
        return done + [self._posed(*answer) for answer in self._pose.add(watched, inputs)]

    def _rest(self) -> list[tuple[FrameResult, Seen]]:
        """The results of the frames that still wait for their 2D poses."""
        return [self._posed(*answer) for answer in self._pose.finish()]

    def _posed(self, watched: Watched, heatmaps: Array | None) -> tuple[FrameResult, Seen]:
        """The result of a frame from its heatmaps; the boxes move to the poses."""
        frame, subjects = watched.frame, watched.subjects
        if heatmaps is None:
            return FrameResult(frame, []), _nobody()
        with self.times.measure("decode"):
            xy, score = joints_from_heatmaps(heatmaps, watched.crops)
        size = Size(*frame.image.shape[:2])
        reported = self.people.update(frame.index, subjects, xy, score, size)
        if self._chooser is not None:
            reported = self._chooser.choose(subjects.ids, subjects.boxes, reported, size)
        poses = _poses(frame.index, subjects, xy, score, reported)
        ids = tuple(pose.track for pose in poses)
        seen = _seen(ids, xy[reported], score[reported], watched.dense, size)
        return FrameResult(frame, poses), seen

    def _poses_in(self, frame: Frame, dense: Dense, boxes: Boxes) -> tuple[FloatArray, FloatArray]:
        """Joints (N, 17, 2) in frame px and scores (N, 17) of whatever is in the boxes (N, 4).

        The boxes run a few at a time, and their time does not count as that of the stages.
        """
        parts = []
        for first in range(0, len(boxes), SEARCH_BATCH):
            crops = crops_from_boxes(boxes[first : first + SEARCH_BATCH], self._crop_size)
            heatmaps = self._pose.still(self._pose_arrays(frame, dense, crops))
            parts.append(joints_from_heatmaps(heatmaps, crops))
        xy, score = zip(*parts, strict=True)
        return np.concatenate(xy), np.concatenate(score)

    def _follow_scene(self, frame: Frame) -> list[tuple[FrameResult, Seen]]:
        """The results of the old scene that still waited, when this frame begins a new scene."""
        done: list[tuple[FrameResult, Seen]] = []
        cut, follows = self._cuts.starts(frame)
        if cut:
            done = self._rest()
            self.people.forget()
            self._forget_dense()
        if not follows and self._flow is not None:
            self._flow.forget()
        return done

    def _forget_dense(self) -> None:
        if self._flow is not None:
            self._flow.forget()
        if self._depth is not None:
            self._depth.forget()

    def _detect(self, frame: Frame) -> None:
        if self._detector is not None and self.people.detection_due(frame.index):
            with self.times.measure("detect"):
                self.people.detect(frame.index, self._detector.run(frame.image))

    def _dense(self, frame: Frame) -> Dense:
        flow: DenseMap | None = None
        depth: DenseMap | None = None
        if self._flow is not None:
            with self.times.measure("flow"):
                flow = self._flow.run(frame.image)
        if self._depth is not None:
            with self.times.measure("depth"):
                depth = self._depth.run(frame, flow)
        return Dense(flow, depth)

    def _pose_arrays(self, frame: Frame, dense: Dense, crops: Crops) -> dict[str, Array]:
        """The inputs of pose2d; an absent modality is zeros with present 0."""
        inputs: dict[str, Array] = {"rgb": crops_from_image(frame.image, crops)}
        count, size = len(crops), crops.size
        if "flow" in self._pose_inputs:
            inputs["flow"] = (
                np.zeros((count, 2, *size), np.float32)
                if dense.flow is None
                else flow_crops(dense.flow.values, dense.flow.box, crops)
            )
        if "depth" in self._pose_inputs:
            inputs["depth"] = (
                np.zeros((count, 1, *size), np.float32)
                if dense.depth is None
                else crops_from_maps(dense.depth.values, dense.depth.box, crops)
            )
        if "present" in self._pose_inputs:
            known = [dense.flow is not None, dense.depth is not None]
            inputs["present"] = np.tile(np.array(known, np.float32), (count, 1))
        return inputs


def _lifter(
    engine: Engine | None, schedule: Schedule, options: RunOptions, times: StageTimes
) -> Lifter | CausalLifter | None:
    """The lifter of an engine: over windows, or frame by frame where the graph is a step.

    None without a lifter. EngineError when it cannot have the look-ahead that was asked for.
    """
    lookahead = options.lookahead
    if engine is None:
        if lookahead is not None:
            raise EngineError(
                f"a lifter was wanted for --lookahead {lookahead}, the bundle has none; leave the "
                "option out"
            )
        return None
    if engine.spec.name != STEP:
        return Lifter(engine, schedule.hop, options.lift_unit, options.height, times, lookahead)
    if lookahead:
        raise EngineError(
            f"--lookahead 0 was wanted, this lifter answers every frame at once, found {lookahead};"
            " leave the option out"
        )
    if options.lift_unit != BODY_HEIGHTS:
        raise EngineError(
            f"a causal lifter that answers in {BODY_HEIGHTS} was wanted, found {options.lift_unit}:"
            " bones of one frame do not say how tall a person is; export other weights"
        )
    return CausalLifter(engine, options.height, times)


def engine_name(stage: str, graph: str) -> str:
    """The name under which a Pipeline takes the engine of a graph: ``depth``, ``flow.encode``."""
    return stage if graph == "main" else f"{stage}.{graph}"


def graphs_of(stage: str, engines: Mapping[str, Engine]) -> dict[str, Engine]:
    """Graph name -> engine, for one stage."""
    return {
        name.partition(".")[2] or "main": engine
        for name, engine in engines.items()
        if name.partition(".")[0] == stage
    }


def _nobody() -> Seen:
    nobody = np.zeros((0, 17, 2))
    return Seen((), nobody, nobody[..., 0].astype(np.float32))


def _poses(
    frame: int,
    subjects: Subjects,
    xy: FloatArray,
    score: FloatArray,
    reported: NDArray[np.bool_],
) -> list[Pose]:
    boxes = subjects.boxes.astype(np.float32)
    return [
        # A heatmap may rise a little above 1; what is reported is a score of 0 to 1.
        Pose(frame, subjects.ids[k], boxes[k], xy[k], np.clip(score[k], 0, 1))
        for k in np.flatnonzero(reported)
    ]


def _seen(
    ids: tuple[int, ...], xy: FloatArray, score: FloatArray, dense: Dense, size: Size
) -> Seen:
    """The people of a frame of that size as the lifter takes them in."""
    joints = h36m_from_coco(xy)
    flow = depth = None
    if dense.depth is not None:
        depth = values_at(dense.depth.values, dense.depth.box, joints)[..., 0]
    if dense.flow is not None:
        moved = values_at(dense.flow.values, dense.flow.box, joints)
        flow = (moved / np.array(dense.flow.box.scale) * (2.0 / size.width)).astype(np.float32)
    return Seen(ids, normalised(joints, size), h36m_scores(score), depth, flow)


def _without_image(result: FrameResult) -> FrameResult:
    empty = np.zeros((0, 0, 3), np.uint8)
    return FrameResult(replace(result.frame, image=empty), result.poses)


def _lifted(
    waiting: deque[FrameResult], answers: list[tuple[int, dict[int, FloatArray]]]
) -> list[FrameResult]:
    """The results at the head of ``waiting``, completed by the 3D joints in ``answers``."""
    done = []
    for _, xyz in answers:
        result = waiting.popleft()
        poses = [replace(pose, xyz=xyz.get(pose.track)) for pose in result.poses]
        done.append(FrameResult(result.frame, poses))
    return done
