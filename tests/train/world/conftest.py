"""Fixtures of the rendered world; each skips with its reason where something is absent."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from mambapose.runtime.errors import ExportError


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever is drawn here is slow."""
    for item in items:
        if "renderer" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def world(assets: Path) -> Any:
    """Body and motion."""
    from mambapose.train.world.assets import BODY_FOLDER, MOTION_FOLDER
    from mambapose.train.world.shot import load_world

    for name in (BODY_FOLDER, MOTION_FOLDER):
        if not (assets / name).exists():
            pytest.skip(f"the assets folder has no {name}")
    return load_world(assets)


@pytest.fixture(scope="session")
def renderer() -> Iterator[Any]:
    """An OpenGL renderer."""
    pytest.importorskip("moderngl", reason="moderngl is not installed (extra train)")
    from mambapose.train.world.render import Renderer

    try:
        opened = Renderer()
    except ExportError as err:
        pytest.skip(str(err))
    with opened:
        yield opened


@pytest.fixture(scope="session")
def shots(world: Any, renderer: Any) -> list[Any]:
    """Six shots with the picture before."""
    from mambapose.train.world.shot import shots as rendered

    return list(islice(rendered(world, renderer, 11, pair=True, poses=2), 6))


@pytest.fixture(scope="session")
def clip(world: Any, renderer: Any) -> Any:
    """A short clip of two people."""
    from mambapose.train.world.clip import WorldClip

    return WorldClip(world, renderer, frames=4, size=(320, 184), fps=12, people=2, seed=3)
