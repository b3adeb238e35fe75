"""Why a user's network could not be exported, in one sentence with the line of its code."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mambapose.plugins.standins import is_standin

_NO_FORM = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'")
_FIXED_SIDE = re.compile(r"Constraints violated \((\w+)")
_PYTHON = sysconfig.get_path("stdlib")
_WHILE_TRACED = (
    "values of tensors are not known then, keep them out of Python's own functions and conditions"
)
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


def explained(err: BaseException, program: Any = None) -> str | None:
    """What was found, where, and what to do; None for an error that is not known.

    program: the ExportedProgram, when tracing went well.
    """
    for one in _chain(err):
        said = str(one)
        if "data-dependent" in said:
            return (
                f"a branch or a size that depends on the values of a tensor was found "
                f"({place(err)}); write the branch with torch.where, and sizes from shapes"
            )
        if found := _NO_FORM.search(said):
            return (
                f"operator {found[1]} was found ({_place_of(found[1], program)}), which has no "
                "form in ONNX; write it with others"
            )
        if ".numpy() is not supported" in said:
            return (
                f"a tensor that becomes an array of NumPy was found ({place(err)}), which a graph "
                "cannot hold; write it with torch"
            )
        if found := _FIXED_SIDE.search(said):
            return (
                f"the side {found[1]} was to be free, the code is of one size or a few; give "
                f"--inputs a whole number in the place of {found[1]}"
            )
    return traced(err) if is_of_user_code(err) else None


def traced(err: BaseException) -> str:
    """The sentence about code that runs when it is called but failed while torch traced it."""
    return f"the network runs, making a graph of it failed: {failure(err, _WHILE_TRACED)}"


def failure(err: BaseException, advice: str) -> str:
    """What failed in the user's code, where, and what to do.

    advice: what to do when nothing better is known. Errors of our own stand-ins and operators say
    themselves what to do.
    """
    if isinstance(err, ImportError) and (lacking := lacking_import(err)) is not None:
        return lacking
    frames = traceback.extract_tb(err.__traceback__)
    if frames and "/mambapose/" in frames[-1].filename:
        return reason(err)
    if "CUDA" in str(err) or "NVIDIA driver" in str(err):
        advice = "the export runs on a CPU, make tensors on the device of the inputs"
    return f"{reason(err)}; {advice}"


def lacking_import(err: ImportError) -> str | None:
    """``imports x, which is not installed (file.py:3); install it``; None for another error."""
    if err.name is None:
        return None
    package = err.name.partition(".")[0]
    if is_standin(package):
        name = re.match(r"cannot import name '(\w+)'", str(err))
        whole = err.name if name is None else f"{err.name}.{name[1]}"
        return (
            f"imports {whole}, for which there is no stand-in ({place(err)}); install {package} or "
            "leave the import out"
        )
    if isinstance(err, ModuleNotFoundError):
        return f"imports {err.name}, which is not installed ({place(err)}); install it"
    return None


def _chain(err: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = err
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__


def _place_of(operator: str, program: Any) -> str:
    """File and line of the call of an operator; decomposed operators begin with an underscore."""
    wanted = operator.rpartition(".")[2].lstrip("_")
    for node in () if program is None else program.graph.nodes:
        if wanted in str(node.target) and (trace := node.meta.get("stack_trace")):
            frames = [frame for frame in _FRAME.findall(trace) if not foreign_file(frame[0])]
            if frames:
                file, line = frames[-1]
                return f"{file.rpartition('/')[2]}:{line}"
    return "in code that torch does not name"


def reason(err: BaseException) -> str:
    """The error on one line: ``TypeError: its message (file.py:12)``."""
    said = (str(err).strip() or "no reason given").splitlines()[0][:300]
    return f"{type(err).__name__}: {said} ({place(err)})"


def place(err: BaseException) -> str:
    """File and line of the innermost frame of code that is neither ours nor torch's."""
    frames = traceback.extract_tb(err.__traceback__)
    theirs = [frame for frame in frames if not foreign_file(frame.filename)]
    frame = (theirs or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def is_of_user_code(err: BaseException) -> bool:
    """Whether the error passed through a file of the user's own, not only through packages."""
    return any(
        not foreign_file(frame.filename) and "site-packages" not in frame.filename
        for frame in traceback.extract_tb(err.__traceback__)
    )


def foreign_file(name: str) -> bool:
    """Whether a file is ours, torch's or Python's, not the user's."""
    parts = ("/torch/", "/mambapose/", "<frozen", "/importlib/", str(Path(__file__).parents[1]))
    of_python = name.startswith(_PYTHON) and "site-packages" not in name
    return of_python or any(part in name for part in parts)
