"""Shots drawn by hand: a disc per joint, so that pose2d trains without renderer and assets."""

from __future__ import annotations

import numpy as np

from mambapose.train.world.camera import Camera
from mambapose.train.world.shot import Shot

SIZE = (240, 110)  # H, W
# x, y in metres from the middle of the body; COCO-17, then thorax and pelvis middle.
JOINTS = np.array([
    [0, 0.78], [0.03, 0.81], [-0.03, 0.81], [0.07, 0.8], [-0.07, 0.8], [0.18, 0.55], [-0.18, 0.55],
    [0.25, 0.3], [-0.25, 0.3], [0.28, 0.05], [-0.28, 0.05], [0.1, 0.05], [-0.1, 0.05],
    [0.12, -0.38], [-0.12, -0.38], [0.13, -0.8], [-0.13, -0.8], [0, 0.55], [0, 0.05],
])  # fmt: skip


def drawn_shot(seed: int) -> Shot:
    """A figure with its own proportions, limbs coloured by side."""
    rng = np.random.default_rng(seed)
    joints = JOINTS * (1 + 0.08 * rng.standard_normal((1, 2)))
    joints = joints + 0.02 * rng.standard_normal(joints.shape)
    marks = np.column_stack([joints[:, 0], -joints[:, 1], np.full(len(joints), 4.0)])
    height, width = SIZE
    focal = 4.0 * 120
    matrix = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
    camera = Camera(np.diag([1.0, -1.0, -1.0]), np.array([0, 0, 4.0]), matrix, (width, height))
    rows, columns = np.mgrid[0:height, 0:width]
    person = np.zeros(SIZE, np.uint8)
    rgba = np.zeros((*SIZE, 4), np.uint8)
    for number, (x, y) in enumerate(camera.pixels(marks)):
        here = np.hypot(columns - x, rows - y) < 13
        person[here] = 1
        rgba[here] = (40 + 11 * number, 250 - 11 * number, 200 if number % 2 else 30, 255)
    flow = np.zeros((*SIZE, 2), np.float32)
    flow[person == 1] = rng.normal(0, 3, 2)
    inverse = np.where(person == 1, 0.25, 0).astype(np.float32)
    return Shot(
        rgba, person, inverse, flow, -flow, marks[None], np.array([1.75]),
        (camera, camera, camera),
    )  # fmt: skip
