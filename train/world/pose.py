"""Bone rotations of the body from 17 joint positions (Human3.6M order, y up, metres).

Only directions are taken from the joints: the body keeps its own bone lengths, and the labels come
from the posed body. What directions leave open (twists, head, hands, feet) is a ``Freedom``, drawn
once per clip so that the moments of a clip belong together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mambapose.train.world.rig import BonePose, Rig, posed
from mambapose.train.world.rotations import (
    Vectors,
    about,
    between,
    cross,
    frame,
    length,
    swing,
)

# Below the first sine of the bend the bend plane says nothing about the twist, above the second
# it decides alone; without the blend straight knees and elbows flip.
BEND_UNCLEAR, BEND_CLEAR = 0.10, 0.35
_X, _Y, _Z = np.eye(3)
# side, sign of its x axis; joint numbers: shoulder, elbow, wrist, hip, knee, ankle
_SIDES = (("Left", 1.0, (11, 12, 13, 4, 5, 6)), ("Right", -1.0, (14, 15, 16, 1, 2, 3)))


@dataclass(frozen=True)
class Freedom:
    """Angles in radians that joints leave open.

    look: head yaw, pitch, roll; twist, wrist, curl, foot: left, right.
    """

    look: tuple[float, float, float] = (0.0, 0.0, 0.0)
    twist: tuple[float, float] = (0.0, 0.0)
    wrist: tuple[float, float] = (0.0, 0.0)
    curl: tuple[float, float] = (0.3, 0.3)
    foot: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 0.0), (0.0, 0.0))


def random_freedom(rng: np.random.Generator) -> Freedom:
    """Random angles as a relaxed person has them; heads turn most."""
    u = rng.normal(size=12)
    return Freedom(
        (0.42 * u[0], 0.16 * u[1], 0.09 * u[2]),
        (float(np.clip(0.45 * u[3], -0.9, 0.9)), float(np.clip(0.45 * u[4], -0.9, 0.9))),
        (0.22 * u[5], 0.22 * u[6]),
        (float(rng.uniform(0, 1.2)), float(rng.uniform(0, 1.2))),
        ((0.12 * u[7], 0.12 * u[8]), (0.12 * u[9], 0.12 * u[10])),
    )


def bones_from_joints(rig: Rig, rest: Vectors, joints: Vectors, freedom: Freedom) -> BonePose:
    """The pose whose limbs point as the joints (17, 3) do; rest: (B, 3) unposed heads."""
    r = {name: rest[k] for k, name in enumerate(rig.names)}
    turn = _trunk(r, joints, freedom)
    sole = _sole(joints)
    for side, (name, sign, numbers) in enumerate(_SIDES):
        turn |= _arm(r, joints, freedom, turn["Spine1"], side, name, sign, numbers[:3])
        turn |= _leg(r, joints, freedom, turn["Hips"], side, name, numbers[3:], sole)
    rotation = np.stack([turn[name] for name in rig.names])
    return posed(rig, rotation, rest, joints[0])


def _trunk(r: dict[str, Vectors], p: Vectors, freedom: Freedom) -> dict[str, Vectors]:
    """Rotations of pelvis, spine, neck and head."""
    rest_hips = frame(r["LeftUpLeg"] - r["RightUpLeg"], r["Spine"] - r["Hips"])
    hips = frame(p[4] - p[1], p[7] - p[0]) @ rest_hips.T
    middle = (r["LeftArm"] + r["RightArm"]) / 2 - r["Spine"]
    rest_chest = frame(middle, r["LeftArm"] - r["RightArm"])
    chest = frame((p[11] + p[14]) / 2 - p[7], p[11] - p[14]) @ rest_chest.T
    yaw, pitch, roll = freedom.look
    looked = chest @ about(_Y, yaw) @ about(_X, pitch) @ about(_Z, roll)
    tilt = swing(chest @ (r["Head"] - r["Spine1"]), p[10] - p[8])
    head = between(np.eye(3), tilt, 0.5) @ looked
    return {
        "Hips": hips,
        "LHipJoint": hips,
        "RHipJoint": hips,
        "LowerBack": between(hips, chest, 0.35),
        "Spine": between(hips, chest, 0.75),
        "Spine1": chest,
        "Neck": between(chest, head, 0.3),
        "Neck1": between(chest, head, 0.6),
        "Head": head,
    }


def _arm(
    r: dict[str, Vectors], p: Vectors, freedom: Freedom, chest: Vectors, side: int, name: str,
    sign: float, numbers: tuple[int, ...],
) -> dict[str, Vectors]:  # fmt: skip
    shoulder, elbow, wrist = numbers
    upper, lower = p[elbow] - p[shoulder], p[wrist] - p[elbow]
    # The shoulder rises with the arm, by up to 30 degrees.
    raised = float((chest.T @ upper)[1] / (length(upper) + 1e-12))
    clavicle = chest @ about(_Z, sign * 0.5 * min(max(raised + 0.2, 0.0), 1.0))
    rest_upper = r[name + "ForeArm"] - r[name + "Arm"]
    rest_lower = r[name + "Hand"] - r[name + "ForeArm"]
    # The unposed arm is bent and so shows its own hinge.
    arm, forearm = _limb(
        clavicle, rest_upper, rest_lower, cross(rest_upper, rest_lower), upper, lower
    )
    half = about(rest_lower, freedom.twist[side] / 2)
    forearm = forearm @ half
    hand = forearm @ half @ about((1.0, 0.3, 0.2), freedom.wrist[side])
    # Fingers bend about the line through the knuckles, which points to the thumb's side.
    reach = r[name + "HandFinger1"] - r[name + "Hand"]
    thumb = r[f"{name[0]}Thumb"] - r[name + "Hand"]
    knuckles = thumb - reach * (thumb @ reach) / (reach @ reach)
    fingers = hand @ about(knuckles, -sign * freedom.curl[side])
    return {
        name + "Shoulder": clavicle,
        name + "Arm": arm,
        name + "ForeArm": forearm,
        name + "Hand": hand,
        name + "FingerBase": hand,
        name + "HandFinger1": fingers,
        name[0] + "Thumb": hand,
    }


def _leg(
    r: dict[str, Vectors], p: Vectors, freedom: Freedom, hips: Vectors, side: int, name: str,
    numbers: tuple[int, ...], sole: float,
) -> dict[str, Vectors]:  # fmt: skip
    hip, knee, ankle = numbers
    rest_upper = r[name + "Leg"] - r[name + "UpLeg"]
    rest_lower = r[name + "Foot"] - r[name + "Leg"]
    thigh, shin = _limb(hips, rest_upper, rest_lower, _X, p[knee] - p[hip], p[ankle] - p[knee])
    # A foot near the ground lies flat as far as the ankle lets it, a lifted one follows the shin.
    low = 1 - min(max((p[ankle, 1] - sole) / 0.12, 0.0), 1.0)
    ahead = shin @ _Z
    flat_ahead = np.array([ahead[0], 0.0, ahead[2]])
    foot = shin
    if length(flat_ahead) > 0.35:
        flat = frame(_Y, flat_ahead) @ frame(_Y, _Z).T
        needed = np.arccos(np.clip((np.trace(flat @ shin.T) - 1) / 2, -1, 1))
        reach = min(1.0, 0.7 / (needed + 1e-9))  # an ankle bends by about 40 degrees
        foot = between(shin, flat, (0.15 + 0.75 * low) * reach)
    pitch, yaw = freedom.foot[side]
    foot = foot @ about(_X, pitch * (1 - 0.8 * low)) @ about(_Y, yaw)
    return {name + "UpLeg": thigh, name + "Leg": shin, name + "Foot": foot, name + "ToeBase": foot}


def _sole(p: Vectors) -> float:
    """Height of the lower ankle."""
    return float(min(p[3, 1], p[6, 1]))


def _limb(
    parent: Vectors, rest_upper: Vectors, rest_lower: Vectors, rest_hinge: Vectors,
    upper: Vectors, lower: Vectors,
) -> tuple[Vectors, Vectors]:  # fmt: skip
    """Rotations of upper and lower bone; the bend plane fixes the twist once the limb bends."""
    least = swing(parent @ rest_upper, upper) @ parent
    hinge = cross(upper, lower)
    size = length(hinge)
    sine = size / (length(upper) * length(lower) + 1e-12)
    kept = least @ (rest_hinge / length(rest_hinge))
    share = min(max((sine - BEND_UNCLEAR) / (BEND_CLEAR - BEND_UNCLEAR), 0.0), 1.0)
    mixed = share * hinge / (size + 1e-12) + (1 - share) * kept
    if length(mixed) < 0.3:  # the two disagree: bent the wrong way, keep the twist
        mixed = kept
    return (
        frame(upper, mixed) @ frame(rest_upper, rest_hinge).T,
        frame(lower, mixed) @ frame(rest_lower, rest_hinge).T,
    )
