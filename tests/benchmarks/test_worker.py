"""What counts as one frame's work of a stage."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from mambapose.benchmarks import worker
from mambapose.benchmarks.jobs import Job
from mambapose.runtime.backends.fake import FakeEngine
from mambapose.runtime.types import GraphSpec, TensorSpec


def test_a_frame_of_a_clip_network_is_one_encoding_and_one_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = TensorSpec("features", "float32", ("N", 6, 2))
    encode = FakeEngine(
        GraphSpec("encode", (TensorSpec("rgb", "uint8", ("N", 4, 3, 3)),), (features,)),
        lambda inputs: {"features": np.zeros((1, 6, 2), np.float32)},
    )
    heatmaps = TensorSpec("heatmaps", "float32", ("N", 17, 4, 3))
    main = FakeEngine(
        GraphSpec("main", (TensorSpec("features", "float32", ("N", 5, 6, 2)),), (heatmaps,)),
        lambda inputs: {"heatmaps": np.zeros((1, 17, 4, 3), np.float32)},
    )
    engines = {"encode": encode, "main": main}
    monkeypatch.setattr(worker, "load_engine", lambda bundle, stage, name, where: engines[name])
    graphs = {name: SimpleNamespace(spec=engine.spec) for name, engine in engines.items()}
    bundle = SimpleNamespace(stages={"pose2d": SimpleNamespace(graphs=graphs)})
    step = worker.stage_step(bundle, "pose2d", Job("stages"))  # type: ignore[arg-type]
    step()
    step()
    assert (encode.calls, main.calls) == (2, 2)
