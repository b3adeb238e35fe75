"""Motion capture of people as clips of 17 joints, and which of them a lifter may train on.

The file is one array (T, 17, 3) per clip: Human3.6M order, metres, y up, 60 frames per second,
made from mocap.cs.cmu.edu. It holds two skeletons. That of the clips ``exp_*`` lacks one of the
two lumbar segments (pelvis to spine 0.116 m, against 0.231 m for the same person in ``asf_02``),
which ``repaired`` puts back; in both the pelvis is the root of the capture, 10 cm above the hips.
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mambapose.runtime.errors import ExportError
from mambapose.runtime.types import FloatArray

FILE = "cmu_17j_60hz.npz"
RATE_HZ = 60.0
JOINTS = 17
# Three limits in wide gaps, anywhere in which they are as good. Pelvis to spine: 0.116 m where a
# segment is missing, 0.231 m where not. Mean difference of the shanks: 0.0008 m between the two
# copies of one capture, 0.009 m between the most alike of the others. From the origin of the room:
# 3.5 m for the farthest joint, thousands if millimetres were taken for metres.
SHORT_SPINE_M = 0.15
REPEAT_M = 0.002
LARGEST_M = 20.0

# Of the subjects whose clips are numbered only; from the index of the capture database.
NUMBERED = {
    "asf_01": {number: "climbing" for number in range(1, 15)},
    "asf_02": {1: "walking", 2: "walking", 3: "running", 4: "jumping", 5: "punching",
               6: "scooping", 7: "sword", 8: "sword", 9: "sword", 10: "washing"},
}  # fmt: skip

# Never trained on. soccer: fast legs and turns. jumping: off the ground, balance, arms up.
# washing: bent over, hands at the body, nearly standing still. Walking cannot be held out, it is
# half of the file; running is too like it, and climbing is most of the variety there is.
HELD_OUT = ("jumping", "soccer", "washing")

SPLITS = ("activities", "asf", "exp", "all")


@dataclass(frozen=True)
class MotionClip:
    """A clip of motion capture.

    xyz: (T, 17, 3) metres, y up, 60 Hz; skeleton: ``asf`` or ``exp``.
    """

    name: str
    activity: str
    skeleton: str
    xyz: FloatArray


@dataclass(frozen=True)
class Split:
    """The clips that a lifter is trained on, and those that it is only measured on."""

    name: str
    train: tuple[MotionClip, ...]
    test: tuple[MotionClip, ...]


def clips_from_file(path: Path) -> tuple[MotionClip, ...]:
    """Every clip of the file, or of the file in the folder ``path``, in the order of its names.

    A clip that repeats another is left out. ExportError when the file holds anything but clips of
    finite joints.
    """
    path = path / FILE if path.is_dir() else path
    try:
        # Opened here: numpy leaves a file open whose archive it cannot read.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as err:
        raise ExportError(
            f"motion capture in {FILE} was wanted, {path} cannot be read ({err}); give the folder "
            "that holds it with --data"
        ) from err
    if not arrays:
        raise ExportError(f"clips were wanted, {path} holds none; get the file again")
    clips = [_clip(path, name, arrays[name]) for name in sorted(arrays)]
    return tuple(_without_repeats(clips))


def _clip(path: Path, name: str, xyz: np.ndarray) -> MotionClip:
    """A checked clip."""
    found = f"{xyz.dtype} {xyz.shape}"
    if xyz.dtype.kind != "f" or xyz.ndim != 3 or xyz.shape[1:] != (JOINTS, 3) or len(xyz) < 2:
        raise ExportError(
            f"floats (T, {JOINTS}, 3) with T of at least 2 were wanted for clip {name} of {path}, "
            f"found {found}; get the file again"
        )
    if not np.isfinite(xyz).all() or np.abs(xyz).max() > LARGEST_M:
        raise ExportError(
            f"metres within {LARGEST_M:.0f} of the origin were wanted for clip {name} of {path}, "
            "found others or no numbers; get the file again"
        )
    activity, skeleton = _labels(name)
    return MotionClip(name, activity, skeleton, repaired(xyz.astype(np.float32)))


def _labels(name: str) -> tuple[str, str]:
    """(activity, skeleton) of a clip by its name."""
    numbered = re.fullmatch(r"(asf_\d+)_(\d+)", name)
    if numbered and int(numbered[2]) in NUMBERED.get(numbered[1], {}):
        return NUMBERED[numbered[1]][int(numbered[2])], "asf"
    named = re.fullmatch(r"exp_([a-z_]+?)(_extra)?__\w+", name)
    if named:
        return named[1], "exp"
    raise ExportError(
        f"a clip named asf_SUBJECT_NUMBER or exp_ACTIVITY__NAME was wanted, found {name}; "
        "add its activity to benchmarks/truth/motion.py"
    )


def repaired(xyz: FloatArray) -> FloatArray:
    """The clip with two lumbar segments: where one is missing, the upper body is moved up."""
    lumbar = xyz[:, 7] - xyz[:, 0]
    if float(np.median(np.linalg.norm(lumbar, axis=-1))) >= SHORT_SPINE_M:
        return xyz
    out: FloatArray = xyz.copy()
    out[:, 7:] += lumbar[:, None]
    return out


def _without_repeats(clips: list[MotionClip]) -> list[MotionClip]:
    """The clips without a second copy of a capture that is in the file under two names.

    Such a pair is asf_02_01 and exp_walking__walking_1.
    """
    kept: list[MotionClip] = []
    for clip in clips:
        same = [other for other in kept if len(other.xyz) == len(clip.xyz)]
        if not any(np.abs(_shanks(other) - _shanks(clip)).mean() < REPEAT_M for other in same):
            kept.append(clip)
    return kept


def _shanks(clip: MotionClip) -> FloatArray:
    shanks: FloatArray = clip.xyz[:, 3] - clip.xyz[:, 2]
    return shanks


def split_from_clips(clips: tuple[MotionClip, ...], name: str = "activities") -> Split:
    """The split of that name.

    ``activities`` keeps HELD_OUT for measuring; ``asf`` and ``exp`` train on that skeleton alone
    and are measured on the other; ``all`` trains on everything, so nothing in the file can measure
    it.
    """
    if name not in SPLITS:
        raise ExportError(f"a split of {', '.join(SPLITS)} was wanted, found {name}")
    if name == "activities":
        test = tuple(clip for clip in clips if clip.activity in HELD_OUT)
    elif name == "all":
        test = ()
    else:
        test = tuple(clip for clip in clips if clip.skeleton != name)
    tested = {clip.name for clip in test}
    train = tuple(clip for clip in clips if clip.name not in tested)
    if not train or (not test and name != "all"):
        raise ExportError(
            f"clips to train on and clips to measure were wanted for split {name}, found "
            f"{len(train)} and {len(test)}; the file lacks some of its clips, get it again"
        )
    return Split(name, train, test)
