"""Where the compiled selective scan is, and whether its version is the one this package needs.

The library is found by path, never by importing the package it comes from, so a board needs
neither torch nor onnx. It always offers the C interface (plugins/csrc/core/mambapose_scan.h); when
it was built against ONNX Runtime's headers it is also a custom-op library for ONNX Runtime.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mambapose.runtime.bundle.entries import SCAN_SPEC
from mambapose.runtime.errors import LoadError, MismatchError

SPEC = SCAN_SPEC
ABI = 1
VARIABLE = "MAMBAPOSE_LIBRARY"
ISA_VARIABLE = "MAMBAPOSE_ISA"
SIGNATURES_KEY = "mambapose.scan_signatures"
OVERLOAD_VERSION = (1, 27)
LIBRARY_NAME = "libmambapose_ort" + (".dylib" if sys.platform == "darwin" else ".so")


@dataclass(frozen=True)
class LibraryInfo:
    """What a compiled library reports about itself.

    spec: version of the operator's semantics; abi: version of its C interface; isa: instruction set
    in use ("avx512", "avx2", "neon", "scalar"); onnxruntime: whether it registers the ONNX Runtime
    operator.
    """

    spec: int
    abi: int
    isa: str
    onnxruntime: bool


def installed_folders() -> Iterator[Path]:
    """The mambapose/plugins folders: beside this package, and where an editable install puts it."""
    yield Path(__file__).resolve().parents[2] / "plugins"
    yield Path(__file__).parents[2] / "plugins"
    found = importlib.util.find_spec("mambapose.plugins")
    for folder in (found.submodule_search_locations or []) if found is not None else []:
        yield Path(folder)


def _must_exist(path: Path, origin: str) -> Path:
    """The path made absolute: the loader looks for a bare name in the system's folders instead."""
    try:
        found = path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL
        found = False
    if not found:
        raise LoadError(
            f"the compiled operator library was wanted at {path} ({origin}), found no such file; "
            "correct the path or leave it out"
        )
    return path.absolute()


def find_library(
    explicit: Path | None = None, *, name: str = LIBRARY_NAME, variable: str = VARIABLE
) -> Path | None:
    """The absolute path of the compiled library to use, or None when nothing was compiled.

    Order: ``explicit``, the environment variable (MAMBAPOSE_LIBRARY for the CPU operator), the
    installed ``mambapose/plugins`` folder. A library is code, so there is no other place: a bundle
    is somebody else's data. Raises EngineError when one of the first two names a file that does not
    exist.
    """
    if explicit is not None:
        return _must_exist(Path(explicit), "as given")
    named = os.environ.get(variable)
    if named:
        return _must_exist(Path(named), f"by {variable}")
    for folder in installed_folders():
        if (folder / name).is_file():
            return folder / name
    return None


def library_info(path: Path) -> LibraryInfo:
    """The facts of the library at ``path``. Raises EngineError unless its spec and ABI are ours."""
    try:
        library = ctypes.CDLL(str(path))
        library.mambapose_scan_isa.restype = ctypes.c_char_p
        numbers = (int(library.mambapose_scan_spec()), int(library.mambapose_scan_abi()))
    except (OSError, AttributeError) as err:
        raise LoadError(
            f"a mambapose operator library was wanted at {path}, found something else: {err}; "
            "reinstall mambapose or remove the file"
        ) from err
    if numbers != (SPEC, ABI):
        raise MismatchError(
            f"operator library {path}: specification {SPEC} and ABI {ABI} were wanted, "
            f"found {numbers[0]} and {numbers[1]}; reinstall mambapose so that both parts match"
        )
    _choose_instruction_set(path)
    isa: bytes = library.mambapose_scan_isa()
    return LibraryInfo(*numbers, isa.decode(), hasattr(library, "RegisterCustomOps"))


@functools.cache
def _choose_instruction_set(path: Path) -> None:
    """Make the library use the instruction set that MAMBAPOSE_ISA names, once per process."""
    wanted = os.environ.get(ISA_VARIABLE)
    if not wanted:
        return
    force = ctypes.CDLL(str(path)).mambapose_scan_force_isa
    # Bytes that are not UTF-8 reach us as lone surrogates; fsencode gives the bytes back.
    if force(os.fsencode(wanted)) != 0:
        raise LoadError(
            f"instruction set {wanted!r} was wanted by {ISA_VARIABLE}, the operator library has no "
            "kernels of that name for this processor; use avx512, avx2, neon or scalar, or unset it"
        )


def check_function_form(metadata: Mapping[str, str], onnxruntime_version: str) -> None:
    """Raise EngineError where the slow ONNX form of a model would silently compute nonsense.

    A model whose scans have several signatures holds a function body for each, told apart by
    ``overload``. ONNX Runtime before 1.27 runs the first body for all of them (measured: 1.20.1 to
    1.26.0 do, 1.27.0 to 1.31.1 do not). metadata: the model's metadata_props.
    """
    said = metadata.get(SIGNATURES_KEY, "1")
    if not re.fullmatch("[0-9]{1,6}", said):
        raise MismatchError(
            f"{SIGNATURES_KEY}: a number of signatures was wanted in the graph, found "
            f"{said[:20]!r}; export the bundle again with mp-export"
        )
    signatures = int(said)
    version = tuple(int(number) for number in re.findall(r"\d+", onnxruntime_version)[:2])
    if signatures > 1 and version < OVERLOAD_VERSION:
        raise MismatchError(
            f"ONNX Runtime 1.27 or newer was wanted to run {signatures} forms of the selective "
            f"scan without the compiled operator, found {onnxruntime_version}; update onnxruntime, "
            "or install a C++ compiler and then mambapose again"
        )


def slow_notice() -> str:
    """The sentence every command prints once when the compiled operator is not in use."""
    return (
        "no compiled selective scan: the slow ONNX form is in use; for the fast one install a C++ "
        "compiler (g++), then mambapose again (without a network, ONNXRUNTIME_INCLUDE_DIR must "
        "name a folder of ONNX Runtime's headers)"
    )
