"""Which mambapose this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def tool_version() -> str:
    """The installed version of mambapose, or ``source`` when run from a tree."""
    try:
        return version("mambapose")
    except PackageNotFoundError:
        return "source"
