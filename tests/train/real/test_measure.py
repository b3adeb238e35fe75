"""Measuring on real people and by view: an engine that knows the truth, angles by hand."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("cv2", reason="opencv is not installed (extra train)")

from mambapose.runtime.stages.crop import crops_from_boxes, crops_from_image
from mambapose.train.pose2d import measure as pose2d_measure
from mambapose.train.real import measure
from mambapose.train.real.people import FREE, SHARE_ALIKE, People, read_people
from mambapose.train.real.views import azimuths, is_usual, mostly_unusual
from mambapose.train.world.sample import SampleSource

from ...runtime.fakes import gaussians, pose_engine
from ..pose2d_shots import JOINTS, drawn_shot
from .made_up_people import write

RATIO = np.array([47 / 191, 63 / 255])  # heatmap pixels per crop pixel


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("people")
    write(path, FREE, [("val", "A", "one", False), ("val", "B", "two", True)])
    return write(path, SHARE_ALIKE, [("train", "SA", "one", True)])


def knowing(people: list[People]) -> Any:
    """An engine that answers the true joints of crops of the right size, else nothing."""
    known = {}
    for some in people:
        crops = crops_from_boxes(some.box, measure.CROP)
        for number in range(len(some)):
            one = measure._one(crops, number)
            rgb = crops_from_image(some.image(number), one)
            known[rgb.tobytes()] = some.xy[number] * one.scale[0] + one.shift[0]

    def answer(inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        found = [known.get(rgb.tobytes(), np.zeros((17, 2))) for rgb in inputs["rgb"]]
        return {"heatmaps": gaussians(np.stack(found) * RATIO)}

    return pose_engine(answer)


def test_who_knows_the_truth_is_right_in_every_row(folder: Path) -> None:
    people = [read_people(folder, name) for name in (FREE, SHARE_ALIKE)]
    found = measure.real_metrics(knowing(people), folder)
    assert found["real held out"].joints == 2 * 15
    assert found["annotated free"].joints == 13
    for name, row in found.items():
        if name != f"real box x{measure.GROWN}":
            assert row.pck20 == 1, name
    assert found[f"real box x{measure.GROWN}"].pck20 < 0.5


def test_boxes_grow_about_their_middle() -> None:
    grown = measure.grown_boxes(np.array([[10.0, 20.0, 30.0, 60.0]]), 1.5)
    np.testing.assert_allclose(grown, [[5, 10, 35, 70]])


def test_azimuths_by_hand() -> None:
    facing = np.column_stack([JOINTS[:17] * [1, -1], np.full(17, 4.0)])
    turned = []
    for angle in np.radians([0, 90, 180]):
        # About the vertical so that at 90 degrees the left side, at x > 0, comes to the camera.
        about = [[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]]
        turned.append((facing - [0, 0, 4]) @ np.array(about) + [0, 0, 4])
    assert turned[1][5, 2] < turned[1][6, 2]
    np.testing.assert_allclose(np.abs(azimuths(np.stack(turned))), np.radians([0, 90, 180]))
    assert azimuths(np.stack(turned))[1] > 0


def test_every_azimuth_is_in_one_part() -> None:
    angles = np.radians([0, 20, -20, 91, 180, -179, -90])
    parts = dict(measure.view_parts(angles))
    assert sorted(parts) == [0, 45, 90, 135, 180, 225, 270, 315]
    assert np.stack(list(parts.values())).sum(axis=0).tolist() == [1] * 7
    assert parts[0].tolist() == [True] * 3 + [False] * 4
    assert parts[180].tolist() == [False] * 4 + [True] * 2 + [False]
    assert parts[270][-1]


def test_views_are_measured_and_the_worst_counts() -> None:
    source = SampleSource([drawn_shot(0)], seed=1, mixture=pose2d_measure.CLEAN)
    middle = gaussians(np.full((4, 17, 2), 24.0))
    engine = pose_engine(lambda inputs: {"heatmaps": middle[: len(inputs["rgb"])]})
    rows = measure.view_metrics(engine, source, 4)
    assert rows["rendered"].joints == sum(
        row.joints for name, row in rows.items() if name.startswith("view ")
    )
    # The drawn figure faces the camera, in the mirror too; the other views are empty.
    assert rows["view 0"].joints == rows["rendered"].joints
    assert measure.worst_view(rows) == rows["view 0"].pck20


def test_front_views_become_rare() -> None:
    shot = drawn_shot(0)
    assert is_usual(shot)
    assert list(mostly_unusual([shot] * 5, 1, kept=0.0)) == []
    kept = sum(1 for _ in mostly_unusual(islice(iter(lambda: shot, None), 400), 1))
    assert 100 < kept < 190


def test_nothing_to_measure_on_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(measure.main, [str(tmp_path), "--assets", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output.startswith("error: people to measure on were wanted")
