"""Text that somebody else wrote, made safe to print."""

from __future__ import annotations

import unicodedata

# Control characters (a terminal obeys them), format characters (they reverse or hide what is
# read), surrogates (no encoding takes them), line and paragraph separators (a second line).
_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Joiners are format characters that scripts and emoji need; they neither hide nor reorder text.
_KEPT = frozenset("\u200c\u200d")


def printable(text: str) -> str:
    r"""``text`` on one line, with every character escaped that a terminal would obey.

    Escaped are control characters, newlines and tabs among them, marks of writing direction,
    invisible format characters, line separators and lone surrogates: ``\x1b``, ``\u202e``,
    ``\udcff``. Everything else stays as it is, backslashes too, so the result is to be read, not
    to be decoded.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(one) if _obeyed(one) else one for one in text)


def _obeyed(one: str) -> bool:
    return unicodedata.category(one) in _ESCAPED and one not in _KEPT


def _escaped(one: str) -> str:
    code = ord(one)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
