"""What the tests of training share."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny networks: a second thread costs more than it brings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def lift_motion() -> ModuleType:
    """The module that makes motion capture from nothing."""
    path = Path(__file__).with_name("lift_motion.py")
    spec = importlib.util.spec_from_file_location("lift_motion", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def motion_folder(lift_motion: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small motion capture file."""
    folder: Path = lift_motion.write(tmp_path_factory.mktemp("motion"))
    return folder
