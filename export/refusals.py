"""Why torch could not export a network, in one sentence with the line of its code."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NO_FORM = re.compile(r"No ONNX function found for <OpOverload\(op='([\w.]+)'")
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
    return None


def _chain(err: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = err
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__


def _place_of(operator: str, program: Any) -> str:
    """File and line of the call; decomposed operators have an underscore more."""
    wanted = operator.rpartition(".")[2].lstrip("_")
    for node in () if program is None else program.graph.nodes:
        if wanted in str(node.target) and (trace := node.meta.get("stack_trace")):
            frames = [frame for frame in _FRAME.findall(trace) if not foreign_file(frame[0])]
            if frames:
                file, line = frames[-1]
                return f"{file.rpartition('/')[2]}:{line}"
    return "in code that torch does not name"


def reason(err: BaseException) -> str:
    """``TypeError: what it says (file.py:12)``, one line."""
    said = (str(err).strip() or "no reason given").splitlines()[0][:300]
    return f"{type(err).__name__}: {said} ({place(err)})"


def place(err: BaseException) -> str:
    """File and line of the innermost frame of code that is neither ours nor torch's."""
    frames = traceback.extract_tb(err.__traceback__)
    theirs = [frame for frame in frames if not foreign_file(frame.filename)]
    frame = (theirs or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def foreign_file(name: str) -> bool:
    """Whether a file is ours, torch's or Python's, not the user's."""
    parts = ("/torch/", "/mambapose/", "<frozen", "/importlib/", str(Path(__file__).parent))
    return any(part in name for part in parts)
