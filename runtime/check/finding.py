"""One line of the report of ``mp-check``."""

from __future__ import annotations

from dataclasses import dataclass

from mambapose.runtime.text import printable


@dataclass(frozen=True)
class Finding:
    """One line of the report. ok: True for proved, False for failed, None for a mere statement.

    subject and text may hold what somebody else wrote; as text the finding is safe to print.
    """

    subject: str
    text: str
    ok: bool | None = None

    def __str__(self) -> str:
        mark = {True: "ok", False: "FAIL", None: ""}[self.ok]
        return printable(f"{mark:4} {self.subject:16} {self.text}")
