"""The checkpoints that ship: ``weights/<network>.safetensors``, each beside its card.

The card, ``<network>.json``, is written by the training. What is read of it here:

    label     "demonstration" while a goal is missed, else "trained"
    file      {"name", "sha256", ...} of the checkpoint
    headline  {name: number}, what a user should know about its accuracy

A checkpoint, shipped or not, may state more in its safetensors metadata: ``unit``, the unit of a
lifter's 3D joints; ``joints``, the kind of joints it was trained on (``person``: in the person's
own coordinates); ``label``; ``licence``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mambapose.export.checkpoints.content import is_safetensors
from mambapose.runtime.bundle import manifest as strict
from mambapose.runtime.bundle.bundle import file_sha256
from mambapose.runtime.errors import BundleError, ExportError
from mambapose.runtime.loading import SHIPPED
from mambapose.runtime.stages.joints import BODY_HEIGHTS, IMAGE_UNITS

DETECTOR = "yolox-nano"  # the detector that ships
FOLDER = Path(__file__).parent / "weights"
SUFFIX = ".safetensors"
LABELS = ("demonstration", "trained")
PERSON = "person"
MAX_HEADLINES = 8
_REINSTALL = "install mambapose again, or give other weights with --weights"


@dataclass(frozen=True)
class Facts:
    """What a checkpoint states about itself; None where it does not. half: every tensor is FP16."""

    unit: str | None = None
    joints: str | None = None
    label: str | None = None
    licence: str | None = None
    half: bool = False


@dataclass(frozen=True)
class Card:
    """What is read from the card of weights that ship.

    label: "demonstration", or None when every goal is met. headline: name -> number.
    """

    label: str | None
    headline: Mapping[str, float] = field(default_factory=dict)


def shipped_networks() -> list[str]:
    """The networks whose weights ship."""
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def shipped_weights(network: str) -> Path | None:
    """The checkpoint of a network that ships with this version, or None."""
    path = FOLDER / f"{network}{SUFFIX}"
    return path if path.is_file() else None


def shipped_detector() -> Path:
    """The ONNX file of the detector that ships: YOLOX-nano of Megvii, Apache-2.0, unchanged.

    Its only copy is that in the bundle that ships.
    """
    return SHIPPED / "stages" / "detect.onnx"


def facts_from_file(path: Path) -> Facts:
    """What a checkpoint states about itself; only safetensors files can, by whatever name.

    ExportError when such a file is damaged or states a unit or joints that are not known.
    """
    if not is_safetensors(path):
        return Facts()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            said = file.metadata() or {}
            half = all(file.get_slice(key).get_dtype() == "F16" for key in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as err:
        raise ExportError(
            f"{path}: a safetensors file was wanted, found a broken one ({err}); download it again"
        ) from err
    unit = said.get("unit")
    if unit not in (None, BODY_HEIGHTS, IMAGE_UNITS):
        raise ExportError(
            f"{path}: unit {BODY_HEIGHTS} or {IMAGE_UNITS} was wanted in its metadata, found "
            f"{unit!r}; correct it where the file was written"
        )
    joints = said.get("joints")
    if joints not in (None, PERSON):
        raise ExportError(
            f"{path}: joints {PERSON} or none were wanted in its metadata, found {joints!r}; "
            "correct it where the file was written"
        )
    return Facts(unit, joints, _shown(said.get("label")), said.get("licence"), half)


def read_card(weights: Path) -> Card:
    """The card of a shipped checkpoint, which must be the one that the card describes.

    ExportError: no card, one that cannot be read, or another checkpoint than it describes.
    """
    path = weights.with_suffix(".json")
    try:
        raw = strict.manifest_from_bytes(path.read_bytes(), path.name)
        for key in ("label", "file", "headline"):
            if key not in raw:
                strict.refuse(path.name, f"key {key!r} is missing")
        label = strict.text(raw, "label", path.name)
        headline = strict.number_map(raw, "headline", path.name)
        file = strict.mapping(raw, "file", path.name)
        wanted = strict.digest({"sha256": file.get("sha256")}, "sha256", path.name)
    except OSError as err:
        raise ExportError(
            f"the card of {weights.name} was wanted at {path}, it cannot be read "
            f"({err.strerror or err}); {_REINSTALL}"
        ) from err
    except BundleError as err:
        problem = str(err).removesuffix(f"; {strict.REMEDY}")
        raise ExportError(f"card {problem}; {_REINSTALL}") from err
    if label not in LABELS or not 1 <= len(headline) <= MAX_HEADLINES:
        raise ExportError(
            f"card {path.name}: one of {', '.join(LABELS)} and 1 to {MAX_HEADLINES} headline "
            f"numbers were wanted, found {label!r} and {len(headline)}; {_REINSTALL}"
        )
    if (found := file_sha256(weights)) != wanted:
        raise ExportError(
            f"{weights}: the weights with SHA-256 {wanted[:12]} of its card were wanted, found "
            f"{found[:12]}; {_REINSTALL}"
        )
    return Card(_shown(label), headline)


def _shown(label: str | None) -> str | None:
    """The label to show the user; None for weights that met their goals."""
    return None if label == "trained" else label
