"""Networks named on the command line of ``mp-bench``, exported when needed and kept in a cache."""

from __future__ import annotations

import hashlib
import subprocess
from importlib.util import find_spec
from pathlib import Path

import mambapose.export
import mambapose.plugins
from mambapose.benchmarks import yardsticks
from mambapose.benchmarks.jobs import last_sentence, own_module
from mambapose.export.models import NETWORKS
from mambapose.runtime.bundle.bundle import read_bundle
from mambapose.runtime.bundle.entries import Bundle
from mambapose.runtime.errors import BundleError
from mambapose.runtime.stages.table import STAGES
from mambapose.runtime.targets import target_from_name

TARGET = "cpu"
Size = tuple[int, int] | int  # (H, W) of an image stage, T of a lifter


def source_digest() -> str:
    """A hash that changes with the code that exports, so that no cached bundle is out of date."""
    digest = hashlib.sha256(Path(yardsticks.__file__).read_bytes())
    for package in (mambapose.export, mambapose.plugins):
        for path in sorted(Path(package.__path__[0]).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def cache_folder() -> Path:
    """The folder of the exported networks that are kept."""
    return Path.home() / ".cache" / "mambapose" / "bench" / source_digest()


def stage_of(name: str) -> str:
    """The stage of a network of the registry or of a yardstick; BundleError for another name."""
    if yardsticks.is_transformer(name):
        return "lift3d"
    if name not in NETWORKS:
        raise BundleError(
            f"a bundle folder, {yardsticks.TRANSFORMER}:PAIRS or a network was wanted, found "
            f"{name}; the networks are {', '.join(NETWORKS)}"
        )
    return NETWORKS[name].stage


def own_size(stage: str) -> Size | None:
    """The size of a stage's networks in the target's schedule; None for a stage without a size."""
    schedule, row = target_from_name(TARGET).schedule, STAGES[stage]
    if row.clip:
        return schedule.clip_frames
    return None if row.size_field is None else schedule.size(row.size_field)


def exported(name: str, size: Size | None = None) -> Bundle:
    """A bundle of one named network with seeded random weights, exported once and then kept.

    Latency and memory do not depend on the values of the weights. size: None for the target's own.
    """
    stage = stage_of(name)
    if size == own_size(stage):
        size = None  # the same bundle under one name
    if find_spec("torch") is None:
        raise BundleError(
            f"{name} has to be exported to be measured, which needs torch; "
            "install '.[export]' or give a bundle folder instead of a name"
        )
    text = "x".join(map(str, size)) if isinstance(size, tuple) else str(size or "")
    folder = cache_folder() / "_".join(filter(None, (name.replace(":", "-"), text)))
    if not (folder / "bundle.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = own_module(*export_words(name, stage, text), "--out", str(folder))
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode != 0:
            reason = last_sentence(done.stderr)
            raise BundleError(f"exporting {name} for the comparison failed: {reason}")
    return read_bundle(folder, verify=False)


def export_words(name: str, stage: str, size: str) -> list[str]:
    """The module to run and its arguments; size: ``HxW``, ``T`` or nothing."""
    option = f"--clip-frames={size}" if STAGES[stage].clip else f"--size={stage}={size}"
    chosen = [option] if size else []
    if yardsticks.is_transformer(name):
        return ["mambapose.benchmarks.yardsticks", name, *chosen]
    words = ["mambapose.export.cli", "--target", TARGET, "--untrained"]
    return [*words, "--only", stage, f"--{stage}", name, *chosen]
