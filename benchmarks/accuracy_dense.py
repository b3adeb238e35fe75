"""Flow and depth of a bundle on the sample clip, whose true maps are known."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from mambapose.benchmarks.accuracy_video import Clip
from mambapose.benchmarks.scores import Score
from mambapose.runtime.backends.loader import load_engine
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.loading import clip_graphs, opened_flow
from mambapose.runtime.stages.crop import values_at
from mambapose.runtime.stages.depth import DepthStage
from mambapose.runtime.stages.flow import DenseMap, FlowStage
from mambapose.runtime.types import Frame, Where
from mambapose.runtime.video.sample import Truth


def dense_scores(bundle: Bundle, where: Where, clip: Clip, truth: Truth) -> list[Score]:
    """The error of the flow and the correlation of the depth, for the stages in the bundle."""
    wanted = set(truth.map_frames.tolist())
    kept = {f.index: f for f in clip.frames() if {f.index, f.index + 1} & wanted}
    with ExitStack() as stack:
        scores = []
        if "flow" in bundle.stages:
            opened = opened_flow(bundle, portrait=truth.size.portrait, where=where)
            flow = stack.enter_context(opened)
            scores.append(flow_score(flow, clip.name, kept, truth))
        if "depth" in bundle.stages:
            graph = clip_graphs(bundle, "depth", portrait=truth.size.portrait)["main"]
            loaded = load_engine(bundle, "depth", graph, where)
            depth = DepthStage(stack.enter_context(loaded), 1)
            scores.append(depth_score(depth, clip.name, kept, truth))
    return scores


def flow_score(flow: FlowStage, name: str, frames: dict[int, Frame], truth: Truth) -> Score:
    """Mean end-point error in pixels of the frame, everywhere and on the person."""
    errors, people = [], truth.person.astype(bool)
    for number, t in enumerate(truth.map_frames.tolist()):
        flow.forget()
        flow.run(frames[t - 1].image)
        found = flow.run(frames[t].image)
        assert found is not None, "the frame before was just given"
        moved = at_truth(found, truth) / np.array(found.box.scale)
        errors.append(np.linalg.norm(moved - truth.flow[number].astype(np.float64), axis=-1))
    every = np.stack(errors)
    values = {"epe_px": float(every.mean()), "epe_person_px": float(every[people].mean())}
    return Score("flow", name, "rgb", values, {})


def depth_score(depth: DepthStage, name: str, frames: dict[int, Frame], truth: Truth) -> Score:
    """Mean correlation of inverse depth, because a network knows it only up to scale and shift."""
    found = []
    for number, t in enumerate(truth.map_frames.tolist()):
        depth.forget()
        answer = at_truth(depth.run(frames[t], None), truth)[..., 0]
        known = truth.inverse_depth[number].astype(np.float64)
        found.append(np.corrcoef(answer.ravel(), known.ravel())[0, 1])
    return Score("depth", name, "rgb", {"correlation": float(np.mean(found))}, {})


def at_truth(dense: DenseMap, truth: Truth) -> NDArray[np.float64]:
    """(h, w, C) values of a map at the places where the truth is known."""
    grid = np.stack(np.meshgrid(truth.columns, truth.rows), axis=-1).astype(np.float64)
    return values_at(dense.values, dense.box, grid).astype(np.float64)
