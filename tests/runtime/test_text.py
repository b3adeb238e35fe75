from __future__ import annotations

import sys
import unicodedata

import pytest

from mambapose.runtime.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("a bundle", "a bundle"),
        ("C:\\new", "C:\\new"),  # a backslash is an ordinary character
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("ok\nmp-check: all checks passed", r"ok\x0amp-check: all checks passed"),
        ("a\rb\tc\x00\x7f", r"a\x0db\x09c\x00\x7f"),
        ("\x9b2J", r"\x9b2J"),  # the one-byte form of ESC [
        ("gpj\u202eexe.mp4", r"gpj\u202eexe.mp4"),
        ("\u2066a\u2069\u200e", r"\u2066a\u2069\u200e"),
        ("a\u200bb\ufeff", r"a\u200bb\ufeff"),
        ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
        ("caf\udcc3", r"caf\udcc3"),  # a file name that is not UTF-8
        ("\U000e0041", r"\U000e0041"),  # an invisible tag
        ("Müller 走る नमस्ते ②", "Müller 走る नमस्ते ②"),
        ("👩\u200d🚀", "👩\u200d🚀"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_every_character_comes_out_on_one_line_in_any_unicode_encoding() -> None:
    for code in range(sys.maxunicode + 1):
        shown = printable(chr(code))
        shown.encode()
        assert len(shown.splitlines()) <= 1
        assert all(unicodedata.category(one) not in ("Cc", "Cs") for one in shown)
