"""Strict reading of JSON manifests: every key known, every type exact, every path inside.

A manifest comes from a folder that a stranger may have written, so nothing in it is believed:
duplicate keys, NaN, unknown or missing keys, booleans posing as numbers, wrong types and paths
that leave the folder are all BundleErrors that name the place and the remedy.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from mambapose.runtime.errors import BundleError
from mambapose.runtime.text import printable

# A manifest has a few kilobytes. Any value far above that and far below the memory of a small
# board does: it only keeps a wrong file from being read whole.
MAX_BYTES = 16 << 20
REMEDY = "export the bundle again with mp-export"


def refuse(where: str, problem: str) -> NoReturn:
    """Raise the BundleError of a manifest that cannot be believed."""
    raise BundleError(refusal(where, problem))


def refusal(where: str, problem: str) -> str:
    """The one line of a refusal: text of the manifest is escaped, and cut where it is long."""
    return f"{_cut(printable(where))}: {_cut(printable(problem))}; {REMEDY}"


def _cut(text: str, most: int = 400) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def shown(value: object, most: int = 60) -> str:
    """A value of a manifest for a message: as Python writes it, on one line, cut when long."""
    return _cut(printable(repr(value)), most)


def manifest_from_bytes(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in ``data``, without duplicate keys, NaN or infinity."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            refuse(where, "a key appears twice")
        return result

    def constant(text: str) -> NoReturn:
        refuse(where, f"{text} is not a number that JSON knows")

    if len(data) > MAX_BYTES:
        refuse(where, f"at most {MAX_BYTES} bytes were wanted, found {len(data)}")
    try:
        parsed = json.loads(data.decode(), object_pairs_hook=unique, parse_constant=constant)
        json.dumps(parsed, ensure_ascii=False).encode()  # escapes of half a character are not text
    except UnicodeEncodeError as err:
        half = printable(err.object[err.start])
        raise BundleError(
            f"{where}: text was wanted, found half a character ({half}); {REMEDY}"
        ) from err
    except (ValueError, RecursionError) as err:  # UnicodeDecodeError, JSONDecodeError, too deep
        raise BundleError(refusal(where, f"not valid JSON ({err})")) from err
    if not isinstance(parsed, dict):
        refuse(where, f"an object was wanted, found {type(parsed).__name__}")
    return parsed


def check_keys(item: Mapping[str, Any], wanted: Iterable[str], where: str) -> None:
    """Refuse unless ``item`` holds exactly the ``wanted`` keys."""
    names = set(wanted)
    if unknown := sorted(set(item) - names):
        refuse(where, f"unknown key {shown(unknown[0])}")
    if missing := sorted(names - set(item)):
        refuse(where, f"key {missing[0]!r} is missing")


def _wrong(where: str, key: str, wanted: str, found: object) -> NoReturn:
    refuse(where, f"{key} must be {wanted}, found {shown(found)}")


def text(item: Mapping[str, Any], key: str, where: str) -> str:
    """The string at ``key``."""
    value = item[key]
    if not isinstance(value, str):
        _wrong(where, key, "text", value)
    return value


def text_or_none(item: Mapping[str, Any], key: str, where: str) -> str | None:
    """The string at ``key``, or None for null."""
    return None if item[key] is None else text(item, key, where)


def whole(
    item: Mapping[str, Any], key: str, where: str, low: int = 0, high: int = (1 << 62) - 1
) -> int:
    """The integer at ``key``, from ``low`` to ``high``."""
    value = item[key]
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        top = f" and at most {high}" if high < (1 << 62) - 1 else ""
        _wrong(where, key, f"a whole number of at least {low}{top}", value)
    return value


def flag(item: Mapping[str, Any], key: str, where: str) -> bool:
    """The boolean at ``key``."""
    value = item[key]
    if not isinstance(value, bool):
        _wrong(where, key, "true or false", value)
    return value


def mapping(item: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    """The object at ``key``."""
    value = item[key]
    if not isinstance(value, dict):
        _wrong(where, key, "an object", value)
    return value


def items(item: Mapping[str, Any], key: str, where: str) -> list[Any]:
    """The list at ``key``."""
    value = item[key]
    if not isinstance(value, list):
        _wrong(where, key, "a list", value)
    return value


def number_map(item: Mapping[str, Any], key: str, where: str) -> dict[str, float]:
    """The object at ``key``, from names to finite numbers."""
    found = mapping(item, key, where)
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300:
            _wrong(where, f"{key}.{name}", "a finite number", value)
    return {name: float(value) for name, value in found.items()}


def option_map(item: Mapping[str, Any], key: str, where: str) -> dict[str, str | int | bool]:
    """The object at ``key``, from names to text, whole numbers or booleans."""
    found = mapping(item, key, where)
    for name, value in found.items():
        if not isinstance(value, (str, int, bool)):
            _wrong(where, f"{key}.{name}", "text, a whole number or true/false", value)
    return found


def digest(item: Mapping[str, Any], key: str, where: str) -> str:
    """The SHA-256 at ``key``: 64 lower-case hexadecimal digits."""
    value = text(item, key, where)
    if len(value) != 64 or set(value) - set("0123456789abcdef"):
        _wrong(where, key, "a SHA-256 of 64 hexadecimal digits", value)
    return value


def relative_path(item: Mapping[str, Any], key: str, where: str) -> str:
    """The path at ``key``: relative, forward slashes, no step upwards."""
    value = text(item, key, where)
    parts = PurePosixPath(value).parts
    inside = bool(parts) and not value.startswith("/") and ".." not in parts
    if not inside or any(c in value for c in "\\:\0") or "/".join(parts) != value:
        refuse(
            where, f"{key} {shown(value)} leaves the bundle folder or is not a plain relative path"
        )
    return value


def file_inside(root: Path, name: str, where: str) -> Path:
    """The existing regular file ``name`` below ``root``, after following every link."""
    path = root / name
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as err:  # RuntimeError: a loop of links (Python < 3.13)
        raise BundleError(refusal(where, f"file {name} is missing")) from err
    if not real.is_relative_to(root.resolve()):
        refuse(where, f"file {name} is a link that leaves the bundle folder")
    if not real.is_file():
        refuse(where, f"{name} is not a regular file")
    return path
