"""mp-run with engines that know the truth of the sample clip: its results must equal that truth.

The engines check what they are given - crops, flow and depth in crop pixels, lifter windows - with
code of this file alone, and answer heatmaps at the true joints and the true 3D. So boxes, crops,
decoding, joint mapping, windows and files are proved before any weights exist.
"""

from __future__ import annotations

import csv
import json
from functools import cache

import numpy as np
import pytest

from mambapose.runtime.cli import main
from mambapose.runtime.targets import Schedule
from mambapose.runtime.video.sources import open_source

from .drawn_clip import DrawnClip, write_clip
from .fakes import depth_engine, flow_engines, gaussians, lift_engine, pose_engine
from .small_bundle import use_fakes, write_fake_bundle

pytestmark = pytest.mark.usefixtures("no_search")

FRAMES, WINDOW, HOP = 40, 27, 9
FLOW_SIZE, DEPTH_SIZE = (128, 160), (70, 140)
POISON = 1e6  # in the letterboxes' padding, which must never be read


def bilinear(image, x, y):
    """Samples of image (H, W, C) at x, y, the edge repeated."""
    height, width = image.shape[:2]
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    top = image[y0, x0] * (1 - fx) + image[y0, x1] * fx
    return top * (1 - fy) + (image[y1, x0] * (1 - fx) + image[y1, x1] * fx) * fy


class Truth:
    """What is known, in the forms the networks would see it."""

    def __init__(self, clip, pictures):
        self.clip = clip
        self.pictures = pictures
        self.width, self.height = clip.size
        self.joints = np.stack([clip.coco_xy(t) for t in range(clip.frames)]).astype(float)
        self.xyz = np.stack([clip.h36m_xyz(t) for t in range(clip.frames)])
        self.solid = np.stack([self.h36m(joints) for joints in self.joints])
        self.contents = {size: self.content(size) for size in (FLOW_SIZE, DEPTH_SIZE)}

    def content(self, size):
        """(scale x, scale y, left, top, width, height) of the frame in a centred letterbox."""
        ratio = min(size[0] / self.height, size[1] / self.width)
        width, height = round(self.width * ratio), round(self.height * ratio)
        left, top = (size[1] - width) // 2, (size[0] - height) // 2
        return width / self.width, height / self.height, left, top, width, height

    def reduced(self, full, size):
        """A map (H, W, C) of the frame as a network of that size would answer it."""
        scale_x, scale_y, left, top, width, height = self.contents[size]
        x, y = np.meshgrid((np.arange(width) + 0.5) / scale_x - 0.5,
                           (np.arange(height) + 0.5) / scale_y - 0.5)  # fmt: skip
        out = np.full((*size, full.shape[2]), POISON, np.float32)
        out[top : top + height, left : left + width] = bilinear(full, x, y)
        return out

    @cache  # noqa: B019 - one clip per test session
    def flow_map(self, t):
        scale = self.contents[FLOW_SIZE][:2]
        return self.reduced(self.clip.flow(t) * np.array(scale), FLOW_SIZE)

    @cache  # noqa: B019
    def depth_map(self, t):
        return self.reduced(self.clip.depth(t)[..., None], DEPTH_SIZE)

    def at(self, reduced, size, x, y):
        """Samples of a reduced map at frame pixels."""
        scale_x, scale_y, left, top, width, height = self.contents[size]
        inner = reduced[top : top + height, left : left + width].astype(float)
        return bilinear(inner, (x + 0.5) * scale_x - 0.5, (y + 0.5) * scale_y - 0.5)

    def box(self, t):
        """Full frame first, then the last joints with a tenth of the longer side around them."""
        if t == 0:
            return np.array([0.0, 0, self.width, self.height])
        low, high = self.joints[t - 1].min(0), self.joints[t - 1].max(0)
        margin = max(0.1 * (high - low).max(), 8.0)
        return np.array(
            [*np.maximum(low - margin, 0), *np.minimum(high + margin, [self.width, self.height])]
        )

    def placement(self, t):
        """kx, ky, tx, ty: crop = k * frame + t, by the official box rule."""
        x0, y0, x1, y1 = self.box(t)
        w, h = x1 - x0, y1 - y0
        if w > 0.75 * h:
            h = w / 0.75
        else:
            w = h * 0.75
        k = np.array([191.0, 255.0]) / (np.array([w, h]) * 1.25)
        middle = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
        return (*k, *(k * (np.array([w, h]) * 0.625 - middle)))

    @staticmethod
    def h36m(c):
        """The published conversion, for one person."""
        h = np.zeros((17, 2))
        shoulders, hips = c[5:7].mean(0), c[11:13].mean(0)
        h[[9, 11, 14, 12, 15, 13, 16, 4, 1, 5, 2, 6, 3]] = c[[0, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14,
                                                             15, 16]]  # fmt: skip
        h[10] = [c[1:5, 0].mean(), c[1, 1] + c[2, 1] - c[0, 1]]
        h[8] = shoulders + (c[0] - shoulders) / 3
        h[0], h[7] = hips, c[[5, 6, 11, 12]].mean(0)
        h[9] -= (h[9] - shoulders) / 4
        h[7, 0] += 2 * (h[7, 0] - (h[0, 0] + h[8, 0]) / 2)
        h[8, 1] -= (c[1:3, 1].mean() - c[0, 1]) * 2 / 3
        return h


class Knowing:
    """Engines that know the truth, and refuse what is not as it should be."""

    def __init__(self, truth, *, flow=True, depth=True):
        self.truth, self.has_flow, self.has_depth = truth, flow, depth
        self.looked, self.windows = 0, []
        self.scores = np.zeros((truth.clip.frames, 17))

    def engines(self):
        return {
            **flow_engines(FLOW_SIZE, flow=self.flow),
            "depth": depth_engine(DEPTH_SIZE, self.depth),
            "pose2d": pose_engine(self.pose),
            "lift3d": lift_engine(self.lift, WINDOW),
        }

    def flow(self, inputs):
        return self.truth.flow_map(self.looked).transpose(2, 0, 1)[None].copy()

    def depth(self, inputs):
        return {"depth": self.truth.depth_map(self.looked).transpose(2, 0, 1)[None].copy()}

    def pose(self, inputs):
        truth, t = self.truth, self.looked
        self.looked += 1
        kx, ky, tx, ty = truth.placement(t)
        x, y = np.meshgrid((np.arange(192) - tx) / kx, (np.arange(256) - ty) / ky)
        picture = np.pad(truth.pictures[t].astype(float), ((1, 1), (1, 1), (0, 0)))
        want = bilinear(picture, x + 1, y + 1)
        assert np.abs(inputs["rgb"][0] - want).max() <= 0.6
        flow = self.has_flow and t > 0
        assert inputs["present"].tolist() == [[flow, self.has_depth]]
        if flow:
            found = inputs["flow"][0].transpose(1, 2, 0)
            scale = np.array([kx, ky]) / truth.contents[FLOW_SIZE][:2]
            want = truth.at(truth.flow_map(t), FLOW_SIZE, x, y) * scale
            # At the figure's outline a thousandth of a pixel of the box moves a sample this much.
            assert np.abs(found - want).max() < 0.01
            assert np.abs(found - want).mean() < 1e-4
        if self.has_depth:
            want = truth.at(truth.depth_map(t), DEPTH_SIZE, x, y)[..., 0]
            assert np.abs(inputs["depth"][0, 0] - want).max() < 1e-4
        crop = truth.joints[t] * [kx, ky] + [tx, ty]
        answer = gaussians((crop * [47 / 191, 63 / 255])[None])
        self.scores[t] = answer.max((2, 3))
        return {"heatmaps": answer}

    def lift(self, inputs):
        truth, last = self.truth, self.truth.clip.frames - 1
        first = len(self.windows) * HOP - (WINDOW - HOP) // 2
        self.windows.append(first)
        frames = np.clip(np.arange(first, first + WINDOW), 0, last)
        keypoints = truth.solid[frames] * (2 / truth.width) - [1, truth.height / truth.width]
        # A thousandth of a pixel in this unit.
        assert np.abs(inputs["keypoints"][0] - keypoints).max() < 2e-3 * 2 / truth.width
        assert inputs["present"].tolist() == [[1, self.has_depth, self.has_flow]]
        elbow = self.scores[frames][:, 7]
        assert np.abs(inputs["score"][0, :, 12] - elbow).max() < 1e-6
        for k, t in enumerate(frames):
            x, y = truth.solid[t].T
            if self.has_depth:
                want = truth.at(truth.depth_map(t), DEPTH_SIZE, x, y)[..., 0]
                assert np.abs(inputs["depth"][0, k] - want).max() < 1e-4
            if self.has_flow and t > 0:
                moved = truth.at(truth.flow_map(t), FLOW_SIZE, x, y)
                want = moved / truth.contents[FLOW_SIZE][:2] * (2 / truth.width)
                assert np.abs(inputs["flow"][0, k] - want).max() < 1e-4
        return {"xyz": truth.xyz[frames][None].astype(np.float32)}


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    clip = DrawnClip(frames=FRAMES, size=(320, 180))
    write_clip(folder / "clip.mp4", clip)
    with open_source(str(folder / "clip.mp4")) as source:
        pictures = [frame.image for frame in source]
    assert len(pictures) == FRAMES
    found = Truth(clip, pictures)
    found.path = folder / "clip.mp4"
    return found


def run(monkeypatch, tmp_path, truth, knowing, *options):
    engines = knowing.engines()
    use_fakes(monkeypatch, engines)
    schedule = Schedule(depth_every=1, flow_iters=2, clip_frames=WINDOW, hop=HOP)
    bundle = write_fake_bundle(tmp_path / "bundle", engines, schedule)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        main(["--engine", str(bundle.path), str(truth.path), "-o", str(out), *options])
    assert ended.value.code == 0
    return out


def check_files(out, truth, xyz):
    """Every joint in every file equals the truth to the rounding of the files."""
    document = json.loads((out / "poses.json").read_text())
    assert document["meta"]["complete"]
    assert [frame["frame"] for frame in document["frames"]] == list(range(FRAMES))
    people = [frame["people"] for frame in document["frames"]]
    assert [[person["id"] for person in frame] for frame in people] == [[1]] * FRAMES
    found = np.array([frame[0]["xy"] for frame in people])
    # The decoder itself is exact to 4e-5 heatmap pixels here: 7e-4 px in the full-frame crop.
    assert np.abs(found - truth.joints).max() < 2e-3
    assert np.abs(np.array([frame[0]["xyz"] for frame in people]) - xyz).max() < 1.1e-5
    boxes = np.array([frame[0]["box"] for frame in people])
    assert np.abs(boxes - [truth.box(t) for t in range(FRAMES)]).max() < 3e-3
    assert min(min(frame[0]["score"]) for frame in people) > 0.9
    with np.load(out / "poses.npz") as arrays:
        assert np.abs(arrays["xy"] - truth.joints).max() < 2e-3
        assert np.abs(arrays["xyz"] - xyz).max() < 1.1e-5
    with (out / "poses.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == FRAMES
    assert abs(float(rows[7]["left_wrist_x"]) - truth.joints[7, 9, 0]) < 2e-3


def test_results_equal_the_truth(monkeypatch, tmp_path, truth):
    knowing = Knowing(truth)
    out = run(monkeypatch, tmp_path, truth, knowing)
    assert knowing.looked == FRAMES
    assert len(knowing.windows) == -(-FRAMES // HOP)
    check_files(out, truth, truth.xyz)


def test_results_in_metres_without_flow_and_depth(monkeypatch, tmp_path, truth):
    knowing = Knowing(truth, flow=False, depth=False)
    options = ["--no-flow", "--no-depth", "--height", "1.75", "--quiet"]
    out = run(monkeypatch, tmp_path, truth, knowing, *options)
    check_files(out, truth, truth.xyz * 1.75)
    meta = json.loads((out / "poses.json").read_text())["meta"]
    assert meta["units"]["xyz"] == "metres, for a height of 1.75 m"
    assert list(meta["stages"]) == ["pose2d", "lift3d"]
