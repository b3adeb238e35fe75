"""Progress reports: a bar on a terminal, rare lines in a log, silence on request."""

from __future__ import annotations

import io
import re

import pytest

from mambapose.runtime.progress import Progress, duration_text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that goes as far as it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(stream: io.StringIO, total: int | None, steps: int, **options: bool) -> str:
    """Text reported over steps that take half a second each."""
    clock = Clock()
    with Progress(total, "frames", stream=stream, clock=clock, **options) as progress:
        for _ in range(steps):
            clock.now += 0.5
            progress.step()
        assert progress.done == steps
    return stream.getvalue()


def test_log_gets_one_line_in_ten_seconds_and_one_at_the_end() -> None:
    lines = run(io.StringIO(), 100, 100).splitlines()
    assert lines[0] == "frames: 20 of 100, 2.0 per second, about 40 s left"
    assert lines[-1] == "frames: 100 of 100, 2.0 per second"
    assert len(lines) == 6


def test_the_end_of_a_run_that_was_shorter_than_promised_leaves_nothing_to_wait_for() -> None:
    assert run(io.StringIO(), 10, 4).splitlines()[-1] == "frames: 4 of 10, 2.0 per second"


def test_log_without_a_total() -> None:
    assert run(io.StringIO(), None, 3) == "frames: 3, 2.0 per second\n"


def test_terminal_shows_a_bar_and_leaves_a_fresh_line() -> None:
    text = run(Terminal(), 10, 10)
    assert re.search(r"frames .*5/10", text)
    assert "10/10" in text
    assert text.endswith("\n")
    # The cursor click hides must be back.
    assert text.count("\x1b[?25h") >= 1


def test_terminal_bar_survives_more_frames_than_promised() -> None:
    assert run(Terminal(), 5, 8).endswith("\n")


def test_terminal_without_a_total_counts_on_one_line() -> None:
    text = run(Terminal(), None, 4)
    assert text.count("\n") == 1
    assert "\rframes: 3, 2.0 per second" in text


def test_bar_ends_when_the_run_breaks() -> None:
    stream = Terminal()

    def break_off() -> None:
        with Progress(10, stream=stream) as progress:
            progress.step()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert stream.getvalue().endswith("\n")


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_quiet_says_nothing(stream: io.StringIO) -> None:
    assert run(stream, 100, 100, quiet=True) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
