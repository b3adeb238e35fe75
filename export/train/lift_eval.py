"""How good a trained lifter is: python -m mambapose.export.train.lift_eval --help.

Held-out activities are seen by fixed random cameras through the same simulated detector, with each
combination of cues. Real video decides: OpenPose's joints of pose2sim-single go through the
runtime's own windows and are compared with joints triangulated from four cameras.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mambapose.export.train import lift_body as body
from mambapose.export.train import lift_state
from mambapose.export.train.lift_data import Motions, seen_batch, windows_from_clip
from mambapose.export.train.lift_metrics import (
    measured_coco,
    measured_h36m,
    summary,
)
from mambapose.export.train.lift_networks import INPUTS, lifted, parameters
from mambapose.export.train.motion import MotionClip, clips_from_file, split_from_clips
from mambapose.runtime.errors import ExportError, MambaPoseError
from mambapose.runtime.lifting import (
    BODY_HEIGHTS,
    COCO_COPIED,
    H36M_COPIED,
    Lifter,
    Seen,
    h36m_from_coco,
    h36m_scores,
    normalised,
)
from mambapose.runtime.types import Array, FloatArray

CAMERAS = ("cam01", "cam02")
HOP = 27  # the runtime's default
COMBINATIONS = {
    "nothing": (0, 0, 0), "score": (1, 0, 0), "score+flow": (1, 0, 1), "score+depth": (1, 1, 0),
    "all": (1, 1, 1),
}  # fmt: skip
QUICK_WINDOWS = 12  # of each activity, while training


Fault = Callable[[np.random.Generator, dict[str, FloatArray]], None]


def _blurred(share: float) -> Fault:
    """White noise of a share of the body height on every joint."""

    def apply(rng: np.random.Generator, inputs: dict[str, FloatArray]) -> None:
        joints = inputs["keypoints"]
        size = (joints[..., 1].max(axis=2) - joints[..., 1].min(axis=2))[..., None, None]
        joints += share * size * rng.standard_normal(joints.shape, np.float32)
        inputs["score"] *= np.float32(np.exp(-8 * share))

    return apply


def _occluded(joints: tuple[int, ...]) -> Fault:
    """Joints that are guessed at the pelvis, with a low score."""

    def apply(_: np.random.Generator, inputs: dict[str, FloatArray]) -> None:
        chosen = list(joints)
        inputs["keypoints"][:, :, chosen] = inputs["keypoints"][:, :, :1]
        inputs["score"][:, :, chosen] = 0.05

    return apply


def _swapped_sides(rng: np.random.Generator, inputs: dict[str, FloatArray]) -> None:
    """Left and right changed in every fifth frame."""
    chosen = rng.random(inputs["score"].shape[:2]) < 0.2
    for name in ("keypoints", "score"):
        inputs[name][chosen] = inputs[name][chosen][:, body.MIRROR]


FAULTS: dict[str, tuple[Fault | None, float]] = {
    "none": (None, 30.0),
    "noise 1 %": (_blurred(0.01), 30.0),
    "noise 3 %": (_blurred(0.03), 30.0),
    "sides swapped in 20 %": (_swapped_sides, 30.0),
    "right arm unseen": (_occluded((15, 16)), 30.0),
    "feet unseen": (_occluded((3, 6)), 30.0),
    "60 Hz": (None, 60.0),
    "15 Hz": (None, 15.0),
}


class TorchEngine:
    """A network as the engine the runtime's Lifter runs."""

    def __init__(self, model: nn.Module, frames: int, cues: bool) -> None:
        self._model, self._cues = model, cues
        names = INPUTS if cues else INPUTS[:1]
        inputs = [SimpleNamespace(name=name, shape=("N", frames)) for name in names]
        self.spec = SimpleNamespace(inputs=inputs)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"xyz": answers(self._model, inputs, self._cues)}


def answers(model: nn.Module, inputs: Mapping[str, Array], cues: bool) -> FloatArray:
    """(B, T, 17, 3) of NumPy inputs."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        tensors = {name: torch.from_numpy(value).to(device) for name, value in inputs.items()}
        found: FloatArray = lifted(model, tensors, cues).cpu().numpy()
    return found


def held_out_metrics(
    model: nn.Module,
    clips: Sequence[MotionClip],
    frames: int,
    *,
    cues: bool,
    quick: bool = False,
    noisy: bool = True,
    present: tuple[int, int, int] = (1, 0, 0),
    views: int = 2,
    fault: Fault | None = None,
    rate_hz: float = 30.0,
) -> dict[str, dict[str, float]]:
    """Metrics by activity and, as ``mean``, of all poses; every window from ``views`` cameras.

    The cameras and the detector's faults depend on the clip's place in the list alone, so all
    networks see the same. quick: one camera, QUICK_WINDOWS windows of each activity.
    """
    motions = Motions(clips)
    found: dict[str, list[tuple[NDArray[np.float64], NDArray[np.float64]]]] = {}
    for number, clip in enumerate(clips):
        windows = windows_from_clip(motions, number, frames, rate_hz)
        windows = windows if quick else np.concatenate([windows] * views)
        done = sum(len(truth) for _, truth in found.get(clip.activity, []))
        if quick:
            windows = windows[: max(QUICK_WINDOWS - done, 0)]
        rng = np.random.default_rng([7, number])
        for part in np.array_split(windows, max(1, -(-len(windows) // 8))):
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
            xyz = answers(model, inputs, cues)
            found.setdefault(clip.activity, []).append(
                (measured_h36m(xyz), measured_h36m(batch.xyz))
            )
    pairs = {name: [np.concatenate(side) for side in zip(*parts, strict=True)]
             for name, parts in sorted(found.items())}  # fmt: skip
    result = {name: summary(*pair) for name, pair in pairs.items()}
    result["mean"] = summary(*(np.concatenate(side) for side in zip(*pairs.values(), strict=True)))
    return result


def corruption_metrics(
    model: nn.Module, clips: Sequence[MotionClip], frames: int, *, cues: bool
) -> dict[str, dict[str, float]]:
    """Metrics of all held-out poses under one fault at a time, on otherwise exact joints."""
    return {
        name: held_out_metrics(
            model, clips, frames, cues=cues, noisy=False, views=1, fault=fault, rate_hz=rate
        )["mean"]
        for name, (fault, rate) in FAULTS.items()
    }


def pose2sim_metrics(
    model: nn.Module, folder: Path, frames: int, *, cues: bool
) -> dict[str, dict[str, float]]:
    """Metrics by camera on pose2sim-single, lifted with the runtime's windows.

    A joint OpenPose did not find is interpolated over time, with score 0: the runtime's detectors
    answer with a place for every joint. The truth is in axes of the camera, in body heights
    estimated from its leg and trunk.
    """
    with np.load(folder / "reference.npz", allow_pickle=False) as file:
        reference = {name: file[name] for name in file.files}
    world = reference["xyz_world_m"].astype(np.float64)
    height = coco_height(world)
    result = {}
    for camera in CAMERAS:
        calibration = camera_from_toml(folder / "calibration.toml", camera)
        turn = body.rotations_from_vectors(calibration["rotation"])
        truth = measured_coco(world @ turn.T.astype(np.float64) / height)
        size = tuple(int(side) for side in calibration["size"])
        rows = reference[f"openpose_{camera}"].astype(np.float64)
        xyz = lifted_video(model, rows, (size[0], size[1]), frames, cues)
        result[camera] = summary(measured_h36m(xyz), truth)
    return result


def lifted_video(
    model: nn.Module, rows: NDArray[np.float64], size: tuple[int, int], frames: int, cues: bool
) -> FloatArray:
    """(F, 17, 3) by the runtime's Lifter of one person's COCO rows (F, 17, 3) x, y, score."""
    rows = without_gaps(rows)
    lifter = Lifter(TorchEngine(model, frames, cues), HOP, BODY_HEIGHTS)  # type: ignore[arg-type]
    done = []
    for frame, row in enumerate(rows):
        keypoints = normalised(h36m_from_coco(row[:, :2]), size)
        seen = Seen((0,), keypoints[None], h36m_scores(row[None, :, 2]))
        done += lifter.add(frame, seen)
    done += lifter.finish()
    return np.stack([answer[0] for _, answer in done])


def without_gaps(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows with the places of joints of score 0 interpolated over time."""
    out: NDArray[np.float64] = rows.copy()
    at = np.arange(len(rows))
    for joint in range(rows.shape[1]):
        known = rows[:, joint, 2] > 0
        if known.any() and not known.all():
            for axis in (0, 1):
                out[~known, joint, axis] = np.interp(
                    at[~known], at[known], rows[known, joint, axis]
                )
    return out


def coco_height(world: NDArray[np.float64]) -> float:
    """Metres of height of a COCO clip (F, 17, 3), from its leg and trunk as in training."""
    h36m = np.full_like(world, np.nan)
    h36m[:, H36M_COPIED] = world[:, COCO_COPIED]
    return float(body.leg_and_trunk(h36m.astype(np.float32))) / body.TRUNK_AND_LEG


def camera_from_toml(path: Path, camera: str) -> dict[str, NDArray[np.float64]]:
    """size, rotation vector, translation (and matrix) of a camera; the few lines of TOML that the
    calibration has are read here, because Python has no reader before 3.11."""
    wanted = f"[{camera[:3]}_{camera[3:]}]"
    values: dict[str, NDArray[np.float64]] = {}
    section = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, value = (part.strip() for part in line.partition("="))
        section = key if key.startswith("[") else section
        if section == wanted and value.startswith("["):
            values[key] = np.array(json.loads(value), np.float64)
    missing = {"size", "rotation", "translation", "matrix"} - values.keys()
    if missing:
        raise ExportError(f"{', '.join(sorted(missing))} of {wanted} were wanted in {path}")
    return values


def report(
    content: dict[str, Any], data: Path, video: Path | None, frames: int | None = None
) -> dict[str, Any]:
    """Everything measured of a checkpoint's content, ready for its card."""
    plan, model = lift_state.averaged_model(content)
    length = frames or max(plan.frames)
    split = split_from_clips(clips_from_file(data), plan.split)
    cues = plan.takes_cues
    result: dict[str, Any] = {
        "network": plan.network,
        "parameters": parameters(model),
        "frames": length,
        "step": content["step"],
        "hours": content["seconds"] / 3600,
        "windows": content["windows"],
        "split": plan.split,
    }
    if split.test:
        result["held_out"] = held_out_metrics(model, split.test, length, cues=cues)
        result["held_out_exact_2d"] = held_out_metrics(
            model, split.test, length, cues=cues, noisy=False
        )
        result["corruption"] = corruption_metrics(model, split.test, length, cues=cues)
        if cues:
            result["cues"] = {
                name: held_out_metrics(
                    model, split.test, length, cues=True, present=present, views=1
                )["mean"]
                for name, present in COMBINATIONS.items()
            }
    if video is not None:
        result["pose2sim"] = pose2sim_metrics(model, video, length, cues=cues)
    return result


def table(result: Mapping[str, Any]) -> str:
    """The report as lines to read."""
    lines = [f"{result['network']}, {result['parameters']} parameters, T {result['frames']}, "
             f"{result['hours']:.2f} h, {result['windows']} windows"]  # fmt: skip
    lines.append(f"{'':<28}{'MPJPE':>8}{'PA-MPJPE':>10}{'acc.err':>9}{'jitter':>8}  mm at 1.75 m")
    for part in ("held_out", "held_out_exact_2d", "corruption", "cues", "pose2sim"):
        for name, row in result.get(part, {}).items():
            lines.append(
                f"{part + ' ' + name:<28}{row['mpjpe_mm']:>8.1f}{row['pa_mpjpe_mm']:>10.1f}"
                f"{row['acceleration_mm']:>9.2f}{row['jitter_mm']:>8.2f}"
            )
    return "\n".join(lines)


@click.command(context_settings={"show_default": True})
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the motion capture file.",
)
@click.option("--video", type=click.Path(path_type=Path), help="Folder of pose2sim-single.")
@click.option("--frames", type=int, help="Length of windows; the longest trained on otherwise.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the report here.")
def main(
    run: Path, data: Path, video: Path | None, frames: int | None, json_file: Path | None
) -> None:
    """Measure the mean weights of RUN, a folder of a training run or its checkpoint."""
    try:
        result = report(lift_state.read(run), data, video, frames)
    except MambaPoseError as err:
        click.echo(f"error: {err}", err=True)
        sys.exit(1)
    click.echo(table(result))
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
