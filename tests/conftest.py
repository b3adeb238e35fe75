"""Fixtures for material that lives outside the repository; absent material skips, with the reason."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


def shared_folder() -> Path:
    """The folder of MAMBAPOSE_ASSETS; relative paths count from the repository root."""
    return (ROOT / os.environ.get("MAMBAPOSE_ASSETS", "../shared")).resolve()


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real videos, weights and motion capture."""
    folder = shared_folder() / "assets"
    if not folder.is_dir():
        pytest.skip("no assets folder: set MAMBAPOSE_ASSETS to the folder that holds it")
    return folder


def _deterministic_state_dict(folder: Path) -> Callable[..., dict[str, np.ndarray]]:
    spec = importlib.util.spec_from_file_location("golden_weights", folder / "weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.deterministic_state_dict


@pytest.fixture(scope="session")
def golden() -> Callable[[str], SimpleNamespace]:
    """A function from case name to its arrays, meta and deterministic weights (None for scans)."""
    folder = shared_folder() / "golden"
    if not folder.is_dir():
        pytest.skip("no golden vectors: set MAMBAPOSE_ASSETS to the folder that holds golden/")
    make_weights = _deterministic_state_dict(folder)

    def load(name: str) -> SimpleNamespace:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            arrays: dict[str, Any] = {key: file[key] for key in file.files}
        meta = json.loads(str(arrays.pop("meta")))
        shapes = meta.get("shapes") or meta.get("keys")
        weights = make_weights(shapes, meta["salt"]) if shapes else None
        for key, source in (meta.get("aliases") or {}).items():
            weights[key] = weights[source]
        return SimpleNamespace(name=name, folder=folder, arrays=arrays, meta=meta, weights=weights)

    return load
