"""How good a lifter is, whatever runs it: held-out activities and real video, without torch.

Held-out activities are seen by fixed random cameras through the simulated detector of training.
Real video has the last word: OpenPose's joints of pose2sim-single go through the runtime's own
windows and are compared with joints triangulated from four cameras.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mambapose.benchmarks.truth import body
from mambapose.benchmarks.truth.lift_metrics import measured_h36m, summary
from mambapose.benchmarks.truth.motion import MotionClip
from mambapose.benchmarks.truth.pose2sim import pose2sim_views, without_gaps
from mambapose.benchmarks.truth.windows import Motions, seen_batch, windows_from_clip
from mambapose.runtime.stages.causal_lifting import STEP, CausalLifter
from mambapose.runtime.stages.joints import BODY_HEIGHTS, h36m_from_coco, h36m_scores, normalised
from mambapose.runtime.stages.lifting import Lifter, Seen
from mambapose.runtime.targets import Schedule
from mambapose.runtime.types import Array, FloatArray, GraphSpec, Size

HOP = Schedule().hop  # as the runtime lifts
QUICK_WINDOWS = 12  # of each activity, while training: time against noise
BATCH = 8  # windows at once, which changes the time and the memory only
# Frames that a network without a window is given, from its zero state: as many as the others have.
SEQUENCE = Schedule().clip_frames

Fault = Callable[[np.random.Generator, dict[str, FloatArray]], None]


class Network(Protocol):
    """What is measured: an engine of the runtime, or anything with the same interface."""

    spec: GraphSpec

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """``xyz`` (N, T, 17, 3) for the inputs that the spec names."""
        ...


def _blurred(share: float) -> Fault:
    """A fault: white noise on every joint, as a share of the body height."""

    def apply(rng: np.random.Generator, inputs: dict[str, FloatArray]) -> None:
        joints = inputs["keypoints"]
        size = (joints[..., 1].max(axis=2) - joints[..., 1].min(axis=2))[..., None, None]
        joints += share * size * rng.standard_normal(joints.shape, np.float32)
        inputs["score"] *= np.float32(np.exp(-8 * share))

    return apply


def _occluded(joints: tuple[int, ...]) -> Fault:
    """A fault: these joints are guessed at the pelvis, with a low score."""

    def apply(_: np.random.Generator, inputs: dict[str, FloatArray]) -> None:
        chosen = list(joints)
        inputs["keypoints"][:, :, chosen] = inputs["keypoints"][:, :, :1]
        inputs["score"][:, :, chosen] = 0.05

    return apply


def _outliers(rng: np.random.Generator, inputs: dict[str, FloatArray]) -> None:
    """Put one joint in twenty anywhere in the person's box, with the score it had."""
    joints = inputs["keypoints"]
    low, high = joints.min(axis=2, keepdims=True), joints.max(axis=2, keepdims=True)
    anywhere = low + (high - low) * rng.random(joints.shape, np.float32)
    chosen = rng.random(joints.shape[:3]) < 0.05
    inputs["keypoints"] = np.where(chosen[..., None], anywhere, joints)


def _swapped_sides(rng: np.random.Generator, inputs: dict[str, FloatArray]) -> None:
    """Exchange left and right in one frame of five."""
    chosen = rng.random(inputs["score"].shape[:2]) < 0.2
    for name in ("keypoints", "score"):
        inputs[name][chosen] = inputs[name][chosen][:, body.MIRROR]


# Conditions to compare networks under, each named by what it does; which ones is a choice.
FAULTS: dict[str, tuple[Fault | None, float]] = {
    "none": (None, 30.0),
    "noise 1 %": (_blurred(0.01), 30.0),
    "noise 3 %": (_blurred(0.03), 30.0),
    "outliers 5 %": (_outliers, 30.0),
    "sides swapped in 20 %": (_swapped_sides, 30.0),
    "right arm unseen": (_occluded((15, 16)), 30.0),
    "feet unseen": (_occluded((3, 6)), 30.0),
    "60 Hz": (None, 60.0),
    "15 Hz": (None, 15.0),
}


def window_frames(network: Network) -> int:
    """T of a network's window; SEQUENCE for one that works frame by frame."""
    if goes_on(network):
        return SEQUENCE
    (keypoints,) = (item for item in network.spec.inputs if item.name == "keypoints")
    return int(keypoints.shape[1])


def answers(network: Network, inputs: Mapping[str, Array]) -> FloatArray:
    """(N, T, 17, 3) 3D joints; ``inputs`` may hold more than the network takes."""
    if goes_on(network):
        return _followed(network, inputs)
    names = [item.name for item in network.spec.inputs]
    xyz = network.run({name: np.ascontiguousarray(inputs[name]) for name in names})["xyz"]
    return xyz.astype(np.float32)


def goes_on(network: Network) -> bool:
    """Whether a network takes frames one by one, as CausalLifter gives them."""
    return bool(getattr(network.spec, "name", None) == STEP)


def _followed(network: Network, inputs: Mapping[str, Array]) -> FloatArray:
    """(N, T, 17, 3) 3D joints of sequences that the network is given frame by frame."""
    lifter = CausalLifter(network)  # type: ignore[arg-type]
    keypoints, score = inputs["keypoints"], inputs["score"].astype(np.float32)
    ids = tuple(range(len(keypoints)))
    poses = []
    for frame in range(keypoints.shape[1]):
        seen = Seen(ids, keypoints[:, frame].astype(np.float64), score[:, frame])
        ((_, xyz),) = lifter.add(frame, seen)
        poses.append(np.stack([xyz[id_] for id_ in ids]))
    return np.stack(poses, 1)


def held_out_metrics(
    network: Network,
    clips: Sequence[MotionClip],
    *,
    quick: bool = False,
    noisy: bool = True,
    present: tuple[int, int, int] = (1, 0, 0),
    views: int = 2,
    fault: Fault | None = None,
    rate_hz: float = 30.0,
) -> dict[str, dict[str, float]]:
    """Metrics by activity and, as ``mean``, over all poses; every window from ``views`` cameras.

    The cameras and the detector's faults depend only on the clip's place in the list, so all
    networks see the same. quick: one camera, QUICK_WINDOWS windows of each activity.
    """
    motions, frames = Motions(clips), window_frames(network)
    found: dict[str, list[tuple[NDArray[np.float64], NDArray[np.float64]]]] = {}
    for number, clip in enumerate(clips):
        windows = windows_from_clip(motions, number, frames, rate_hz)
        windows = windows if quick else np.concatenate([windows] * views)
        done = sum(len(truth) for _, truth in found.get(clip.activity, []))
        if quick:
            windows = windows[: max(QUICK_WINDOWS - done, 0)]
        rng = np.random.default_rng([7, number])
        for part in np.array_split(windows, max(1, -(-len(windows) // BATCH))):
            if not len(part):
                continue
            flags = np.tile(np.array(present, np.float32), (len(part), 1))
            # Depth and flow are drawn even where unused: the same random numbers for everyone.
            every = np.ones_like(flags)
            turned = body.joints_from_bones(body.turned_bodies(rng, body.bones_from_joints(part)))
            batch = seen_batch(rng, turned, every, noisy=noisy)
            inputs = {**batch.inputs, "present": flags}
            if fault is not None:
                fault(rng, inputs)
            found.setdefault(clip.activity, []).append(
                (measured_h36m(answers(network, inputs)), measured_h36m(batch.xyz))
            )
    pairs = {name: [np.concatenate(side) for side in zip(*parts, strict=True)]
             for name, parts in sorted(found.items())}  # fmt: skip
    result = {name: summary(*pair) for name, pair in pairs.items()}
    result["mean"] = summary(*(np.concatenate(side) for side in zip(*pairs.values(), strict=True)))
    return result


def corruption_metrics(
    network: Network, clips: Sequence[MotionClip]
) -> dict[str, dict[str, float]]:
    """Metrics of all held-out poses under one fault at a time, on otherwise exact joints."""
    return {
        name: held_out_metrics(network, clips, noisy=False, views=1, fault=fault, rate_hz=rate)[
            "mean"
        ]
        for name, (fault, rate) in FAULTS.items()
    }


def pose2sim_metrics(
    network: Network, folder: Path, unit: str = BODY_HEIGHTS, hop: int = HOP
) -> dict[str, dict[str, float]]:
    """Metrics by camera on pose2sim-single, lifted with the runtime's windows.

    A joint that OpenPose did not find is interpolated over time and has score 0, because the
    runtime's detectors give a place for every joint. The truth is in axes of the camera, in body
    heights estimated from its leg and trunk. unit: the unit of the network's 3D joints, as for the
    Lifter.
    """
    result = {}
    for view in pose2sim_views(folder):
        xyz = lifted_video(network, view.rows, view.size, unit, hop)
        result[view.name] = summary(measured_h36m(xyz), view.xyz)
    return result


def lifted_video(
    network: Network,
    rows: NDArray[np.float64],
    size: Size,
    unit: str = BODY_HEIGHTS,
    hop: int = HOP,
) -> FloatArray:
    """(F, 17, 3) 3D joints by the runtime's lifter, from one person's COCO rows.

    rows: (F, 17, 3) x, y, score.
    """
    rows = without_gaps(rows)
    lifter: Lifter | CausalLifter = (
        CausalLifter(network) if goes_on(network) else Lifter(network, hop, unit)  # type: ignore[arg-type]
    )
    done = []
    for frame, row in enumerate(rows):
        keypoints = normalised(h36m_from_coco(row[:, :2]), size)
        seen = Seen((0,), keypoints[None], h36m_scores(row[None, :, 2]))
        done += lifter.add(frame, seen)
    done += lifter.finish()
    return np.stack([answer[0] for _, answer in done])
