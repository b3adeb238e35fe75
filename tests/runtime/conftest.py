"""What tests of the runtime share."""

from __future__ import annotations

import pytest

from mambapose.runtime.people import one_person, tracking
from mambapose.runtime.people.tracking import full_frame


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """One person fills the frame: nobody is searched for, so every frame is one crop, and the next
    box is exactly that of its joints."""
    monkeypatch.setattr(one_person, "found_box", lambda last, size, look: full_frame(size))
    monkeypatch.setattr(one_person, "CHECK_EVERY", 1 << 30)
    monkeypatch.setattr(tracking, "INWARD", 1.0)
