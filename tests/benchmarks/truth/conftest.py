"""Motion capture from nothing, for whatever reads motion."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from . import lift_motion as motion_from_nothing


@pytest.fixture(scope="session")
def lift_motion() -> ModuleType:
    """The module that makes motion capture from nothing."""
    return motion_from_nothing


@pytest.fixture(scope="session")
def motion_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small motion capture file."""
    return motion_from_nothing.write(tmp_path_factory.mktemp("motion"))
