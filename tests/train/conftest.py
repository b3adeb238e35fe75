"""What the tests of training share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ..benchmarks.truth import lift_motion


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny networks: a second thread costs more than it brings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def motion_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small motion capture file."""
    return lift_motion.write(tmp_path_factory.mktemp("motion"))
