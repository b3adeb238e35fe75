"""One line of the report of ``mp-check``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One line of the report. ok: True for proved, False for failed, None for a mere statement."""

    subject: str
    text: str
    ok: bool | None = None

    def __str__(self) -> str:
        mark = {True: "ok", False: "FAIL", None: ""}[self.ok]
        return f"{mark:4} {self.subject:16} {self.text}"
