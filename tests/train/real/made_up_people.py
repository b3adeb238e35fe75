"""A folder of crops of people who are discs of colour, made as the real one is."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import cv2
import numpy as np

from ..pose2d_shots import JOINTS

SIZE = (240, 180)  # H, W of a picture
PX_PER_M = 70.0
RADIUS = 6


def colour(joint: int) -> np.ndarray:
    """(3,) RGB of a joint's disc; left and right differ."""
    return np.array([40 + 12 * joint, 250 - 12 * joint, 200 if joint % 2 else 30])


def person(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Picture (H, W, 3) RGB, joints (17, 2) px and box (4,) xyxy."""
    joints = JOINTS[:17].copy()
    joints[:5] *= [3.0, 1.0]  # or the discs of the face lie on each other
    joints[1:3, 1] += 0.12
    xy = joints * [PX_PER_M, -PX_PER_M] + [SIZE[1] / 2 + number % 3, SIZE[0] / 2]
    image = np.full((*SIZE, 3), 90, np.uint8)
    for joint, (x, y) in enumerate(xy):
        cv2.circle(image, (round(x), round(y)), RADIUS, colour(joint).tolist(), -1)
    low, high = xy.min(axis=0) - 8, xy.max(axis=0) + 8
    return image, np.round(xy), np.concatenate([low, high])


def write(folder: Path, name: str, rows: list[tuple[str, str, str, bool]]) -> Path:
    """People of (split, tier, group, annotated); nobody knows where the ankles are."""
    people = [person(number) for number in range(len(rows))]
    xy = np.stack([row[1] for row in people]).astype(np.float32)
    ok = np.ones(xy.shape[:2], bool)
    ok[:, 15:] = False
    marked = np.zeros_like(ok)
    marked[[number for number, row in enumerate(rows) if row[3]], :13] = True
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / f"{name}.npz",
        xy=xy, ok=ok, box=np.stack([row[2] for row in people]).astype(np.float32),
        split=np.array([row[0] for row in rows]), tier=np.array([row[1] for row in rows]),
        group=np.array([row[2] for row in rows]), source=np.array(["drawn"] * len(rows)),
        part=np.array(["full"] * len(rows)), human_xy=xy, human_marked=marked,
    )  # fmt: skip
    with tarfile.open(folder / f"{name}.tar", "w") as tar:
        for number, row in enumerate(people):
            data = cv2.imencode(".jpg", row[0][..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])[1]
            member = tarfile.TarInfo(f"{number:05d}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data.tobytes()))
    return folder
