"""The loop over RAFT's graphs: order of the images, what is kept, what is dropped."""

from __future__ import annotations

import numpy as np
import pytest

from mambapose.runtime.errors import EngineError
from mambapose.runtime.stages.flow import GRAPHS, FlowStage

from ..fakes import fake, flow_engines, tensor


def stage(iterations=3, size=(128, 160), **options):
    engines = flow_engines(size, **options)
    parts = {name: engines[f"flow.{name}"] for name in GRAPHS}
    return FlowStage(parts, iterations), parts


def picture(level, size=(128, 160)):
    return np.full((*size, 3), level, np.uint8)


def test_first_frame_has_no_flow_and_each_image_is_encoded_once():
    flow, parts = stage()
    assert flow.run(picture(0)) is None
    assert parts["corr"].calls == 0
    for level in range(1, 5):
        assert flow.run(picture(level)) is not None
    assert parts["encode"].calls == 5
    assert parts["corr"].calls == parts["upsample"].calls == 4
    assert parts["step"].calls == 4 * 3


def test_image1_is_this_frame_and_image2_the_one_before():
    flow, parts = stage()
    seen = []

    def encode(inputs):
        level = np.float32(inputs["image"].mean())
        shape = (1, 2, 16, 20)
        return {name: np.full(shape, level, np.float32) for name in ("fmap", "hidden", "context")}

    def corr(inputs):
        seen.append((inputs["fmap1"].mean(), inputs["fmap2"].mean()))
        return {item.name: np.zeros(item.shape, np.float32) for item in parts["corr"].spec.outputs}

    parts["encode"].function, parts["corr"].function = encode, corr
    contexts = []
    step = parts["step"].function
    parts["step"].function = lambda inputs: (
        contexts.append(inputs["context"].mean()) or step(inputs)
    )
    for level in (10, 20, 30):
        flow.run(picture(level))
    assert seen == [(20, 10), (30, 20)]
    assert contexts == [20] * 3 + [30] * 3


def test_coordinates_start_at_the_identity_and_pass_through_every_step():
    flow, parts = stage(iterations=4, flow=lambda inputs: np.zeros((1, 2, 128, 160), np.float32))
    found = []
    parts["upsample"].function = lambda inputs: (
        found.append(inputs["coords"]) or {"flow": np.zeros((1, 2, 128, 160), np.float32)}
    )
    flow.run(picture(0))
    flow.run(picture(1))
    y, x = np.mgrid[:16, :20]
    assert np.array_equal(found[0][0, 0], x + 4)
    assert np.array_equal(found[0][0, 1], y + 4)


def test_forgetting_costs_one_frame_of_flow():
    flow, _ = stage()
    flow.run(picture(0))
    flow.forget()
    assert flow.run(picture(1)) is None
    assert flow.run(picture(2)) is not None


def test_the_upsampler_gets_the_hidden_state_only_when_it_wants_it():
    _, parts = stage()
    large = fake(
        "upsample",
        [tensor("coords", 1, 2, 16, 20), tensor("hidden", 1, 2, 16, 20)],
        [tensor("flow", 1, 2, 128, 160)],
    )
    flow = FlowStage({**parts, "upsample": large}, 3)
    flow.run(picture(0))
    flow.run(picture(1))
    assert large.calls == 1


def test_frames_are_letterboxed_to_the_graph():
    flow, parts = stage()
    sizes = []
    encode = parts["encode"].function
    parts["encode"].function = lambda inputs: sizes.append(inputs["image"].shape) or encode(inputs)
    flow.run(picture(0, (45, 301)))
    found = flow.run(picture(1, (45, 301)))
    assert sizes == [(1, 128, 160, 3)] * 2
    assert found.box.content == (24, 160)
    assert found.values.shape == (2, 128, 160)


def test_a_graph_of_free_size_is_refused():
    engines = flow_engines((128, 160))
    parts = {name: engines[f"flow.{name}"] for name in GRAPHS}
    parts["encode"] = fake("encode", [tensor("image", 1, "H", "W", 3, dtype="uint8")], [])
    with pytest.raises(EngineError, match="fixed height and width"):
        FlowStage(parts, 3)
